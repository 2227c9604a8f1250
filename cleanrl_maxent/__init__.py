"""Maximum-entropy reinforcement learning in JAX: one self-contained file per algorithm."""

from cleanrl_maxent import environments as environments

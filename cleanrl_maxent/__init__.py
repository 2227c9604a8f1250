"""Maximum-entropy reinforcement learning in JAX: one self-contained file per algorithm."""

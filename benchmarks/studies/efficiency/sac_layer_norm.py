"""Soft Actor-Critic with layer normalisation in its critics.

Ba et al., "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450.

    python benchmarks/studies/efficiency/sac_layer_norm.py --env-id Hopper-v4
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from benchmarks.studies.variants import train_with
from cleanrl_maxent import sac
from cleanrl_maxent.common.cli import run_from_command_line
from cleanrl_maxent.sac import act, init, policy, sample_action  # noqa: F401, for enjoy


@dataclass(frozen=True)
class Args(sac.Args):
    """Soft Actor-Critic with layer normalisation in its critics."""


class Critic(sac.Critic):
    """Q_θ(s, a), `(...)`; each hidden layer is normalised before its ReLU."""

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for dim in self.hidden_dims:
            x = nn.relu(nn.LayerNorm()(sac.linear(x, dim)))
        return sac.linear(x, 1).squeeze(-1)


def train(args):
    """`sac.train` with these critics."""
    return train_with(sac, args, Critic=Critic)


if __name__ == "__main__":
    run_from_command_line(Args, train)

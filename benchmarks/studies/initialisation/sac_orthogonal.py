"""Soft Actor-Critic with orthogonal initial weights, and zero biases.

Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014,
https://arxiv.org/abs/1312.6120. The gain is 1.

    python benchmarks/studies/initialisation/sac_orthogonal.py --env-id Hopper-v4
"""

from dataclasses import dataclass

import flax.linen as nn

from benchmarks.studies.variants import train_with
from cleanrl_maxent import sac
from cleanrl_maxent.common.cli import run_from_command_line
from cleanrl_maxent.sac import act, init, policy, sample_action  # noqa: F401, for enjoy


@dataclass(frozen=True)
class Args(sac.Args):
    """Soft Actor-Critic with orthogonal initial weights, and zero biases."""


def linear(x, features):
    """Dense layer; weights are initialised orthogonally, biases with 0."""
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal())(x)


def train(args):
    """`sac.train` with these layers."""
    return train_with(sac, args, linear=linear)


if __name__ == "__main__":
    run_from_command_line(Args, train)

"""Soft Actor-Critic with PyTorch's initial weights and biases.

Both from U(±1/√fan_in), as in `torch.nn.Linear`, CleanRL and Stable-Baselines3.

    python benchmarks/studies/initialisation/sac_uniform.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
from jax.tree_util import Partial

from benchmarks.studies.variants import train_with
from cleanrl_maxent import sac
from cleanrl_maxent.common.cli import run_from_command_line
from cleanrl_maxent.sac import act, init, policy, sample_action  # noqa: F401, for enjoy


@dataclass(frozen=True)
class Args(sac.Args):
    """Soft Actor-Critic with PyTorch's initial weights and biases."""


def linear(x, features):
    """Dense layer; weights and biases are initialised from U(±1/√fan_in)."""
    bound = 1 / math.sqrt(x.shape[-1])
    uniform = Partial(jax.random.uniform, minval=-bound, maxval=bound)
    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)(x)


def train(args):
    """`sac.train` with these layers."""
    return train_with(sac, args, linear=linear)


if __name__ == "__main__":
    run_from_command_line(Args, train)

"""Soft Actor-Critic with two updates per step of the environment.

python benchmarks/studies/efficiency/sac_two_updates.py --env-id Hopper-v4
"""

from dataclasses import dataclass

import jax

from cleanrl_maxent import sac
from cleanrl_maxent.common.cli import run_from_command_line
from cleanrl_maxent.common.ranges import Count

update_once = sac.update


@dataclass(frozen=True)
class Args(sac.Args):
    """Soft Actor-Critic with two updates per step of the environment."""

    batch_size: Count = 512  # transitions for both updates, each of which takes a half


def update(state, batch, key, index, args):
    """Two steps of Soft Actor-Critic, one after the other; metrics are those of the second."""
    half, keys = args.batch_size // 2, jax.random.split(key)
    state, _ = update_once(state, jax.tree.map(lambda rows: rows[:half], batch), keys[0], index, args)
    return update_once(state, jax.tree.map(lambda rows: rows[half:], batch), keys[1], index, args)


def train(args):
    """`sac.train` with these updates."""
    sac.update = update
    return sac.train(args)


if __name__ == "__main__":
    run_from_command_line(Args, train)

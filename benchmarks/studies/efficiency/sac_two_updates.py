"""Soft Actor-Critic with two updates per step of the environment.

Each takes half of the step's batch.

    python benchmarks/studies/efficiency/sac_two_updates.py --env-id Hopper-v4
"""

from dataclasses import dataclass

import jax

from benchmarks.studies.variants import train_with
from cleanrl_maxent import sac
from cleanrl_maxent.common.cli import run_from_command_line
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.ranges import Count
from cleanrl_maxent.sac import act, init, policy, sample_action  # noqa: F401, for enjoy

update_once = sac.update


@dataclass(frozen=True)
class Args(sac.Args):
    """Soft Actor-Critic with two updates per step of the environment."""

    batch_size: Count = 512  # transitions for both updates, each of which takes a half

    def check(self):
        super().check()
        require(self.batch_size % 2 == 0, f"batch_size must be even; got {self.batch_size}")


def update(state, batch, key, index, args):
    """Two steps of Soft Actor-Critic, one after the other; returns the metrics of the second."""
    half, keys = args.batch_size // 2, jax.random.split(key)
    state, _ = update_once(state, jax.tree.map(lambda rows: rows[:half], batch), keys[0], index, args)
    return update_once(state, jax.tree.map(lambda rows: rows[half:], batch), keys[1], index, args)


def train(args):
    """`sac.train` with these updates."""
    return train_with(sac, args, update=update)


if __name__ == "__main__":
    run_from_command_line(Args, train)

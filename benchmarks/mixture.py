"""Soft Q-learning with a soft value from other proposals: half uniform, half near the sampler's own actions.

    python benchmarks/mixture.py --env-id HalfCheetah-v4 --total-timesteps 100000

Flags are those of cleanrl_maxent/sql.py; docs/sql.md has what came of it.
"""

from dataclasses import dataclass
from typing import Literal
from unittest import mock

import jax
from particles import mixture_value, target_energy

from cleanrl_maxent import sql
from cleanrl_maxent.common.arguments import UsageError, run_from_command_line


@dataclass(frozen=True)
class Args(sql.Args):
    """Soft Q-learning with a mixture of proposals."""

    exp_name: str = "sql-mixture"  # part of the run folder's name
    value_proposals: Literal["mixture"] = "mixture"  # recorded, so that sql.py does not go on with the run


def soft_value(state, obs, action_dim, key, args):
    """V(s) of the targets, `(batch,)`, as `sql.soft_value`; the Gaussian is fitted to as many samples of the
    sampler as there are proposals.
    """
    samples_key, key = jax.random.split(key)
    samples = sql.sample(state.actor.params, sql.repeat(obs, args.value_particles), samples_key)
    energy = target_energy(state, obs, args)
    return args.alpha * mixture_value(energy, samples, key, args.value_particles)


def train(args):
    """`sql.train` with this soft value. Raises UsageError for an odd number of proposals, too."""
    if args.value_particles % 2:
        raise UsageError(f"value_particles must be even, half of each kind; got {args.value_particles}")
    with mock.patch.object(sql, "soft_value", soft_value):
        return sql.train(args)


if __name__ == "__main__":
    run_from_command_line(Args, train)

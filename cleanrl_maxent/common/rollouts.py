"""Rollouts: a fixed number of steps of several environments per seed."""

from typing import Any

import jax
import numpy as np

from cleanrl_maxent.common.data import Transition, transition_bytes
from cleanrl_maxent.common.devices import check_memory


def check_rollouts(num_seeds: int, steps: int, example: Transition, flags: str) -> None:
    """Raises UsageError, with the advice to lower `flags`, unless memory holds a rollout of every seed.

    `steps`: steps of one seed's rollout, which is counted twice, on the host and on the device.
    """
    needed = 2 * num_seeds * steps * transition_bytes(example)
    check_memory(needed, f"rollout of {num_seeds} x {steps} steps", flags, num_seeds)


def split_seeds(rows: Any, num_seeds: int) -> Any:
    """Splits the leading axis of every leaf: `(seed · env, ...)` becomes `(seed, env, ...)`."""
    return jax.tree.map(lambda x: x.reshape(num_seeds, -1, *x.shape[1:]), rows)


def stack_steps(steps: list[Any], num_seeds: int) -> Any:
    """Stacks the steps of a rollout: leaves `(seed · env, ...)` become `(seed, step, env, ...)`."""
    stacked = jax.tree.map(lambda *rows: np.stack(rows, axis=1), *steps)
    return jax.tree.map(lambda x: x.swapaxes(1, 2), split_seeds(stacked, num_seeds))

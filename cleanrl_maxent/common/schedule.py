"""Every k-th update: decided on the host where its number is known there, else on the device."""

import math
from collections.abc import Callable
from typing import Any

import jax


def every(frequency: int, index: int | jax.Array, change: Callable, state: Any, *inputs) -> tuple[Any, dict]:
    """`change(state, *inputs)` if `frequency` divides the update's number `index`, else `state` and {}.

    `change` returns a state and metrics. If JAX traces `index`, the device decides; its two branches must
    return the same things, which are the state alone, without metrics.
    """
    if frequency == 1:
        return change(state, *inputs)
    if isinstance(index, int):
        return change(state, *inputs) if index % frequency == 0 else (state, {})
    return jax.lax.cond(index % frequency == 0, lambda s: change(s, *inputs)[0], lambda s: s, state), {}


def representative(index: int, *frequencies: int) -> int:
    """One number for all updates that the same `frequencies` divide as `index`: they share one program."""
    return math.lcm(*(frequency for frequency in frequencies if index % frequency == 0))

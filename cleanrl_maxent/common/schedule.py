"""Every k-th update: decided on the host if the update's number is known there, else on the device."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cleanrl_maxent.common.errors import require


class EquivalentIndex(int):
    """Stands for an update's number if all that matters is which of its `frequencies` divide it."""

    frequencies: tuple[int, ...] = ()


def every(frequency: int, index: int | jax.Array, change: Callable, state: Any, *inputs) -> tuple[Any, dict]:
    """Applies `change(state, *inputs)` in every `frequency`-th update; returns a state and metrics.

    `index`: the update's number, from 0. If `frequency` does not divide it, `state` comes back unchanged,
    without metrics. A Python integer is tested at compile time. A traced `index` is tested on
    the device, where both branches must return the same pytree, so metrics are dropped then, unless
    `frequency` is 1. Raises UsageError for an `equivalent_index` of other frequencies.
    """
    if frequency == 1:
        return change(state, *inputs)
    known = not isinstance(index, EquivalentIndex) or frequency in index.frequencies
    name = getattr(change, "__name__", "a step")
    require(known, f"{name} is due every {frequency} updates: give that frequency to equivalent_index too")
    if isinstance(index, int | np.integer):
        return change(state, *inputs) if index % frequency == 0 else (state, {})
    return jax.lax.cond(index % frequency == 0, lambda s: change(s, *inputs)[0], lambda s: s, state), {}


def equivalent_index(index: int, *frequencies: int) -> EquivalentIndex:
    """The smallest positive number that is divisible by the same `frequencies` as `index`.

    An update with this number does what update `index` does. `jax.jit` compiles a program for each value of a
    static argument; with this number, it compiles one per kind of update, not one per update.
    """
    number = EquivalentIndex(math.lcm(*(frequency for frequency in frequencies if index % frequency == 0)))
    number.frequencies = frequencies
    return number

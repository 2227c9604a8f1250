"""Transitions, and a ring of them that lives on the device."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Transition:
    """One step of the environment, or a batch of them; everything float32.

    `obs`, `next_obs`: `(..., obs_dim)`. `action`: `(..., action_dim)`, in [-1, 1].
    `reward`: `(...)`. `terminated`: `(...)`, 1 where the MDP ended; a time limit leaves 0.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array
    terminated: jax.Array


@struct.dataclass
class Replay:
    """Ring of transitions of one seed: `rows` has leading axis `(slot,)`.

    Transition `i` of a run lies in slot `i % capacity`, so the count of transitions, which all seeds
    share, is all there is to know about it.
    """

    rows: Transition

    @classmethod
    def create(cls, capacity: int, obs_dim: int, action_dim: int) -> "Replay":
        """An empty ring of `capacity` slots."""
        obs, scalar = jnp.zeros((capacity, obs_dim)), jnp.zeros(capacity)
        return cls(Transition(obs, jnp.zeros((capacity, action_dim)), scalar, obs, scalar))

    @property
    def capacity(self) -> int:
        return self.rows.reward.shape[-1]

    def store(self, transition: Transition, index: int | jax.Array) -> "Replay":
        """The ring with transition number `index` (from 0) in its slot; or several, at most `capacity`."""
        slot = index % self.capacity
        return Replay(jax.tree.map(lambda row, new: row.at[slot].set(new), self.rows, transition))

    def sample(self, key: jax.Array, batch_size: int, count: int | jax.Array) -> Transition:
        """`batch_size` rows, uniform with replacement, of the last `min(count, capacity)` stored.

        `count`: transitions stored so far, >= 1. The key is consumed.
        """
        rows = jax.random.randint(key, (batch_size,), 0, jnp.minimum(count, self.capacity))
        return jax.tree.map(lambda row: row[rows], self.rows)


class Segment(NamedTuple):
    """Transitions `start` … `stop` - 1 of a run, on disk; `load` gives them, axes `(seed, transition)`."""

    start: int
    stop: int
    load: Callable[[], Transition]


def refill(replay: Replay, segments: list[Segment], steps: int) -> Replay:
    """The rings after `steps` steps: all that they kept but the last transition, which is in flight.

    The arrays of `replay`, leading axis `(seed,)`, are consumed.
    """
    store = jax.jit(jax.vmap(Replay.store, (0, 0, None)), donate_argnums=0)
    stored = steps - 1
    for start, stop, load in segments:
        index = np.arange(max(start, stored - replay.capacity), min(stop, stored))
        if index.size:
            transitions = jax.tree.map(lambda leaf, rows=index - start: leaf[:, rows], load())
            replay = store(replay, transitions, index)
    return replay


def replay_bytes(num_seeds: int, capacity: int, obs_dim: int, action_dim: int) -> int:
    """Bytes of the rings of `num_seeds` seeds."""
    return 4 * num_seeds * capacity * (2 * obs_dim + action_dim + 2)

"""Transitions, a ring buffer of them on the device, and running statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cleanrl_maxent.common.devices import check_memory, seed_sharding

Array = jax.Array | np.ndarray  # on the device, or on the host


@struct.dataclass
class Transition:
    """One step of the environment, or a batch of them; float32 except for discrete actions.

    `obs`, `next_obs`: `(..., obs_dim)`. `action`: `(..., action_dim)`, ±1 at the bounds; or `(...)`, int32,
    the number of a discrete action. `reward`: `(...)`. `terminated`: `(...)`, 1 if the MDP ended, 0 at a time
    limit. `truncated`: `(...)`, 1 at a time limit; None if unused.
    """

    obs: Array
    action: Array
    reward: Array
    next_obs: Array
    terminated: Array
    truncated: Array | None = None


@struct.dataclass
class Replay:
    """Ring buffer of one seed's transitions: `rows` has leading axis `(slot,)`.

    Transition `i` of a run is in slot `i % capacity`, so the only other state is the number of transitions,
    which all seeds share.
    """

    rows: Transition

    @classmethod
    def create(cls, capacity: int, example: Transition) -> "Replay":
        """An empty ring of `capacity` slots for transitions of the shapes and dtypes of `example`."""
        return cls(jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), x.dtype), example))

    @property
    def capacity(self) -> int:
        return self.rows.reward.shape[-1]

    def store(self, transition: Transition, index: int | Array) -> "Replay":
        """The ring with transition number `index` (from 0) in its slot; or several, at most `capacity`."""
        slot = index % self.capacity
        return Replay(jax.tree.map(lambda row, new: row.at[slot].set(new), self.rows, transition))

    def sample(self, key: jax.Array, size: int, count: int | jax.Array) -> Transition:
        """`size` rows, uniform with replacement, of the last `min(count, capacity)` stored.

        `count`: transitions stored so far, >= 1. The key is consumed.
        """
        rows = jax.random.randint(key, (size,), 0, jnp.minimum(count, self.capacity))
        return jax.tree.map(lambda row: row[rows], self.rows)

    def sample_sequences(self, key: jax.Array, size: int, count: int | jax.Array, length: int) -> Transition:
        """`size` sequences of `length` transitions in the order of storing, `(size, length, ...)`.

        Starts are uniform, with replacement, where `length` transitions are left; an episode may end within
        a sequence. `count`: transitions stored so far, >= `length`. The key is consumed.
        """
        stored = jnp.minimum(count, self.capacity)
        first = count - stored + jax.random.randint(key, (size,), 0, stored - length + 1)
        slots = (first[:, None] + jnp.arange(length)) % self.capacity
        return jax.tree.map(lambda row: row[slots], self.rows)


def transition_bytes(example: Transition) -> int:
    """Bytes of one transition."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(example))


def create_replays(num_seeds: int, capacity: int, example: Transition, flags: str) -> Replay:
    """An empty ring for each seed, leading axis `(seed,)`, sharded over the devices like the seeds.

    Raises UsageError, with the advice to lower `flags`, if they do not fit into memory.
    """
    needed = num_seeds * capacity * transition_bytes(example)
    check_memory(needed, f"replay of {num_seeds} x {capacity} transitions", flags, num_seeds)
    create = jax.vmap(lambda _: Replay.create(capacity, example), axis_size=num_seeds)
    return jax.jit(create, out_shardings=seed_sharding(num_seeds))(None)


def store(replays: Replay, transitions: Transition, index: int | np.ndarray) -> Replay:
    """`Replay.store` for every seed; leaves lead with `(seed,)`. The arrays of `replays` are consumed.

    Transitions go to the device as one array: every transfer to a GPU takes time, however small.
    """
    fields = zip(jax.tree.leaves(transitions), jax.tree.leaves(replays.rows), strict=True)
    rows = [np.ascontiguousarray(field, row.dtype).view(np.uint32) for field, row in fields]
    leading = np.shape(transitions.reward)
    packed = np.concatenate([row.reshape(*leading, -1) for row in rows], axis=-1)
    return store_packed(replays, packed, index)


@partial(jax.jit, donate_argnums=0)
def store_packed(replays: Replay, packed: Array, index: int | Array) -> Replay:
    """`store` for transitions packed as uint32, `(seed, ..., words)`."""

    def store_seed(replay: Replay, words: Array) -> Replay:
        rows, structure = jax.tree.flatten(replay.rows)
        ends = np.cumsum([row[0].size for row in rows])
        fields = [
            jax.lax.bitcast_convert_type(bits, row.dtype).reshape(*words.shape[:-1], *row.shape[1:])
            for row, bits in zip(rows, jnp.split(words, ends[:-1], axis=-1), strict=True)
        ]
        return replay.store(structure.unflatten(fields), index)

    return jax.vmap(store_seed)(replays, packed)


@struct.dataclass
class Statistics:
    """Mean and variance of the rows so far, and their number; 0, 1 and 0 before the first."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array

    @classmethod
    def create(cls, shape: tuple[int, ...] = ()) -> "Statistics":
        """Statistics of no rows; `shape` is that of one row."""
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))

    def add(self, rows: jax.Array) -> "Statistics":
        """These statistics with `rows`, `(n, *shape)`, included (Chan et al. 1979)."""
        count, total = self.count, self.count + len(rows)
        difference = rows.mean(axis=0) - self.mean
        squares = count * self.var + len(rows) * rows.var(axis=0)
        squares += difference**2 * count * len(rows) / total
        mean = self.mean + difference * len(rows) / total
        return Statistics(mean=mean, var=squares / total, count=total)

    def normalize(self, rows: jax.Array, largest: float) -> jax.Array:
        """Rows minus mean, over std, clipped to ±`largest`; unchanged until there are statistics."""
        scaled = jnp.clip((rows - self.mean) / jnp.sqrt(self.var + 1e-8), -largest, largest)
        return jnp.where(self.count > 0, scaled, rows)


@struct.dataclass
class DiscountedReturns:
    """The discounted return so far in each environment, `running` `(env,)`, and its statistics."""

    running: jax.Array
    statistics: Statistics

    @classmethod
    def create(cls, count: int) -> "DiscountedReturns":
        """Zero returns, for `count` environments."""
        return cls(jnp.zeros(count), Statistics.create())

    @property
    def std(self) -> jax.Array:
        """Standard deviation over the steps so far, in reward units, at least a hundredth of the mean."""
        mean, var = self.statistics.mean, self.statistics.var
        return jnp.sqrt(jnp.maximum(var, 1e-4 * mean**2) + 1e-8)

    def add(self, reward: Array, ended: Array, elapsed: Array, discount: float) -> "DiscountedReturns":
        """These returns, updated with a rollout; each array is `(step, env)`.

        `ended`: 1 if an episode ended with that step. `elapsed`: steps of the episode before it.
        """
        begins = elapsed[0] == 0  # also if a resumed run begins new episodes

        def step(running, row):
            reward, ended = row
            running = discount * running + reward
            return running * (1 - ended), running

        running, returns = jax.lax.scan(step, jnp.where(begins, 0, self.running), (reward, ended))
        return DiscountedReturns(running, self.statistics.add(returns.ravel()))

"""The ring: what is stored where, what is sampled, and that nothing copies it."""

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.replay import Replay, Transition, replay_bytes


def numbered(i):
    return Transition(jnp.full(2, i), jnp.full(1, i), jnp.float32(i), jnp.full(2, i + 0.5), jnp.float32(0))


def test_ring_wraps():
    replay = Replay.create(4, 2, 1)
    for i in range(6):
        replay = replay.store(numbered(i), i)
    assert replay.rows.reward.tolist() == [4, 5, 2, 3]
    assert replay.rows.next_obs[:, 1].tolist() == [4.5, 5.5, 2.5, 3.5]


def test_samples_only_what_is_stored_and_all_of_it():
    replay = Replay.create(10, 2, 1)
    for i in range(3):
        replay = replay.store(numbered(i + 1), i)
    batch = replay.sample(jax.random.key(0), 3000, 3)
    values, counts = np.unique(batch.reward, return_counts=True)
    assert values.tolist() == [1, 2, 3] and counts.min() > 900
    assert np.array_equal(batch.next_obs[:, 0], batch.reward + 0.5)


def test_seeds_draw_different_rows():
    replay = Replay.create(1000, 1, 1)
    replay = Replay(replay.rows.replace(reward=jnp.arange(1000.0)))
    first, second = (replay.sample(jax.random.key(seed), 256, 1000).reward for seed in (0, 1))
    assert (first == second).mean() < 0.05


def test_bytes():
    leaves = jax.tree.leaves(Replay.create(7, 3, 2))
    assert replay_bytes(5, 7, 3, 2) == 5 * sum(leaf.nbytes for leaf in leaves)


def test_storing_copies_no_ring():
    """The donated ring is written in place: the program's own memory is far smaller than the ring."""
    capacity = 100_000
    replay = jax.vmap(lambda _: Replay.create(capacity, 11, 3))(jnp.arange(2))
    row = jax.tree.map(lambda leaf: leaf[:, 0], replay.rows)
    store = jax.jit(jax.vmap(Replay.store, (0, 0, None)), donate_argnums=0)
    memory = store.lower(replay, row, 0).compile().memory_analysis()
    assert memory.temp_size_in_bytes < replay_bytes(2, capacity, 11, 3) / 100
    assert memory.alias_size_in_bytes >= replay_bytes(2, capacity, 11, 3)

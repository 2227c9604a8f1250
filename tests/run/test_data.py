"""The ring: what is stored where, what is sampled, and that nothing copies it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent.common import devices
from cleanrl_maxent.common.data import (
    DiscountedReturns,
    Replay,
    Statistics,
    Transition,
    create_replays,
    store,
    store_packed,
    transition_bytes,
)
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError


def example(obs_dim, action_dim):
    """A transition of zeros."""
    obs, scalar = np.zeros(obs_dim, np.float32), np.float32(0)
    return Transition(obs, np.zeros(action_dim, np.float32), scalar, obs, scalar)


def numbered(i):
    return Transition(jnp.full(2, i), jnp.full(1, i), jnp.float32(i), jnp.full(2, i + 0.5), jnp.float32(0))


def test_ring_wraps():
    replay = Replay.create(4, example(2, 1))
    for i in range(6):
        replay = replay.store(numbered(i), i)
    assert replay.rows.reward.tolist() == [4, 5, 2, 3]
    assert replay.rows.next_obs[:, 1].tolist() == [4.5, 5.5, 2.5, 3.5]


def test_samples_only_what_is_stored_and_all_of_it():
    replay = Replay.create(10, example(2, 1))
    for i in range(3):
        replay = replay.store(numbered(i + 1), i)
    batch = replay.sample(jax.random.key(0), 3000, 3)
    values, counts = np.unique(batch.reward, return_counts=True)
    assert values.tolist() == [1, 2, 3] and counts.min() > 900
    assert np.array_equal(batch.next_obs[:, 0], batch.reward + 0.5)


def test_samples_of_a_full_ring_are_uniform():
    """However many transitions have been stored, each that is there is as likely as another."""
    replay = Replay.create(4, example(2, 1))
    for i in range(10):
        replay = replay.store(numbered(i), i)
    values, counts = np.unique(replay.sample(jax.random.key(0), 4000, 10).reward, return_counts=True)
    assert values.tolist() == [6, 7, 8, 9] and counts.min() > 850


@pytest.mark.parametrize(("count", "first"), [(3, 0), (5, 0), (10, 0), (13, 3), (20, 10)])
def test_sequences_are_runs_of_consecutive_transitions(count, first):
    """Every one that is there, equally often; none goes over the head of a ring that is full."""
    replay = Replay.create(10, example(2, 1))
    for i in range(count):
        replay = replay.store(numbered(i), i)
    sample = jax.jit(Replay.sample_sequences, static_argnums=(2, 4))
    runs = sample(replay, jax.random.key(0), 3000, jnp.int32(count), 3)
    assert runs.obs.shape == (3000, 3, 2) and runs.reward.shape == (3000, 3)
    assert (np.diff(runs.reward, axis=1) == 1).all()
    assert np.array_equal(runs.next_obs[..., 0], runs.reward + 0.5)
    values, counts = np.unique(runs.reward[:, 0], return_counts=True)
    assert values.tolist() == list(range(first, count - 2))
    expected = 3000 / len(values)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_sequences_of_one_are_single_transitions():
    """And those as long as the ring are the whole of it, oldest first."""
    replay = Replay.create(4, example(2, 1))
    for i in range(6):
        replay = replay.store(numbered(i), i)
    single = replay.sample_sequences(jax.random.key(0), 200, 6, 1)
    assert single.reward.shape == (200, 1) and set(np.ravel(single.reward)) == {2, 3, 4, 5}
    assert replay.sample_sequences(jax.random.key(0), 2, 6, 4).reward.tolist() == [[2, 3, 4, 5]] * 2


def test_seeds_draw_different_rows():
    replay = Replay.create(1000, example(1, 1))
    replay = Replay(replay.rows.replace(reward=jnp.arange(1000.0)))
    first, second = (replay.sample(jax.random.key(seed), 256, 1000).reward for seed in (0, 1))
    assert (first == second).mean() < 0.05


def test_rings_have_the_shapes_and_dtypes_of_the_example():
    """Discrete actions are numbers."""
    obs = np.zeros(3, np.float32)
    rows = Replay.create(7, Transition(obs, np.int32(0), np.float32(0), obs, np.float32(0))).rows
    assert rows.obs.shape == (7, 3) and rows.action.shape == rows.reward.shape == (7,)
    assert rows.action.dtype == jnp.int32 and rows.reward.dtype == jnp.float32


def test_bytes(monkeypatch):
    """What the rings of five seeds take is what is asked for, and they are refused where it is not there."""
    leaves = jax.tree.leaves(create_replays(5, 7, example(3, 2), "--buffer-size"))
    needed = 5 * 7 * transition_bytes(example(3, 2))
    assert needed == sum(leaf.nbytes for leaf in leaves) and all(leaf.shape[:2] == (5, 7) for leaf in leaves)
    monkeypatch.setattr(devices, "available_memory", lambda: needed)
    with pytest.raises(UsageError, match=r"replay of 5 x 7 transitions needs 0.0 GB.*lower --buffer-size"):
        create_replays(5, 7, example(3, 2), "--buffer-size")


def test_each_seed_stores_in_its_own_ring():
    """One transition or several, in the slots of their numbers."""
    replays = create_replays(2, 4, example(2, 1), "")
    pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), numbered(1), numbered(11))
    replays = store(replays, pair, 5)
    three = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(numbered, (k, k + 1, k + 2))) for k in (2, 12)
    ]
    replays = store(replays, jax.tree.map(lambda *leaves: jnp.stack(leaves), *three), jnp.arange(6, 9))
    assert replays.rows.reward.tolist() == [[4, 1, 2, 3], [14, 11, 12, 13]]


@pytest.mark.parametrize("discrete", [False, True])
def test_every_field_is_stored_to_the_bit(discrete):
    task = Task(3, 5, discrete)
    rng = np.random.default_rng(0)
    stored = jax.tree.map(lambda x: rng.normal(0, 9, (2, *x.shape)).astype(x.dtype), task.example)
    stored.obs[0] = [np.nan, -0.0, 1e-45]  # the smallest float32, which a sum would make 0
    replays = store(create_replays(2, 4, task.example, ""), stored, 2)
    for field, rows in zip(*map(jax.tree.leaves, (stored, replays.rows)), strict=True):
        assert np.asarray(rows[:, 2]).tobytes() == field.tobytes()
        assert not np.asarray(rows[:, [0, 1, 3]]).any()


def test_storing_copies_no_ring():
    """The donated rings are written in place: the program's own memory is far smaller than they are."""
    capacity, one = 100_000, example(11, 3)
    replays = create_replays(2, capacity, one, "")
    packed = np.zeros((2, transition_bytes(one) // 4), np.uint32)
    memory = store_packed.lower(replays, packed, 0).compile().memory_analysis()
    needed = 2 * capacity * transition_bytes(one)
    assert memory.temp_size_in_bytes < needed / 100
    assert memory.alias_size_in_bytes >= needed


def test_statistics_are_those_of_all_rows():
    """In pieces of unequal length, against NumPy on the whole."""
    rows = np.random.default_rng(0).normal(3, 2, (40, 3)).astype(np.float32)
    statistics = Statistics.create((3,))
    assert (statistics.mean == 0).all() and (statistics.var == 1).all() and statistics.count == 0
    for piece in np.split(rows, [1, 8, 30]):
        statistics = statistics.add(jnp.asarray(piece))
    assert statistics.count == 40
    assert np.allclose(statistics.mean, rows.mean(axis=0), rtol=1e-5)
    assert np.allclose(statistics.var, rows.var(axis=0), rtol=1e-5)


def test_discounted_returns_continue_over_rollouts_and_stop_at_ends():
    """And a rollout that begins with a new episode, as one of a resumed run may, begins with none."""
    tracked, add = DiscountedReturns.create(1), jax.jit(DiscountedReturns.add, static_argnums=4)
    assert tracked.std == pytest.approx(1)
    totals, returns = [], [1, 2.5, 5.25, 10.625, 1, 1.5, 1, 1.5, 1.75]
    for reward, ended, elapsed in (
        ([1.0, 2.0, 4.0], [0, 0, 0], [0, 1, 2]),
        ([8.0, 1.0, 1.0], [1, 0, 0], [3, 0, 1]),
        ([1.0, 1.0, 1.0], [0, 0, 1], [0, 1, 2]),
    ):
        reward, ended = (np.float32(row)[:, None] for row in (reward, ended))
        tracked = add(tracked, reward, ended, np.array(elapsed)[:, None], 0.5)
        totals.append(float(tracked.running[0]))
        seen = returns[: 3 * len(totals)]
        assert tracked.statistics.mean == pytest.approx(np.mean(seen), rel=1e-5)
        assert tracked.statistics.var == pytest.approx(np.var(seen), rel=1e-5)
        assert tracked.statistics.count == len(seen) and tracked.std == pytest.approx(np.std(seen), rel=1e-5)
    assert totals == pytest.approx([5.25, 1.5, 0])


def test_returns_that_hardly_vary_are_not_blown_up():
    """A reward of 1 with discount 0 has no variance: it is divided by a hundredth of itself, not by 1e-4."""
    ones, never = np.ones((5, 3), np.float32), np.zeros((5, 3), np.float32)
    returns = DiscountedReturns.create(3).add(ones, never, np.ones((5, 3), int), 0.0)
    assert returns.std == pytest.approx(0.01, rel=1e-2)


def test_a_new_episode_in_one_environment_leaves_the_returns_of_others():
    """The first environment's episode ends with the first rollout, the second's goes on."""
    tracked, ones = DiscountedReturns.create(2), np.ones((1, 2), np.float32)
    tracked = tracked.add(ones, np.float32([[1, 0]]), np.array([[0, 0]]), 0.5)
    tracked = tracked.add(ones, np.float32([[0, 0]]), np.array([[0, 1]]), 0.5)
    assert tracked.running.tolist() == [1, 1.5]


def test_normalised_rows_are_clipped_on_both_sides():
    statistics = Statistics.create((1,)).add(jnp.array([[-1.0], [1.0]]))
    found = statistics.normalize(jnp.array([[-99.0], [0.5], [99.0]]), 10)
    assert np.allclose(found[:, 0], [-10, 0.5, 10])

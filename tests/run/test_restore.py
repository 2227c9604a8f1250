"""Environments restored by replaying their actions; rings refilled from segments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent.common.data import Replay, Transition, store
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.files import named_arrays, pack, restore_tree, unpack
from cleanrl_maxent.common.run.checkpoint import Segment, refill
from tests.support import probes
from tests.support.runs import SMALL, differences, digests, interrupted, train


@pytest.mark.slow
def test_environment_that_cannot_be_replayed(tmp_path, monkeypatch):
    """State that survives a reset is noticed before anything is written; the ways out work."""
    probes.register("Surviving-v0", entry_point=probes.Surviving, max_episode_steps=20)
    args = SMALL | dict(env_id="Surviving-v0", total_timesteps=300)
    with pytest.raises(UsageError, match="Surviving-v0 cannot be restored exactly.*--env-reset fresh"):
        train(args, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fresh = args | dict(env_reset="fresh")
    train(fresh, tmp_path / "whole")
    interrupted(fresh, tmp_path / "run", monkeypatch, 213)
    train(fresh, tmp_path / "run")
    assert differences(digests(tmp_path / "whole"), digests(tmp_path / "run")) == []
    restart = args | dict(env_reset="restart")
    interrupted(restart, tmp_path / "inexact", monkeypatch, 213)
    train(restart, tmp_path / "inexact")


@pytest.mark.slow
def test_environment_that_goes_elsewhere_when_restored(tmp_path, monkeypatch):
    interrupted(SMALL, tmp_path / "run", monkeypatch)
    from gymnasium.envs.classic_control import PendulumEnv

    monkeypatch.setattr(PendulumEnv, "_get_obs", lambda self: np.array([1, 0, self.state[1] + 1], np.float32))
    with pytest.raises(UsageError, match="Pendulum-v1 of seed 1 cannot be restored exactly: 100 steps"):
        train(SMALL, tmp_path / "run")


def test_keys_and_dtypes_that_npz_does_not_know_come_back():
    def tree(key, value):
        return {"key": jax.random.split(jax.random.key(key), 2), "half": jnp.full(3, value, jnp.bfloat16)}

    saved = unpack(pack(named_arrays(tree(3, 0.1))))
    restored = restore_tree(tree(0, 0.0), saved)
    assert named_arrays(restored)["half"].tobytes() == named_arrays(tree(3, 0.1))["half"].tobytes()
    assert jax.tree.map(lambda leaf: leaf.dtype, restored) == jax.tree.map(
        lambda leaf: leaf.dtype, tree(0, 0)
    )
    assert (jax.random.bits(restored["key"][1]) == jax.random.bits(tree(3, 0)["key"][1])).all()
    with pytest.raises(UsageError, match="half does not fit"):
        restore_tree(tree(0, 0.0) | {"half": jnp.zeros(3)}, saved)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Ant-v4", "Humanoid-v4", "HalfCheetah-v4", "Walker2d-v5"])
def test_restored_environments_continue_bit_for_bit(env_id):
    seeds, rng = [3, 4], np.random.default_rng(0)
    envs = SeedEnvs(env_id, seeds)
    for cut in (1, 40, 300):
        while envs.steps < cut:
            envs.step(rng.uniform(-1, 1, (2, envs.task.action_dim)).astype(np.float32))
        snapshots, arrays = envs.snapshot()
        other = SeedEnvs(env_id, seeds)
        other.restore(cut, json.loads(json.dumps(snapshots)), arrays)
        for _ in range(60):
            action = rng.uniform(-1, 1, (2, envs.task.action_dim)).astype(np.float32)
            assert envs.step(action) == other.step(action)
            for name, value in vars(envs.transition).items():
                assert np.array_equal(value, getattr(other.transition, name)), name


def test_refilled_ring_is_the_ring():
    """Three segments of unequal length into rings larger and smaller than what was kept."""

    def transitions(start, stop):
        count = np.arange(start, stop, dtype=np.float32)
        seeds = np.stack([count, count + 1000])
        wide = np.repeat(seeds[..., None], 2, axis=-1)
        return Transition(obs=wide, action=wide, reward=seeds, next_obs=wide + 1, terminated=seeds % 2)

    cuts, example = [0, 13, 20, 41], jax.tree.map(lambda leaf: leaf[0, 0], transitions(0, 1))
    segments = [
        Segment(a, b, lambda a=a, b=b: transitions(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    for capacity in (5, 20, 27, 40, 64):
        make = jax.vmap(lambda _, capacity=capacity: Replay.create(capacity, example))
        replay = refill(make(np.arange(2)), segments, 41)
        expected, whole = make(np.arange(2)), transitions(0, 40)
        for i in range(40):
            one = jax.tree.map(lambda leaf, i=i: leaf[:, i], whole)
            expected = store(expected, one, i)
        assert jax.tree.all(jax.tree.map(np.array_equal, replay, expected)), capacity


def test_a_resumed_run_does_not_play_its_first_episode_again():
    """With `--env-reset restart`: the new episode depends on the step, and on nothing else."""
    envs = SeedEnvs("Point-v0", [1, 2], "restart")
    for _ in range(7):
        envs.step(np.zeros((2, 1), np.float32))
    others = [SeedEnvs("Point-v0", [1, 2], "restart") for _ in range(2)]
    first = others[0].obs
    for other in others:
        other.restore(7, *envs.snapshot())
    assert not np.any(others[0].obs[:, 0] == first[:, 0])
    assert np.array_equal(others[0].obs, others[1].obs)


def test_an_environment_in_another_random_state_is_not_resumed():
    """Though it shows the same observation: it would go on differently at the next reset."""
    envs, other = SeedEnvs("Point-v0", [1]), SeedEnvs("Point-v0", [1])
    envs.step(np.zeros((1, 1), np.float32))
    envs.batch.envs[0].unwrapped.np_random.random()
    with pytest.raises(UsageError, match="Point-v0 of seed 1 cannot be restored exactly: 1 steps lead to"):
        other.restore(1, *envs.snapshot())

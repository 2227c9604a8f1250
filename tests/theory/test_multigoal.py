"""The point and its four goals: the environment, its exact soft optimum, and the figure of the study."""

from functools import partial

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from matplotlib import image

from benchmarks.studies.multigoal import multigoal
from cleanrl_maxent import sql
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.multigoal import MultiGoal


def test_multigoal():
    """Reward and end by hand: the action is clipped, the goal's bonus is paid where the point arrives."""
    env = gym.make("cleanrl_maxent/MultiGoal-v0")
    check_env(env.unwrapped)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    assert starts.std() == pytest.approx(0.1, abs=0.015) and abs(starts.mean()) < 0.02
    point = env.unwrapped
    for position, action, reward, terminated in [
        ([0.0, 0.0], [0.5, 0.0], -30 * 0.25 - 4.5**2, False),
        ([0.0, 0.0], [2.0, -3.0], -60 - 4**2 - 1, False),  # clipped to (1, -1)
        ([3.5, 0.0], [0.6, 0.0], -30 * 0.36 - 0.9**2 + 10, True),
        ([3.5, 0.0], [0.5, 0.0], -30 * 0.25 - 1, False),  # at distance 1, which is not less than 1
        ([-7.0, 0.0], [-1.0, 0.0], -30 - 4, False),  # held by the wall
    ]:
        point.position = np.array(position)
        obs, got, ended, truncated, _ = point.step(np.float32(action))
        assert got == pytest.approx(reward, rel=1e-5) and ended == terminated and not truncated
    env.reset(seed=1)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]
    start = gym.make("cleanrl_maxent/MultiGoal-v0", init_sigma=0.0).reset(seed=1)[0]
    assert np.array_equal(start, [0, 0])


@pytest.mark.slow
def test_exact_soft_optimum_of_multigoal():
    """V(0, 0) and the entropy there; at (-2.5, 0) the mean leads to the nearest goal; rollouts reach all."""
    env = MultiGoal()
    V = multigoal.soft_values(env, tolerance=1e-2)
    assert V[28, 28] == pytest.approx(-122.7, abs=0.05)
    origin = multigoal.soft_policy(env, V, np.zeros(2))
    assert -np.sum(origin * np.log(origin / multigoal.CELL**2)) == pytest.approx(1.296, abs=1e-3)
    left = multigoal.soft_policy(env, V, np.array([-2.5, 0.0])) @ multigoal.ACTIONS
    assert left == pytest.approx([-0.42, 0], abs=0.005)
    assert V[38, 38] == pytest.approx(-57.4, abs=0.1)
    played = multigoal.play(multigoal.exact_policy(env, V), 200)
    assert played["returns"].mean() == pytest.approx(-192, abs=4 * 39 / 14)
    assert played["lengths"].mean() == pytest.approx(9.96, abs=4 * 2.8 / 14)
    assert all(np.mean(played["goals"] == goal) > 0.15 for goal in range(4))
    for path in played["paths"]:  # from the start, by steps that an action can make
        assert np.linalg.norm(path[0]) < 0.6 and np.abs(np.diff(path, axis=0)).max() <= 1 + 1e-6


def test_multigoal_without_runs_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multigoal, "soft_values", None)  # a minute of dynamic programming
    with pytest.raises(UsageError, match="no run in runs/multigoal is finished; leave --no-train out"):
        multigoal.main(multigoal.Args(train=False))


@pytest.mark.slow
def test_multigoal_figure(tmp_path):
    """A row of three states and the episodes for each policy, of a network or of the dynamic program."""
    env, V, state = (
        MultiGoal(),
        np.zeros((57, 57)),
        sql.init(jax.random.key(0), Task(2, 2), sql.Args(hidden_dims=(16, 16))),
    )
    learned = multigoal.trained_policy(sql, state, deterministic=False)
    exact = multigoal.exact_policy(env, V)
    for shown in (
        [("exact", partial(multigoal.exact_values, env, V), exact)],
        [("exact", partial(multigoal.exact_values, env, V), exact)]
        + [("sql", partial(multigoal.learned_values, state), learned)],
    ):
        multigoal.draw(shown, tmp_path / "figure.png")
        height, width, _ = image.imread(tmp_path / "figure.png").shape
        assert (height, width) == (100 + 440 * len(shown), 2000)

"""The finite environments: Gymnasium's rules, and the MDPs that they play."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import cleanrl_maxent
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.environments import finite

ALGORITHMS = cleanrl_maxent.algorithms()


@pytest.mark.parametrize("name", ["TwoRooms", "Corridor", "RandomMDP"])
def test_gymnasiums_checker_accepts(name):
    check_env(gym.make(f"cleanrl_maxent/{name}-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", ["TwoRooms", "Corridor", "RandomMDP"])
def test_same_seed_same_episodes(name):
    records = []
    for _ in range(2):
        copy = gym.make(f"cleanrl_maxent/{name}-v0")
        record, (obs, _) = [], copy.reset(seed=7)
        rng = np.random.default_rng(0)
        for _ in range(200):
            record.append(obs)
            obs, reward, terminated, truncated, _ = copy.step(int(rng.integers(copy.action_space.n)))
            record.append(reward)
            if terminated or truncated:
                obs, _ = copy.reset()
        records.append(record)
    for left, right in zip(*records, strict=True):
        np.testing.assert_array_equal(left, right)


def test_environment_follows_its_mdp():
    """Frequencies of 20,000 steps within four standard errors, ends included."""
    env = gym.make(
        "cleanrl_maxent/RandomMDP-v0", seed=1, num_states=3, num_actions=2, end_probability=0.2
    ).unwrapped
    assert env.observation_space.shape == (3,) and env.action_space.n == 2
    obs, _ = env.reset(seed=0)
    counts, rng = np.zeros((3, 2, 4)), np.random.default_rng(0)
    for _ in range(20_000):
        state, action = obs.argmax(), rng.integers(2)
        obs, reward, terminated, truncated, _ = env.step(action)
        assert reward == env.mdp.R[state, action] and not truncated and obs.sum() == 1
        counts[state, action, 3 if terminated else obs.argmax()] += 1
        if terminated:
            obs, _ = env.reset()
    visits = counts.sum(axis=-1, keepdims=True)
    p = np.concatenate([env.mdp.P, np.full((3, 2, 1), 0.2)], axis=-1)
    assert np.all(np.abs(counts / visits - p) <= 4 * np.sqrt(p * (1 - p) / visits))


def test_first_half_of_the_actions_leads_left():
    env = gym.make("cleanrl_maxent/TwoRooms-v0", num_actions=6)
    for action, room in [(0, 1), (2, 1), (3, 2), (5, 2)]:
        env.reset(seed=0)
        obs, reward, terminated, _, _ = env.step(action)
        assert obs[room] == 1 and reward == 0 and not terminated
        assert env.step(1)[1:3] == (-1.0 if room == 1 else 0.5, True)
    with pytest.raises(ValueError, match="an even number of actions"):
        finite.two_rooms(5)


@pytest.mark.parametrize(
    "algorithm", [name for name, module in ALGORITHMS.items() if "Discrete" not in module.Args.action_spaces]
)
def test_continuous_algorithms_refuse_discrete_actions(algorithm, monkeypatch, capsys):
    module = ALGORITHMS[algorithm]
    monkeypatch.setattr(sys, "argv", [algorithm, "--env-id", "cleanrl_maxent/TwoRooms-v0"])
    with pytest.raises(SystemExit, match="2"):
        run_script(module.Args, module.train)
    assert "Discrete(8); a continuous one (Box) is needed" in capsys.readouterr().err

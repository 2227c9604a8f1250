"""The door to the environments: true transitions, scaled actions, streams, and what is refused."""

import envs as probes
import gymnasium as gym
import numpy as np
import pytest

from cleanrl_maxent.common.arguments import NonFiniteError, UsageError
from cleanrl_maxent.common.envs import (
    EVALUATION,
    TRAINING,
    SeedEnvs,
    environment_seed,
    make_env,
    scale_action,
)


def test_counting_environment_leaves_no_false_transition():
    """0→1→2→3 | 0→1→2→3, although the environment overwrites its one observation array."""
    envs = SeedEnvs("Counting-v0", [1, 2])
    trace, episodes = [], []
    for _ in range(7):
        ended = envs.step(np.zeros((2, 1), np.float32))
        trace.append(envs.transition)
        episodes += ended
    for seed in range(2):
        rows = [(int(t.obs[seed, 0]), int(t.next_obs[seed, 0]), int(t.terminated[seed])) for t in trace]
        assert rows == [(0, 1, 0), (1, 2, 0), (2, 3, 1)] * 2 + [(0, 1, 0)]
    assert [(e.index, e.episodic_return, e.length) for e in episodes] == [(0, 3.0, 3), (1, 3.0, 3)] * 2


def test_truncation_is_not_termination():
    envs = SeedEnvs("ConstantReward-v0", [1])
    rows = [probes.transition_after(envs, np.zeros((1, 1), np.float32)) for _ in range(120)]
    assert sum(row.terminated[0] for row in rows) == 0
    assert rows[49].next_obs[0, 0] == 1.0 and rows[50].obs[0, 0] == 0.0


def test_float32_everywhere():
    envs = SeedEnvs("Hopper-v4", [1])
    envs.step(np.zeros((1, 3), np.float32))
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        assert getattr(envs.transition, name).dtype == np.float32, name


@pytest.mark.parametrize(
    ("low", "high"), [([-1, -1], [1, 1]), ([-0.4, -0.4], [0.4, 0.4]), ([-1, 0], [3, 10])]
)
def test_actions_are_scaled_to_the_bounds(low, high):
    space = gym.spaces.Box(np.float32(low), np.float32(high))
    assert np.allclose(scale_action(np.full(2, -1, np.float32), space), low)
    assert np.allclose(scale_action(np.full(2, 1, np.float32), space), high)
    assert np.allclose(scale_action(np.zeros(2, np.float32), space), (np.add(low, high)) / 2)
    assert space.contains(scale_action(np.float32([1.0000001, -1.0000001]), space))


def test_streams_of_neighbours_do_not_overlap():
    streams = [
        environment_seed(s, kind, *i)
        for s in range(50)
        for kind, i in (
            (TRAINING, ()),
            (EVALUATION, (5000, 0, 0)),
            (EVALUATION, (5000, 0, 1)),
            (EVALUATION, (5000, 1, 0)),
        )
    ]
    assert len(set(streams)) == len(streams)
    first, second = SeedEnvs("Hopper-v4", [1, 2]), SeedEnvs("Hopper-v4", [2])
    assert np.array_equal(first.obs[1], second.obs[0]) and not np.array_equal(first.obs[0], first.obs[1])


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Hoper-v4", "Did you mean Hopper-v"),
        ("Hopper", "would silently become Hopper-v5"),
        ("Hopper-v3", "use Hopper-v4 or Hopper-v5"),
        ("Pusher-v4", "use Pusher-v5"),
        ("CartPole-v1", "Discrete(2)"),
        ("DiscreteAction-v0", "Discrete(2)"),
        ("DictObs-v0", "FlattenObservation"),
        ("ImageObs-v0", "FlattenObservation"),
        ("Unbounded-v0", "dimension 0 of Unbounded-v0 is [-inf, inf]"),
        ("no_such_module:Thing-v0", "no_such_module"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused(env_id, words):
    with pytest.raises(UsageError) as caught:
        make_env(env_id)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_wrong_shape_is_named():
    with pytest.raises(UsageError, match=r"shape \(3,\), its space says \(2,\)"):
        SeedEnvs("WrongShape-v0", [1])


@pytest.mark.parametrize(("env_id", "tensor"), [("NanReward-v0", "reward"), ("NanObs-v0", "next_obs")])
@pytest.mark.filterwarnings("ignore")
def test_nan_names_step_seed_and_tensor(env_id, tensor):
    envs = SeedEnvs(env_id, [7])
    action = np.zeros((1, 2), np.float32)
    envs.step(action), envs.step(action)
    with pytest.raises(NonFiniteError, match=f"non-finite {tensor} at step 3, seed 7"):
        envs.step(action)


def test_nan_action_is_named():
    envs = SeedEnvs("Pendulum-v1", [3])
    with pytest.raises(NonFiniteError, match="non-finite action at step 1, seed 3"):
        envs.step(np.full((1, 1), np.nan, np.float32))


def test_discrete_actions_are_taken_where_asked_for():
    assert make_env("CartPole-v1", discrete=True).action_space.n == 2
    with pytest.raises(UsageError, match="Box or Discrete is needed"):
        make_env("ManyActions-v0", discrete=True)
    assert scale_action(np.array(1), gym.spaces.Discrete(3, start=5)) == 6

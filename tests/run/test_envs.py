"""Environments: true transitions, scaled actions, streams, and what is refused."""

import gymnasium as gym
import numpy as np
import pytest

import cleanrl_maxent
from cleanrl_maxent.common.env.make import (
    EVALUATION,
    TRAINING,
    EnvChoice,
    chosen_env,
    environment_seed,
    make_env,
    scale_action,
)
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import NonFiniteError, UsageError
from tests.support import probes as probes
from tests.support.references import transition_after


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


def test_the_end_of_one_seed_alone_leaves_no_false_transition():
    """The second environment is a step ahead, so no two episodes end together."""
    envs = SeedEnvs("Counting-v0", [1, 2])
    envs.batch.envs[1].unwrapped.buffer[0] = 1
    trace = [transition_after(envs, np.zeros((2, 1), np.float32)) for _ in range(4)]
    assert [t.next_obs[:, 0].tolist() for t in trace] == [[1, 2], [2, 3], [3, 1], [1, 2]]
    assert [t.obs[:, 0].tolist() for t in trace] == [[0, 0], [1, 2], [2, 0], [0, 1]]


def test_truncation_is_not_termination():
    envs = SeedEnvs("ConstantReward-v0", [1])
    rows = [transition_after(envs, np.zeros((1, 1), np.float32)) for _ in range(120)]
    assert sum(row.terminated[0] for row in rows) == 0
    assert rows[49].next_obs[0, 0] == 1.0 and rows[50].obs[0, 0] == 0.0


def test_transitions_say_which_end_is_a_time_limit():
    """Every 50th step; and none where the episode ends by itself."""
    envs = SeedEnvs("ConstantReward-v0", [1, 2])
    rows = [transition_after(envs, np.zeros((2, 1), np.float32)) for _ in range(120)]
    truncated = np.array([row.truncated for row in rows])
    assert truncated.dtype == np.float32 and truncated.sum() == 4 and truncated[[49, 99]].all()
    envs = SeedEnvs("Counting-v0", [1])
    rows = [transition_after(envs, np.zeros((1, 1), np.float32)) for _ in range(7)]
    assert [row.terminated[0] for row in rows] == [0, 0, 1, 0, 0, 1, 0]
    assert not any(row.truncated[0] for row in rows)


def test_float32_everywhere():
    envs = SeedEnvs("Hopper-v4", [1])
    envs.step(np.zeros((1, 3), np.float32))
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
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
        ("Balance-v0", "unknown environment 'Balance-v0'. Write one of your own as my_module:MyEnv-v0."),
        ("Hopper", "would silently become Hopper-v5"),
        ("Hopper-v3", "use Hopper-v4 or Hopper-v5"),
        ("Pusher-v4", "use Pusher-v5"),
        ("CartPole-v1", "Discrete(2)"),
        ("DiscreteAction-v0", "Discrete(2)"),
        ("DictObs-v0", "FlattenObservation"),
        ("ImageObs-v0", "FlattenObservation"),
        ("Unbounded-v0", "dimension 0 of Unbounded-v0 is [-inf, inf]"),
        ("no_such_module:Thing-v0", "no_such_module"),
        (
            "tests.support.probes:Echo",
            "'tests.support.probes:Echo' would silently become tests.support.probes:Ec",
        ),
        ("NoObs-v0", "observations must not be empty; NoObs-v0 has Box(0,)"),
        ("NoAction-v0", "actions must not be empty; NoAction-v0 has Box(0,)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused(env_id, words):
    with pytest.raises(UsageError) as caught:
        make_env(env_id)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_wrong_shape_is_named():
    with pytest.raises(UsageError, match=r"shape \(3,\) from reset; its space says \(2,\)"):
        SeedEnvs("WrongShape-v0", [1])


@pytest.mark.parametrize(
    ("env_id", "tensor", "place"),
    [("NanReward-v0", "reward", "it"), ("NanObs-v0", "next_obs", r"\[0\]")],
)
@pytest.mark.filterwarnings("ignore")
def test_nan_names_step_seed_and_tensor(env_id, tensor, place):
    envs = SeedEnvs(env_id, [7])
    action = np.zeros((1, 2), np.float32)
    envs.step(action), envs.step(action)
    with pytest.raises(NonFiniteError, match=f"non-finite {tensor} at step 3, seed 7: {place} is nan"):
        envs.step(action)


def test_nan_action_is_named():
    envs = SeedEnvs("Pendulum-v1", [3])
    with pytest.raises(NonFiniteError, match="non-finite action at step 1, seed 3"):
        envs.step(np.full((1, 1), np.nan, np.float32))


def test_discrete_actions_are_taken_where_asked_for():
    assert make_env(EnvChoice("CartPole-v1", ("Box", "Discrete"))).action_space.n == 2
    with pytest.raises(UsageError, match="Box or Discrete is needed"):
        make_env(EnvChoice("ManyActions-v0", ("Box", "Discrete")))
    assert scale_action(np.array(1), gym.spaces.Discrete(3, start=5)) == 6
    with pytest.raises(UsageError, match=r"action space Box\(.*a discrete one \(Discrete\) is needed"):
        make_env(EnvChoice("Pendulum-v1", ("Discrete",)))


def test_actions_that_no_algorithm_takes():
    args = cleanrl_maxent.algorithms()["sac"].Args(env_id="ManyActions-v0")
    with pytest.raises(UsageError, match=r"action space MultiDiscrete\(.*; a continuous one .* is needed$"):
        make_env(chosen_env(args))


@pytest.mark.parametrize(
    ("env_id", "algorithm", "words"),
    [
        ("Pendulum-v1", "sac_discrete", "a discrete one (Discrete) is needed; use sac.py"),
        ("Pendulum-v1", "sql_discrete", "a discrete one (Discrete) is needed; use sql.py"),
        ("CartPole-v1", "sac", "a continuous one (Box) is needed; use sac_discrete.py"),
        ("CartPole-v1", "sac_v1", "a continuous one (Box) is needed; use sac_discrete.py"),
        ("CartPole-v1", "sql", "a continuous one (Box) is needed; use sql_discrete.py"),
    ],
)
def test_an_algorithm_that_does_not_take_the_actions_names_its_sibling(env_id, algorithm, words):
    module = cleanrl_maxent.algorithms()[algorithm]
    with pytest.raises(UsageError) as caught:
        make_env(chosen_env(module.Args(env_id=env_id)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("env_id", "algorithm"), [("Pendulum-v1", "fitted_q"), ("CartPole-v1", "ddpg")])
def test_an_algorithm_without_a_sibling_names_all_that_take_the_actions(env_id, algorithm):
    modules = cleanrl_maxent.algorithms()
    with pytest.raises(UsageError) as caught:
        make_env(chosen_env(modules[algorithm].Args(env_id=env_id)))
    kind = "Box" if env_id == "Pendulum-v1" else "Discrete"
    taking = [f"{name}.py" for name, module in sorted(modules.items()) if kind in module.Args.action_spaces]
    assert len(taking) > 3 and str(caught.value).endswith(f"use {', '.join(taking[:-1])} or {taking[-1]}")


def test_a_task_is_the_dimensions_and_the_bounds():
    """Bounds are those of the environment's actions; an example has the shapes of its transitions."""
    envs = SeedEnvs("Echo-v0", [1, 2])
    assert envs.task._replace(low=(), high=()) == Task(1, 2) and hash(envs.task) == hash(envs.task)
    assert np.allclose(envs.task.low, [-0.4, -1]) and np.allclose(envs.task.high, [0.4, 3])
    discrete = SeedEnvs(EnvChoice("CartPole-v1", ("Box", "Discrete")), [1], copies=2)
    assert discrete.task == Task(4, 2, discrete=True)
    for made, action in ((envs, np.zeros((2, 2), np.float32)), (discrete, np.zeros(2, np.int32))):
        made.step(action)
        for name, value in vars(made.transition).items():
            example = getattr(made.example, name)
            assert (value.shape[1:], value.dtype) == (np.shape(example), example.dtype), name


def test_environments_of_a_seed_differ_and_episodes_are_its_own():
    choice = EnvChoice("CartPole-v1", ("Box", "Discrete"))
    envs = SeedEnvs(choice, [1, 2], copies=3)
    assert len(np.unique(envs.obs[:, 0])) == 6 and envs.task.action_dim == 2
    alone = SeedEnvs(choice, [2], copies=3)
    assert np.array_equal(alone.obs, envs.obs[3:])
    ended = []
    for _ in range(60):
        before = envs.elapsed
        ended += envs.step(np.ones(6, np.int64))
        assert (envs.elapsed == np.where(envs.ended, 0, before + 1)).all()
    assert {episode.index for episode in ended} == {0, 1}


def test_a_space_of_a_derived_class_is_taken():
    class MyBox(gym.spaces.Box):
        pass

    space = MyBox(-2, 2, (1,), np.float32)
    probes.register("DerivedBox-v0", entry_point=probes.Broken, kwargs={"action_space": space})
    assert make_env("DerivedBox-v0").action_space == space

"""Environments as they come: what `reset` and `step` must return, what one may be, what is said.

Messages are tested as they are read.
"""

import json
import re
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
import pytest

from cleanrl_maxent import enjoy, sac
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.env import seeds as seeds_module
from cleanrl_maxent.common.env import wrapper
from cleanrl_maxent.common.env.make import EnvChoice, chosen_env, make_env
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import EnvironmentFailed, NonFiniteError, UsageError
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.film import Film
from tests.support import probes
from tests.support.references import transition_after
from tests.support.runs import SMALL, interrupted, train
from tests.support.tree import ROOT

STILL = np.zeros((1, 1), np.float32)
STEP_MUST = "step must return (obs, reward, terminated, truncated, info)"


def message(kind, function, *given, **options):
    """The message, one line, of what a call raises."""
    with pytest.raises(kind) as caught:
        function(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("FourValues-v0", f"FourValues-v0 returned 4 values at step 1 of an episode; {STEP_MUST}"),
        (
            "NoTuple-v0",
            f"NoTuple-v0 returned array([{{}} at step 1 of an episode; {STEP_MUST}",
        ),
        (
            "RewardPair-v0",
            "RewardPair-v0 returned the reward array([0., 0.]) at step 1 of an episode; a number is needed",
        ),
        ("RewardNone-v0", "returned the reward None at step 1 of an episode; a number is needed"),
        ("ObsText-v0", "returned the observation 'here' at step 1 of an episode; an array of numbers is"),
        (
            "ObsRagged-v0",
            "returned the observation [1.0, [2.0, 3.0]] at step 1 of an episode; an array of",
        ),
        ("ObsScalar-v0", "returned an observation of shape () at step 1 of an episode; its space says (2,)"),
        ("FlagText-v0", "returned truncated = 'no' at step 1 of an episode; True or False is needed"),
    ],
)
def test_what_step_must_return(env_id, words):
    """Said before anything is written; where nothing is tested before, with step and seed."""
    parts = words.split("{}")
    said = message(UsageError, SeedEnvs, env_id, [7])
    assert all(part in said for part in parts)
    envs = SeedEnvs(env_id, [7], "restart")
    said = message(UsageError, envs.step, STILL)
    assert all(part in said for part in parts) and said.endswith("(training, step 1, seed 7)")


def test_what_reset_must_return(monkeypatch):
    env = make_env("Point-v0")
    for returned, words in [
        (
            np.zeros(2, np.float32),
            "Point-v0 returned array([0., 0.], dtype=float32) from reset; reset ",
        ),
        ((np.zeros(2), {}, 1), "Point-v0 returned 3 values from reset; reset must return (obs, info)"),
        ((np.zeros(3), {}), "Point-v0 returned an observation of shape (3,) from reset; its space says (2,)"),
    ]:
        monkeypatch.setattr(probes.Point, "reset", lambda self, returned=returned, **options: returned)
        assert message(UsageError, env.reset).startswith(words)


@pytest.mark.parametrize(
    "reward", [2, True, np.int32(2), np.float32(2), np.array(2.0), [2.0], np.array([[2]])]
)
@pytest.mark.parametrize("over", [1, np.True_, np.array([True]), [1], 1.0])
def test_values_that_mean_the_same_are_taken(reward, over):
    probes.register("Loose-v0", entry_point=probes.Point)
    env = make_env("Loose-v0")
    env.unwrapped.returned = probes.change(reward=reward, terminated=over, truncated=None, obs=[1, True])
    env.reset(seed=0)
    obs, got, terminated, truncated, info = env.step(STILL[0])
    assert obs.dtype == np.float32 and obs.tolist() == [1, 1]
    assert type(got) is float and got == np.ravel(reward)[0]
    assert (terminated, truncated) == (True, False)
    assert info["episode"]["length"] == 1 and float(info["episode"]["return"]) == got


@pytest.mark.parametrize(
    "obs", [np.array([0.5, 2], object), np.array([1, 2], np.int64), (0.5, np.float32(2))]
)
def test_observations_of_numbers_are_taken(obs):
    env = make_env("Point-v0")
    env.unwrapped.returned = probes.change(obs=obs)
    env.reset(seed=0)
    assert np.array_equal(env.step(STILL[0])[0], np.array([*obs], np.float32))


def test_returns_are_summed_in_the_type_of_the_rewards():
    """As Gymnasium's RecordEpisodeStatistics does: float32 rewards are summed in float32."""
    for kind in (float, np.float32, np.float64, np.float16):
        probes.register(f"Tenths{kind.__name__}-v0", entry_point=probes.Point)
        ours, theirs = (make_env(f"Tenths{kind.__name__}-v0") for _ in range(2))
        for env in (ours, theirs):
            env.unwrapped.returned = probes.change(reward=kind(0.1))
        theirs = gym.wrappers.RecordEpisodeStatistics(theirs.env)
        ours.reset(seed=0), theirs.reset(seed=0)
        for _ in range(20):
            (*_, info), (*_, expected) = ours.step(STILL[0]), theirs.step(STILL[0])
        assert info["episode"]["return"] == expected["episode"]["r"]
        assert kind is float or info["episode"]["return"] != 0.1 * 20
        assert type(info["episode"]["return"]) is type(expected["episode"]["r"])


def test_a_reward_beyond_float32_is_refused_where_it_comes_in():
    envs = SeedEnvs("RewardHuge-v0", [4, 5], "restart")
    envs.batch.envs[0].unwrapped.returned = None
    said = message(NonFiniteError, envs.step, np.zeros((2, 1), np.float32))
    assert said == (
        "non-finite reward in float32, which ends at 3.4e38: RewardHuge-v0 returned 1e+300 "
        "at step 1 of an episode (training, step 1, seed 5)"
    )


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_return_beyond_float32_is_refused_at_the_end_of_its_episode():
    envs = SeedEnvs("RewardHuge-v0", [4, 5], "restart")
    for env in envs.batch.envs.values():
        env.unwrapped.returned = None
    envs.batch.envs[1].unwrapped.returned = probes.change(reward=np.float32(3e38))
    for _ in range(19):
        envs.step(np.zeros((2, 1), np.float32))
    said = message(NonFiniteError, envs.step, np.zeros((2, 1), np.float32))
    assert said == "non-finite episode_return at step 20, seed 5: it is inf"


@pytest.mark.parametrize("env_id", ["InfoRagged-v0", "InfoTaken-v0"])
def test_info_is_dropped(env_id):
    """Ragged arrays, and names that wrappers want, across the ends of episodes."""
    envs = SeedEnvs(env_id, [1, 2])
    ended = []
    for _ in range(45):
        ended += envs.step(np.zeros((2, 1), np.float32))
    assert [(episode.index, episode.length) for episode in ended] == [(0, 20), (1, 20)] * 2


def test_an_array_of_one_reward_is_learned_from():
    envs, plain = SeedEnvs("RewardArray-v0", [1]), SeedEnvs("Point-v0", [1])
    for _ in range(25):
        assert transition_after(envs, STILL).reward == transition_after(plain, STILL).reward


# time limits


class Endless:
    """The evaluation of a policy that does nothing."""

    def __init__(self, env_id, **given):
        self.args = sac.Args(env_id=env_id, eval_episodes=1, **given)

    def play(self):
        def act(policy, obs, key, deterministic):
            return jax.numpy.zeros((len(obs), 1))

        return Evaluation(self.args, act).play(
            5_000, np.zeros((1, 1)), jax.random.split(jax.random.key(0), 1)
        )


def test_an_evaluation_without_end_ends(monkeypatch):
    monkeypatch.setattr(wrapper, "LONGEST_EPISODE", 300)
    assert message(UsageError, Endless("NeverEnds-v0").play) == (
        "an episode of NeverEnds-v0 has not ended after 300 steps; register it with max_episode_steps=N, "
        "or start anew with --max-episode-steps N (evaluation at step 5000, seed 1)"
    )
    for limit in (50, 400):  # which may be longer
        assert Endless("NeverEnds-v0", max_episode_steps=limit).play().lengths == limit
    probes.register("Longer-v0", entry_point=probes.Point, kwargs={"length": 10**9}, max_episode_steps=310)
    assert Endless("Longer-v0").play().lengths == 310


def test_a_film_without_end_ends(monkeypatch):
    monkeypatch.setattr(wrapper, "LONGEST_EPISODE", 30)
    monkeypatch.setattr(probes.Point, "metadata", {"render_modes": ["rgb_array"]})
    monkeypatch.setattr(probes.Point, "render", lambda self: np.zeros((4, 4, 3), np.uint8), raising=False)
    film = Film("NeverEnds-v0")
    said = message(UsageError, film.play, lambda obs, step: STILL[0], 0)
    assert said.startswith(
        "an episode of NeverEnds-v0 has not ended after 30 steps; register it with max_episode_steps=N"
    )


def test_training_warns_once_of_an_episode_without_end(monkeypatch, capsys):
    monkeypatch.setattr(seeds_module, "LONGEST_EPISODE", 40)
    envs = SeedEnvs("NeverEnds-v0", [1])
    for _ in range(60):
        envs.step(STILL)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: an episode of NeverEnds-v0 has not ended after 40 steps: checkpoints")


@pytest.mark.slow
def test_a_run_without_end_is_resumed_and_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(wrapper, "LONGEST_EPISODE", 400)
    args = SMALL | dict(env_id="NeverEnds-v0")
    words = r"an episode of NeverEnds-v0 has not ended after 400 steps; .* \(evaluation at step 140, seed 1\)"
    for _ in range(2):
        with pytest.raises(UsageError, match=words):
            train(args, tmp_path / "run")
    assert list((tmp_path / "run").glob("checkpoint/checkpoint-*90.json"))
    assert message(UsageError, train, args | dict(max_episode_steps=50), tmp_path / "run").endswith(
        "was started with max_episode_steps=None; you gave 50: "
        "keep the run's, or start a new run in another --run-dir"
    )


def test_time_limits_are_gymnasiums():
    """Of the registration, of the flag; between the environment and the wrappers of its registration."""
    expected = gym.make("Pendulum-v1", max_episode_steps=7)
    for choice, limit in [("Pendulum-v1", 200), (EnvChoice("Pendulum-v1", max_episode_steps=7), 7)]:
        env = make_env(choice)
        env.reset(seed=0), expected.reset(seed=0)
        over = [env.step(STILL[0])[2:4] for _ in range(limit)]
        assert over == [(False, False)] * (limit - 1) + [(False, True)] and env.time_limit == limit
    probes.register(
        "Twice-v0",
        entry_point=probes.Point,
        kwargs={"length": 10**9},
        max_episode_steps=20,
        additional_wrappers=(Twice.wrapper_spec(),),
    )
    env = make_env("Twice-v0")
    env.reset(seed=0)
    over = [env.step(STILL[0])[3] for _ in range(10)]
    assert over == [False] * 9 + [True] and env.time_limit == 20


class Twice(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Takes every action twice."""

    def __init__(self, env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action):
        self.env.step(action)
        return self.env.step(action)


# random generators, and one instance


@pytest.mark.parametrize("env_reset", ["reuse", "fresh"])
def test_another_random_generator_cannot_be_restored(env_reset):
    assert message(UsageError, SeedEnvs, "OldRandom-v0", [1], env_reset) == (
        "OldRandom-v0 cannot be restored exactly: its np_random is RandomState, not NumPy's Generator with "
        "PCG64; add --env-reset restart (a resumed run then begins a new episode)"
    )


class SeedLost(probes.Point):
    """Does not pass the seed on."""

    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


class SeedIgnored(probes.Point):
    """Draws nothing, and needs no seed."""

    def reset(self, *, seed=None, options=None):
        return still_point(self)


class NoiseLate(probes.Point):
    """Does not pass the seed on, and draws first at step 150."""

    def reset(self, *, seed=None, options=None):
        return still_point(self)

    def step(self, action):
        obs, reward, *others = super().step(action)
        return obs, reward + (self.np_random.random() if self.count >= 150 else 0), *others


@pytest.mark.parametrize("env_reset", ["reuse", "fresh"])
@pytest.mark.parametrize("kind", [SeedLost, SeedIgnored, NoiseLate])
def test_a_reset_that_does_not_pass_its_seed_on(kind, env_reset):
    """Its first random numbers come from the seed nevertheless, so it repeats and restores."""
    name = f"{kind.__name__}{env_reset.title()}-v0"
    probes.register(name, entry_point=kind, kwargs={"length": 200})
    envs, again = (SeedEnvs(name, [1], env_reset) for _ in range(2))
    assert np.array_equal(envs.obs, again.obs)
    for cut in (1, 160, 230):
        while envs.steps < cut:
            envs.step(STILL)
        other = SeedEnvs(name, [1], env_reset)
        other.restore(cut, *envs.snapshot())
        for _ in range(30):
            assert envs.step(STILL) == other.step(STILL)
            assert envs.transition.reward == other.transition.reward


class Quits(probes.Point):
    """Ends the program, as a game does whose window is closed."""

    def step(self, action):
        sys.exit()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_exits_has_failed(workers):
    probes.register("Quits-v0", entry_point=Quits)
    said = message(EnvironmentFailed, SeedEnvs, "Quits-v0", [1])
    assert "in the test of whether it can be restored" in said and "SystemExit" in said
    envs = SeedEnvs("Quits-v0", [1], "restart", workers=workers)
    assert "training, step 1, seed 1): SystemExit" in message(EnvironmentFailed, envs.step, STILL)
    envs.close()


def test_what_survives_a_reset_and_shows_late_is_noticed():
    said = message(UsageError, SeedEnvs, "Leftover-v0", [1])
    assert said == (
        "Leftover-v0 cannot be restored exactly: replaying actions since its last reset leads "
        "to another state; "
        "add --env-reset fresh, or --env-reset restart (a resumed run then begins a new episode)"
    )
    SeedEnvs("Leftover-v0", [1], "fresh")


class Scaling(probes.Point):
    """Scales the action in the array that it gets."""

    def step(self, action):
        action *= 0.5
        return super().step(action)

    def close(self):
        raise RuntimeError("jammed")


@pytest.mark.parametrize("env_reset", ["reuse", "fresh"])
def test_an_environment_may_change_its_action_and_fail_to_close(env_reset, capsys):
    """Neither keeps it from being restored; it is said once that it cannot be closed."""
    name = f"Scaling{env_reset.title()}-v0"
    probes.register(name, entry_point=Scaling)
    envs = SeedEnvs(name, [1], env_reset)
    for _ in range(30):
        envs.step(np.full((1, 1), 0.7, np.float32))
    again = SeedEnvs(name, [1], env_reset)
    again.restore(envs.steps, *envs.snapshot())
    assert np.array_equal(again.obs, envs.obs)
    envs.close(), again.close()
    assert capsys.readouterr().err == f"warning: {name} could not be closed: RuntimeError: jammed\n"


def test_no_random_generator_works_with_restart(monkeypatch):
    monkeypatch.setattr(probes.Point, "np_random", None)
    monkeypatch.setattr(probes.Point, "reset", lambda self, **options: still_point(self))
    assert "its np_random is NoneType, not" in message(UsageError, SeedEnvs, "Point-v0", [1])
    envs = SeedEnvs("Point-v0", [1], "restart")
    envs.step(STILL)
    snapshots, arrays = envs.snapshot()
    other = SeedEnvs("Point-v0", [1], "restart")
    other.restore(1, json.loads(json.dumps(snapshots)), arrays)
    assert other.elapsed == 0 and arrays["actions/1"].shape == (0, 1)


def still_point(env):
    env.place, env.count = 0.5, 0
    return np.array([env.place, 0], np.float32), {}


@pytest.mark.slow
def test_a_simulator_of_one_instance(tmp_path, monkeypatch):
    """The ways out are named, and work, also after a kill, and with another random generator."""
    assert message(UsageError, SeedEnvs, "OnlyOne-v0", [1]) == (
        "cannot make OnlyOne-v0: RuntimeError: port 5005 is taken (probes.py, line 218); if only one can "
        "exist at a time, train one seed in one environment, with --env-reset restart --eval-episodes 0"
    )
    assert not probes.OnlyOne.living  # closed: in a notebook, the way out works at once
    args = SMALL | dict(env_id="OnlyOne-v0", env_reset="restart", eval_episodes=0)
    interrupted(args, tmp_path / "run", monkeypatch, 213)
    probes.OnlyOne.living = 0  # as in a new process
    train(args, tmp_path / "run")
    assert (tmp_path / "run/result.json").exists()
    probes.OnlyOne.living = 0
    _, played = enjoy.evaluate(enjoy.Args(str(tmp_path / "run"), episodes=1))
    assert played.lengths[0, 0] == 20
    probes.OnlyOne.living = 0


# exceptions


def test_an_exception_of_the_environment_keeps_its_traceback():
    envs = SeedEnvs("FailsLate-v0", [1, 2])
    envs.batch.envs[0].unwrapped.returned = None
    with pytest.raises(EnvironmentFailed) as caught:
        for _ in range(800):
            envs.step(np.zeros((2, 1), np.float32))
    assert str(caught.value) == (
        "FailsLate-v0 failed (training, step 700, seed 2): ZeroDivisionError: division by zero"
    )
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert traceback.extract_tb(cause.__traceback__)[-1].name == "fail_late"


def test_an_exception_in_an_evaluation(monkeypatch):
    monkeypatch.setattr(probes.Point, "step", lambda self, action: 1 / 0)
    with pytest.raises(
        EnvironmentFailed, match=r"Point-v0 failed \(evaluation at step 5000, seed 1\): ZeroDiv"
    ):
        Endless("Point-v0").play()
    monkeypatch.setattr(probes.Point, "reset", lambda self, **options: {}["key"])
    with pytest.raises(EnvironmentFailed, match=r"\(evaluation at step 5000, seed 1\): KeyError: 'key'"):
        Endless("Point-v0").play()


def test_an_exception_in_the_test_of_whether_it_can_be_restored(monkeypatch):
    monkeypatch.setattr(probes.Point, "step", lambda self, action: 1 / 0)
    with pytest.raises(
        EnvironmentFailed, match=r"Point-v0 failed \(in the test of whether it can be restored\)"
    ):
        SeedEnvs("Point-v0", [1])


def test_an_exception_while_it_is_restored(monkeypatch):
    envs = SeedEnvs("Point-v0", [3])
    envs.step(STILL)
    snapshots, arrays = envs.snapshot()
    other = SeedEnvs("Point-v0", [3])
    monkeypatch.setattr(probes.Point, "step", lambda self, action: 1 / 0)
    with pytest.raises(
        EnvironmentFailed, match=r"Point-v0 failed \(restoring step 1, seed 3\): ZeroDivision"
    ):
        other.restore(1, snapshots, arrays)


def test_an_exception_of_the_constructor_is_described():
    probes.register("Broken-v0", entry_point=lambda: {}["goal"])
    line = test_an_exception_of_the_constructor_is_described.__code__.co_firstlineno + 1
    said = message(UsageError, make_env, "Broken-v0")
    assert said == f"cannot make Broken-v0: KeyError: 'goal' (test_wrapper.py, line {line})"


def test_a_syntax_error_in_the_module_of_an_environment_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "unfinished_env.py").write_text("import gymnasium\nx = = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = message(UsageError, make_env, "unfinished_env:Thing-v0")
    assert said.endswith("invalid syntax (unfinished_env.py, line 2)") and "importlib" not in said


def test_arguments_of_a_function_that_passes_them_on_are_not_listed():
    probes.register("Passed-v0", entry_point=lambda **kwargs: probes.Point(**kwargs))
    said = message(UsageError, make_env, EnvChoice("Passed-v0", env_kwargs='{"mass": 1}'))
    assert "unexpected keyword argument 'mass' (test_wrapper.py, line" in said and said.endswith(")")
    assert "its arguments" not in said


def test_an_environment_that_takes_no_render_mode(monkeypatch):
    monkeypatch.setattr(probes.Goal, "metadata", {"render_modes": ["rgb_array"]})
    monkeypatch.setattr(probes.Goal, "__init__", lambda self: None)
    said = message(UsageError, make_env, "Goal-v0", "rgb_array")
    assert said.endswith("'render_mode'; to be drawn, it must take the argument render_mode")


def test_an_exception_without_a_message_says_where():
    said = message(UsageError, make_env, "Silent-v0")
    assert said.startswith("cannot make Silent-v0: AssertionError: ")
    line = int(said.rpartition("line ")[2])
    source = Path(probes.__file__).read_text().splitlines()
    assert "probes.py" in said and "assert self is None" in source[line - 1]


# arguments


def test_an_environment_sees_its_time_limit():
    """The wrapper keeps the limit, but an environment may read it in its own `spec`."""
    for given, limit in ((None, 200), (7, 7)):
        env = make_env(EnvChoice("Pendulum-v1", max_episode_steps=given))
        assert env.unwrapped.spec.max_episode_steps == env.time_limit == limit
    assert gym.spec("Pendulum-v1").max_episode_steps == 200


def test_arguments_of_an_environment():
    choice = EnvChoice("Goal-v0", env_kwargs='{"goal": [1, 2], "push": 0.5}')
    env = make_env(choice)
    assert (env.unwrapped.goal, env.unwrapped.push) == ([1, 2], 0.5)
    args = sac.Args(env_id="Goal-v0", env_kwargs=choice.env_kwargs)
    assert replace(chosen_env(args), algorithm=None) == choice and hash(args) == hash(replace(args))
    numpy_values = {"push": np.float64(0.5), "goal": np.array([1, 2])}
    for same in ({"goal": [1, 2], "push": 0.5}, numpy_values, '{"push":0.5,  "goal":[1,2]}'):
        assert sac.Args(env_id="Goal-v0", env_kwargs=same) == args
    assert sac.Args(env_kwargs={"xml_file": Path("a.xml")}).env_kwargs == '{"xml_file": "a.xml"}'
    for other in ("", "[1]", '{"goal": }', 3):
        said = message(UsageError, validate, sac.Args(env_kwargs=other))
        assert said.startswith("""env_kwargs must be a JSON object, such as '{"gravity": -3.7}'; got """)


@pytest.mark.parametrize(
    ("env_id", "given", "words"),
    [
        (
            "Goal-v0",
            "{}",
            "missing 1 required positional argument: 'goal'; its arguments, which --env-kwargs gi",
        ),
        (
            "Goal-v0",
            '{"gaol": 1}',
            "missing 1 required positional argument: 'goal'; its arguments, which --env-kwargs gi",
        ),
        (
            "Goal-v0",
            '{"goal": 1, "mass": 1}',
            "unexpected keyword argument 'mass' (probes.py, line 237); its arguments, which --env-k",
        ),
        ("Pendulum-v1", '{"gravity": 1}', "are (render_mode: str | None = None, g=10.0)"),
        ("Pendulum-v1", '{"max_episode_steps": 9}', "that is a flag, --max-episode-steps"),
        ("Pendulum-v1", '{"render_mode": "human"}', "env_kwargs must not have render_mode"),
    ],
)
def test_arguments_that_do_not_fit(env_id, given, words):
    assert words in message(UsageError, make_env, EnvChoice(env_id, env_kwargs=given))


@pytest.mark.slow
def test_arguments_of_an_environment_belong_to_a_run(tmp_path, monkeypatch):
    """They are those of training, evaluations and films, and the same on resume."""
    made = []
    original = probes.Goal.__init__
    monkeypatch.setattr(
        probes.Goal, "__init__", lambda self, **given: made.append(given) or original(self, **given)
    )
    args = SMALL | dict(env_id="Goal-v0", env_kwargs='{"goal": 3}', capture_video=True, video_count=1)
    interrupted(args, tmp_path / "run", monkeypatch, 213)
    assert "started with env_kwargs" in message(
        UsageError, train, args | dict(env_kwargs='{"goal": 4}'), tmp_path / "run"
    )
    made.clear()
    train(args, tmp_path / "run")
    assert {given["goal"] for given in made} == {3} and len(made) > 3
    assert json.loads((tmp_path / "run/config.json").read_text())["args"]["env_kwargs"] == '{"goal": 3}'


# spaces


@pytest.mark.parametrize("env_id", ["HugeBounds-v0", "HalfBounds-v0", "Unbounded-v0"])
def test_bounds_that_cannot_be_scaled_are_refused(env_id):
    said = message(UsageError, make_env, env_id)
    assert f"action bounds must be finite; dimension 0 of {env_id} is [" in said
    assert "wrap it where it is registered: entry_point=lambda **kwargs: TransformAction(" in said


def test_a_reset_that_takes_no_seed(monkeypatch):
    env = make_env("Point-v0")

    def reset(self):
        return np.zeros(2, np.float32), {}

    reset.__qualname__ = "Point.reset"
    monkeypatch.setattr(probes.Point, "reset", reset)
    assert message(UsageError, env.reset) == (
        "Point-v0: reset must take seed and options: def reset(self, *, seed=None, options=None)"
    )


def test_spaces_that_are_missing(monkeypatch):
    monkeypatch.delattr(probes.Point, "observation_space")
    assert "observation space must be a 1-D Box; Point-v0 has NoneType" in message(
        UsageError, make_env, "Point-v0"
    )


def test_the_page_about_environments_gives_advice_that_works():
    """Its code registers what the program takes, and what it would refuse without the wrappers."""
    page = ROOT / "docs/guide/own_environment.md"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    before, variables = dict(gym.registry), {}
    try:
        exec(code, variables)
        for env_id in ("Balance-v0", "FlatSight-v0", "BoundedRocket-v0"):
            envs = SeedEnvs(env_id, [1, 2])
            for _ in range(210):
                envs.step(np.ones((2, 1), np.float32))
        assert envs.task.low == (0,) and envs.task.high == (2,)
        gym.register("Drawn-v0", entry_point=variables["Drawn"], max_episode_steps=200)
        film = Film("Drawn-v0", seconds=1)
        assert film.play(lambda obs, step: STILL[0], 0)[1] == 200
        film.close()
        image = gym.spaces.Box(0, 255, (2,), np.uint8)
        raw = gym.wrappers.TransformObservation(
            variables["Balance"](), lambda obs: np.array([0, 255], np.uint8), image
        )
        as_floats = gym.wrappers.DtypeObservation(raw, np.float32)
        scaled = gym.wrappers.RescaleObservation(as_floats, np.float32(0), np.float32(1))
        assert np.array_equal(scaled.reset()[0], [0, 1])
        for kind, words in [("Sight", "FlattenObservation(MyEnv(**kwargs))"), ("Rocket", "TransformAction")]:
            gym.register(f"{kind}-v0", entry_point=variables[kind])
            assert words in message(UsageError, make_env, f"{kind}-v0")
    finally:
        gym.registry.clear()
        gym.registry.update(before)


def test_a_file_in_place_of_a_module_is_explained():
    said = message(UsageError, make_env, "my_envs.py:Balance-v0")
    assert said.endswith("name the module, not its file: my_envs:Balance-v0")

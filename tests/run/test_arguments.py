"""Bad input: one line that names the value, exit status 2, nothing written."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import tyro
from jax.errors import JaxRuntimeError

import cleanrl_maxent
from cleanrl_maxent import crossq, fitted_q, maxent_pg, ppo, sac, sql, sql_discrete
from cleanrl_maxent.common import devices
from cleanrl_maxent.common.cli import RunArgs, check_file, parse, run_script, validate
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.ranges import (
    READERS,
    Count,
    Discount,
    Range,
    Rate,
    Widths,
    parse_integer,
    unmet_requirement,
)

SCRIPT = Path(sac.__file__)
ALGORITHMS = cleanrl_maxent.algorithms()

# messages as they are read: of common ranges, and of rules between flags; for every algorithm with the flags
BAD = [
    (dict(gamma=5.0), "gamma must be in [0, 1); got 5.0"),
    (dict(gamma=float("nan")), "gamma must be in [0, 1); got nan"),
    (dict(tau=0.0), "tau must be in (0, 1]; got 0.0"),
    (dict(alpha=-1.0), "alpha must be a finite number >= 0; got -1.0"),
    (dict(q_lr=0.0), "q_lr must be a finite number > 0; got 0.0"),
    (dict(policy_lr=float("inf")), "policy_lr must be a finite number > 0; got inf"),
    (dict(total_timesteps=0), "total_timesteps must be an integer in [1, 2147483647]; got 0"),
    (dict(total_timesteps=1e6), "total_timesteps must be an integer in [1, 2147483647]; got 1000000.0"),
    (dict(total_timesteps=1000, learning_starts=25_000), "learning would never start"),
    (dict(total_timesteps=1000, learning_starts=1000), "learning would never start"),
    (dict(batch_size=256, buffer_size=100), "batch_size 256 > buffer_size 100"),
    (dict(learning_starts=100), "only 100 transitions when learning starts"),
    (dict(seed=-1), "seed must be an integer in [0, 2147483647]; got -1"),
    (dict(seed=2**32), "seed must be an integer in [0, 2147483647]; got 4294967296"),
    (dict(seed=2**31 - 1, num_seeds=2), "beyond 2147483647"),
    (dict(seed=2**31 - 1, num_seeds=10**9), "beyond 2147483647"),
    (
        dict(hidden_dims=()),
        "hidden_dims must be a tuple of one value or more, each an integer in [1, 2147483647]; got ()",
    ),
    (
        dict(hidden_dims=(256, 0)),
        "hidden_dims must be a tuple of one value or more, each an integer in [1, 2147483647]",
    ),
    (dict(exp_name=""), "exp_name must be a name"),
    (dict(exp_name="../x"), "exp_name must be a name without '/' or '..'; got '../x'"),
    (dict(run_dir=""), "run_dir is empty; name a folder, or leave --run-dir out"),
    (
        dict(capture_video=True, eval_episodes=0),
        "capture_video films evaluation episodes; give eval_episodes",
    ),
    (dict(resume="runs/x"), "resume is for the command line; in Python, give run_dir and the same arguments"),
    (dict(learning_rate=0.0), "learning_rate must be a finite number > 0; got 0.0"),
    (dict(noise="ou", ou_theta=3.0), "noise diverges unless 0 < ou_theta * ou_dt < 2; got 3.0 * 1.0"),
    (dict(noise="ou", ou_theta=0.0), "noise diverges unless 0 < ou_theta * ou_dt < 2; got 0.0 * 1.0"),
    (dict(reward_scale=0.0), "reward_scale must be a finite number > 0; got 0.0"),
    (dict(update_ratio=0.0), "update_ratio must be in (0, 1); got 0.0"),
    (dict(update_ratio=1.0), "update_ratio must be in (0, 1); got 1.0"),
    (dict(num_minibatches=7), "into 7 equal num_minibatches"),
    (dict(alpha=0.0, autotune=True), "--no-autotune"),
    (dict(gae_lambda=1.5), "gae_lambda must be in [0, 1]; got 1.5"),
    (dict(target_entropy_scale=float("inf")), "target_entropy_scale must be "),
    (dict(noise="Gaussian"), "noise must be gaussian or ou; got 'Gaussian'"),
    (dict(svgd_space="Raw"), "svgd_space must be raw or action; got 'Raw'"),
    (dict(env_reset="never"), "env_reset must be reuse or fresh or restart; got 'never'"),
    (dict(autotune=1), "autotune must be of type bool; got 1"),
    (dict(env_id=3), "env_id must be of type str; got 3"),
]
CASES = [
    pytest.param(module, given, words, id=f"{name} {given}")
    for name, module in ALGORITHMS.items()
    for given, words in BAD
    if given.keys() <= {field.name for field in fields(module.Args)}
]
OF_ONE = [
    (sac, dict(target_entropy_scale=-1.0), "target_entropy_scale must be > -log 2"),
    (crossq, dict(target_entropy_scale=-0.7), "target_entropy_scale must be > -log 2"),
    (maxent_pg, dict(target_entropy_scale=-0.7), "target_entropy_scale must be > -log 2"),
    (crossq, dict(batch_size=1), "a batch of one transition has no variance to normalise by"),
    (crossq, dict(bn_momentum=1.0), "bn_momentum must be in [0, 1); got 1.0"),
    (sql, dict(alpha=1e-7), "alpha, a divisor, must be at least 1e-6; got 1e-07"),
    (
        sql_discrete,
        dict(alpha=0.0, end_e=0.1, uniform_prior=True),
        "uniform_prior needs alpha > 0: a hard max",
    ),
    (fitted_q, dict(uniform_prior=True), "uniform_prior needs alpha > 0: a hard maximum counts no entropy"),
    (sql, dict(svgd_particles=2), "update_ratio 0.5 moves 1 of svgd_particles 2, leaves 1"),
    (
        sql,
        dict(svgd_particles=10, update_ratio=0.05),
        "moves 0 of svgd_particles 10, leaves 10; at least 1 and 2 are needed",
    ),
    (
        sql,
        dict(svgd_particles=3, update_ratio=0.7),
        "moves 2 of svgd_particles 3, leaves 1; at least 1 and 2 are needed",
    ),
    (maxent_pg, dict(alpha=5.0, autotune=True), "alpha is tuned within [0.0001, 1]; got 5.0"),
    (maxent_pg, dict(total_timesteps=1000), "total_timesteps 1000 is less than one rollout of 2048 steps"),
    (
        maxent_pg,
        dict(num_minibatches=30),
        "cannot split num_envs 8 x num_steps 256 into 30 equal num_minibatches",
    ),
    (ppo, dict(kl_coef=1e-5, kl_target=0.01), "kl_coef is adapted within [0.0001, 10000]; got 1e-05"),
    (ppo, dict(update_epochs=200_000), "more than 2147483647 gradient steps"),
    (maxent_pg, dict(update_epochs=200_000), "more than 2147483647 gradient steps"),
]
CASES += [pytest.param(*case, id=f"{case[0].Args.exp_name} {case[1]}") for case in OF_ONE]


@pytest.mark.parametrize(("algorithm", "given", "words"), CASES)
def test_validate(algorithm, given, words):
    with pytest.raises(UsageError) as caught:
        validate(algorithm.Args(**given))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_every_line_of_the_table_is_some_algorithms():
    """A flag that no algorithm has any more would leave its lines untested."""
    tested = [case.values[1] for case in CASES]
    assert all(given in tested for given, _ in BAD)


def test_a_number_without_a_range_is_named():
    @dataclass(frozen=True)
    class Args(RunArgs):
        steepness: float = 1.0

    with pytest.raises(UsageError, match="^steepness: float states no range: use a type of "):
        validate(Args())
    with pytest.raises(TypeError, match="int states no range"):
        unmet_requirement(1, int | None)


def test_a_value_without_a_type_is_named():
    """It would be no flag, or not the default of the base's; nothing would say so."""

    @dataclass(frozen=True)
    class New(sac.Args):
        beta = 0.5

    @dataclass(frozen=True)
    class Changed(sac.Args):
        env_id = "Ant-v4"

    @dataclass(frozen=True)
    class Sound(sac.Args):
        action_spaces = ("Box", "Discrete")
        gamma: Discount = 0.9

    for args_class, words in (
        (New, "^beta of New has no type, so it is no flag; write beta: Number = 0.5, say$"),
        (Changed, "^env_id of Changed has no type, .* write env_id: str = 'Ant-v4', say$"),
    ):
        with pytest.raises(UsageError, match=words):
            validate(args_class())
    validate(Sound())


def test_a_changed_copy_needs_a_name_of_its_own(tmp_path):
    copy = tmp_path / "sac.py"
    text = Path(sac.__file__).read_text()
    copy.write_text(text)
    check_file(copy)
    copy.write_text(text.replace("gamma: Discount = 0.99", "gamma: Discount = 0.9"))
    with pytest.raises(UsageError, match="sac.py differs from this package's sac.py; give it another name"):
        check_file(copy)


def test_an_algorithm_gives_its_name_and_its_own_rules(monkeypatch):
    """`exp_name` is the file's by default; `check` of a subclass comes after that of every run."""

    @dataclass(frozen=True)
    class Args(RunArgs):
        repeats: Count = 1

        def check(self):
            super().check()
            raise UsageError("its own")

    assert Args().exp_name == Args.algorithm() == Path(__file__).stem
    for given, words in (
        ({}, "its own"),
        (dict(seed=2**31 - 1, num_seeds=2), "beyond"),
        (dict(repeats=0), "repeats"),
    ):
        with pytest.raises(UsageError, match=words):
            validate(Args(**given))


def test_an_algorithm_may_state_another_name_and_extend_another():
    """Also in an interactive session, whose module has no file; and its rules add to those of every run."""

    @dataclass(frozen=True)
    class Named(sac.Args):
        exp_name: str = "mine"

        def check(self):
            pass

    assert Named().exp_name == "mine"
    with pytest.raises(UsageError, match="exp_name must be a name"):
        validate(Named(exp_name="../x"))
    session = {"sac": sac, "dataclass": dataclass, "__name__": "__console__"}
    exec("@dataclass(frozen=True)\nclass Args(sac.Args):\n    pass", session)
    assert session["Args"]().exp_name == session["Args"].algorithm() == "sac"


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (10**400, Rate, "a finite number > 0"),
        ([64, 64], Widths, "a tuple of one value or more, each an integer in [1, 2147483647]"),
        (5, Annotated[Count, Range(lambda x: x % 2 == 0, "even")], "even"),
        (0, Annotated[Count, Range(lambda x: x % 2 == 0, "even")], "an integer in [1, 2147483647]"),
        (4, Annotated[Count, Range(lambda x: x % 2 == 0, "even")], None),
    ],
)
def test_expected(value, kind, words):
    assert unmet_requirement(value, kind) == words


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (set[Count], "states no range"),
        (list[Count], "lists and dictionaries can be changed: use a tuple"),
        (dict, "can be changed: use a tuple, or JsonObject"),
        (Path | None, "a path is kept as text: use str"),
    ],
)
def test_a_type_that_ranges_do_not_know_is_a_mistake_of_the_program(kind, words):
    with pytest.raises(TypeError, match=words):
        unmet_requirement((1, 2), kind)


def test_a_tuple_of_fixed_length():
    kind = tuple[Count, Discount]
    assert unmet_requirement((1, 0.5), kind) is None
    words = "a tuple of 2 values: an integer in [1, 2147483647]; in [0, 1)"
    for value in ((1, 2.0), (0, 0.5), (1,), (1, 0.5, 0.5), None):
        assert unmet_requirement(value, kind) == words


@pytest.mark.parametrize(
    ("result", "status"),
    [(None, 0), ({"run_dir": "x"}, 0), (True, 0), (3, 3), (OSError("disk"), 2), (KeyboardInterrupt(), 130)],
)
def test_exit_status(result, status, monkeypatch, capsys):
    def function(args):
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as caught:
        run_script(RunArgs, function)
    said = {2: "error: disk\n", 130: "stopped\n"}.get(status, "")
    assert caught.value.code == status and capsys.readouterr().err == said


# more transitions than 20 GB hold, in whichever of these an algorithm has
LARGE = dict(buffer_size=10**9, num_steps=10**8, total_timesteps=2 * 10**9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (LARGE, " GB, 20.0 GB available; lower --"),
        (dict(device="cuda"), "no CUDA device found; available: cpu"),
        (dict(env_id="Hoper-v4"), "Did you mean Hopper-v"),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=list(ALGORITHMS))
def test_train_refuses_and_leaves_nothing(algorithm, given, words, tmp_path, monkeypatch):
    known = {field.name for field in fields(algorithm.Args)}
    env_id = "Pendulum-v1" if "Box" in algorithm.Args.action_spaces else "CartPole-v1"
    given = dict(env_id=env_id) | {name: value for name, value in given.items() if name in known}
    refused(algorithm, given, words, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(value_particles=10**6), "needs 131.1 GB, 20.0 GB available; lower --b"),
        (dict(svgd_particles=20_000), "an update with so many particles needs 102.4 GB, 20.0 GB available"),
    ],
)
def test_too_many_particles(given, words, tmp_path, monkeypatch):
    refused(sql, given, words, tmp_path, monkeypatch)


def refused(algorithm: ModuleType, given, words, folder, monkeypatch):
    """`train` raises a UsageError with these words, and the current folder stays empty."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(devices, "available_memory", lambda: 20e9)
    with pytest.raises(UsageError) as caught:
        algorithm.train(algorithm.Args(**given))
    assert words in str(caught.value) and list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gamma", "5"], "error: gamma must be in [0, 1); got 5.0"),
        (["--env-id", "CartPole-v1"], "Discrete(2)"),
        (["--gama", "0.9"], "--gamma"),
        (["--total-timesteps", "2.5"], "2.5"),
    ],
)
def test_shell(flags, words, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_integers():
    assert parse_integer("1e6") == 1_000_000 and parse_integer("1_000") == 1000
    for text in ("2.5", "abc", "nan", "inf", ""):
        with pytest.raises(ValueError):
            parse_integer(text)


def test_integers_and_widths_on_the_command_line():
    args = tyro.cli(sac.Args, args="--total-timesteps 1e6 --hidden-dims 1_000 2e2 --no-autotune".split())
    assert args == sac.Args(total_timesteps=1_000_000, hidden_dims=(1000, 200), autotune=False)
    assert type(args.total_timesteps) is int


@pytest.mark.parametrize(
    "words, advice",
    [
        ("--autotune False", "--autotune takes no value: write --autotune or --no-autotune"),
        ("--autotune=false", "--autotune takes no value: write --autotune or --no-autotune"),
        ("--hidden_dims=[64,32]", "separate the numbers of --hidden-dims by spaces: --hidden-dims 64 32"),
        ("--hidden-dims 64,32", "separate the numbers of --hidden-dims by spaces: --hidden-dims 64 32"),
    ],
)
def test_forms_that_other_programs_take_are_refused_in_a_line(words, advice, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sac.py", *words.split()])
    with pytest.raises(UsageError) as caught:
        parse(sac.Args)
    assert str(caught.value) == advice


@pytest.mark.parametrize("kind, status", [(MemoryError, 2), (JaxRuntimeError, 2), (RuntimeError, None)])
def test_too_little_memory_is_one_line(kind, status, monkeypatch, capsys):
    def train(args):
        raise kind("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes")

    monkeypatch.setattr(sys, "argv", ["sac.py"])
    with pytest.raises(SystemExit if status else kind) as caught:
        run_script(sac.Args, train)
    said = "error: not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\n"
    assert not status or caught.value.code == status and capsys.readouterr().err == said


def test_the_help_that_an_error_names_can_be_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["my folder/sac.py", "--gama", "0.9"])
    with pytest.raises(SystemExit):
        parse(sac.Args)
    assert "python 'my folder/sac.py' --help" in capsys.readouterr().err


def test_optional_numbers_on_the_command_line(capsys):
    def parsed(words):
        return tyro.cli(sql.Args, args=words.split(), registry=READERS)

    args = parsed("--eval-frequency 1e3 --env-workers None --reward-scale 2")
    assert (args.eval_frequency, args.env_workers, args.reward_scale) == (1_000, None, 2.0)
    for words, line in (("--env-workers two", "two is not a whole number"), ("--reward-scale x", "'x'")):
        with pytest.raises(SystemExit):
            parsed(words)
        printed = capsys.readouterr()
        assert line in printed.err + printed.out and "Annotated" not in printed.err + printed.out

"""The search of hyperparameters survives kills: with a study made up, and with Optuna if it is installed."""

import os
import signal
import subprocess
import sys
import time
from enum import Enum
from types import SimpleNamespace

import pytest

from benchmarks import search
from benchmarks.commands import words
from cleanrl_maxent.common.errors import STOPPED, WORKER_DIED, Stopped, UsageError
from tests.support.results import write_run
from tests.support.suites import write_config

RANGES = {"tau": "any"}
SMALL = "--learning-starts 100 --batch-size 16 --buffer-size 500 --hidden-dims 8 8 --eval-episodes 1"


class State(Enum):
    RUNNING, COMPLETE, FAIL = range(3)

    def is_finished(self):
        return self is not State.RUNNING


class Study:
    """As much of Optuna's study as the search needs."""

    def __init__(self):
        self.trials = []

    def ask(self, ranges):
        number = len(self.trials)
        parameters = {name: float(number) for name in ranges}
        self.trials.append(SimpleNamespace(number=number, params=parameters, state=State.RUNNING, value=None))
        return self.trials[-1]

    def tell(self, number, value=None, state=State.COMPLETE):
        self.trials[number].value, self.trials[number].state = value, state


def test_a_killed_trial_is_resumed_first():
    """With its own number, hence folder, and its own parameters; then as many as asked for in all."""
    study, trained = Study(), []

    def run(number, parameters):
        trained.append((number, parameters["tau"]))
        if trained == [(0, 0.0), (1, 1.0)]:
            raise Stopped
        return 10.0 + number

    with pytest.raises(Stopped):
        search.search(study, RANGES, 3, run)
    search.search(study, RANGES, 3, run)
    assert trained == [(0, 0.0), (1, 1.0), (1, 1.0), (2, 2.0)]
    assert [trial.value for trial in study.trials] == [10, 11, 12]
    search.search(study, RANGES, 3, run)
    assert len(trained) == 4


def test_a_trial_that_fails_or_has_no_parameters_does_not_count():
    """A kill may fall between the beginning of a trial and its parameters."""
    study = Study()
    study.ask({})
    search.search(study, RANGES, 3, lambda number, _: None if number == 1 else 5.0)
    assert [trial.state for trial in study.trials] == [State.FAIL, State.FAIL, State.COMPLETE]


def test_the_value_is_the_last_evaluation_of_all_seeds(tmp_path):
    assert search.value(write_run(tmp_path / "sac", {"1": [9, 2], "2": [9, 4]})) == 3
    sampled = write_run(tmp_path / "sql", {"1": [9, 7]}, "sql", metric="eval_stochastic/return_mean")
    assert search.value(sampled) == 7


def test_a_search_maximises_and_prints_the_best(tmp_path, monkeypatch, capsys):
    study, given = Study(), []
    study.user_attrs = {}
    study.set_user_attr = study.user_attrs.__setitem__
    optuna = SimpleNamespace(
        distributions=SimpleNamespace(FloatDistribution=lambda *bounds, **given: bounds),
        create_study=lambda **options: given.append(options) or study,
    )
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    values = {"trial-1": 3.0, "trial-2": 4.0, "trial-3": -5.0}
    monkeypatch.setattr(search, "train", lambda cell: values[cell.folder.name])
    monkeypatch.setattr(search, "round_parameters", lambda given: {name: x / 4 for name, x in given.items()})
    search.main(search.Args(folder=tmp_path, trials=4, device="cpu"))
    assert given[0]["direction"] == "maximize"
    refused, best = capsys.readouterr().out.splitlines()
    assert refused == "trial-0: tau must be in (0, 1]; got 0.0"
    assert best.startswith("best of 3 (1 more failed): trial-2, 4.0: ") and "--tau 0.5" in best


def test_a_trial_is_a_command_in_its_own_folder(tmp_path):
    args = search.Args(algorithm="td3", flags="--learning-starts 10", folder=tmp_path, device="cpu")
    cell = search.cell_of(4, {"learning_rate": 0.001}, args)
    assert cell.folder == tmp_path / "trial-4" and cell.args.learning_rate == 0.001
    assert (cell.args.learning_starts, cell.args.num_seeds, cell.args.run_dir) == (10, 2, str(cell.folder))


@pytest.mark.parametrize("status", [STOPPED, WORKER_DIED, -signal.SIGKILL])
def test_a_stopped_trial_stays_unfinished(status, tmp_path, monkeypatch):
    program = f"import os, sys; os.kill(os.getpid(), 9) if {status} < 0 else sys.exit({status})"
    monkeypatch.setattr(search.Cell, "command", lambda cell: [sys.executable, "-c", program])
    with pytest.raises(Stopped, match="trial-0 is unfinished; the same command resumes it"):
        search.train(search.cell_of(0, {}, search.Args(folder=tmp_path)))


def test_a_trial_that_cannot_start_does_not_count(tmp_path, monkeypatch):
    """Its training did not fail: the command was wrong, and is mended."""
    monkeypatch.setattr(search.Cell, "command", lambda cell: [sys.executable, "-c", "raise SystemExit(2)"])
    cell = search.cell_of(0, {}, search.Args(folder=tmp_path))
    with pytest.raises(UsageError, match="^trial-0 could not start, see above"):
        search.train(cell)
    assert not cell.folder.exists()


def test_only_a_trial_that_diverges_has_failed(tmp_path, monkeypatch, capfd):
    """Or crashes. One that is refused, say by another version of JAX, stays unfinished. Errors are shown."""
    cell = search.cell_of(0, {}, search.Args(folder=tmp_path))
    cell.folder.mkdir()
    (cell.folder / "config.json").write_text("{}")
    said_and_status = (
        ("error: non-finite loss at step 7", 2),
        ("error: now jax 9.0", 2),
        ("ZeroDivisionError", 1),
    )
    for said, status in said_and_status:
        program = f"import sys; print('warning: x', {said!r}, sep='\\n', file=sys.stderr); sys.exit({status})"
        command = [sys.executable, "-c", program]
        monkeypatch.setattr(search.Cell, "command", lambda cell, command=command: command)
        if "now" not in said:
            assert search.train(cell) is None
        else:
            with pytest.raises(UsageError, match="^trial-0 could not resume, see above; the same command"):
                search.train(cell)
        assert capfd.readouterr().err == f"warning: x\n{said}\n"


def test_a_trial_has_the_threads_that_its_run_began_with(tmp_path, monkeypatch):
    cell = search.cell_of(0, {}, search.Args(folder=tmp_path))
    write_config(cell, cpu_threads=5)
    program = "import os; raise SystemExit(os.environ['NPROC'] != '5')"
    monkeypatch.setattr(search.Cell, "command", lambda cell: [sys.executable, "-c", program])
    monkeypatch.setattr(search, "value", lambda folder: 3.0)
    monkeypatch.setenv("NPROC", "2")
    assert search.train(cell) == 3.0


@pytest.mark.slow
def test_a_trial_that_diverges_says_so_in_the_words_that_are_looked_for(tmp_path):
    flags = f"{SMALL} --q-lr 1e30 --total-timesteps 300 --env-id Pendulum-v1".split()
    assert search.train(search.Cell("sac", tuple(flags), tmp_path / "trial-0", "cpu")) is None


def test_a_run_is_no_folder_for_a_search(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace())
    run = write_run(tmp_path / "run", {"1": [1.0]})
    with pytest.raises(UsageError, match="run is a run; name another --folder for the search"):
        search.main(search.Args(folder=run, device="cpu"))


def test_a_trial_whose_folder_is_taken_is_tried_again(tmp_path, monkeypatch):
    """By a process that a killed search has left behind, and that was still starting."""
    states = [False, True, True, False]  # in use: before, after, while waiting, no longer
    monkeypatch.setattr(search.Cell, "in_use", lambda cell: states.pop(0) if states else False)
    monkeypatch.setattr(search.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(search, "value", lambda folder: 3.0)
    commands = [[sys.executable, "-c", f"raise SystemExit({status})"] for status in (2, 0)]
    monkeypatch.setattr(search.Cell, "command", lambda cell: commands.pop(0))
    assert search.train(search.cell_of(0, {}, search.Args(folder=tmp_path))) == 3.0


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--tau 0.1 --policy-lr 1e-3 --q-lr=1e-3", "sac has no flag of `space` that --flags does not set"),
        ("--env-id Hopper-v4", "env_id is not for --flags: the search sets it"),
        ("--eval-episodes 0", "a search needs evaluations"),
        ("--exp-name 'a", "No closing quotation"),
    ],
)
def test_flags_that_a_search_refuses(flags, words, tmp_path, monkeypatch):
    ranges = SimpleNamespace(FloatDistribution=lambda *bounds, **given: bounds)
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(distributions=ranges))
    with pytest.raises(UsageError, match=words):
        search.main(search.Args(folder=tmp_path / "search", flags=flags, device="cpu"))
    assert not (tmp_path / "search").exists()


def test_ctrl_c_waits_until_the_trial_has_saved(tmp_path, monkeypatch):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    program = f"""
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path({str(saved)!r}).touch()
    sys.exit({STOPPED})
signal.signal(signal.SIGINT, save)
pathlib.Path({str(ready)!r}).touch()
signal.pause()
"""
    monkeypatch.setattr(search.Cell, "command", lambda cell: [sys.executable, "-c", program])
    wait, interrupted = subprocess.Popen.wait, []

    def wait_until_interrupted(process, timeout=None):
        if not interrupted:
            interrupted.append(process)
            while not ready.exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_until_interrupted)
    with pytest.raises(Stopped, match="is stopped; the same command resumes it"):
        search.train(search.cell_of(0, {}, search.Args(folder=tmp_path)))
    assert saved.exists()


def test_a_second_search_in_a_folder_is_refused(tmp_path):
    with (
        search.sole_search(tmp_path),
        pytest.raises(UsageError, match="another search runs in .*; name another --folder"),
        search.sole_search(tmp_path),
    ):
        pass
    with search.sole_search(tmp_path):  # it is over
        pass


def test_a_search_is_refused_before_it_opens_the_study(tmp_path, monkeypatch):
    ranges = SimpleNamespace(FloatDistribution=lambda *bounds, **given: bounds)
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(distributions=ranges))
    with search.sole_search(tmp_path), pytest.raises(UsageError, match="another search runs in"):
        search.main(search.Args(folder=tmp_path, device="cpu"))


def test_a_moved_search_resumes_and_another_one_is_refused(tmp_path):
    """The folder may differ; what is searched may not."""
    study = SimpleNamespace(user_attrs={})
    study.set_user_attr = study.user_attrs.__setitem__
    optuna = SimpleNamespace(create_study=lambda **given: study)
    for name in ("a", "b"):
        search.open_study(optuna, search.Args(folder=tmp_path / name, trials=len(name), device="cpu"))
    with pytest.raises(UsageError, match="holds a search with num_seeds=2; name another --folder"):
        search.open_study(optuna, search.Args(folder=tmp_path / "b", num_seeds=3))


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match="optuna.*; pip install optuna"):
        search.main(search.Args())


@pytest.mark.slow
def test_a_killed_search_ends_as_if_undisturbed(tmp_path):
    """Trial and search get SIGKILL in the second trial: it ends with the bits of an undisturbed run."""
    optuna = pytest.importorskip("optuna")
    folder = tmp_path / "search"
    given = {"total_timesteps": 600, "num_seeds": 1, "trials": 2, "folder": folder, "device": "cpu"}
    flags = ["--flags", f"{SMALL} --checkpoint-frequency 50"]
    command = [sys.executable, search.__file__, *words(given), *flags]
    with subprocess.Popen(command, start_new_session=True) as process:
        while not list(folder.glob("trial-1/checkpoint/checkpoint-*")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (folder / "trial-1" / "result.json").exists()
    subprocess.run(command, check=True)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db")
    assert [trial.value for trial in study.trials] == [search.value(folder / f"trial-{n}") for n in (0, 1)]
    args = search.Args(**given | {"folder": tmp_path}, flags=SMALL)
    subprocess.run(search.cell_of(1, study.trials[1].params, args).command(), check=True)
    record = "trial-1/seed-1/metrics.jsonl"
    assert (folder / record).read_bytes() == (tmp_path / record).read_bytes()
    other = subprocess.run([*command, "--num-seeds", "2"], capture_output=True, text=True)
    assert other.returncode == 2 and "holds a search with num_seeds=1; name another --folder" in other.stderr

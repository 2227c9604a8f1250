"""Stops by a signal, wherever it arrives, and runs that resume: to the bit, and to a larger total."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from cleanrl_maxent import sac
from cleanrl_maxent.common import evaluation, signals
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import Stopped, UsageError, require
from cleanrl_maxent.common.run import run
from cleanrl_maxent.common.run.checkpoint import Checkpoints
from cleanrl_maxent.common.run.journal import Journal
from tests.support.runs import SMALL, differences, digests, flags, interrupted, rows, scalars, start, train

STEPS = [137, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 90, 111, 279, 280, 569, 570))]


@pytest.mark.parametrize("at", STEPS)
def test_stop_at_a_step_boundary(at, reference, tmp_path, monkeypatch):
    interrupted(SMALL, tmp_path / "run", monkeypatch, at)
    assert Checkpoints(tmp_path / "run" / "checkpoint").paths()[0].name == f"checkpoint-{at:010}.json"
    train(SMALL, tmp_path / "run")
    assert differences(reference, digests(tmp_path / "run")) == []


@pytest.mark.slow
def test_stop_in_an_evaluation(reference, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls, scale = [], evaluation.scale_action

        def scaled(*given):
            calls.append(None)
            if len(calls) == 250:  # in the second one, of 200 steps
                signals.received.append(signal.SIGTERM)
            return scale(*given)

        patch.setattr(evaluation, "scale_action", scaled)
        with pytest.raises(Stopped):
            train(SMALL, tmp_path / "run")
    signals.received.clear()
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoint").paths()[0]
    assert checkpoint.name == "checkpoint-0000000280.json" and len(calls) <= 251
    train(SMALL, tmp_path / "run")
    assert differences(reference, digests(tmp_path / "run")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_saves_and_exits_75(name, reference, tmp_path):
    """A long run is stopped by a real signal, and resumes from `--resume` alone."""
    run = tmp_path / "run"
    long = SMALL | dict(total_timesteps=10**6, checkpoint_frequency=0)
    process = start("sac", flags(long), run)
    record = run / "seed-1" / "metrics.jsonl"
    deadline = time.time() + 300
    while not (record.exists() and record.stat().st_size) and time.time() < deadline:
        time.sleep(0.1)
    assert record.exists() and process.poll() is None
    process.send_signal(signal.Signals[name])
    assert process.wait(60) == 75
    log = run.with_suffix(".log").read_text()
    assert re.search(rf"stopped by {name} at step [\d,]+; resume with --resume {re.escape(str(run))}", log)
    if name == "SIGTERM":
        checkpoint = Checkpoints(run / "checkpoint").paths()[0]
        steps = json.loads(checkpoint.read_text().partition("\n")[2])["steps"]
        done = subprocess.run(
            [sys.executable, sac.__file__, "--resume", str(run), "--total-timesteps", str(steps + 10)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and f"resumed at step {steps:,}" in done.stdout, done.stderr


@pytest.mark.slow
def test_signal_in_compilation(reference, tmp_path, monkeypatch):
    """It arrives while the update is traced, before its first step ends."""
    original = sac.update

    def traced(*given):
        signals.received.append(signal.SIGTERM)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sac, "update", traced)
        with pytest.raises(Stopped, match="stopped by SIGTERM at step 111;"):
            train(SMALL, tmp_path / "run")
    signals.received.clear()
    train(SMALL, tmp_path / "run")
    assert differences(reference, digests(tmp_path / "run")) == []


@pytest.mark.slow
def test_stops_one_after_the_other(reference, tmp_path, monkeypatch):
    """Killed with rows that no checkpoint covers, then stopped before a new row, twice."""
    args = SMALL | dict(checkpoint_frequency=190)
    with monkeypatch.context() as patch:
        original = Journal.record_episodes

        def record_episodes(self, steps, episodes):
            original(self, steps, episodes)
            if steps == 250:  # with a row at 200
                raise KeyError

        patch.setattr(Journal, "record_episodes", record_episodes)
        with pytest.raises(KeyError):
            train(args, tmp_path / "run")
    for at in (1, 2):
        interrupted(SMALL, tmp_path / "run", monkeypatch, at)
    assert Checkpoints(tmp_path / "run" / "checkpoint").paths()[0].name == "checkpoint-0000000193.json"
    train(SMALL, tmp_path / "run")
    assert differences(reference, digests(tmp_path / "run")) == []


@pytest.mark.slow
def test_second_sigint_ends_the_process():
    program = (
        "import os, signal, time\nfrom cleanrl_maxent.common import signals\nsignals.listen()\n"
        "os.kill(os.getpid(), signal.SIGINT)\nprint('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\nprint('never', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == "still here\n"
    assert "Ctrl-C again" in done.stderr


@pytest.mark.slow
def test_finished_run_says_so_and_a_larger_total_continues_it(reference, tmp_path, capsys, monkeypatch):
    """A continuation that is refused while it restores leaves all as it was."""
    run = tmp_path / "run"
    result = train(SMALL | dict(total_timesteps=333), run)
    left = digests(run)
    assert train(SMALL | dict(total_timesteps=333), run) == result and digests(run) == left
    assert capsys.readouterr().out.endswith(f"{run} is finished (333 steps); nothing to do\n")
    with monkeypatch.context() as patch:
        patch.setattr(SeedEnvs, "restore", lambda *given: require(False, "cannot be restored"))
        with pytest.raises(UsageError, match="cannot be restored"):
            train(SMALL, run)
    assert digests(run) == left and (run / "result.json").exists()
    train(SMALL, run)
    assert differences(reference, digests(run)) == []
    (run / "policy-1.npz").unlink()  # it is written again
    train(SMALL, run)
    assert differences(reference, digests(run)) == []
    capsys.readouterr()
    train(SMALL | dict(track=True, wandb_mode="offline"), run)
    sends = f"nothing to do; python -m cleanrl_maxent.track {run} sends it to W&B\n"
    assert capsys.readouterr().out.endswith(sends)
    done = subprocess.run(
        [sys.executable, sac.__file__, "--resume", str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith(f"{run} is finished (570 steps); nothing to do\n")


@pytest.mark.slow
def test_tensorboard_is_rebuilt_from_the_record(stopped):
    train(SMALL, stopped)
    assert len(list(stopped.glob("seed-1/events.*"))) == 1
    board = [found for found in scalars(stopped / "seed-1") if found[0].split("/")[0] != "hyperparameters"]
    record = rows(stopped / "seed-1" / "metrics.jsonl")
    assert len(board) == sum(len(row) - 1 for row in record) == len({found[:2] for found in board})


@pytest.mark.slow
def test_zero_temperature_is_saved(tmp_path, monkeypatch):
    args = SMALL | dict(alpha=0.0, autotune=False)
    interrupted(args, tmp_path / "run", monkeypatch)
    train(args, tmp_path / "run")


@pytest.mark.slow
def test_transitions_between_two_checkpoints_are_written_in_parts(tmp_path, monkeypatch):
    """As those of a run that saves less often than every 10,000 steps: none is lost, stopped or not."""
    args = SMALL | dict(total_timesteps=200, eval_episodes=0, checkpoint_frequency=0)
    train(args, tmp_path / "reference")
    monkeypatch.setattr(run, "SEGMENT_LENGTH", 40)
    interrupted(args, tmp_path / "run", monkeypatch, 137)
    stops = [int(path.stem[8:]) for path in sorted((tmp_path / "run" / "checkpoint").glob("segment-*"))]
    assert stops == [40, 80, 120, 137]
    train(args, tmp_path / "run")
    assert differences(digests(tmp_path / "reference"), digests(tmp_path / "run")) == []


def test_the_seconds_of_earlier_processes_count(tmp_path, monkeypatch):
    args = SMALL | dict(total_timesteps=60, learning_starts=50, eval_episodes=0)
    interrupted(args, tmp_path / "run", monkeypatch, 30)
    find = run.find_checkpoint

    def an_hour_later(*given):
        found = find(*given)
        return found._replace(meta=found.meta | {"seconds": 3600.0})

    monkeypatch.setattr(run, "find_checkpoint", an_hour_later)
    assert train(args, tmp_path / "run")["seconds"] > 3600

"""What a folder must hold to be resumed: the same arguments, machine and code, by one writer."""

import json
import os
import subprocess
import sys

import pytest

from cleanrl_maxent import sac
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run import checkpoint, folder, machine, run
from cleanrl_maxent.common.run.checkpoint import Checkpoints
from cleanrl_maxent.common.run.locking import acquire
from tests.support.runs import SMALL, differences, digests, train

THREADS = os.environ["NPROC"]


def test_other_arguments_are_named(stopped):
    with pytest.raises(
        UsageError, match=r"started with gamma=0.99, tau=0.005; you gave 0.5, 0.1: keep the run.s, or"
    ):
        train(SMALL | dict(gamma=0.5, tau=0.1), stopped)
    with pytest.raises(UsageError, match="has 300 steps already, more than 290"):
        train(SMALL | dict(total_timesteps=290), stopped)


@pytest.mark.slow
def test_evaluations_to_come_may_differ(stopped, reference):
    """Nothing else changes: not the policy, and not the rest of the record. `config.json` says when."""
    steps = Checkpoints(stopped / "checkpoint").read(Checkpoints(stopped / "checkpoint").paths()[0]).steps
    result = train(SMALL | dict(eval_frequency=500, eval_episodes=2), stopped)
    assert result["evaluations"]["1"]["global_step"] == 570
    config = json.loads((stopped / "config.json").read_text())
    before = {"eval_frequency": 140, "eval_episodes": 1, "until_step": steps}
    assert config["evaluated_before"] == [before]
    assert (config["args"]["eval_frequency"], config["args"]["eval_episodes"]) == (500, 2)
    assert set(differences(reference, digests(stopped))) == {"seed-1/metrics.jsonl", "result.json"}
    with pytest.raises(UsageError, match="started with eval_episodes=2; you gave 3"):
        train(SMALL | dict(eval_frequency=500, eval_episodes=3), stopped)


@pytest.mark.slow
def test_other_versions_are_named(stopped, reference, monkeypatch):
    described = machine.describe_machine()
    described["versions"]["jax"] = "0.0.1"
    with monkeypatch.context() as patch:
        patch.setattr(run, "describe_machine", lambda num_seeds: described)
        with pytest.raises(UsageError, match=r"jax \S+, now 0.0.1: not bit-exact; add --allow-version"):
            train(SMALL, stopped)
        described["device"]["count"] = 2
        with pytest.raises(UsageError, match="'count': 1}, now .*'count': 2}: not bit-exact"):
            train(SMALL, stopped)
        described["device"]["count"] = 1
        described["cpu_threads"] = 7
        with pytest.raises(UsageError, match=f"cpu_threads {THREADS}, now 7"):
            train(SMALL, stopped)
    train(SMALL | dict(allow_version_change=True), stopped)
    assert differences(reference, digests(stopped)) == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--xla_cpu_enable_fast_math=false", None])
def test_recorded_threads_and_flags_are_used(stopped, flags):
    """Bits depend on them, so a resumed run has those it began with."""
    config = json.loads((stopped / "config.json").read_text())
    assert config["cpu_threads"] == int(THREADS)
    assert config["xla_flags"] == (os.environ["XLA_FLAGS"] or None)
    program = (
        "import os\nfrom cleanrl_maxent.common.devices import set_up_device\n"
        f"set_up_device('cpu', {str(stopped)!r})\nprint(os.environ['NPROC'], os.environ['XLA_FLAGS'])"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
    (stopped / "config.json").write_text(json.dumps(config | {"cpu_threads": 5, "xla_flags": flags}))
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True)
    assert done.stdout == f"5 {flags or ''}\n"


def test_changed_config_does_not_pass_for_the_run(stopped):
    path = stopped / "config.json"
    path.write_text(path.read_text().replace('"gamma": 0.99', '"gamma": 0.98'))
    with pytest.raises(UsageError, match=r"gamma=0.99; you gave 0.98"):
        train(SMALL | dict(gamma=0.98), stopped)


def test_lost_config_does_not_start_anew(stopped):
    (stopped / "config.json").unlink()
    with pytest.raises(UsageError, match="config.json is missing; put it back"):
        train(SMALL, stopped)
    assert len(Checkpoints(stopped / "checkpoint").paths()) == 2


def test_lost_config_of_an_earlier_version_does_not_start_anew(tmp_path):
    """Its checkpoints, which this version does not read, stay."""
    old = tmp_path / "checkpoint" / "commit-0000000300.json"
    old.parent.mkdir()
    old.write_text("")
    (tmp_path / ".lock").write_text("")
    with pytest.raises(UsageError, match="was written by an earlier version, which alone can resume it"):
        train(SMALL, tmp_path)
    assert old.exists() and not (tmp_path / "config.json").exists()


def test_finished_run_without_its_checkpoint_is_not_trained_again(stopped):
    record = (stopped / "seed-1" / "metrics.jsonl").read_bytes()
    (stopped / "result.json").write_text('{"total_timesteps": 300}')
    for path in (stopped / "checkpoint").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="is finished and has no checkpoint to extend it from"):
        train(SMALL, stopped)
    assert (stopped / "seed-1" / "metrics.jsonl").read_bytes() == record


def test_changed_threads_in_the_config_do_not_pass(stopped):
    """The checkpoint knows the machine too, so a bit flip in config.json is not silent."""
    path = stopped / "config.json"
    path.write_text(path.read_text().replace(f'"cpu_threads": {THREADS}', '"cpu_threads": 3'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "3")
        with pytest.raises(UsageError, match=f"cpu_threads {THREADS}, now 3"):
            train(SMALL, stopped)


def test_newer_format(stopped, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    with pytest.raises(UsageError, match="has format 2, this program reads up to 1"):
        train(SMALL, stopped)


def test_newer_format_of_the_folder(stopped):
    path = stopped / "config.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UsageError, match="was written by newer code: format 2"):
        train(SMALL, stopped)


def test_other_network_in_the_code(stopped, monkeypatch):
    init = sac.init

    def wider(key, task, args):
        return init(key, task._replace(obs_dim=task.obs_dim + 1), args)

    monkeypatch.setattr(sac, "init", wider)
    with pytest.raises(UsageError, match="other code: actor/.*kernel does not fit"):
        train(SMALL, stopped)


def test_one_writer(tmp_path):
    held = folder.lock(tmp_path / "run")
    with pytest.raises(UsageError, match=f"is being written by process {os.getpid()} on ."):
        train(SMALL, tmp_path / "run")
    held.close()
    folder.lock(tmp_path / "run").close()


def test_a_look_at_a_run_does_not_keep_it_from_starting(tmp_path, monkeypatch):
    """The list of runs, and a sweep, take its lock for a moment."""
    folder.lock(tmp_path / "run").close()
    looking, waits = open(tmp_path / "run" / ".lock"), []
    acquire(looking, shared=True)

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            looking.close()

    monkeypatch.setattr(folder.time, "sleep", sleep)
    folder.lock(tmp_path / "run").close()
    assert len(waits) == 3


@pytest.mark.parametrize("content", ["[]", '{"model": 1}', '{"algorithm": "sac"}', "{"])
def test_folder_with_a_foreign_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    line = r"config.json (does not belong to a run|is damaged: .*); name another --run-dir$"
    with pytest.raises(UsageError, match=line):
        train(SMALL, tmp_path)


@pytest.mark.slow
def test_resume_or_run_dir():
    """The two together, or an empty one, are refused."""
    for given, said in (("--resume a --run-dir b", "not both"), ("--resume=", "is not a run")):
        done = subprocess.run([sys.executable, sac.__file__, *given.split()], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_not_a_run(tmp_path):
    done = subprocess.run(
        [sys.executable, sac.__file__, "--resume", str(tmp_path / "no")], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not a run" in done.stderr
    assert not (tmp_path / "no").exists()

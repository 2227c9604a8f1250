"""What a run leaves, and which folders it takes."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from cleanrl_maxent import sac
from cleanrl_maxent.common.config import FORMAT, digest_of
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.folder import make_run_dir
from cleanrl_maxent.common.run.inventory import is_locked
from tests.support.runs import SMALL, at_step, flags, train


def test_folder(run):
    folder, result = run
    names = {
        re.sub(r"(events).*|(checkpoint/.*)\..*", r"\1\2", str(path.relative_to(folder)))
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert names == {
        ".lock",
        "config.json",
        "README.md",
        "result.json",
        *(f"checkpoint/{name}-0000000{steps}" for steps in (540, 570) for name in ("checkpoint", "state")),
        *(f"checkpoint/segment-0000000{steps}" for steps in (360, 450, 540, 570)),  # of the last 200 steps
        "timing.jsonl",
        "policy-3.npz",
        "policy-4.npz",
        *(f"seed-{seed}/{name}" for seed in (3, 4) for name in ("metrics.jsonl", "events")),
    }
    assert json.loads((folder / "result.json").read_text()) == result
    newest = max((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    assert newest.name == "result.json"


def test_config(run):
    config = json.loads((run[0] / "config.json").read_text())
    assert config["format"] == FORMAT and config["algorithm"] == "sac" and config["args"]["gamma"] == 0.99
    assert config["args"]["hidden_dims"] == [8, 8] and config["device"]["platform"] == "cpu"
    assert all(
        config["versions"][name] for name in ("python", "jax", "gymnasium", "mujoco", "cleanrl_maxent")
    )
    assert config["cpu_threads"] >= 1
    assert config["algorithm_sha256"] == sha256(Path(sac.__file__).read_bytes()).hexdigest()
    assert {"env_id", "hidden_dims"} <= set(config["changed"]) <= config["args"].keys() - {"tau", "gamma"}
    spaces = dict(obs_dim=3, action_dim=1, discrete=False, low=[-2.0], high=[2.0])
    assert config["task"] == spaces | dict(first_action=0, action_dtype="float32")


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=f"exists and is not a run; .* --run-dir {tmp_path}/mine"):
        sac.train(sac.Args(**SMALL, run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_runs_on_a_disk_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot write to runs/"):
        make_run_dir(sac.Args(**SMALL))


def test_a_folder_of_runs_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"^{tmp_path} holds runs; name a new folder"):
        sac.train(sac.Args(**SMALL, run_dir=str(tmp_path)))


@pytest.mark.parametrize("names", [[".lock", "README.md"], [".lock", "config.json"], ["checkpoint"]])
def test_a_folder_with_some_names_of_a_run_is_refused_untouched(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text('{"name": "bert"}')
    args = sac.Args(**SMALL | dict(run_dir=str(tmp_path)))
    with pytest.raises(UsageError, match="is not a run|does not belong to a run"):
        sac.train(args)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        names, '{"name": "bert"}'
    )


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        sac.train(sac.Args(**SMALL, run_dir=str(tmp_path / "file" / "run")))


def test_a_run_holds_its_lock_until_it_ends(tmp_path, monkeypatch):
    """So no second process writes to its folder."""
    held = []
    at_step(monkeypatch, 20, lambda: held.append(is_locked(tmp_path / "run")))
    train(SMALL | dict(total_timesteps=40, learning_starts=30, eval_episodes=0), tmp_path / "run")
    assert held == [True] and not is_locked(tmp_path / "run")


@pytest.mark.slow
def test_own_environment_by_module(tmp_path):
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('MyEnv-v0', entry_point=PendulumEnv, max_episode_steps=200)\n"
    )
    given = SMALL | dict(env_id="my_module:MyEnv-v0", total_timesteps="3.1e2", learning_starts=300)
    command = [sys.executable, sac.__file__, *flags(given)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("my_module_MyEnv-v0__sac__1__")
    assert "310/310" in done.stdout and "done: 310 steps" in done.stdout and "\x1b" not in done.stdout


@pytest.mark.slow
def test_folder_of_an_earlier_version_is_refused(run, tmp_path):
    """Its checkpoints were called commits; it says so in one line, and stays as it was."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    (folder / "result.json").unlink()
    for path in (folder / "checkpoint").glob("checkpoint-*.json"):
        path.rename(path.with_name(path.name.replace("checkpoint-", "commit-")))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del before[folder / ".lock"]
    given = [*flags(SMALL), "--seed", "3", "--num-seeds", "2", "--run-dir", str(folder)]
    done = subprocess.run([sys.executable, sac.__file__, *given], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        f"error: {folder}/checkpoint was written by an earlier version, which alone can resume it; "
        "name another --run-dir\n"
    )
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_change_of_the_algorithms_file_is_said(run, tmp_path, capsys):
    """Whether there is something left to do or not."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    args = sac.Args(**{**config["args"], "run_dir": str(folder)})
    said = f"warning: sac.py has changed since {folder} was started; another --run-dir starts it anew\n"
    for digest, expected in ((None, ""), (config["algorithm_sha256"], ""), ("0" * 64, said)):
        (folder / "config.json").write_text(json.dumps(config | {"algorithm_sha256": digest}))
        sac.train(args)
        assert capsys.readouterr().err == expected


def test_line_ends_are_no_change_of_a_file(tmp_path):
    """Git writes Windows' own there."""
    digests = []
    for name, content in (("unix", b"a\nb\n"), ("windows", b"a\r\nb\r\n"), ("other", b"ab\n")):
        (tmp_path / name).write_bytes(content)
        digests.append(digest_of(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_a_run_that_saved_nothing_starts_anew_without_a_warning(tmp_path, capsys, monkeypatch):
    """As after a mistake in the file, which ended its first run, was mended."""
    args = SMALL | dict(total_timesteps=40, learning_starts=30, eval_episodes=0)
    with monkeypatch.context() as patch:
        patch.setattr(sac, "update", lambda *given: undefined)  # noqa: F821
        with pytest.raises(NameError):
            train(args, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"algorithm_sha256": "0" * 64}))
    capsys.readouterr()
    assert train(args, tmp_path / "run")["total_timesteps"] == 40
    assert "warning" not in capsys.readouterr().err


def test_a_run_of_other_spaces_is_not_continued(run, tmp_path):
    """As after an edit of the environment: actions of other units would enter its replay."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    other = config | {"task": config["task"] | {"high": [3.0]}}
    (folder / "config.json").write_text(json.dumps(other))
    args = sac.Args(**{**config["args"], "run_dir": str(folder), "total_timesteps": 10**6})
    with pytest.raises(
        UsageError, match=r"spaces differ: high is \(3.0,\) in .* and \(2.0,\) in Pendulum-v1"
    ):
        sac.train(args)
    assert json.loads((folder / "config.json").read_text()) == other


def test_an_extended_run_keeps_the_digest_of_the_file_that_began_it(tmp_path):
    folder = tmp_path / "run"
    args = sac.Args(**SMALL | dict(run_dir=str(folder)))
    sac.train(args)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"algorithm_sha256": "0" * 64}))
    sac.train(replace(args, total_timesteps=args.total_timesteps + 10))
    assert json.loads((folder / "config.json").read_text())["algorithm_sha256"] == "0" * 64

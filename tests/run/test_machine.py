"""What machines, shells and Python's users do: output that ends, signals, file systems, homes, containers."""

import errno
import fcntl
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cleanrl_maxent
from cleanrl_maxent import enjoy, runs, sac
from cleanrl_maxent.common import container as containers
from cleanrl_maxent.common import devices, files, output, signals
from cleanrl_maxent.common.cli import parse, put_current_folder_first, recorded_args, validate
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run import folder as folders
from cleanrl_maxent.common.run import record, timing
from cleanrl_maxent.common.run.inventory import is_locked
from cleanrl_maxent.common.run.machine import OPTIONS, changed_options, check_same_machine, describe_machine
from cleanrl_maxent.common.run.terminal import Terminal
from tests.support.runs import SMALL, at_step, rows, scalars, train

FEW = SMALL | dict(total_timesteps=40, learning_starts=20, eval_frequency=20, checkpoint_frequency=10)


def finishes(given, path):
    """True if a run comes to its end, with its record."""
    train(given, path)
    return (path / "result.json").exists() and bool(rows(path / "seed-1" / "metrics.jsonl"))


class Broken(io.StringIO):
    """A stream that takes nothing."""

    encoding = "utf-8"

    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def write(self, text):
        raise self.problem

    flush = lambda self: self.write("")  # noqa: E731


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem", [BrokenPipeError(), OSError(errno.ENOSPC, "No space"), OSError(errno.EIO, "hung up")], ids=repr
)
def test_a_run_in_python_outlives_its_screen(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(problem))
    monkeypatch.setattr(sys, "stderr", Broken(problem))
    assert finishes(FEW, tmp_path / "run")
    train(FEW, tmp_path / "run")  # "… is finished"


def test_a_live_line_on_a_terminal_that_is_gone(monkeypatch, tmp_path):
    """In Python, where standard output is not lossy; rich puts a stream of its own in its place."""

    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Gone())
    terminal = Terminal(sac.Args(), tmp_path)
    assert terminal.live.is_started
    terminal.print_line("a line")
    output.say("a line")
    terminal.finish(1.0, 0.5)


def test_the_last_step_is_said_once(tmp_path, monkeypatch, capsys):
    """The evaluation there says it, with the same words as a line of steps per second."""
    monkeypatch.setattr("cleanrl_maxent.common.run.terminal.PLAIN_LINE_EVERY", 0.0)
    terminal = Terminal(sac.Args(total_timesteps=2_000), tmp_path)
    for terminal.steps in (1_000, 2_000):
        terminal.show_speed(150.0)
    terminal.show_evaluation([{"eval/return_mean": -1.0}], 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1,000/2,000", "2,000/2,000"]
    terminal.stop()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_screen_without_the_letters(encoding, tmp_path, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding))
    assert finishes(FEW, tmp_path / "run")
    said = content.getvalue().decode(encoding).splitlines()
    assert any(line.startswith("sac on Pendulum-v1, seeds [1] ? ") for line in said)


@pytest.mark.parametrize("stream", [None, "closed"])
def test_no_screen_at_all(stream, monkeypatch):
    closed = io.StringIO()
    closed.close()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, closed if stream else None)
    output.say("nobody hears this")
    output.warn("nor this")


def test_what_a_pipe_does_not_take_is_lost():
    """A reader that is gone, a full disk, a full pipe that does not wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with output.Lossy(writer, "w") as file:
        while select.select([], [writer], [], 0)[1]:
            file.write(b"x" * 4096)
        assert file.write(b"lost") == 4
        os.close(reader)
        assert file.write(b"lost") == 4
    with output.Lossy("/dev/full", "w") as file:
        assert file.write(b"lost") == 4


STOPPED = ("raise errors.Stopped('stopped')", 75)
ENDINGS = [("no reader", *ending) for ending in [("pass", 0), ("return 3", 3), STOPPED]]
ENDINGS += [("no reader", "raise errors.UsageError('bad')", 2)]
ENDINGS += [(kind, *STOPPED) for kind in ("full disk", "closed", "latin-1")]


@pytest.mark.parametrize(("kind", "ending", "status"), ENDINGS)
def test_a_program_keeps_its_status_whatever_its_output_does(kind, ending, status):
    """Nothing is said of it at the end either, when Python flushes."""
    program = (
        "from dataclasses import dataclass\n"
        "from cleanrl_maxent.common import cli, errors\n"
        "@dataclass\nclass Args:\n    x: int = 1\n"
        "def main(args):\n"
        "    for i in range(10_000):\n        print('a line → with … and a number', i)\n"
        f"    {ending}\n"
        "cli.run_script(Args, main)\n"
    )
    command, variables = [sys.executable, "-c", program], dict(os.environ)
    if kind == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    if kind == "latin-1":
        variables["PYTHONIOENCODING"] = "latin-1"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, os.fdopen(writer, "w") as gone:
        stdout = {"no reader": gone, "full disk": full}.get(kind, subprocess.PIPE)
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=variables)
    assert done.returncode == status
    assert done.stderr == ("error: bad\n" if status == 2 else "")


@pytest.mark.slow
def test_head_and_a_signal(tmp_path):
    """`sac.py | head -1`, then Ctrl-C: trained on in silence, saved, status 75."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in FEW.items() if name != "hidden_dims"]
    command = [sys.executable, sac.__file__, *given, "--total-timesteps=1000000", "--run-dir", "run"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline().startswith("imports: ")
        process.stdout.close()
        path, deadline = tmp_path / "run/seed-1/metrics.jsonl", time.time() + 200
        while not (path.exists() and len(path.read_text().splitlines()) > 9) and time.time() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 75
        assert process.stderr.read() == "\nstopping and saving; Ctrl-C again stops at once\n"


@pytest.fixture
def handlers():
    """Puts every handler back."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)
    signals.received.clear()


@pytest.mark.parametrize("name", signals.NAMES)
def test_signals_that_are_noted(name, handlers, capfd):
    signals.listen()
    signal.raise_signal(signal.Signals[name])
    assert signals.received == [signal.Signals[name]]


def test_nohup_is_heeded(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.received


def test_a_signal_where_standard_error_is_gone(handlers, monkeypatch):
    signals.listen()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=False) as stream:
        for stderr in (stream, None):
            monkeypatch.setattr(sys, "stderr", stderr)
            signals.note(signal.SIGINT, None)
    os.close(writer)
    assert signals.received == [signal.SIGINT] * 2


def send_at(monkeypatch, step, name):
    """A real signal arrives in the middle of an environment step of this process."""
    at_step(monkeypatch, step, lambda: os.kill(os.getpid(), signal.Signals[name]))


@pytest.mark.slow
def test_an_interrupt_in_python_saves(tmp_path, monkeypatch, handlers, capfd):
    """As in a notebook: at the last boundary, said in the exception's own line; the next call resumes."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        send_at(patch, 33, "SIGINT")
        with pytest.raises(KeyboardInterrupt) as caught:
            train(FEW, run)
    assert str(caught.value) == f"stopped by SIGINT at step 33; resume with run_dir={str(run)!r}"
    assert (run / "checkpoint/checkpoint-0000000033.json").exists() and not signals.received
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    train(FEW, run)
    assert "resumed at step 33" in capfd.readouterr().out
    straight = tmp_path / "straight"
    train(FEW, straight)
    names = ("seed-1/metrics.jsonl", "policy-1.npz")
    assert all((run / name).read_bytes() == (straight / name).read_bytes() for name in names)


def test_a_second_interrupt_in_python_ends_at_once(tmp_path, monkeypatch, handlers):
    def interrupted_twice(self, action):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SeedEnvs, "step_async", interrupted_twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(FEW, tmp_path / "run")
    assert not str(caught.value) and not signals.received and not signals.postponed
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_terminate_in_python_saves_and_then_does_what_it_would(tmp_path, monkeypatch, handlers, capsys):
    raised = []
    send_at(monkeypatch, 33, "SIGTERM")
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    with pytest.raises(signals.Stopped):
        train(FEW, tmp_path / "run")
    assert raised == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]
    assert "stopped by SIGTERM at step 33; resume with run_dir=" in capsys.readouterr().out


def test_handlers_of_the_program_itself_stay(handlers):
    def own(number, frame):
        pass

    signal.signal(signal.SIGTERM, own)
    signals.postpone()
    assert signal.getsignal(signal.SIGTERM) is own and signal.SIGINT in signals.postponed
    signals.deliver(None)
    assert not signals.postponed and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_before_the_run_leaves_the_second_interrupt_alone(handlers):
    """On the command line, while the run starts: the next Ctrl-C ends the process."""
    signals.listen()
    signal.raise_signal(signal.SIGINT)
    signals.postpone()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL and not signals.postponed


def test_a_run_in_a_thread_leaves_the_signals_of_the_main_one(handlers):
    signals.postpone()
    with ThreadPoolExecutor() as pool:
        pool.submit(signals.deliver, None).result()
    assert signals.postponed and signal.getsignal(signal.SIGINT) is signals.note
    signals.deliver(None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EACCES"])
def test_no_locks(name, tmp_path, monkeypatch, capsys):
    reason = os.strerror(number := getattr(errno, name))

    def flock(*given):
        raise OSError(number, reason)

    monkeypatch.setattr(fcntl, "flock", flock)
    folders.lock(tmp_path / "run").close()
    warning = f"warning: {tmp_path}/run cannot be locked ({reason}): nothing keeps a second process from "
    assert capsys.readouterr().err == warning + "writing to it\n"
    assert not is_locked(tmp_path / "run")
    (tmp_path / "run" / "checkpoint").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    assert runs.remove_checkpoints(tmp_path / "run")


@contextmanager
def no_fsync(monkeypatch, number, of_files):
    real = os.fsync

    def fsync(descriptor):
        if of_files or os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    output.warned.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("of_files", [False, True])
@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "EOPNOTSUPP", "EACCES"])
def test_no_fsync(name, of_files, tmp_path, monkeypatch, capsys):
    """One warning, however many files."""
    number = getattr(errno, name)
    with no_fsync(monkeypatch, number, of_files):
        for content in (b"one", b"two"):
            files.write_file(tmp_path / "file", content)
        seed = record.Record(tmp_path / "seed-1", 0, {})
        seed.sync()
        monkeypatch.setattr(record, "FLUSH_EVERY", 0.0)
        for step in (1, 2):
            seed.write(step, {"loss": 1.0})
    seed.close()
    assert [step for _, step, _ in scalars(tmp_path / "seed-1")][1:] == [1, 2]
    assert (tmp_path / "file").read_bytes() == b"two"
    reason = os.strerror(number)
    said = f"warning: this file system does not flush ({reason}): a power loss may cost a checkpoint\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("of_files", [False, True])
@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_disk_that_fails_is_no_missing_fsync(name, of_files, tmp_path, monkeypatch):
    with no_fsync(monkeypatch, getattr(errno, name), of_files), pytest.raises(OSError) as caught:
        files.write_file(tmp_path / "file", b"content")
    assert caught.value.errno == getattr(errno, name)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name what is flushed")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power loss may leave a checkpoint's name without its content; then the name is flushed too. The
    record is flushed before a checkpoint states its length."""
    done, fsync, rename = [], os.fsync, os.replace

    def flush(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append(path if os.path.isdir(path) else (path, os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *names: done.append("renamed") or rename(*names))
    files.write_file(tmp_path / "file", b"content")
    assert done == [(f"{tmp_path}/file.tmp", 7), "renamed", str(tmp_path)]
    seed = record.Record(tmp_path / "seed-1", 0, {})
    seed.write(1, {"loss": 1.0})
    done.clear()
    length = seed.sync()["bytes"]
    assert done == [(f"{tmp_path}/seed-1/metrics.jsonl", length)] and length > 0
    seed.close()


def test_tensorboard_and_the_wall_clock_are_no_condition(tmp_path, monkeypatch, capsys):
    """Their files cannot be opened: the run has all that it needs."""

    def refuse(*given):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(record, "EventsWriter", refuse)
    monkeypatch.setattr("cleanrl_maxent.common.run.folder.check_free", lambda folder: None)
    (tmp_path / "run" / "timing.jsonl").mkdir(parents=True)
    assert finishes(FEW, tmp_path / "run")
    err = capsys.readouterr().err
    assert "warning: seed-1 is not shown in TensorBoard: [Errno 13] Permission denied" in err
    assert err.count("warning: the run continues without timing.jsonl: [Errno 21] Is a directory") == 1


def test_tensorboard_on_a_full_disk(tmp_path, capsys):
    """One warning, then none."""

    def refuse(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    mirror = record.TensorBoardFile(tmp_path)
    mirror.file.close()
    mirror.file = SimpleNamespace(write_event=refuse, close=lambda: None)
    for steps in (10, 20):
        mirror.add(steps, None)
    said = f"warning: {tmp_path.name} is no longer shown in TensorBoard: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == said


def test_the_wall_clock_on_a_full_disk(tmp_path, capsys):
    """And with rows of something else in its file."""
    path = tmp_path / "timing.jsonl"
    path.write_bytes(b'[1]\n{"no": 1}\n\xff\n{"global_step": 5, "seconds": 1.0}\n{"global')
    clock = timing.Timing(path, 10, 1.0)
    assert [row["global_step"] for row in clock.rows] == [5]
    assert path.read_text() == '{"global_step": 5, "seconds": 1.0}\n'
    clock.close()
    clock.file = open("/dev/full", "w")
    clock.measure(20)
    clock.measure(30)
    said = "warning: the run continues without timing.jsonl: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == said


def test_cache_folder(tmp_path, monkeypatch):
    """The XDG rule: empty or relative is as if it were not set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative", None):
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert devices.make_cache_folder() == tmp_path / "home/.cache/cleanrl_maxent"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert devices.make_cache_folder() == tmp_path / "cache/cleanrl_maxent"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "home"]


def test_no_cache_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert devices.make_cache_folder() is None
    assert "warning: compiled programs are not cached: [Errno 20]" in capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *given: False)
    assert devices.make_cache_folder() is None
    assert f"not cached: cannot write to {tmp_path}/cleanrl_maxent" in capsys.readouterr().err

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    assert devices.make_cache_folder() is None
    assert capsys.readouterr().err.endswith("not cached: Could not determine home directory.\n")
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    devices.set_up_device("auto")
    assert jax.config.jax_compilation_cache_dir == cache


def test_runs_of_the_same_second(tmp_path, monkeypatch):
    """The next free name, when nobody named the folder; a name that was given is taken as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    args = sac.Args(env_id="a/b:C-v0")
    names = [folders.make_run_dir(args).name for _ in range(3)]
    assert names == [f"a_b_C-v0__sac__1__1700000000{end}" for end in ("", "-2", "-3")]
    (tmp_path / "runs" / "file").write_text("")
    monkeypatch.chdir(tmp_path / "runs")
    (tmp_path / "runs" / "runs").write_text("")
    with pytest.raises(
        UsageError, match="cannot write to runs/a_b_C-v0__sac__1__1700000000: runs is not a folder"
    ):
        folders.make_run_dir(args)


@pytest.mark.slow
def test_two_runs_of_a_second_with_other_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders.time, "time", lambda: 1_700_000_000.0)
    results = [sac.train(sac.Args(**FEW, gamma=gamma))["run_dir"] for gamma in (0.9, 0.8)]
    assert results == [f"runs/Pendulum-v1__sac__1__1700000000{end}" for end in ("", "-2")]


def test_a_tilde_is_the_home_wherever_a_path_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = str(tmp_path / "x")
    for name in ("run_dir", "resume", "init_from"):
        assert getattr(sac.Args(**{name: "~/x"}), name) == home
        monkeypatch.setattr(sys, "argv", ["sac", f"--{name.replace('_', '-')}=~/x"])
        assert getattr(parse(sac.Args), name) == home
    monkeypatch.setattr(sys, "argv", ["runs", "~/x"])
    assert parse(runs.Args).folder == Path(home)
    assert enjoy.find_run(enjoy.Args("~/x"))[0] == Path(home)
    for read in (cleanrl_maxent.load_policy, lambda path: recorded_args(sac.Args, path)):
        with pytest.raises(UsageError, match=f"^{re.escape(home)} is not a run"):
            read("~/x")
    algorithm = enjoy.Args("~/x", algorithm="~/x.py")
    with pytest.raises(UsageError, match=f"there is no file {re.escape(home)}.py"):
        enjoy.find_algorithm(algorithm, Path(home))
    assert sac.Args(run_dir="~nobody-of-this-name/x").run_dir == "~nobody-of-this-name/x"


def test_what_python_users_hold(tmp_path, monkeypatch):
    """Paths, scalars and arrays of NumPy and JAX, lists: the run is that of Python's own types."""
    monkeypatch.chdir(tmp_path)
    given = dict(
        FEW,
        run_dir=Path("run"),
        gamma=np.float32(0.5),
        seed=np.int64(3),
        tau=jnp.float32(0.25),
        autotune=np.bool_(False),
        alpha=np.array(0.5),
        env_id=np.str_("Pendulum-v1"),
        batch_size=np.uint8(16),
        hidden_dims=[np.int32(8), 8],
    )
    args = sac.Args(**given)
    same = dict(run_dir="run", gamma=0.5, seed=3, tau=0.25, autotune=False, alpha=0.5, batch_size=16)
    assert args == sac.Args(**{**FEW, **same}) and hash(args) is not None
    for name in given:
        plain = {"run_dir": str, "eval_frequency": int}.get(name, type(getattr(sac.Args, name)))
        assert type(getattr(args, name)) is plain, name
    assert sac.Args(hidden_dims=np.array([8, 9])).hidden_dims == (8, 9)
    sac.train(args)
    config = json.loads(Path("run/config.json").read_text())
    assert config["args"]["run_dir"] == "run" and config["args"]["gamma"] == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(gamma=np.float32(5)), "gamma must be in [0, 1); got 5.0"),
        (dict(gamma=np.array([0.9, 0.8])), "gamma must be in [0, 1); got (0.9, 0.8)"),
        (dict(seed=np.float64(1)), "seed must be an integer in [0, 2147483647]; got 1.0"),
        (dict(run_dir=3), "run_dir must be of type str; got 3"),
        (dict(run_dir=b"x"), "run_dir must be of type str; got b'x'"),
        (dict(hidden_dims=[]), "hidden_dims must be a tuple of one value or more"),
    ],
)
def test_what_they_hold_is_checked(given, words):
    with pytest.raises(UsageError) as caught:
        validate(sac.Args(**given))
    assert words in str(caught.value)


@pytest.mark.slow
def test_modules_of_the_users_folder_come_first(tmp_path):
    """Also where they have names of our own; and for `enjoy`, which makes the environment again."""
    text = (
        "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('MyEnv-v0', entry_point=PendulumEnv, max_episode_steps=200)\n"
    )
    folder = Path(sac.__file__).parent
    for name in ("environments", "common", "sac"):
        (tmp_path / f"{name}.py").write_text(text)
    given = dict(FEW, env_id="environments:MyEnv-v0")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if name != "hidden_dims"]
    for script, words in ((folder / "sac.py", flags + ["--run-dir=r"]), (folder / "enjoy.py", ["r"])):
        done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["environments", "common", "sac"])
def test_order_of_the_folders(name, tmp_path, monkeypatch):
    """The script's folder, which Python puts first, would hide the user's module."""
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.chdir(tmp_path)
    package = str(Path(sac.__file__).parent)
    monkeypatch.setattr(sys, "path", [package, *sys.path])
    for _ in range(2):
        put_current_folder_first()
        assert sys.path[0] == str(tmp_path) and package not in sys.path
        assert sys.path.count(str(tmp_path)) == 1
    found = PathFinder.find_spec(name)
    assert found and found.origin == str(tmp_path / f"{name}.py")


@pytest.fixture
def options():
    """Puts JAX's options back."""
    names = [*devices.OURS, *OPTIONS, "jax_platforms", "jax_platform_name"]
    before = {name: jax.config.values[name] for name in names if name in jax.config.values}
    yield before
    for name, value in before.items():
        if jax.config.values[name] != value:
            jax.config.update(name, value)


OTHER = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
}


@pytest.mark.parametrize("name", devices.OURS)
def test_numbers_and_types_are_ours(name, options):
    """Whatever a variable said when JAX was imported; without one, nothing changes."""
    assert options[name] == devices.OURS[name]  # set once for all tests: JAX's own, but for the precision
    jax.config.update(name, OTHER[name])
    devices.set_up_device("auto")
    assert jax.config.values[name] == devices.OURS[name]


def test_a_context_of_jax_around_a_run(tmp_path, options):
    """It would win over what is set, so it is refused."""
    with (
        jax.enable_x64(True),
        pytest.raises(UsageError, match="this call sets jax_enable_x64=True: leave it"),
    ):
        train(FEW, tmp_path / "run")
    with jax.default_matmul_precision("bfloat16"), pytest.raises(UsageError, match="precision=bfloat16"):
        train(FEW, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_options_that_change_numbers_are_recorded(options, monkeypatch):
    """A run resumes only with the options it began with."""
    assert changed_options() == {} and describe_machine()["jax_options"] == {}
    assert all(jax.config.values[name] == default for name, default in OPTIONS.items())
    machine = describe_machine()
    with pytest.raises(
        UsageError, match="cpu_threads None, now .*: not bit-exact; add --allow-version-change"
    ):
        check_same_machine(machine | {"cpu_threads": None}, machine)  # begun after JAX had computed
    jax.config.update("jax_optimization_level", "O1")
    assert changed_options() == {"jax_optimization_level": "O1"}
    with pytest.raises(UsageError, match=r"jax_options \{\}, now \{'jax_optimization_level': 'O1'\}"):
        check_same_machine(machine, describe_machine())
    del machine["jax_options"]  # a run from before they were recorded
    with pytest.raises(UsageError, match="jax_options"):
        check_same_machine(machine, describe_machine())
    jax.config.update("jax_optimization_level", "UNKNOWN")
    del machine["device"]["count"]  # likewise
    check_same_machine(machine, describe_machine())


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0", "JAX_RANDOM_SEED_OFFSET": "5"},
    ],
    ids=" ".join,
)
def test_variables_of_jax_change_no_bit(variables, tmp_path):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in FEW.items() if name != "hidden_dims"]
    for name, more in (("with", variables), ("without", {})):
        command = [sys.executable, sac.__file__, *given, "--run-dir", tmp_path / name]
        done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ("seed-1/metrics.jsonl", "policy-1.npz"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
@pytest.mark.parametrize(
    ("variable", "wanted"),
    [("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "nonsense"), ("JAX_PLATFORM_NAME", "tpu")],
)
def test_platforms_that_are_not_here(variable, wanted, device):
    program = (
        "from cleanrl_maxent.common.devices import UsageError, set_up_device\n"
        f"try:\n    set_up_device({device!r})\nexcept UsageError as problem:\n    print(problem)"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**variables, variable: wanted}, capture_output=True, text=True
    )
    said = rf"no {wanted.upper()} device found; available: [\w, ]+, which {variable}={wanted} excludes\n"
    assert re.fullmatch(said, done.stdout), done.stderr


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Gives this process the control groups of the text, and a folder of its own for their files."""
    real = Path
    places = {"/sys/fs/cgroup": tmp_path / "cgroup", "/proc/self/cgroup": tmp_path / "groups"}
    monkeypatch.setattr(containers, "Path", lambda *parts: places.get(str(real(*parts)), real(*parts)))
    return (tmp_path / "groups").write_text


def write_files(top, contents):
    for name, content in contents.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


GB = 10**9
MEMORY = [
    # version 2: the page cache that can be given back is free
    ("0::/\n", {"memory.max": f"{8 * GB}", "memory.current": f"{7 * GB}"}, 1),
    (
        "0::/\n",
        {
            "memory.max": f"{8 * GB}",
            "memory.current": f"{7 * GB}",
            "memory.stat": f"anon 5\ninactive_file {6 * GB}\n",
        },
        7,
    ),
    ("0::/\n", {"memory.max": "max", "memory.current": "5"}, np.inf),
    ("0::/\n", {"memory.max": f"{8 * GB}"}, np.inf),  # not enough is known
    ("0::/\n", {"memory.max": "", "memory.current": "?"}, np.inf),
    # the limit of its own group, and of one around it
    ("0::/job/step\n", {"job/step/memory.max": f"{2 * GB}", "job/step/memory.current": "0"}, 2),
    (
        "0::/job/step\n",
        {
            "job/step/memory.max": f"{4 * GB}",
            "job/step/memory.current": "0",
            "job/memory.max": f"{3 * GB}",
            "job/memory.current": f"{2 * GB}",
        },
        1,
    ),
    ("0::/elsewhere\n", {"memory.max": f"{2 * GB}", "memory.current": "0"}, 2),  # as seen from a container
    # version 1
    (
        "5:cpu,cpuacct:/a\n4:memory:/docker/b\n0::/\n",
        {
            "memory/docker/b/memory.limit_in_bytes": f"{2 * GB}",
            "memory/docker/b/memory.usage_in_bytes": f"{2 * GB}",
            "memory/docker/b/memory.stat": f"total_inactive_file {GB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "5",
        },
        1,
    ),
    ("what is this\n", {}, np.inf),
]


@pytest.mark.parametrize(("groups", "contents", "left"), MEMORY)
def test_memory_of_a_container(groups, contents, left, container, tmp_path):
    container(groups)
    write_files(tmp_path / "cgroup", contents)
    assert containers.container_memory() == left * (1 if left == np.inf else GB)


CORES = [
    ("0::/job\n", {"job/cpu.max": "150000 100000"}, 1.5),
    ("0::/job\n", {"job/cpu.max": "max 100000", "cpu.max": "300000 100000"}, 3),
    ("0::/job\n", {"job/cpu.max": "max 100000"}, np.inf),
    ("0::/\n", {}, np.inf),
    (
        "5:cpu,cpuacct:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    ("5:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, np.inf),
]


@pytest.mark.parametrize(("groups", "contents", "cores"), CORES)
def test_cores_of_a_container(groups, contents, cores, container, tmp_path, monkeypatch):
    container(groups)
    write_files(tmp_path / "cgroup", contents)
    assert containers.container_cores() == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    assert devices.cpu_count() == min(64, int(np.ceil(min(cores, 64))))


def test_memory_of_a_system_that_does_not_tell(monkeypatch):
    for module in (devices, containers):
        monkeypatch.setattr(module, "read_numbers", lambda path: {})
    assert devices.available_memory() is None
    devices.check_memory(10**18, "a replay", "--buffer-size")


def test_memory_of_several_devices(monkeypatch):
    """Four seeds on four GPUs of 10 GB: each holds a quarter, of which nine tenths are enough."""
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 10 * GB, "bytes_in_use": 0})
    monkeypatch.setattr(devices, "chosen_device", lambda: gpu)
    monkeypatch.setattr(devices, "seed_sharding", lambda num_seeds: SimpleNamespace(num_devices=num_seeds))
    devices.check_memory(36 * GB, "a replay", num_seeds=4)
    with pytest.raises(UsageError, match="a replay needs .* GB, .* GB available; lower --num-seeds"):
        devices.check_memory(37 * GB, "a replay", num_seeds=4)
    with pytest.raises(UsageError):
        devices.check_memory(36 * GB, "a replay", num_seeds=1)


@pytest.mark.slow
def test_without_what_windows_lacks(tmp_path):
    """No fcntl, no such signals, no fsync of folders: everything imports, and a run trains and is listed."""
    program = f"""
import os, signal, sys
sys.modules["fcntl"] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU", "SIGPIPE", "SIGKILL"):
    delattr(signal, name)
for name in ("sched_getaffinity", "killpg", "sysconf"):
    delattr(os, name)
real = os.open
def open_file(path, *given, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied")
    return real(path, *given, **options)
os.open = open_file
import cleanrl_maxent.__main__
from cleanrl_maxent import runs, track
from cleanrl_maxent.common.cli import run_from_command_line
sac = cleanrl_maxent.algorithms()["sac"]
sys.argv = ["sac"]
args = sac.Args(**{FEW!r}, run_dir="run")
run_from_command_line(sac.Args, lambda _: (sac.train(args), runs.main(runs.Args())))
"""
    (tmp_path / "runs").mkdir()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "done: 40 steps" in done.stdout, done.stderr
    assert "run cannot be locked (this system has no flock)" in done.stderr
    assert "this file system does not flush (Permission denied)" in done.stderr

"""W&B beside a run, and later: what arrives, and what a run is spared where W&B does not work.

The server is a stand-in on this machine; nothing leaves it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Timer

import pytest

from cleanrl_maxent import sac
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.run import journal
from cleanrl_maxent.common.run.tracker import Tracker
from tests.support.runs import SMALL, at_step, flags, rows, start, train
from tests.support.wandb_server import Server, black_hole, closed_port

LIMIT = 20.0  # seconds that W&B may cost a run


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in that the library finds, with a key; no account of this machine is used."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    server = Server()
    variables = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server.url}
    variables["WANDB__FILE_STREAM_TRANSMIT_INTERVAL"] = "1"  # seconds; else 15
    for name, value in {**variables, "HOME": str(home), "NETRC": str(home / "netrc")}.items():
        monkeypatch.setenv(name, value)
    yield server
    with suppress(OSError):
        server.close()


@pytest.fixture
def folder(tmp_path):
    """That of a run of two seeds, whose record is still empty."""
    return make_folder(tmp_path / "run")


def make_folder(folder):
    args = sac.Args(num_seeds=2, track=True)
    for seed in args.seeds:
        (folder / f"seed-{seed}").mkdir(parents=True)
        (folder / f"seed-{seed}" / "metrics.jsonl").touch()
    (folder / "config.json").write_text(json.dumps({"algorithm": "sac", "args": asdict(args)}))
    return folder


def write(folder, begin, end, kind="a", slope=1.0):
    """Rows `begin` to `end` of both seeds' records."""
    for seed in (1, 2):
        with open(folder / f"seed-{seed}" / "metrics.jsonl", kind) as record:
            for index in range(begin, end):
                row = {"global_step": 10 * index, f"losses/{'ab'[index % 2]}": slope * index + seed / 3}
                record.write(json.dumps(row) + "\n")


def cut(folder, count):
    """Keeps the first rows, as the checkpoint of a run that resumes does."""
    for record in folder.glob("seed-*/metrics.jsonl"):
        record.write_text("".join(record.read_text().splitlines(keepends=True)[:count]))


def tracker(folder, lines=None, **args):
    """The tracker of a run; what it says is appended to `lines`."""
    return Tracker(sac.Args(track=True, **args), folder, (lines if lines is not None else []).append)


def wait_for(condition, seconds=20.0):
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "waited in vain"
        time.sleep(0.02)


def arrived(server, seed, of=None):
    """The rows of a seed's W&B run, the newest if it has several, without what W&B adds."""
    runs = [run for run in server.runs.values() if run["name"] == f"run-seed-{seed}"]
    assert of is None or len(runs) == of
    history = runs[-1]["history"]
    assert [row["_step"] for row in history] == list(range(len(history)))
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in history]


def assert_complete(server, folder, of=1):
    for seed in (1, 2):
        assert arrived(server, seed, of) == rows(folder / f"seed-{seed}" / "metrics.jsonl")


def track(folder, *words):
    """The command that sends a record later: its exit status, and what it prints."""
    command = [sys.executable, "-m", "cleanrl_maxent.track", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def sync(folder):
    """W&B's own command for offline runs; what it prints."""
    folders = map(str, (folder / "wandb").glob("offline-run-*"))
    command = [sys.executable, "-m", "wandb", "sync", *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


# of a run: each with the variables and flags that lead to it, and what the screen says of W&B

ONLINE, OFFLINE = r"W&B: http://127.0.0.1:\d+/me/cleanrl_maxent/runs/\w+", "W&B is offline; send it later: "
LATER = "python -m cleanrl_maxent.track .*run"
CASES = {
    "online": ({}, {}, [ONLINE]),
    "offline": ({}, {"wandb_mode": "offline"}, [OFFLINE + LATER]),
    "offline by its variable": ({"WANDB_MODE": "offline"}, {}, [OFFLINE + LATER]),
    "disabled": ({}, {"wandb_mode": "disabled"}, []),
    "disabled by its variable": ({"WANDB_MODE": "disabled"}, {}, []),
    "a wrong variable": (
        {"WANDB_MODE": "bogus"},
        {},
        ["warning: W&B is off: WANDB_MODE is 'bogus'; send the record: " + LATER],
    ),
    "the flag wins": ({"WANDB_MODE": "disabled"}, {"wandb_mode": "online"}, [ONLINE]),
    "no key": (
        {"WANDB_API_KEY": ""},
        {},
        ["warning: W&B is offline: No API key .*; send it later: " + LATER],
    ),
    "refused": ({}, {}, ["warning: W&B is offline: its server cannot be reached; send it later: " + LATER]),
    "black hole": (
        {},
        {},
        ["warning: W&B is offline: its server cannot be reached; send it later: " + LATER],
    ),
    "lost in the middle": (
        {},
        {},
        [ONLINE, "warning: W&B lacks some of the record; send the rest: " + LATER],
    ),
    "uploads refused": ({}, {}, [ONLINE, "warning: W&B lacks some of the record; send the rest: " + LATER]),
}
TINY = SMALL | dict(total_timesteps=130, eval_episodes=0)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """The record of a run without W&B."""
    folder = tmp_path_factory.mktemp("untracked") / "run"
    sac.train(sac.Args(**TINY, run_dir=str(folder)))
    return (folder / "seed-1" / "metrics.jsonl").read_bytes()


class TimedTracker(Tracker):
    """Notes the seconds that it costs the run, and what it says."""

    def __init__(self, args, folder, say):
        self.cost, self.lines = 0.0, []
        began = time.perf_counter()
        super().__init__(args, folder, self.lines.append)
        self.cost += time.perf_counter() - began
        TimedTracker.last = self

    def finish(self, exit_code):
        began = time.perf_counter()
        super().finish(exit_code)
        self.cost += time.perf_counter() - began


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_wandb_costs_a_run_little_and_never_its_record(case, server, untracked, tmp_path, monkeypatch):
    """The record is equal to the bit to that of a run without W&B; the run ends as that does."""
    variables, chosen, said = CASES[case]
    monkeypatch.setattr(journal, "Tracker", TimedTracker)
    with ExitStack() as stack:
        if case == "refused":
            variables = {"WANDB_BASE_URL": closed_port()}
        if case == "black hole":
            variables = {"WANDB_BASE_URL": stack.enter_context(black_hole())}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if case in ("lost in the middle", "uploads refused"):
            fail = server.close if case.startswith("lost") else lambda: setattr(server, "refuse", 403)
            at_step(monkeypatch, 60, lambda: (wait_for(lambda: TimedTracker.last.lines), fail()))
        result = sac.train(sac.Args(**TINY, track=True, **chosen, run_dir=str(tmp_path / "run")))
    tracker = TimedTracker.last
    print(f"\n{case}: {tracker.cost:.2f} s")
    assert tracker.cost < LIMIT
    assert (tmp_path / "run" / "seed-1" / "metrics.jsonl").read_bytes() == untracked
    assert result["total_timesteps"] == 130 and (tmp_path / "run" / "result.json").exists()
    assert len(tracker.lines) == len(said)
    for line, pattern in zip(tracker.lines, said, strict=True):
        assert re.fullmatch(pattern, line), line
    offline = list((tmp_path / "run").glob("wandb/offline-run-*"))
    assert len(offline) == any("W&B is offline" in line for line in said)
    if said == [ONLINE]:
        assert arrived(server, 1) == rows(tmp_path / "run" / "seed-1" / "metrics.jsonl")
    if not said:
        assert not server.runs and not (tmp_path / "run" / "wandb").exists()


@pytest.mark.slow
def test_a_script_ends_as_ever_where_nothing_answers(server, tmp_path, monkeypatch):
    """From the command line: exit status 0, and two lines about W&B at most."""
    with black_hole() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        command = [sys.executable, "-m", "cleanrl_maxent.sac", *flags(TINY), "--run-dir", "run", "--track"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    warning, wait = [line for line in done.stdout.splitlines() if "W&B" in line]
    assert re.fullmatch(CASES["black hole"][2][0], warning) and re.fullmatch(r"waiting for W&B: .* s", wait)


@pytest.mark.slow
def test_a_killed_run_continues_its_wandb_run(server, tmp_path, capfd):
    """Killed at step 130 and resumed from 90: what W&B has is not sent twice."""
    args = TINY | dict(total_timesteps=300, eval_frequency=60, eval_episodes=1)
    point = "cleanrl_maxent.common.run.run:Run.end_step:130"
    with start("sac", [*flags(args), "--track"], tmp_path / "run", point) as process:
        assert process.wait() == -signal.SIGKILL
    train(args | dict(track=True), tmp_path / "run")
    assert arrived(server, 1, of=1) == rows(tmp_path / "run" / "seed-1" / "metrics.jsonl")
    assert [run["exitcode"] for run in server.runs.values()] == [0]
    assert "resumed at step 90" in capfd.readouterr().out


# without a run: the tests write the record


def test_what_arrives(server, folder):
    """A W&B run for each seed, in a group; row n is W&B's step n."""
    lines = []
    run = tracker(folder, lines, wandb_project_name="mine")
    write(folder, 0, 30)
    run.finish(0)
    run.finish(1)  # which does nothing
    assert_complete(server, folder)
    assert re.fullmatch(r"W&B: http://127.0.0.1:\d+/me/mine/groups/run", *lines)
    assert [(run["group"], run["exitcode"]) for run in server.runs.values()] == [("run", 0)] * 2
    configs = [json.loads(run["config"]) for run in server.runs.values()]
    assert [config["seed"]["value"] for config in configs] == [1, 2]
    assert configs[0]["gamma"]["value"] == 0.99 and configs[0]["algorithm"]["value"] == "sac"


@pytest.mark.slow
def test_rows_arrive_while_the_run_lives(server, folder):
    run = tracker(folder)
    write(folder, 0, 10)
    wait_for(lambda: len(server.runs) == 2 and arrived(server, 2))
    write(folder, 10, 20)
    with open(folder / "seed-1" / "metrics.jsonl", "a") as record:
        record.write('{"global_step": 200, ')
        record.flush()
        wait_for(lambda: len(arrived(server, 1)) >= 19)  # the library keeps the last row back
        record.write('"losses/a": 1.0}\n')
    run.finish(0)
    assert_complete(server, folder)


@pytest.mark.slow
def test_a_resumed_run_continues_its_wandb_run(server, folder):
    """The record is cut back to a checkpoint, and the same rows come again."""
    run = tracker(folder)
    write(folder, 0, 50)
    run.finish(1)
    assert {run["exitcode"] for run in server.runs.values()} == {1}
    cut(folder, 30)
    run = tracker(folder)
    write(folder, 30, 80)
    run.finish(0)
    assert_complete(server, folder)
    assert {run["exitcode"] for run in server.runs.values()} == {0}


@pytest.mark.slow
def test_a_record_that_is_not_continued_begins_a_new_wandb_run(server, folder):
    """Such as after an inexact resume: W&B takes no row back."""
    run = tracker(folder)
    write(folder, 0, 50)
    run.finish(1)
    cut(folder, 30)
    lines = []
    run = tracker(folder, lines)
    write(folder, 30, 80, slope=2.0)
    run.finish(0)
    assert_complete(server, folder, of=2)
    assert lines[1:] == [
        f"W&B: seed {seed} no longer matches what was sent: a new W&B run begins" for seed in (1, 2)
    ]


@pytest.mark.slow
def test_offline_then_the_command_for_later(server, folder):
    """Two offline processes, one of which is killed; then all is sent, once."""
    for begin, end in ((0, 30), (30, 40), (40, 60)):
        run = tracker(folder, wandb_mode="offline")
        write(folder, begin, end)
        if begin == 30:
            wait_for(lambda: json.loads((folder / "wandb" / "seed-2.json").read_text())["unfinished"])
            os.killpg(run.process.pid, signal.SIGKILL)
        run.finish(0)
    assert not server.runs
    status, printed = track(folder)
    assert status == 0 and printed == f"sent to {server.url}/me/cleanrl_maxent/groups/run\n"
    assert_complete(server, folder)
    assert track(folder)[0] == 0 and "No runs to sync" in sync(folder)
    assert_complete(server, folder)


@pytest.mark.slow
def test_offline_then_the_command_of_wandb(server, folder):
    for begin, end in ((0, 30), (30, 60)):
        run = tracker(folder, wandb_mode="offline")
        write(folder, begin, end)
        run.finish(0)
        time.sleep(0.5)  # W&B names its folders by the second
    sync(folder)
    assert_complete(server, folder)
    assert track(folder)[0] == 0
    assert_complete(server, folder)


@pytest.mark.slow
def test_a_run_that_was_not_tracked_can_be_sent(server, folder):
    write(folder, 0, 30)
    assert track(folder, "--wandb-project-name", "other")[0] == 0
    assert_complete(server, folder)


@pytest.mark.slow
def test_what_a_lost_server_lacks_is_sent_later(server, folder):
    lines = []
    run = tracker(folder, lines)
    write(folder, 0, 30)
    wait_for(lambda: len(server.runs) == 2 and arrived(server, 1) and arrived(server, 2))
    server.close()
    write(folder, 30, 60)
    run.finish(0)
    assert len(lines) == 2 and lines[1].startswith("warning: W&B lacks some of the record; send the rest: ")
    again = Server(before=server)
    assert 0 < len(arrived(again, 1)) < 60
    assert track(folder)[0] == 0
    assert_complete(again, folder)
    again.close()


@pytest.mark.slow
def test_films_go_along(server, folder):
    (folder / "videos").mkdir()
    run = tracker(folder)
    write(folder, 0, 30)
    (folder / "videos" / "step-0000000200-seed-1.gif").write_bytes(b"GIF89a first")
    write(folder, 30, 31)
    (folder / "videos" / "step-0000000300-seed-1.gif").write_bytes(b"GIF89a last")
    run.finish(0)
    first, second = server.runs.values()
    assert sorted(c for name, c in first["files"].items() if name.startswith("media/videos/film")) == [
        b"GIF89a first",
        b"GIF89a last",
    ]
    films = {row["_step"]: row["film"]["caption"] for row in first["history"] if "film" in row}
    assert films == {20: "step 200", 30: "step 300"}
    assert not [row for row in second["history"] if "film" in row]


@pytest.mark.slow
def test_a_killed_run_leaves_no_process(server, folder):
    """The mirror sends what there is, and ends."""
    program = (
        "import os, sys; from pathlib import Path; from cleanrl_maxent import sac\n"
        "from cleanrl_maxent.common.run.tracker import Tracker\n"
        f"run = Tracker(sac.Args(track=True), Path({str(folder)!r}), print)\n"
        "print(run.process.pid, flush=True); input(); os.kill(os.getpid(), 9)"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as run:
        mirror = int(run.stdout.readline())
        write(folder, 0, 30)
        wait_for(lambda: len(server.runs) == 2)
        run.communicate("\n")
    wait_for(lambda: not is_alive(mirror), LIMIT)
    assert run.returncode == -signal.SIGKILL
    assert_complete(server, folder)
    assert {run["exitcode"] for run in server.runs.values()} == {1}


def is_alive(pid):
    with suppress(OSError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


@pytest.mark.slow
def test_the_mirror_is_killed(server, folder):
    lines = []
    run = tracker(folder, lines)
    wait_for(lambda: lines)
    os.killpg(run.process.pid, signal.SIGKILL)
    write(folder, 0, 30)
    run.finish(0)
    assert lines[1:] == [
        f"warning: W&B lacks some of the record; send the rest: python -m cleanrl_maxent.track {folder}"
    ]


def test_a_signal_ends_the_wait(server, folder, monkeypatch):
    lines = []
    with black_hole() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        run = tracker(folder, lines)
        Timer(0.5, lambda: signals.received.append(signal.SIGTERM)).start()
        began = time.perf_counter()
        run.finish(0)
    signals.received.clear()
    assert time.perf_counter() - began < LIMIT / 2
    assert lines == [
        f"warning: W&B lacks some of the record; send the rest: python -m cleanrl_maxent.track {folder}"
    ]


def test_without_the_library(server, folder, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines = []
    tracker(folder, lines).finish(0)
    assert lines == ["warning: W&B is off: it is not installed (pip install wandb)"]
    assert track(folder) == (2, "error: W&B is not installed: pip install wandb\n")


@pytest.mark.slow
def test_what_the_command_refuses(server, folder, tmp_path, monkeypatch):
    assert track(tmp_path / "none")[0] == 2
    monkeypatch.setenv("WANDB_API_KEY", "")
    status, printed = track(folder)
    assert status == 2 and printed.startswith("error: W&B: No API key configured")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tracker(folder)
    wait_for(lambda: (folder / "wandb" / "seed-2.json").exists())
    assert track(folder) == (2, f"error: {folder} is being sent to W&B by another process\n")
    run.finish(0)


def test_the_mirror_needs_no_jax():
    program = "import sys, cleanrl_maxent.track; assert not {'jax', 'wandb'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)

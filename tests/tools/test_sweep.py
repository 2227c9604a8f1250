"""benchmarks/sweep.py: what a suite means, and that no cell is lost, run twice or left unnamed."""

import contextlib
import fcntl
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import cells, sweep
from benchmarks.cells import SUITES, Cell, Grid
from benchmarks.commands import ROOT
from benchmarks.executors import LOST, local
from benchmarks.faults import finished_records, workers_of, write_suite
from cleanrl_maxent import algorithms, sac
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import STOPPED, UsageError
from tests.support.results import EARLIER
from tests.support.suites import make_cells, write_checkpoint, write_config, write_result

PROBE = "tests.support.probes:NanReward-v0"
SMALL = dict(
    total_timesteps=700,
    learning_starts=300,
    buffer_size=500,
    batch_size=16,
    hidden_dims=[8, 8],
    checkpoint_frequency=100,
    eval_frequency=350,
    eval_episodes=1,
)
GRID = dict(algorithms=["sac"], env_ids=["Pendulum-v1"], seeds=1)


def run_sweep(suite, out_dir, *flags):
    """A process that sweeps; probe environments can be made by their module's name."""
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), str(suite), "--out-dir", str(out_dir)]
    return subprocess.Popen(
        [*command, "--device", "cpu", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process):
    """Exit status and what was printed on stdout and stderr."""
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to find processes")
def test_a_killed_sweep_loses_nothing(tmp_path):
    """Kills workers and the sweep at random, then lets it end; one cell fails always and is named."""
    good = GRID | dict(algorithms=["ddpg"], seeds=2, flags=SMALL)
    bad = GRID | dict(env_ids=[PROBE], flags=SMALL)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    status, out, err = finish(run_sweep(write_suite(tmp_path / "suite.toml", good), calm))
    assert status == 0 and "2 of 2 runs done" in out and len(finished_records(calm)) == 2, err

    suite, rng = write_suite(tmp_path / "suite.toml", good, bad), random.Random(0)
    for _ in range(3):
        process = run_sweep(suite, stormy)
        while not (workers := list(workers_of(stormy))) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 4))
        workers = list(workers_of(stormy)) or workers
        for victim in [process.pid, *rng.sample(workers, min(1, len(workers)))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        process.communicate()
    status, out, err = finish(run_sweep(suite, stormy, "--retries", "1"))
    assert status == 1 and "2 of 3 runs done" in out
    assert finished_records(stormy).items() >= finished_records(calm).items()
    assert err.count("failed: ") == 1 and PROBE in err and "non-finite reward at step 3" in err


class FakeExecutor:
    """Ends every cell at once, with the statuses that a test lists for it."""

    def __init__(self, statuses, room=1):
        self.statuses, self.room, self.running, self.starts = statuses, room, set(), Counter()

    def start(self, cell):
        self.room -= 1
        self.running.add(cell)
        self.starts[cell.folder.name] += 1
        return "started"

    def ended(self):
        for cell in list(self.running):
            self.running.remove(cell)
            self.room += 1
            status = self.statuses[cell.folder.name].pop(0)
            if status == 0:
                write_result(cell)
            if status == 75:
                write_checkpoint(cell, self.starts[cell.folder.name])
            yield cell, status


def test_what_becomes_of_a_cell(tmp_path):
    statuses = {
        "stopped": [75] * 30 + [0],
        "killed": [-9] * 20 + [0],
        "killer": [-9] * 30,
        "flaky": [1, 2, 0],
        "broken": [1] * 30,
    }
    executor = FakeExecutor(statuses)
    sweeper = sweep.Sweep(make_cells(tmp_path, statuses), executor, retries=2)
    lines = []
    while not sweeper.over:
        lines += sweeper.step()
    assert {cell.folder.name for cell in sweeper.done} == {"stopped", "killed", "flaky"}
    assert {cell.folder.name for cell in sweeper.failed} == {"killer", "broken"}
    assert executor.starts == {"stopped": 31, "killed": 21, "killer": 21, "flaky": 3, "broken": 3}
    assert sum(line.startswith("gave up") for line in lines) == 2
    again = sweep.Sweep(make_cells(tmp_path, statuses), executor, retries=2)
    assert {cell.folder.name for cell in again.waiting} == {"killer", "broken"}


def test_a_process_that_says_it_is_done_must_have_a_result(tmp_path):
    (cell,) = make_cells(tmp_path, ["empty"])
    sweeper = sweep.Sweep([cell], FakeExecutor({}), retries=0)
    assert sweeper.settle(cell, 0).startswith("gave up") and sweeper.failed == [cell]


@pytest.mark.parametrize(
    ("status", "words"),
    [(2, "status 2"), (-signal.SIGKILL, "killed by signal 9"), (LOST, "ended, cause unknown")],
)
def test_a_cell_that_is_given_up_ended_in_words(tmp_path, monkeypatch, status, words):
    monkeypatch.setattr(sweep, "MAX_KILLS", 0)
    (cell,) = make_cells(tmp_path, ["broken"])
    assert sweep.Sweep([cell], FakeExecutor({}), retries=0).settle(cell, status).endswith(f", {words}")


def test_a_run_of_another_sweep_is_waited_for(tmp_path, monkeypatch):
    """It takes one of two slots, so that one more cell starts and the third has to wait."""
    busy, free, third = cells = make_cells(tmp_path, ["busy", "free", "third"])
    started = []

    def play(command, **options):
        """A run that ends at once: with status 2 if another process has the folder."""
        (cell,) = (cell for cell in cells if cell.command() == command)
        started.append(cell)
        status = 2 if cell.in_use() else write_result(cell) or 0
        return SimpleNamespace(poll=lambda: status, returncode=status)

    monkeypatch.setattr(local.subprocess, "Popen", play)
    busy.folder.mkdir()
    executor = local.LocalExecutor(cells, [{}, {}])
    sweeper = sweep.Sweep(cells, executor, retries=0)
    with open(busy.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweeper.step() == [f"runs     {busy.folder} already", f"started  {free.folder}"]
        assert sweeper.step() == [f"finished {free.folder}", f"started  {third.folder}"]
        assert executor.running == {busy, third} and executor.room == 0
        assert sweeper.step() == [f"finished {third.folder}"] and not sweeper.over
    while not sweeper.over:
        sweeper.step()
    assert sweeper.done == [free, third, busy] and started == [free, third, busy]


def test_a_run_that_came_second_to_its_folder_has_not_failed(tmp_path, monkeypatch):
    (cell,) = make_cells(tmp_path, ["cell"])
    process = SimpleNamespace(poll=lambda: 2, returncode=2)
    monkeypatch.setattr(local.subprocess, "Popen", lambda command, **options: process)
    sweeper = sweep.Sweep([cell], local.LocalExecutor([cell], [{}]), retries=0)
    assert sweeper.step() == [f"started  {cell.folder}"]
    cell.folder.mkdir()
    with open(cell.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stopped, runs = sweeper.step()
        assert stopped == f"stopped  {cell.folder}, to be tried again"
        assert runs == f"runs     {cell.folder} already"
    write_result(cell)
    sweeper.step()
    assert sweeper.done == [cell]


@pytest.mark.parametrize("change", ["algorithm", "tau", "steps", "damage"])
def test_another_run_in_the_folder_is_not_taken_for_the_cell(tmp_path, change):
    (cell,) = make_cells(tmp_path, ["run"])
    other = {
        "algorithm": replace(cell, algorithm="td3"),
        "tau": replace(cell, flags=(*cell.flags, "--tau", "0.5")),
        "steps": replace(cell, flags=("--total-timesteps", "600", "--learning-starts", "300")),
        "damage": cell,
    }[change]
    write_result(cell)
    assert cell.finished()
    write_result(other)
    if change == "damage":
        (cell.folder / "result.json").write_text('{"total_time')
    assert not cell.finished()


def test_the_pace_is_known_after_an_evaluation_too(tmp_path):
    """Whose row has none; the row that is being written does not count."""
    cell = Cell("sac", (), tmp_path / "run", "cpu")
    assert cell.progress() == {}
    cell.folder.mkdir()
    written = (
        '{"global_step": 100, "seconds": 1, "charts/SPS": 90}\n{"global_step": 150, "seconds": 2}\n{"glo'
    )
    (cell.folder / "timing.jsonl").write_text(written)
    assert cell.progress() == {"global_step": 150, "seconds": 2, "charts/SPS": 90}


def until_it_trains(process, tmp_path):
    """Waits until the run of SAC on Pendulum that a sweep has started records its pace; its folder."""
    run = tmp_path / "suite" / "Pendulum-v1__sac__1"
    timing = run / "timing.jsonl"
    while not (timing.exists() and timing.read_text()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    return run


@pytest.mark.slow
def test_a_signal_saves_every_run(tmp_path):
    flags = SMALL | dict(total_timesteps=30_000, checkpoint_frequency=0)
    process = run_sweep(write_suite(tmp_path / "suite.toml", GRID | dict(flags=flags)), tmp_path)
    run = until_it_trains(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    status, out, _ = finish(process)
    assert status == 75 and "the same command resumes them" in out
    assert list((run / "checkpoint").glob("checkpoint-*.json"))


def test_after_a_sweep_signals_do_what_they_did_before(monkeypatch):
    def step():
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(sweep.signals, "received", [])
    before = [signal.getsignal(number) for number in sweep.signals.SIGNALS]
    busy = SimpleNamespace(over=False, executor=local.LocalExecutor([], []), step=step)
    assert sweep.reconcile(busy) == sweep.STOPPED
    assert [signal.getsignal(number) for number in sweep.signals.SIGNALS] == before


def test_an_algorithm_without_runs_is_as_slow_as_the_slowest():
    runs = [
        {
            "algorithm": name,
            "seconds": seconds,
            "args": {"env_id": "Ant-v4", "total_timesteps": 50, "num_seeds": 2},
        }
        for name, seconds in (("ppo", 1.0), ("ppo", 3.0), ("sac", 50.0), ("sac", 70.0), ("td3", 90.0))
    ]
    names = ("ppo", "new", "sac_of_a_user")  # a file of the user's is about as slow as what it extends
    arguments = [SimpleNamespace(env_id="Hopper-v4", algorithm=lambda name=name: name) for name in names]
    cells = [SimpleNamespace(args=args) for args in arguments]
    assert [sweep.seconds_per_step(cell, runs) for cell in cells] == [0.02, 0.9, 0.6]


def test_the_time_left_is_that_of_whole_runs(tmp_path, monkeypatch):
    """Ten seeds side by side take a step a second each: an hour for the run, and one for that which waits."""
    flags = ("--total-timesteps", "3600", "--learning-starts", "300", "--num-seeds", "10")
    cells = [Cell("sac", flags, tmp_path / name, "cpu") for name in ("running", "waiting")]
    monkeypatch.setattr(Cell, "progress", lambda cell: {"global_step": 0, "charts/SPS": 1.0})
    executor = FakeExecutor({})
    executor.running.add(cells[0])
    _, counts = sweep.Sweep(cells, executor, retries=0).table().renderables
    assert counts.endswith("; all done in about 2:00 h")


def test_dry_run_prints_commands_time_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "cpu_count", lambda: 2)
    args = sweep.Args("smoke", out_dir=tmp_path, device="cpu", workers=2, dry_run=True)
    assert sweep.main(args) == 0
    *commands, summary = capsys.readouterr().out.splitlines()
    cells = list(sweep.expand(sweep.read_suite("smoke")[1], tmp_path / "smoke", "cpu", 1))
    assert {cell.algorithm for cell in cells} == set(algorithms())
    assert len(commands) == len(cells) and all(line.startswith("NPROC=1 ") for line in commands)
    assert "--env-id Pendulum-v1 --seed 2 --num-seeds 1 --total-timesteps 1200" in commands[1]
    assert summary.startswith(f"{len(cells)} runs to do, 2 at a time: about 0:0") and "GB" in summary
    for cell in cells:
        write_result(cell)
    assert sweep.main(args) == 0
    assert capsys.readouterr().out == f"all {len(cells)} runs are done\n"


def test_a_command_is_printed_as_a_person_would_type_it(tmp_path, monkeypatch):
    """What is below the current folder from there, what is not in full, and values of flags unchanged."""
    flags = ("--init-from", str(ROOT / "runs" / "first"))
    cell = Cell("sac", flags, ROOT / "runs" / "s" / "a", "cpu")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep.shutil, "which", lambda name: sys.executable)
    of_flags = shlex.join([*flags, "--device", "cpu"])
    assert sweep.command_line(cell.command()) == f"python cleanrl_maxent/sac.py {of_flags} --run-dir runs/s/a"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep.shutil, "which", lambda name: "/another/python")
    assert sweep.command_line(cell.command()) == shlex.join(cell.command())


def parse(*words):
    return sweep.tyro.cli(sweep.Args, args=words)


@pytest.fixture
def executed(monkeypatch):
    """What `--cell` would become: its command and its number of threads."""
    found = []
    monkeypatch.setattr(os, "execv", lambda path, command: found.append((command, os.environ.get("NPROC"))))
    for name in ("NPROC", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "")
    return found


def test_a_line_of_list_is_what_cell_runs(tmp_path, monkeypatch, capsys, executed):
    """Absolute paths, quoted; the device is left to the machine that runs it; nothing is written."""
    monkeypatch.chdir(tmp_path)
    words = (
        str(write_suite(tmp_path / "suite.toml", GRID | dict(seeds=3, flags=SMALL))),
        "--out-dir",
        "my runs",
    )
    assert sweep.main(parse(*words, "--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    for number, line in enumerate(lines):
        sweep.main(parse(*words, "--cell", str(number)))
        command = executed[number][0]
        assert shlex.split(line) == command and command[command.index("--seed") + 1] == str(number + 1)
        assert command[-4:] == [
            "--device",
            "auto",
            "--run-dir",
            f"{tmp_path}/my runs/suite/Pendulum-v1__sac__{number + 1}",
        ]
    assert len(lines) == 3 and [path.name for path in tmp_path.iterdir()] == ["suite.toml"]
    assert sweep.main(parse(*words, "--list", "--device", "cuda")) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "--num-seeds 3" in line and "--device cuda" in line
    for number in (-1, 3):
        with pytest.raises(UsageError, match=f"cell must be in 0 ... 2, the suite's cells; got {number}"):
            sweep.main(parse(*words, "--cell", str(number)))


def test_threads_of_a_cell(tmp_path, monkeypatch, executed):
    """Those with which the run began, else NPROC, else what Slurm gave the job."""
    (cell,) = make_cells(tmp_path, ["cell"])
    for variable, threads in (("", ""), ("SLURM_CPUS_PER_TASK", "3"), ("NPROC", "2")):
        if variable:
            monkeypatch.setenv("NPROC", "")
            monkeypatch.setenv(variable, threads)
        sweep.run_here([cell], 0)
        assert executed.pop() == (cell.command(), threads)
    write_config(cell, cpu_threads=5)
    sweep.run_here([cell], 0)
    assert executed.pop() == (cell.command(), "5")


def test_a_cell_that_is_done_or_run_by_another_process(tmp_path, monkeypatch, capsys, executed):
    (cell,) = make_cells(tmp_path, ["cell"])
    cell.folder.mkdir()
    lock = open(cell.folder / ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish_the_other(seconds):
        write_result(cell)
        lock.close()

    monkeypatch.setattr(sweep.signals, "listen", lambda: None)
    monkeypatch.setattr(sweep.signals, "received", [signal.SIGTERM])
    assert sweep.run_here([cell], 0) == STOPPED and not executed
    assert capsys.readouterr().out == f"waiting: another process writes {cell.folder}\n"
    monkeypatch.setattr(sweep.signals, "received", [])
    monkeypatch.setattr(sweep.time, "sleep", finish_the_other)
    assert sweep.run_here([cell], 0) == 0 and not executed
    waiting, done = capsys.readouterr().out.splitlines()
    assert waiting == f"waiting: another process writes {cell.folder}" and done == f"{cell.folder} is done"
    (cell.folder / "result.json").unlink()  # the other ended, unfinished, while a signal came
    monkeypatch.setattr(sweep.signals, "received", [signal.SIGTERM])
    assert sweep.run_here([cell], 0) == STOPPED and not executed


@pytest.mark.slow
def test_another_engine_runs_the_list(tmp_path):
    """xargs stands for GNU parallel: it runs the lines as they are."""
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(algorithms=["ddpg"], seeds=2, flags=SMALL))
    status, out, err = finish(run_sweep(suite, tmp_path / "my runs", "--list"))
    assert status == 0, err
    command = ["xargs", "-d", "\n", "-P", "2", "-I", "LINE", "sh", "-c", "LINE"]
    done = subprocess.run(command, input=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(finished_records(tmp_path / "my runs")) == 2
    status, out, err = finish(run_sweep(suite, tmp_path / "my runs", "--cell", "1"))
    assert status == 0 and out == f"{tmp_path}/my runs/suite/Pendulum-v1__ddpg__2 is done\n", err


@pytest.mark.slow
def test_a_signal_to_a_cell_reaches_its_run(tmp_path):
    flags = SMALL | dict(total_timesteps=30_000, checkpoint_frequency=0)
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=flags))
    process = run_sweep(suite, tmp_path, "--cell", "0")
    until_it_trains(process, tmp_path)
    process.send_signal(signal.SIGUSR1)
    status, out, _ = finish(process)
    assert status == 75 and "stopped by SIGUSR1 at step " in out


def test_seeds_of_a_grid_side_by_side(tmp_path):
    grids = [Grid(["sac"], ["a/B-v0"], 5, {"autotune": False, "tau": 0.1})]
    cells = list(sweep.expand(grids, tmp_path, "cpu", seeds_per_run=2))
    assert [cell.folder.name for cell in cells] == ["a_B-v0__sac__1-2", "a_B-v0__sac__3-4", "a_B-v0__sac__5"]
    assert [(cell.args.seed, cell.args.num_seeds) for cell in cells] == [(1, 2), (3, 2), (5, 1)]
    assert cells[0].args.autotune is False and cells[0].args.tau == 0.1
    assert len(list(sweep.expand(grids, tmp_path, "cuda", seeds_per_run=0))) == 1


def test_variants_are_names_with_further_flags(tmp_path):
    grids = [Grid(["sac"], ["A-v0"], 1, {"tau": 0.1}, {"fast": {"tau": 0.5}, "plain": {}})]
    cells = list(sweep.expand(grids, tmp_path, "cpu", seeds_per_run=1))
    assert [cell.folder.name for cell in cells] == ["A-v0__fast__1", "A-v0__plain__1"]
    assert [(cell.args.exp_name, cell.args.tau) for cell in cells] == [("fast", 0.5), ("plain", 0.1)]


@pytest.mark.slow
def test_a_file_of_the_users_is_swept(tmp_path):
    """Named from the suite's folder; its runs bear its name, and are known when they are done."""
    code = """
        from dataclasses import dataclass
        from cleanrl_maxent import sac
        from cleanrl_maxent.common.cli import run_from_command_line
        from cleanrl_maxent.common.ranges import Discount

        @dataclass(frozen=True)
        class Args(sac.Args):
            gamma: Discount = 0.5

        if __name__ == "__main__":
            run_from_command_line(Args, sac.train)
    """
    (tmp_path / "sac_mine.py").write_text(textwrap.dedent(code))
    suite = tmp_path / "suite.toml"
    write_suite(suite, GRID | dict(algorithms=["sac_mine.py"], flags=SMALL))
    for said in ("started", "1 of 1 run done"):
        status, out, err = finish(run_sweep(suite, tmp_path / "runs"))
        assert status == 0 and said in out, err
    config = json.loads(
        (tmp_path / "runs" / "suite" / "Pendulum-v1__sac_mine__1" / "config.json").read_text()
    )
    assert config["algorithm"] == "sac_mine" and config["args"]["gamma"] == 0.5


def test_cpu_slots_share_the_cores(monkeypatch):
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    for workers, threads in ((0, ["1"] * 8), (2, ["4"] * 2), (16, ["1"] * 16)):
        assert [slot["NPROC"] for slot in sweep.make_slots({}, workers, 1e9)] == threads


def test_gpu_slots_share_its_memory(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 0, GPU-a, 40000\necho 1, GPU-b, 40000\necho 2, GPU-c, 40000\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    assert sweep.gpu_bytes() == {"0": 40000 * 2**20, "2": 40000 * 2**20}
    slots = sweep.make_slots(sweep.gpu_bytes(), workers=0, largest=15e9)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "2", "0", "2"]
    assert {(slot["XLA_CLIENT_MEM_FRACTION"], slot["NPROC"]) for slot in slots} == {("0.450", "2")}
    size = 40000 * 2**20
    for visible, found in (
        ("GPU-b", {"GPU-b": size}),
        ("1, 0", {"1": size, "0": size}),
        ("2,-1,0", {"2": size}),
        ("0,7,2", {"0": size}),
        ("NoDevFiles", {}),
        ("", {}),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert sweep.gpu_bytes() == found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5")
    with pytest.raises(UsageError, match="names a part of a GPU, MIG-5; give --device cpu"):
        sweep.gpu_bytes()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert list(sweep.gpu_bytes()) == ["0", "1", "2"]
    fake.write_text("#!/bin/sh\necho 0, GPU-a, [N/A]\n")
    with pytest.raises(UsageError, match="does not tell the memory of GPU 0"):
        sweep.gpu_bytes()
    fake.write_text("#!/bin/sh\necho No devices were found\n")
    assert sweep.gpu_bytes() == {}


def test_slots_fit_the_smallest_gpu(monkeypatch):
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    slots = sweep.make_slots({"0": 80e9, "1": 20e9}, workers=0, largest=15e9)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]
    assert {slot["XLA_CLIENT_MEM_FRACTION"] for slot in slots} == {"0.900"}


def test_slots_leave_each_run_the_share_that_it_may_use(monkeypatch):
    """Two runs would get 18 GB each, of which a run uses 90% at most."""
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    assert [len(sweep.make_slots({"0": 40e9}, 0, largest)) for largest in (16e9, 17e9)] == [2, 1]


def test_memory_of_a_run_is_that_of_the_replay_of_every_seed(tmp_path):
    """Hopper's transitions have 11 + 3 + 1 + 11 + 1 + 1 numbers of four bytes."""
    (one,) = make_cells(tmp_path, ["cell"])
    three = replace(one, flags=(*one.flags, "--num-seeds", "3"))
    for cell, seeds in ((one, 1), (three, 3)):
        assert cells.memory_bytes(cell) == cells.PROCESS_BYTES + seeds * 1_000_000 * 28 * 4


def test_a_process_has_its_slot_and_the_threads_of_its_run(tmp_path, monkeypatch):
    """A run that has begun keeps its number of threads, else it would refuse to resume."""
    begun, new = make_cells(tmp_path, ["begun", "new"])
    write_config(begun, cpu_threads=5)
    found = []
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    monkeypatch.setattr(local.subprocess, "Popen", lambda command, **given: found.append(given))
    executor = local.LocalExecutor([begun, new], [{"NPROC": "1", "CUDA_VISIBLE_DEVICES": "3"}] * 2)
    for cell in (begun, new):
        executor.start(cell)
    assert all(given["start_new_session"] for given in found)  # Ctrl-C reaches the sweep alone
    found = [given["env"] for given in found]
    assert [environment["NPROC"] for environment in found] == ["5", "1"]
    assert {environment["CUDA_VISIBLE_DEVICES"] for environment in found} == {"3"}
    assert not any("XLA_PYTHON_CLIENT_MEM_FRACTION" in environment for environment in found)


TEXT = '[[grid]]\nalgorithms = ["sac"]\nenv_ids = ["Pendulum-v1"]\nseeds = 1\n'


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no [[grid]]"),
        (TEXT.replace("[[grid]]", "[grid]"), "has no [[grid]]"),
        ("[[grid]\n", "suite.toml: "),
        (TEXT.replace("seeds = 1\n", ""), "a grid lacks seeds"),
        (TEXT + "seed = 3\n", "unknown key 'seed'"),
        (TEXT.replace("sac", "sac2"), f"unknown algorithm 'sac2'; there are {', '.join(algorithms())}"),
        (TEXT.replace("Pendulum", "Pendulun"), "Did you mean Pendulum-v1?"),
        (TEXT.replace('["Pendulum-v1"]', '"Pendulum-v1"'), "env_ids must be a list of names"),
        (TEXT.replace('["Pendulum-v1"]', "[]"), "env_ids must be a list of names"),
        (TEXT + "flags = { gamma = 2.0 }\n", "Pendulum-v1__sac__1: gamma must be in [0, 1); got 2.0"),
        (TEXT + "flags = { gama = 0.9 }\n", "Pendulum-v1__sac__1: a flag is wrong"),
        (TEXT + "flags = { seed = 7 }\n", "seed is not for a suite's flags"),
        (TEXT + "flags = 3\n", "flags must be a table"),
        (
            TEXT + "flags.env_kwargs = { g = 2026-01-01 }\n",
            "env_kwargs of flags: Object of type date is not",
        ),
        (TEXT + "variants = 3\n", "variants must be tables of flags; got 3"),
        ("grid = [1, 2]\n", "has no [[grid]]"),
        (TEXT + TEXT, "Pendulum-v1__sac__1 is in the suite twice"),
        (
            TEXT + TEXT + "flags = { tau = 0.1 }\n",
            "two cells share the folder Pendulum-v1__sac__1; give each grid or variant its own exp_name",
        ),
        (
            TEXT.replace('"sac"', '"sac", "td3"') + "variants.fast = { tau = 0.1 }\n",
            "sac and td3 share the folder Pendulum-v1__fast__1; put each in its own grid, with its own",
        ),
        ("seeds = 5\n" + TEXT, "unknown key 'seeds' outside its grids"),
        (TEXT + "[variants]\nfast = { tau = 0.1 }\n", "unknown key 'variants' outside its grids"),
        (TEXT.replace("[[grid]]", "[[grids]]"), "unknown key 'grids' outside its grids"),
        (TEXT + 'flags = { "env-id" = "CartPole-v1" }\n', "env_id is not for a suite's flags"),
        (TEXT + "flags = { policy-lr = 1e-3, policy_lr = 1e-2 }\n", "flags has a flag with - and with _"),
        (TEXT.replace('"sac"', '"sac_mine.py"'), "suite.toml: there is no file "),
        (
            TEXT.replace('"sac"', f'"{Path(sac.__file__)}"'),
            "sac.py has the name of an algorithm of this package",
        ),
        (
            TEXT.replace('"sac"', f'"{__file__}"'),
            "test_sweep.py is not an algorithm: it defines no Args(RunArgs) of its own",
        ),
        (TEXT.replace("seeds = 1", 'seeds = "1"'), "seeds must be a whole number >= 1"),
        (TEXT.replace("seeds = 1", "seeds = true"), "seeds must be a whole number >= 1"),
        (TEXT.replace("seeds = 1", "seeds = 3_000_000_000"), "at most 10000; got 3000000000"),
    ],
)
def test_bad_suites(tmp_path, text, words):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as problem:
        sweep.main(sweep.Args(str(path), out_dir=tmp_path, device="cpu"))
    assert words in str(problem.value) and "\n" not in str(problem.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["suite.toml"]


def test_two_files_of_one_name_are_refused(tmp_path):
    """Reports would take one for the other."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sac_mine.py").write_text(Path(sac.__file__).read_text())
    grid = '[[grid]]\nalgorithms = ["{}/sac_mine.py"]\nenv_ids = ["Pendulum-v1"]\nseeds = 1\n'
    path = tmp_path / "suite.toml"
    path.write_text(grid.format("a") + grid.format("b").replace("Pendulum", "Hopper"))
    with pytest.raises(UsageError, match=r"a/sac_mine.py and .*b/sac_mine.py have the same name; rename one"):
        sweep.main(sweep.Args(str(path), out_dir=tmp_path, device="cpu"))


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", {"algorithm": "sac", "args": {"total_timesteps": "x"}}),
        ("config.json", {"algorithm": "sac", "args": []}),
        ("result.json", {"algorithm": "sac", "total_timesteps": None}),
    ],
)
def test_a_damaged_folder_counts_as_unfinished(name, content, tmp_path):
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=SMALL))
    args = sweep.Args(str(suite), out_dir=tmp_path / "runs", device="cpu", dry_run=True)
    (cell,), _ = sweep.suite_cells(args)
    write_result(cell)
    (cell.folder / name).write_text(json.dumps(content))
    assert sweep.main(args) == 0 and not cell.finished()


def test_without_committed_results_a_plan_has_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "read_manifest", lambda path: {})
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=SMALL))
    cells, _ = sweep.suite_cells(sweep.Args(str(suite), out_dir=tmp_path / "runs", device="cpu"))
    assert sweep.estimate(cells, 1).startswith("1 run to do, 1 at a time: up to 0.")


def test_a_plan_lasts_as_long_as_its_longest_worker(tmp_path, monkeypatch):
    """Runs of 3, 3 and 4 hours: 7 with two workers, and no less than 4 with more; steps already done do not
    count."""
    flags = {
        name: SMALL | dict(exp_name=name, total_timesteps=hours * 3_600)
        for name, hours in (("a", 3), ("b", 3), ("c", 4))
    }
    suite = write_suite(tmp_path / "suite.toml", *(GRID | dict(flags=given) for given in flags.values()))
    cells, _ = sweep.suite_cells(sweep.Args(str(suite), out_dir=tmp_path / "runs", device="cpu"))
    monkeypatch.setattr(sweep, "seconds_per_step", lambda cell, runs: 1.0)
    for workers, length in ((1, "10:00"), (2, "7:00"), (9, "4:00")):
        assert f"{min(workers, 3)} at a time: about {length} h at the pace" in sweep.estimate(cells, workers)
    monkeypatch.setattr(sweep, "last_checkpoint", lambda folder: 3_600)
    assert "about 7:00 h at" in sweep.estimate(cells, 1)


def test_an_edited_suite_is_refused_where_its_runs_have_begun(tmp_path, capsys):
    """All of them are named by the first, before any starts; whether they are done does not matter."""
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=SMALL))
    args = sweep.Args(str(suite), out_dir=tmp_path / "runs", device="cpu", dry_run=True)
    (cell,), _ = sweep.suite_cells(args)
    for write in (write_config, write_result):
        write(cell)
        assert sweep.main(args) == 0
        write_suite(suite, GRID | dict(flags=SMALL | dict(gamma=0.9)))
        with pytest.raises(UsageError, match="with gamma=0.99; you gave 0.9: give the suite another name"):
            sweep.main(args)
        write_suite(suite, GRID | dict(flags=SMALL))


def test_seeds_that_another_folder_has_are_not_trained_again(tmp_path):
    """As after a change of --seeds-per-run, or on a machine with a GPU; other steps are another run."""
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=SMALL, seeds=3))
    args = sweep.Args(str(suite), out_dir=tmp_path, device="cpu", dry_run=True)
    cells, _ = sweep.suite_cells(replace(args, seeds_per_run=2))
    for cell in cells:
        write_config(cell)
    assert sweep.main(args) == 0  # nothing is trained yet
    for cell in cells:
        write_checkpoint(cell, 100)
    with pytest.raises(UsageError, match="__1-2 has seeds that .* again: give --seeds-per-run 2 if"):
        sweep.main(args)
    assert sweep.main(replace(args, seeds_per_run=2)) == 0
    write_suite(suite, GRID | dict(flags=SMALL | dict(total_timesteps=800), seeds=2))
    assert sweep.main(args) == 0


def test_a_longer_run_is_done_and_named(tmp_path, capsys):
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=SMALL))
    args = sweep.Args(str(suite), out_dir=tmp_path, device="cpu", dry_run=True)
    (cell,), _ = sweep.suite_cells(args)
    write_config(cell)
    write_result(cell)
    write_suite(suite, GRID | dict(flags=SMALL | dict(total_timesteps=600)))
    assert sweep.main(args) == 0
    out, err = capsys.readouterr()
    assert out == "the run is done\n"
    assert "Pendulum-v1__sac__1 has 700 steps, more than the suite asks for; it counts as done" in err


VARIANTS = [("a", "tau", 0.005), ("b", "policy-lr", 3e-4), ("c", "tau", 0.1)]  # of a, b: the defaults


def test_cells_that_train_the_same_are_named(tmp_path, capsys):
    """Reports would refuse them together, since neither flag differs from the defaults."""
    grids = [GRID | dict(flags=dict(exp_name=name, **{flag: value})) for name, flag, value in VARIANTS]
    suite = write_suite(tmp_path / "suite.toml", *grids)
    args = sweep.Args(str(suite), out_dir=tmp_path, device="cpu", dry_run=True)
    assert sweep.main(args) == 0
    both = "Pendulum-v1__a__1 and Pendulum-v1__b__1 train the same thing"
    assert capsys.readouterr().err == f"warning: {both}; name only one of them in a report\n"


def test_runs_of_an_older_version_of_a_file_are_named(tmp_path, capsys):
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=SMALL, seeds=2))
    args = sweep.Args(str(suite), out_dir=tmp_path / "runs", device="cpu", dry_run=True)
    cells, _ = sweep.suite_cells(args)
    for cell in cells:
        write_result(cell)
        assert sweep.main(args) == 0 and not capsys.readouterr().err
    for cell in cells:
        write_config(cell, algorithm_sha256="0" * 64)
    assert sweep.main(args) == 0
    said = "warning: sac.py has changed since 2 runs of it began; another --out-dir starts anew\n"
    assert capsys.readouterr().err == said


def test_a_wrong_flag_names_the_help_of_its_algorithm(tmp_path, capsys):
    path = write_suite(tmp_path / "suite.toml", GRID | dict(flags={"gama": 0.9}))
    with pytest.raises(UsageError):
        sweep.main(sweep.Args(str(path), out_dir=tmp_path, device="cpu"))
    assert "cleanrl_maxent/sac.py --help" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nope", ".\n"),
        ("smok", ". Did you mean smoke?\n"),
        ("s", ". For the file in this folder, write s.toml.\n"),
    ],
)
def test_unknown_suite(name, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").touch()
    monkeypatch.setattr(sys, "argv", ["sweep.py", name])
    with pytest.raises(SystemExit) as stop:
        run_script(sweep.Args, sweep.main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"suites: {', '.join(sorted(SUITES))}{hint}")


def test_arguments_of_an_environment_may_be_a_table(tmp_path):
    flags = "flags = { env_kwargs = { g = 2.5 }, total_timesteps = 20_000 }"
    (tmp_path / "s.toml").write_text(
        f'[[grid]]\nalgorithms = ["sac"]\nenv_ids = ["Pendulum-v1"]\nseeds = 1\n{flags}\n'
    )
    (cell,) = sweep.expand(sweep.read_suite(str(tmp_path / "s.toml"))[1], tmp_path, "cpu", 1)
    assert cell.args.env_kwargs == '{"g": 2.5}'


@pytest.mark.parametrize("name", sorted(SUITES))
def test_suites_are_valid(name):
    """Two seeds stand for all. How often a run evaluates does not depend on how many seeds share it."""
    if name == "lunar-lander":
        pytest.importorskip("Box2D")
    assert all("eval_frequency" in grid.flags for grid in sweep.read_suite(name)[1])
    grids = [replace(grid, seeds=2) for grid in sweep.read_suite(name)[1]]
    sweep.check(list(sweep.expand(grids, Path("runs"), "cpu", 1)))


@pytest.mark.slow
def test_a_run_without_eval_frequency_is_recognised(tmp_path):
    """Its `config.json` has the number that stands for none."""
    flags = {name: value for name, value in EARLIER_FLAGS.items() if name != "eval_frequency"}
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=flags))
    (cell,) = sweep.expand(sweep.read_suite(str(suite))[1], tmp_path / "suite", "cpu", 1)
    subprocess.run(cell.command(), check=True, capture_output=True)
    assert json.loads((cell.folder / "config.json").read_text())["args"]["eval_frequency"] == 5000
    assert cell.finished()


EARLIER_FLAGS = dict(
    total_timesteps=2000,
    learning_starts=600,
    eval_frequency=500,
    eval_episodes=1,
    hidden_dims=[8, 8],
)


def earlier_cell(tmp_path, finished):
    """The cell of a suite in whose folder an earlier version's run lies."""
    suite = write_suite(tmp_path / "suite.toml", GRID | dict(flags=EARLIER_FLAGS))
    (cell,) = sweep.expand(sweep.read_suite(str(suite))[1], tmp_path / "suite", "cpu", 1)
    shutil.copytree(EARLIER, cell.folder)
    if not finished:
        (cell.folder / "result.json").unlink()
        (cell.folder / "checkpoint").mkdir()
        (cell.folder / "checkpoint" / "commit-0000002000.json").touch()
    return cell


def test_a_run_that_an_earlier_version_finished_is_done(tmp_path):
    assert earlier_cell(tmp_path, finished=True).finished()


def test_a_run_that_an_earlier_version_left_is_refused(tmp_path):
    """In one line, and nothing in it is touched."""
    cell = earlier_cell(tmp_path, finished=False)
    assert not cell.finished()
    with pytest.raises(
        UsageError, match="written by an earlier version, which alone can resume it"
    ) as problem:
        sac.train(cell.args)
    assert "\n" not in str(problem.value) and str(cell.folder) in str(problem.value)
    for path in EARLIER.rglob("*"):
        if path.is_file() and path.name != "result.json":
            assert (cell.folder / path.relative_to(EARLIER)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_sweep_names_the_run_that_an_earlier_version_left(tmp_path):
    earlier_cell(tmp_path, finished=False)
    status, out, err = finish(run_sweep(tmp_path / "suite.toml", tmp_path, "--retries", "0"))
    assert status == 1 and "0 of 1 run done" in out
    lines = err[err.index("failed: ") :].splitlines()
    assert [line.split(":")[0].strip() for line in lines][:: len(lines) - 1] == ["failed", "error"]
    assert lines[-1].endswith(
        "was written by an earlier version, which alone can resume it; name another --run-dir"
    )

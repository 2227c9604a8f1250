"""Sweeps on a real Slurm of two nodes, which is started here, through all that a cluster does to a job.

    apt-get install -y slurm-wlm munge
    python -m pytest -m slurm -s

Takes about ten minutes, as root, and is no part of the other tests.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.cells import expand, read_suite
from benchmarks.commands import ROOT
from benchmarks.executors.slurm import job_name
from benchmarks.faults import finished_records, workers_of, write_suite
from tests.support.cluster import Cluster, missing

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
FLAGS = dict(
    learning_starts=300,
    buffer_size=1_000,
    batch_size=16,
    hidden_dims=[8, 8],
    checkpoint_frequency=500,
    eval_frequency=5_000,
    eval_episodes=1,
)
GRID = dict(algorithms=["sac"], env_ids=["Pendulum-v1"])
LONG = GRID | dict(seeds=1, flags=FLAGS | dict(exp_name="long", total_timesteps=60_000))
SHORT = GRID | dict(seeds=7, flags=FLAGS | dict(exp_name="short", total_timesteps=15_000))
BEGAN = time.monotonic()


@pytest.fixture(scope="module")
def cluster(request):
    if "slurm" not in request.config.option.markexpr:
        pytest.skip("only `python -m pytest -m slurm` runs it")
    if reason := missing():
        give_up = pytest.fail if "CI" in os.environ else pytest.skip
        give_up(reason)
    with tempfile.TemporaryDirectory() as folder:
        with Cluster(Path(folder) / "slurm") as running:
            yield running
        left = [path for path in Path("/proc").glob("[0-9]*") if folder in environment_of(path)]
        assert not left, left


def environment_of(process):
    """The environment that a process was started with; "" if it has ended."""
    with suppress(OSError):
        return (process / "environ").read_text(errors="replace")
    return ""


class Sweeper:
    """A suite in a folder, the process that sweeps it, and a watch over its runs."""

    def __init__(self, cluster, folder, *grids):
        folder.mkdir()
        self.cluster, self.out, self.printed = cluster, folder / "runs", folder / "sweep.log"
        self.suite = write_suite(folder / "suite.toml", *grids)
        self.cells = list(expand(read_suite(str(self.suite))[1], self.out / "suite", "auto", 1))
        self.process, self.twice = None, []

    def command(self, *flags):
        sweep = str(ROOT / "benchmarks" / "sweep.py")
        return [sys.executable, sweep, str(self.suite), "--out-dir", str(self.out), *flags]

    def start(self, *flags):
        flags = ("--executor", "slurm", "--poll", "1", "--save-seconds", "20", *flags)
        with open(self.printed, "ab") as log:
            self.process = subprocess.Popen(
                self.command(*flags), stdout=log, stderr=log, env=self.cluster.environment
            )

    def watch(self):
        """Notes every folder in which two processes run at once, until the sweep is over."""
        while not self.over.wait(0.3):
            folders = list(workers_of(self.out).values())
            self.twice += [folder.name for folder in folders if folders.count(folder) > 1]

    def __enter__(self):
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.watcher.join()
        self.process.kill()
        self.process.wait()

    def say(self, *words):
        print(f"{time.monotonic() - BEGAN:5.0f} s ", *words, flush=True)

    def running(self, node):
        """The cells that have saved a checkpoint and run on a node: cell, number of the job, process."""
        lines = self.cluster.ask("squeue", "--noheader", "--states=RUNNING", "--format=%j %i %N").splitlines()
        jobs = {name: (job, place) for name, job, place in map(str.split, lines)}
        processes = {folder: process for process, folder in workers_of(self.out).items()}
        found = []
        for cell in self.cells:
            job, place = jobs.get(job_name(cell), ("", ""))
            saved = any(cell.folder.glob("checkpoint/checkpoint-*.json"))
            if job and node in place and saved and cell.folder in processes:
                found.append((cell, job, processes[cell.folder]))
        return found

    def wait_for_run(self, node, besides=()):
        """The run on a node, once there is one of a cell that is not in `besides`."""
        found = []

        def look():
            found[:] = [run for run in self.running(node) if run[0] not in besides]
            return found

        self.cluster.wait_for(look, 120)
        return found[0]

    def wait_for_word(self, cell, word, seconds=120):
        """Until the cell's log has a word; says so."""
        self.cluster.wait_for(lambda: word in cell.log().read_text(), seconds)
        self.say(
            cell.folder.name, "⇒", next(line for line in lines_of(cell) if word in line).partition(";")[0]
        )


def lines_of(cell):
    return cell.log().read_text().splitlines()


def test_every_cell_is_done_once_whatever_happens(cluster, tmp_path):
    """And leaves the record of a run on this machine that nothing happened to."""
    calm = Sweeper(cluster, tmp_path / "calm", LONG, SHORT)
    calm.say("eight cells, by the local executor")
    subprocess.run(calm.command(), check=True, stdout=subprocess.DEVNULL)
    expected = finished_records(calm.out)
    assert len(expected) == 8
    with Sweeper(cluster, tmp_path / "storm", LONG, SHORT) as storm:
        storm.start()
        storm.say("the same by Slurm")
        long, job, _ = storm.wait_for_run("n1")
        on_dead_node, _, process = storm.wait_for_run("n2")
        cluster.kill_node("n2", process)
        storm.say(on_dead_node.folder.name, "⇐ its node dies")
        cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        storm.say(long.folder.name, "⇐ a time limit of a minute")
        storm.wait_for_word(long, "stopped by SIGUSR1")
        killed, _, process = storm.wait_for_run("n1", {long})
        os.kill(process, signal.SIGKILL)
        storm.say(killed.folder.name, "⇐ SIGKILL")
        cluster.wait_for(lambda: f"killed   {killed.folder}" in storm.printed.read_text())
        preempted, _, _ = storm.wait_for_run("n1", {long, killed})
        cluster.ask("sbatch", "--partition=urgent", "--no-requeue", "--output=/dev/null", "--wrap=sleep 5")
        storm.say(preempted.folder.name, "⇐ preempted")
        storm.wait_for_word(preempted, "stopped by SIGUSR1")
        cluster.wait_for(lambda: cluster.states()["n2"].startswith("down"))
        cluster.start_node("n2")
        storm.say("the dead node is back")
        storm.wait_for_run("n1", {long, killed, preempted})
        storm.process.kill()
        storm.process.wait()
        cluster.kill("slurmctld")
        storm.say("SIGKILL to the sweep and to Slurm's controller")
        storm.start()
        time.sleep(20)
        cluster.start_controller()
        storm.say("the sweep started again, and then the controller")
        status = storm.process.wait(900)
        storm.say("over, status", status)
        print(storm.printed.read_text())
        assert status == 0 and "8 of 8 runs done" in storm.printed.read_text()
        assert not cluster.ask("squeue", "--noheader") and not workers_of(storm.out)
    assert not storm.twice
    assert finished_records(storm.out) == expected
    hit = {long, on_dead_node, killed, preempted}
    assert len(hit) == 4
    for cell in storm.cells:
        words = "\n".join(lines_of(cell))
        assert words.count("\ndone: ") == 1 and "nothing to do" not in words, words
        assert ("resumed at step " in words) >= (cell in hit), words
    printed = storm.printed.read_text()
    assert "runs     " in printed and "Unable to contact slurm controller" in printed


def test_cancel_saves_what_runs(cluster, tmp_path):
    with Sweeper(cluster, tmp_path / "cancelled", LONG | dict(seeds=4)) as sweeper:
        sweeper.start()
        runs = [sweeper.wait_for_run(node)[0] for node in ("n1", "n2")]
        command = sweeper.command("--executor", "slurm", "--cancel")
        done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=True)
        assert done.stdout == "cancelled 2 jobs that did not run, and told 2 that run to save and end\n"
        assert sweeper.process.wait(60) == 75 and "cancelled by --cancel" in sweeper.printed.read_text()
        cluster.wait_for(lambda: not cluster.ask("squeue", "--noheader"))
        for cell in runs:
            assert "stopped by SIGTERM at step " in lines_of(cell)[-1]
        assert not workers_of(sweeper.out)

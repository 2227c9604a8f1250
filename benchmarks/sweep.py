"""Runs every cell of a suite to its end: algorithms × environments × seeds, on this machine or by Slurm.

    python benchmarks/sweep.py cpu --dry-run     # what benchmarks/suites/cpu.toml would run
    python benchmarks/sweep.py cpu               # runs it, in runs/cpu/, packed on this machine
    python benchmarks/sweep.py my_suite.toml --out-dir runs/mine
    python benchmarks/sweep.py cpu --executor slurm --sbatch="--partition=short --time=4:00:00"
    python benchmarks/sweep.py cpu --list        # one command per line, for other schedulers; or --cell 7

A cell with a `result.json` is done. Any other is started, or resumed from its last checkpoint, by its own
command. So a sweep may be killed and started again, or started twice: a process locks the folder that it
writes, and Slurm runs one job of a name at a time. Exit status: 0, all done; 1, a cell failed after its
retries (its command and last lines are printed); 2, the suite cannot be run; 75, stopped by a signal or
--cancel: runs of this machine are saved, jobs stay in Slurm's queue unless they were cancelled.
"""

import heapq
import itertools
import math
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from benchmarks.cells import HERE, Cell, check, check_begun, expand, memory_bytes, read_suite
from benchmarks.executors import CANCELLED, Executor, describe
from benchmarks.executors.local import LocalExecutor, gpu_bytes, make_slots
from benchmarks.executors.slurm import (
    SlurmExecutor,
    cancel,
    cancel_file,
    check_arguments,
    check_present,
    job_script,
)
from benchmarks.figures import plural
from benchmarks.records import known_algorithm, read_manifest
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import STOPPED, UsageError, can_resume, require
from cleanrl_maxent.common.output import say, warn
from cleanrl_maxent.common.ranges import Natural
from cleanrl_maxent.common.run.inventory import last_checkpoint

MAX_KILLS = 20  # retries of a cell that dies by a signal: beyond that, the cell may be what kills the machine
MAX_JOBS = 50  # in Slurm's queue, unless told otherwise


@dataclass(frozen=True)
class Args:
    """Runs every cell of a suite to its end.

    On a CPU, a process per core with one thread each. On GPUs, the seeds of a grid side by side in a process,
    and on each GPU as many processes as its memory holds (XLA_CLIENT_MEM_FRACTION), or --workers.
    """

    suite: Annotated[str, tyro.conf.Positional]  # of benchmarks/suites or of a study; or a TOML file
    out_dir: Path = Path("runs")  # the suite's runs are in {out_dir}/{suite}/
    # auto: cuda if nvidia-smi finds a GPU; with --list, --cell and Slurm: what JAX finds where the cell runs
    device: Literal["auto", "cpu", "cuda", "tpu"] = "auto"
    # runs at a time (on each GPU; jobs in Slurm's queue); 0: one per core, what a GPU's memory holds, 50 jobs
    workers: Natural = 0
    # seeds side by side in a run; 0: one on a CPU, all of a grid on a GPU or TPU; with --list, --cell and
    # Slurm one, unless --device says cuda or tpu
    seeds_per_run: Natural = 0
    retries: Natural = 2  # times that a failed cell is started again
    dry_run: bool = False  # print commands, time and memory, and run nothing; with Slurm, one cell's script
    list: bool = False  # print every cell's command, one a line, for another scheduler
    cell: Natural | None = None  # run only this cell (from 0), in place of this process
    executor: Literal["local", "slurm"] = "local"  # run on this machine, or as jobs of a cluster
    sbatch: str = ""  # arguments of sbatch: --sbatch="--partition=gpu --gres=gpu:1"
    save_seconds: int = 120  # seconds before its time limit at which a job of Slurm saves and stops
    poll: float = 10.0  # seconds between queries of Slurm's queue
    cancel: bool = False  # cancel this suite's jobs of Slurm; running ones save first


class Sweep:
    """Brings every cell to its end: `waiting`, running in the executor, `done` or `failed`."""

    def __init__(self, cells: list[Cell], executor: Executor, retries: int):
        self.count, self.executor, self.retries = len(cells), executor, retries
        self.done = [cell for cell in cells if cell.finished()]
        self.waiting = [cell for cell in cells if cell not in self.done]
        self.failed: list[Cell] = []
        self.failures: Counter[Cell] = Counter()
        self.kills: Counter[Cell] = Counter()
        self.steps: Counter[Cell] = Counter()  # step of the last checkpoint when a run was stopped or killed
        self.others: set[Cell] = set()  # waiting here, but run by another sweep, or by one that was killed

    @property
    def over(self) -> bool:
        """True once every cell is done or has failed."""
        return len(self.done) + len(self.failed) == self.count

    def step(self) -> list[str]:
        """Settles the cells that ended, and starts those that fit; returns a line for each."""
        lines = [
            self.settle(cell, status)
            for cell, status in self.executor.ended()
            if cell not in self.done + self.failed  # another sweep may have submitted it again
        ]
        others = self.executor.running.intersection(self.waiting)
        lines += [f"runs     {cell.folder} already" for cell in self.waiting if cell in others - self.others]
        self.others = others
        for cell in [cell for cell in self.waiting if cell not in others]:
            if self.executor.room == 0:
                break
            if cell.finished():
                self.done.append(cell)
                lines.append(f"finished {cell.folder}")
            elif word := self.executor.start(cell):
                lines.append(f"{word:8} {cell.folder}")
            else:
                break
            self.waiting.remove(cell)
        return lines

    def settle(self, cell: Cell, status: int) -> str:
        """Decides what becomes of a cell that ended; returns a line. Its folder alone tells if it is done."""
        if cell in self.waiting:  # another sweep had submitted it
            self.waiting.remove(cell)
        if cell.finished():
            self.done.append(cell)
            return f"finished {cell.folder}"
        if status == CANCELLED:
            self.failed.append(cell)
            return f"gave up  {cell.folder}: its job was cancelled"
        died = can_resume(status)
        ending = "stopped" if status == STOPPED else "killed" if died else "failed"
        if died and (steps := last_checkpoint(cell.folder)) > self.steps[cell]:
            self.steps[cell] = steps
            self.waiting.append(cell)
            return f"{ending:8} {cell.folder}"
        counter, most = (self.kills, MAX_KILLS) if died else (self.failures, self.retries)
        counter[cell] += 1
        if counter[cell] <= most:
            self.waiting.append(cell)
            return f"{ending:8} {cell.folder}, to be tried again"
        self.failed.append(cell)
        return f"gave up  {cell.folder}, {describe(status)}"

    def table(self) -> Group:
        """The running cells and the counts of the others, for the screen."""
        table = Table(box=None)
        table.add_column("running or queued")
        for title in ("step", "", "SPS", "left"):
            table.add_column(title, justify="right")
        running = sorted(self.executor.running, key=lambda cell: cell.folder)
        waiting = [cell for cell in self.waiting if cell not in self.executor.running]
        # of all seeds; a run's own numbers are those of one
        speed = 0.0
        steps_left = sum(cell.args.total_timesteps * cell.args.num_seeds for cell in waiting)
        for cell in running:
            row, total = cell.progress(), cell.args.total_timesteps
            step, sps = int(row.get("global_step", 0)), row.get("charts/SPS", 0.0)
            speed += sps * cell.args.num_seeds
            steps_left += (total - step) * cell.args.num_seeds
            left = duration((total - step) / sps) if sps else ""
            table.add_row(cell.folder.name, f"{step:,}/{total:,}", f"{step / total:.0%}", f"{sps:.0f}", left)
        counts = f"{len(self.done)} done, {len(waiting)} waiting, {len(self.failed)} failed"
        return Group(table, counts + (f"; all done in about {duration(steps_left / speed)}" if speed else ""))


def duration(seconds: float) -> str:
    """Hours and minutes, or days."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 1440} days" if minutes >= 2880 else f"{minutes // 60}:{minutes % 60:02} h"


def reconcile(sweep: Sweep) -> int:
    """Steps the sweep until nothing is left to do; returns 0, or STOPPED if a signal comes first.

    The signals' former handlers are restored at the end.
    """
    handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.listen()
    console = Console(soft_wrap=True, highlight=False)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not sweep.over:
                for line in sweep.step():
                    console.print(line, markup=False)
                if console.is_terminal:
                    live.update(sweep.table(), refresh=True)
                if not sweep.over and sleep_unless_signalled(sweep.executor.pause):
                    return STOPPED
    finally:
        sweep.executor.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def sleep_unless_signalled(seconds: float) -> bool:
    """Sleeps until the time is over or a signal comes; True if one has come."""
    end = time.monotonic() + seconds
    while not signals.received and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))
    return bool(signals.received)


def seconds_per_step(cell: Cell, runs: list[dict[str, Any]]) -> float:
    """Seconds of a seed's step: the median of `runs` of its algorithm on its environment, else on any.

    For an algorithm without runs, those of the slowest one.
    """

    def pace(some: list[dict[str, Any]]) -> float:
        return statistics.median(
            run["seconds"] / run["args"]["total_timesteps"] / run["args"]["num_seeds"] for run in some
        )

    def of(algorithm: str) -> list[dict[str, Any]]:
        return [run for run in runs if run["algorithm"] == algorithm]

    alike = of(known_algorithm(cell.args.algorithm()))
    same = [run for run in alike if run["args"]["env_id"] == cell.args.env_id]
    names = {run["algorithm"] for run in runs}
    return pace(same or alike) if alike else max(pace(of(name)) for name in names)


def estimate(cells: list[Cell], workers: int) -> str:
    """Time and memory that cells will need, at the pace of the committed results."""
    committed = read_manifest(HERE / "results" / "manifest.json").values()
    runs = [run for run in committed if run["device"]["platform"] == "cpu"]
    largest, workers = max(map(memory_bytes, cells)), min(workers, len(cells))
    kind, pace = "GPU memory" if cells[0].device == "cuda" else "memory", ""
    if runs:
        left = [cell.args.total_timesteps - last_checkpoint(cell.folder) for cell in cells]
        steps = [max(0, each) * cell.args.num_seeds for each, cell in zip(left, cells, strict=True)]
        ends = [0.0] * workers  # seconds from now, when each of them is free
        for cell, each in zip(cells, steps, strict=True):
            heapq.heapreplace(ends, ends[0] + seconds_per_step(cell, runs) * each)
        pace = f"about {duration(max(ends))} at the pace of benchmarks/results, measured on CPU cores; "
    return (
        f"{plural(len(cells), 'run')} to do, {workers} at a time: {pace}up to {largest / 1e9:.1f} GB "
        f"of {kind} each, {largest * workers / 1e9:.1f} GB together"
    )


def check_args(args: Args) -> None:
    """Raises UsageError for arguments that are out of range or do not go together."""
    require(args.workers >= 0, f"workers must be >= 0; got {args.workers}")
    require(args.seeds_per_run >= 0, f"seeds_per_run must be >= 0; got {args.seeds_per_run}")
    require(args.retries >= 0, f"retries must be >= 0; got {args.retries}")
    require(args.save_seconds >= 1, f"save_seconds must be >= 1; got {args.save_seconds}")
    require(args.poll > 0, f"poll must be > 0; got {args.poll}")
    chosen = {"--list": args.list, "--cell": args.cell is not None, "--cancel": args.cancel}
    modes = [name for name, given in {**chosen, "--dry-run": args.dry_run}.items() if given]
    require(len(modes) < 2, f"give {' or '.join(modes)}, not both")
    if args.executor == "slurm":
        for name in {"--list", "--cell"}.intersection(modes):
            raise UsageError(f"{name} is for other schedulers: leave --executor out")
        check_arguments(args.sbatch)
    else:
        require(not args.sbatch, "--sbatch is for Slurm: add --executor slurm")
        require(not args.cancel, "--cancel is for Slurm: add --executor slurm; Ctrl-C stops a sweep here")


def run_here(cells: list[Cell], number: int) -> int:
    """Replaces this process with a cell's run, so that signals reach it; returns 0 if it is done already.

    While another process of this machine writes its folder, it waits, and returns STOPPED if a signal comes.
    Raises UsageError if there is no such cell.
    """
    last = len(cells) - 1
    require(0 <= number <= last, f"cell must be in 0 ... {last}, the suite's cells; got {number}")
    cell = cells[number]
    if cell.in_use():
        say(f"waiting: another process writes {cell.folder}")
    while cell.in_use():
        signals.listen()
        if sleep_unless_signalled(10):
            return STOPPED
    if cell.finished():
        say(f"{cell.folder} is done")
        return 0
    if signals.received:
        return STOPPED
    # exact resume needs the same number of threads
    if threads := cell.threads() or os.environ.get("NPROC") or os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ["NPROC"] = str(threads)
    sys.stdout.flush()
    command = cell.command()
    os.execv(command[0], command)


def suite_cells(args: Args) -> tuple[list[Cell], dict[str, float]]:
    """The suite's cells, and this machine's GPUs if they are to run on them. Raises UsageError.

    For another machine, paths are absolute and the device is found there, so that a cell's number is a
    function of the arguments alone.
    """
    name, grids = read_suite(args.suite)
    folder, device, gpus = args.out_dir / name, args.device, {}
    if args.executor == "slurm" or args.list or args.cell is not None:
        folder = Path(os.path.abspath(folder))
    elif args.device in ("auto", "cuda"):
        gpus = gpu_bytes()
        require(
            bool(gpus) or args.device == "auto",
            "no GPU is visible (see nvidia-smi, CUDA_VISIBLE_DEVICES); use --device cpu",
        )
        device = "cuda" if gpus else "cpu"
    seeds_per_run = args.seeds_per_run or (0 if device in ("cuda", "tpu") else 1)
    return list(expand(grids, folder, device, seeds_per_run)), gpus


def command_line(command: list[str]) -> str:
    """A cell's command as a person would type it here; values of the algorithm's flags stay as they are."""
    python, file, *flags, run_dir = command
    python = "python" if shutil.which("python") == python else shorten_path(python)
    return shlex.join([python, shorten_path(file), *flags, shorten_path(run_dir)])


def shorten_path(path: str) -> str:
    """A path relative to the current folder if it is below it, else as it is."""
    here = os.getcwd()
    return os.path.relpath(path) if os.path.isabs(path) and Path(path).is_relative_to(here) else path


def print_plan(cells: list[Cell], slots: list[dict[str, str]], args: Args) -> None:
    """Prints the commands of unfinished cells, with Slurm the first one's script, and the sweep's cost."""
    if args.executor == "slurm":
        print("# read by:", shlex.join(["sbatch", *check_arguments(args.sbatch)]))
        print(job_script(cells[0], args.save_seconds, check_arguments(args.sbatch)))
    else:
        for cell, slot in zip(cells, itertools.cycle(slots), strict=False):
            variables = (f"{variable}={value}" for variable, value in cell.variables(slot).items())
            print(*variables, command_line(cell.command()))
    print(estimate(cells, len(slots)))


def run_cells(cells: list[Cell], executor: Executor, retries: int) -> int:
    """Runs a suite's cells and prints the outcome; returns the exit status of the sweep."""
    sweep = Sweep(cells, executor, retries)
    status = reconcile(sweep)
    done = [cell for cell in cells if cell.finished()]
    say(f"{len(done)} of {plural(len(cells), 'run')} done, in {cells[0].folder.parent}")
    failed = [cell for cell in sweep.failed if cell not in done]  # another sweep may have finished it
    for cell in failed:
        log = cell.log().read_text(errors="replace") if cell.log().exists() else ""
        print(f"failed: {command_line(cell.command())}", *log.splitlines()[-5:], sep="\n  ", file=sys.stderr)
    return status or int(bool(failed))


def main(args: Args) -> int:
    """Runs the sweep and returns its exit status. Raises UsageError for what cannot be run."""
    check_args(args)
    cells, gpus = suite_cells(args)
    if args.cell is not None:
        return run_here(cells, args.cell)
    if args.executor == "slurm" and not args.dry_run:
        check_present()
    if args.cancel:  # even if the suite has been edited since, and no longer passes the checks
        cancel(cells)
        return 0
    check(cells)
    if args.list:
        say("\n".join(shlex.join(cell.command()) for cell in cells))
        return 0
    check_begun(cells)
    todo = [cell for cell in cells if not cell.finished()]
    outdated = [cell for cell in cells if cell not in todo and cell.is_outdated()]
    for file, count in Counter(cell.args.file().name for cell in outdated).items():
        warn(f"{file} has changed since {plural(count, 'run')} of it began; another --out-dir starts anew")
    if args.executor == "slurm":
        slots = [{}] * (args.workers or MAX_JOBS)
    elif args.device == "tpu":
        slots = [{}]  # one process has all chips of a host
    else:
        slots = make_slots(gpus, args.workers, max(map(memory_bytes, cells)))
    if args.dry_run:
        if todo:
            print_plan(todo, slots, args)
        else:
            print("the run is done" if len(cells) == 1 else f"all {len(cells)} runs are done")
        return 0
    if args.executor == "local":
        return run_cells(cells, LocalExecutor(todo, slots), args.retries)
    cancel_file(cells).unlink(missing_ok=True)
    executor = SlurmExecutor(todo, len(slots), args.sbatch, args.save_seconds, args.poll)
    return run_cells(cells, executor, args.retries)


if __name__ == "__main__":
    run_script(Args, main)

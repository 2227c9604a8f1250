"""Runs every cell of a suite to its end: algorithms × environments × seeds, packed on this machine.

    python benchmarks/sweep.py cpu --dry-run     # what benchmarks/suites/cpu.toml would run
    python benchmarks/sweep.py cpu               # runs it, in runs/cpu/
    python benchmarks/sweep.py my_suite.toml --out-dir runs/mine

A cell with a `result.json` is done. Any other is started, or resumed from its last checkpoint, by its own
command. So a sweep may be killed and started again, or started twice: each run's folder is locked by the
process that writes it. Exit status: 0, all done; 1, a cell failed after its retries (its command and last
lines are printed); 2, the suite cannot be run; 75, stopped by a signal, every run saved.
"""

import itertools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from benchmarks.commands import check_algorithms, script, words
from cleanrl_maxent import algorithms
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.cli import run_script, validate
from cleanrl_maxent.common.data import transition_bytes
from cleanrl_maxent.common.devices import cpu_count, recorded_settings
from cleanrl_maxent.common.env.make import EnvChoice, chosen_env, make_env
from cleanrl_maxent.common.env.task import describe_task
from cleanrl_maxent.common.errors import STOPPED, UsageError
from cleanrl_maxent.common.run.folder import check_same_args, file_name, read_json
from cleanrl_maxent.common.run.inventory import is_locked

HERE = Path(__file__).parent
SUITES = {path.stem: path for path in sorted([*HERE.glob("suites/*.toml"), *HERE.glob("studies/*/*.toml")])}
PROCESS_BYTES = 700e6  # a process without its replay: JAX, MuJoCo and compiled programs
GPU_SHARE = 0.9  # of its memory, given to runs
MAX_KILLS = 20  # deaths by a signal that a cell survives; more often it is what kills the machine


@dataclass(frozen=True)
class Args:
    """Runs every cell of a suite to its end."""

    suite: Annotated[str, tyro.conf.Positional]  # of benchmarks/suites or of a study; or a TOML file
    out_dir: Path = Path("runs")  # the suite's runs are in {out_dir}/{suite}/
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if nvidia-smi finds a GPU
    workers: int = 0  # runs at a time (on each GPU); 0: one per core, or as many as a GPU's memory holds
    seeds_per_run: int = 0  # seeds side by side in a run; 0: one on a CPU, all of a grid on a GPU
    retries: int = 2  # times that a failed cell is started again
    dry_run: bool = False  # print commands, time and memory, and run nothing


@dataclass(frozen=True)
class Grid:
    """Every algorithm on every environment with seeds 1 … `seeds`, in every variant."""

    algorithms: list[str]
    env_ids: list[str]
    seeds: int
    flags: dict[str, Any] = field(default_factory=dict)  # of the algorithm: learning_rate = 1e-3
    variants: dict[str, Any] = field(default_factory=dict)  # exp_name = { further flags }


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a command line, and the folder that it fills."""

    algorithm: str
    flags: tuple[str, ...]  # without --run-dir and --device
    folder: Path
    device: str

    def command(self) -> list[str]:
        """What a person would type, absolute paths aside; giving it again resumes the run."""
        destination = ("--device", self.device, "--run-dir", str(self.folder))
        return [sys.executable, script(self.algorithm), *self.flags, *destination]

    @cached_property
    def args(self) -> Any:
        """The parsed arguments; raises UsageError, after tyro's message, if a flag is wrong."""
        try:
            return tyro.cli(algorithms()[self.algorithm].Args, args=self.command()[2:])
        except SystemExit as problem:
            raise UsageError(f"{self.folder.name}: a flag is wrong, see above") from problem

    def finished(self) -> bool:
        """True if the folder holds this very run, with as many steps as the suite asks for.

        A folder that holds another run, or is damaged, is not finished: the cell's command says what it is.
        """
        try:
            config, result = (read_json(self.folder / name) for name in ("config.json", "result.json"))
            check_same_args(self.folder, config["args"], self.args)
        except (OSError, UsageError, KeyError):
            return False
        enough = result.get("total_timesteps", 0) >= self.args.total_timesteps
        return enough and config["algorithm"] == self.algorithm

    def in_use(self) -> bool:
        """True while a process holds the lock of the run's folder."""
        return is_locked(self.folder)

    def progress(self) -> dict[str, float]:
        """The last whole row of `timing.jsonl`: global_step, seconds, charts/SPS; {} before the first."""
        try:
            lines = (self.folder / "timing.jsonl").read_text().splitlines()
        except OSError:
            return {}
        return next((json.loads(line) for line in reversed(lines) if line.endswith("}")), {})

    def log(self) -> Path:
        """What its processes print."""
        return self.folder.parent / f"{self.folder.name}.log"


def read_suite(name: str) -> tuple[str, list[Grid]]:
    """The suite's name and its grids; raises UsageError if it cannot be read or is not one."""
    path = (
        Path(os.path.expanduser(name))
        if name.endswith(".toml")
        else SUITES.get(name, HERE / "suites" / f"{name}.toml")
    )
    try:
        suite = tomllib.loads(path.read_text())
    except OSError as problem:
        known = ", ".join(sorted(SUITES))
        raise UsageError(f"cannot read {path}: {problem.strerror}; suites: {known}") from problem
    except ValueError as problem:
        raise UsageError(f"{path}: {problem}") from problem
    tables = suite.get("grid")
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path} has no [[grid]]")
    return path.stem, [read_grid(path, table) for table in tables]


def read_grid(path: Path, table: dict[str, Any]) -> Grid:
    """A grid; raises UsageError if a key is missing, unknown, or not of its kind."""
    if missing := {"algorithms", "env_ids", "seeds"} - table.keys():
        raise UsageError(f"{path}: a grid lacks {', '.join(sorted(missing))}")
    if unknown := table.keys() - {entry.name for entry in fields(Grid)}:
        raise UsageError(f"{path}: a grid has the unknown key {min(unknown)!r}")
    for name in ("algorithms", "env_ids"):
        names = table[name]
        if not isinstance(names, list) or not names or not all(isinstance(word, str) for word in names):
            raise UsageError(f"{path}: {name} must be a list of names; got {names!r}")
    if type(table["seeds"]) is not int or table["seeds"] < 1:
        raise UsageError(f"{path}: seeds must be a whole number >= 1; got {table['seeds']!r}")
    for name, flags in [("flags", table.get("flags", {})), *table.get("variants", {}).items()]:
        if not isinstance(flags, dict):
            raise UsageError(f"{path}: {name} must be a table of flags; got {flags!r}")
        if taken := flags.keys() & {"env_id", "seed", "num_seeds", "run_dir", "resume", "device"}:
            raise UsageError(f"{path}: {min(taken)} is not for a suite's flags: the sweep sets it")
    check_algorithms(table["algorithms"], f"{path}: ")
    return Grid(**table)


def expand(grids: list[Grid], folder: Path, device: str, seeds_per_run: int) -> Iterator[Cell]:
    """The cells of a suite in its order; with 0 `seeds_per_run` all seeds of a grid side by side."""
    for grid in grids:
        variants = [{"exp_name": name, **flags} for name, flags in grid.variants.items()] or [{}]
        per_run = seeds_per_run or grid.seeds
        starts = range(1, grid.seeds + 1, per_run)
        for env_id, algorithm, variant, first in itertools.product(
            grid.env_ids, grid.algorithms, variants, starts
        ):
            last = min(first + per_run - 1, grid.seeds)
            flags = {"env_id": env_id, "seed": first, "num_seeds": last - first + 1, **grid.flags, **variant}
            seeds = str(first) if first == last else f"{first}-{last}"
            name = file_name(f"{env_id}__{flags.get('exp_name', algorithm)}__{seeds}")
            yield Cell(algorithm, tuple(words(flags)), folder / name, device)


@cache
def row_bytes(choice: EnvChoice) -> int:
    """Bytes of a transition of an environment; raises UsageError if it cannot be made."""
    env = make_env(choice)
    env.close()
    return transition_bytes(describe_task(env.observation_space, env.action_space).example)


def memory_bytes(cell: Cell) -> float:
    """What a run needs, estimated from its replay."""
    args, capacity = cell.args, getattr(cell.args, "buffer_size", 0)
    return PROCESS_BYTES + args.num_seeds * capacity * row_bytes(chosen_env(args))


def check(cells: list[Cell]) -> None:
    """Raises UsageError if a cell could not start, before any of them does."""
    for cell in cells:
        validate(cell.args)
        row_bytes(chosen_env(cell.args))
    names = Counter(cell.folder.name for cell in cells)
    if shared := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"two cells share the folder {shared[0]}; give one of them another exp_name")


def gpu_bytes() -> dict[str, float]:
    """Memory of every GPU that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows, by index."""
    command = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = (line.split(", ") for line in done.stdout.splitlines())
        found = {index: float(mebibytes) * 2**20 for index, mebibytes in rows}
    except (OSError, subprocess.CalledProcessError, ValueError):
        return {}
    return {index: size for index, size in found.items() if allowed is None or index in allowed.split(",")}


def make_slots(gpus: dict[str, float], workers: int, largest: float) -> list[dict[str, str]]:
    """Environment variables of the runs that run side by side, `largest` bytes each.

    Without GPUs they share the cores as threads; with them as many as a GPU's memory holds, but no more than
    cores. A run uses GPU_SHARE of what it is given at most.
    """
    if not gpus:
        workers = workers or cpu_count()
        return [{"NPROC": str(max(1, cpu_count() // workers))}] * workers
    fitting = int(GPU_SHARE**2 * min(gpus.values()) / largest)
    each = workers or max(1, min(fitting, cpu_count() // len(gpus)))
    fraction = f"{GPU_SHARE / each:.3f}"
    return [
        {"CUDA_VISIBLE_DEVICES": gpu, "XLA_CLIENT_MEM_FRACTION": fraction}
        for _ in range(each)
        for gpu in gpus
    ]


class LocalExecutor:
    """Runs cells as processes of this machine, one to a slot.

    Another executor offers what `Sweep` uses, `room`, `running`, `start` and `ended`, and `stop`.
    """

    def __init__(self, slots: list[dict[str, str]]):
        self.slots = list(slots)  # environment variables of the slots without a process
        self.processes: dict[Cell, tuple[subprocess.Popen, dict[str, str]]] = {}

    @property
    def room(self) -> int:
        """How many more cells can start."""
        return len(self.slots)

    @property
    def running(self) -> list[Cell]:
        """Cells that were started and have not been reported as ended."""
        return list(self.processes)

    def start(self, cell: Cell) -> None:
        """Starts a process in a free slot; its output is added to the cell's log."""
        slot = self.slots.pop()
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **slot}
        environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the older name of the same variable
        # exact resume needs as many again
        if threads := recorded_settings(str(cell.folder)).get("cpu_threads"):
            environment["NPROC"] = str(threads)
        with open(cell.log(), "ab") as log:
            process = subprocess.Popen(
                cell.command(), stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.processes[cell] = process, slot

    def ended(self) -> Iterator[tuple[Cell, int]]:
        """Cells whose process has ended since the last call, and its exit status; minus the signal."""
        for cell, (process, slot) in list(self.processes.items()):
            if process.poll() is not None:
                del self.processes[cell]
                self.slots.append(slot)
                yield cell, process.returncode

    def stop(self) -> None:
        """Asks every process to save and stop, and waits for them."""
        for process, _ in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self.processes.values():
            process.wait()


class Sweep:
    """Brings every cell to its end: `waiting`, running in the executor, `done` or `failed`."""

    def __init__(self, cells: list[Cell], executor: LocalExecutor, retries: int):
        self.executor, self.retries = executor, retries
        self.done = [cell for cell in cells if cell.finished()]
        self.waiting = [cell for cell in cells if cell not in self.done]
        self.failed: list[Cell] = []
        self.failures: Counter[Cell] = Counter()
        self.kills: Counter[Cell] = Counter()
        self.busy: set[Cell] = set()  # waiting, but run by another sweep or by one that was killed

    def step(self) -> list[str]:
        """Starts what fits, takes in what ended; returns a line for each cell that did either."""
        busy = {cell for cell in self.waiting if cell.in_use()}
        lines = [f"waits    {cell.folder}, which another process runs" for cell in busy - self.busy]
        self.busy = busy
        room = max(0, self.executor.room - len(busy))  # those processes use this machine too
        for cell in [cell for cell in self.waiting if cell not in busy][:room]:
            self.waiting.remove(cell)
            if cell.finished():
                self.done.append(cell)
            else:
                self.executor.start(cell)
                lines.append(f"started  {cell.folder}")
        return lines + [self.settle(cell, status) for cell, status in self.executor.ended()]

    def settle(self, cell: Cell, status: int) -> str:
        """Decides what becomes of a cell whose process ended, and says it."""
        if status == 0 and cell.finished():
            self.done.append(cell)
            return f"finished {cell.folder}"
        if status == STOPPED or cell.finished() or cell.in_use():  # by another sweep
            self.waiting.append(cell)
            return f"stopped  {cell.folder}"
        counter, most = (self.kills, MAX_KILLS) if status < 0 else (self.failures, self.retries)
        counter[cell] += 1
        if counter[cell] <= most:
            self.waiting.append(cell)
            return f"{'killed ' if status < 0 else 'failed '}  {cell.folder}, to be tried again"
        self.failed.append(cell)
        return f"gave up  {cell.folder}, status {status}"

    def table(self) -> Group:
        """The running cells and the counts of the others, for the screen."""
        table = Table(box=None)
        table.add_column("running")
        for title in ("step", "", "SPS", "left"):
            table.add_column(title, justify="right")
        speed, steps_left = 0.0, sum(cell.args.total_timesteps for cell in self.waiting)
        for cell in self.executor.running:
            row, total = cell.progress(), cell.args.total_timesteps
            step, sps = int(row.get("global_step", 0)), row.get("charts/SPS", 0.0)
            speed += sps * cell.args.num_seeds
            steps_left += total - step
            left = duration((total - step) / sps) if sps else ""
            table.add_row(cell.folder.name, f"{step:,}/{total:,}", f"{step / total:.0%}", f"{sps:.0f}", left)
        counts = f"{len(self.done)} done, {len(self.waiting)} waiting, {len(self.failed)} failed"
        return Group(table, counts + (f"; all done in about {duration(steps_left / speed)}" if speed else ""))


def duration(seconds: float) -> str:
    """Hours and minutes, or days."""
    minutes = int(seconds / 60)
    return f"{minutes // 1440} days" if minutes >= 2880 else f"{minutes // 60}:{minutes % 60:02} h"


def reconcile(sweep: Sweep) -> int:
    """Steps the sweep until nothing is left to do, 0, or a signal comes, STOPPED.

    Meanwhile signals ask it to stop; afterwards they do what they did before.
    """
    handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.listen()
    console = Console(soft_wrap=True, highlight=False)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while sweep.waiting or sweep.executor.running:
                if signals.received:
                    console.print(
                        "stopping: every run saves first; the same command resumes them", markup=False
                    )
                    return STOPPED
                for line in sweep.step():
                    console.print(line, markup=False)
                if console.is_terminal:
                    live.update(sweep.table(), refresh=True)
                time.sleep(0.2)
    finally:
        sweep.executor.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def seconds_per_step(cell: Cell, runs: list[dict[str, Any]]) -> float:
    """Median of committed runs of its algorithm on its environment; else of its algorithm; else of all."""
    alike = [run for run in runs if run["algorithm"] == cell.algorithm]
    same = [run for run in alike if run["args"]["env_id"] == cell.args.env_id]
    return statistics.median(run["seconds"] / run["args"]["total_timesteps"] for run in same or alike or runs)


def estimate(cells: list[Cell], workers: int) -> str:
    """Time and memory that cells will need, by the committed results' pace."""
    runs = list(json.loads((HERE / "results" / "manifest.json").read_text()).values())
    seconds = sum(
        seconds_per_step(cell, runs) * cell.args.total_timesteps * cell.args.num_seeds for cell in cells
    )
    largest, workers = max(map(memory_bytes, cells)), min(workers, len(cells))
    return (
        f"{len(cells)} runs to do, {workers} at a time: about {duration(seconds / workers)} at the pace of "
        f"benchmarks/results, measured on CPU cores; up to {largest * workers / 1e9:.1f} GB"
    )


def main(args: Args) -> int:
    """Exit status of the whole sweep. Raises UsageError for what cannot be run."""
    name, grids = read_suite(args.suite)
    gpus = {} if args.device == "cpu" else gpu_bytes()
    if args.device == "cuda" and not gpus:
        raise UsageError("nvidia-smi finds no GPU; use --device cpu")
    device = "cuda" if gpus else "cpu"
    cells = list(expand(grids, args.out_dir / name, device, args.seeds_per_run or (0 if gpus else 1)))
    check(cells)
    slots = make_slots(gpus, args.workers, max(map(memory_bytes, cells)))
    if args.dry_run:
        todo = [cell for cell in cells if not cell.finished()]
        for cell, slot in zip(todo, itertools.cycle(slots), strict=False):
            print(*(f"{variable}={value}" for variable, value in slot.items()), shlex.join(cell.command()))
        print(estimate(todo, len(slots)) if todo else f"all {len(cells)} runs are done")
        return 0
    sweep = Sweep(cells, LocalExecutor(slots), args.retries)
    status = reconcile(sweep)
    sweep.failed = [cell for cell in sweep.failed if not cell.finished()]  # another sweep may have
    print(f"{sum(cell.finished() for cell in cells)} of {len(cells)} runs are done, in {args.out_dir / name}")
    for cell in sweep.failed:
        last = "\n  ".join(cell.log().read_text(errors="replace").splitlines()[-5:])
        print(f"failed: {shlex.join(cell.command())}\n  {last}", file=sys.stderr)
    return status or int(bool(sweep.failed))


if __name__ == "__main__":
    run_script(Args, main)

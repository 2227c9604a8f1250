"""Kills runs and sweeps and compares their results with undisturbed ones; measures what checkpoints cost.

    python benchmarks/faults.py kill --env-ids Hopper-v4 Ant-v4 Humanoid-v4 Pendulum-v1 --kills 25
    python benchmarks/faults.py kill --env-ids Hopper-v4 --victim worker --kills 20 --flags="--num-seeds 4"
    python benchmarks/faults.py sweep --seeds 10 --kills 40
    python benchmarks/faults.py cost

A run is killed after a random time, while it imports, compiles, learns, evaluates, saves or resumes, and the
same command is given again until the run ends. With `--victim worker`, one of the two processes that step its
environments is killed instead, and the run must end with an error in one line. The SHA-256 of every leaf of
its state, of replay, record and policies must then equal the reference's. Exit status 1 if one differs.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.commands import applicable_flags, check_algorithms, script, split_flags, words
from cleanrl_maxent import algorithm_names, algorithms
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.data import create_replays
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.env.make import EnvChoice, make_env
from cleanrl_maxent.common.errors import FINISHED, WORKER_DIED, UsageError, require
from cleanrl_maxent.common.output import warn
from cleanrl_maxent.common.ranges import Count, Natural, Rate, check_ranges
from cleanrl_maxent.common.run.checkpoint import Checkpoints
from cleanrl_maxent.common.run.folder import file_name
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start

SMOKE = Path(__file__).parent / "suites" / "smoke.toml"
BROKEN = "broken"  # the cell that always fails: its learning rate makes the networks infinite
# used where an algorithm has them; the replay wraps around, and networks have their real width
SMALL = {
    "learning_starts": 400,
    "buffer_size": 700,
    "num_steps": 16,
    "noise": "ou",
    "checkpoint_frequency": 150,
    "eval_frequency": 300,
    "eval_episodes": 1,
}


def start_run(algorithm: str, flags: list[str], folder: Path) -> subprocess.Popen:
    """A process that trains into `folder` on one thread; it prints into `{folder}.log`."""
    command = [sys.executable, script(algorithm), *flags, "--run-dir", str(folder)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={"NPROC": "1", **os.environ})


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that a finished run ended with, clock and path aside."""

    def sha256(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    checkpoints = Checkpoints(folder / "checkpoint")
    checkpoint = checkpoints.read(checkpoints.paths()[0])
    found = {name: sha256(array.tobytes()) for name, array in checkpoint.arrays.items()}
    config = json.loads((folder / "config.json").read_text())
    segments = [vars(segment.load()) for segment in checkpoint.segments]
    for name in segments[0] if segments else ():
        rows = np.concatenate([segment[name] for segment in segments], axis=1)
        kept = rows[:, -config["args"].get("buffer_size", rows.shape[1]) - 1 :]
        found[f"replay/{name}"] = sha256(kept.tobytes())
    found["environments"] = sha256(json.dumps(checkpoint.meta["envs"]).encode())
    for path in sorted(folder.glob("seed-*/metrics.jsonl")):
        found[str(path.relative_to(folder))] = sha256(path.read_bytes())
    for path in sorted(folder.glob("policy-*.npz")):
        found[path.name] = sha256(path.read_bytes())
    result = json.loads((folder / "result.json").read_text())
    found["result.json"] = sha256(json.dumps([result["evaluations"], result["total_timesteps"]]).encode())
    return found


def differences(reference: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of what differs or is missing."""
    return [name for name in reference | other if reference.get(name) != other.get(name)]


@dataclass
class Kill:
    """Kills runs with SIGKILL at random moments, resumes them, and compares what they end with."""

    algorithms: tuple[str, ...] = algorithm_names()  # files of cleanrl_maxent
    # each algorithm on those whose actions it takes
    env_ids: tuple[str, ...] = ("Hopper-v4", "Ant-v4", "Humanoid-v4", "Pendulum-v1")
    kills: Count = 25  # SIGKILLs of each algorithm on each of these
    total_timesteps: Count = 1200  # steps of a run
    flags: str = ""  # further flags; they override the small defaults
    victim: Literal["run", "worker"] = "run"  # the run, or one of two processes that step its environments
    workers: Count = 1  # runs at the same time
    seed: Natural = 0  # for the moments of the kills


def kill_repeatedly(algorithm: str, env_id: str, args: Kill, folder: Path) -> tuple[int, int, list[str]]:
    """Kills that landed, runs completed, and what differed from the reference. Raises UsageError."""
    small = {"env_id": env_id, "total_timesteps": args.total_timesteps, **applicable_flags(algorithm, SMALL)}
    flags = [*words(small), *split_flags(args.flags)]
    reference = folder / "reference"
    for name in ("warm", "reference"):  # the first one fills the compilation cache
        began = time.perf_counter()
        if status := start_run(algorithm, flags, folder / name).wait():
            raise failure(status, folder / name)
        seconds = time.perf_counter() - began
    expected, rng = digests(reference), random.Random(f"{args.seed} {algorithm} {env_id}")
    kills, runs, wrong = 0, 0, differences(expected, digests(folder / "warm"))
    run = folder / "run-0"
    of_workers = ["--env-workers", "2"] if args.victim == "worker" else []
    while True:
        process = start_run(algorithm, [*flags, *of_workers], run)
        try:
            status = process.wait(rng.uniform(0.1, 0.9) * seconds if kills < args.kills else None)
        except subprocess.TimeoutExpired:
            kills += kill_worker(process, rng, run) if of_workers else kill_run(process)
            continue
        if status:
            raise failure(status, run)
        runs += 1
        wrong += [f"{run.name}: {name}" for name in differences(expected, digests(run))]
        shutil.rmtree(run)
        if kills >= args.kills:
            return kills, runs, wrong
        run = folder / f"run-{runs}"


def kill_run(process: subprocess.Popen) -> bool:
    """Kills a run; False if it had already ended."""
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_worker(process: subprocess.Popen, rng: random.Random, folder: Path) -> bool:
    """Kills a process that steps environments, and waits for the run; True if that ended the run.

    If there is no such process, it kills the run itself. Raises UsageError if the run does not end with the
    error about its worker, or leaves a process.
    """
    workers = environment_workers(process.pid)
    if not workers:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False
    os.kill(rng.choice(workers), signal.SIGKILL)
    status, (*_, last) = process.wait(), folder.with_suffix(".log").read_text().splitlines()
    killed = re.match(r"error: environment worker \d of 2 was killed by SIGKILL", last)
    if status == WORKER_DIED and killed and not any(Path(f"/proc/{pid}").exists() for pid in workers):
        return True
    if status == FINISHED:  # it had just ended
        return False
    raise failure(status, folder)


def environment_workers(parent: int) -> list[int]:
    """Process ids of the workers of a run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"PPid:\t{parent}\n" in (entry / "status").read_text()
            if is_child and b"env/worker.py" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def failure(status: int, folder: Path) -> UsageError:
    """An error with the status of a run and the end of its log."""
    return UsageError(f"status {status}: {folder.with_suffix('.log').read_text()[-2000:]}")


def kind_of_actions(env_id: str) -> str:
    """`Box`, `Discrete`, … Raises UsageError if there is no such environment."""
    with contextlib.closing(make_env(EnvChoice(env_id, ("Box", "Discrete")))) as env:
        return type(env.action_space).__name__


def kill(args: Kill) -> int:
    """Prints a Markdown table of each algorithm on each environment whose actions it takes.

    Returns the number of differences. Raises UsageError.
    """
    check_algorithms(args.algorithms)
    fits = {algorithm: algorithms()[algorithm].Args.action_spaces for algorithm in args.algorithms}
    kinds = {env_id: kind_of_actions(env_id) for env_id in args.env_ids}
    cells = [(name, env_id) for name in args.algorithms for env_id in kinds if kinds[env_id] in fits[name]]
    require(bool(cells), "no algorithm takes the actions of these environments")
    if left_out := [name for name in args.algorithms if name not in dict(cells)]:
        warn(f"left out, for actions of another kind: {', '.join(left_out)}")
    print("| algorithm | environment | SIGKILLs | runs completed | differences |\n|---|---|---|---|---|")
    total = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:

        def one(cell: tuple[str, str]) -> tuple[int, int, list[str]]:
            place = Path(folder) / "-".join(map(file_name, cell))
            place.mkdir()
            return kill_repeatedly(*cell, args, place)

        for cell, (kills, runs, wrong) in zip(cells, pool.map(one, cells), strict=True):
            print(f"| {cell[0]} | {cell[1]} | {kills} | {runs} | {len(wrong)} |", *wrong, flush=True)
            total += len(wrong)
    return total


@dataclass
class Sweep:
    """Sweeps off-policy cells of the suite `smoke` undisturbed, and under SIGKILLs, and compares the records.

    One more cell always fails, and must be named at the end.
    """

    seeds: Count = 13  # of each algorithm of the suite's first grid
    kills: Count = 40  # SIGKILLs of unfinished runs, every fourth of the sweep itself
    every: Rate = 5.0  # seconds between two kills, on average; each pause 0.4 to 1.6 times as long
    seed: Natural = 0  # for the moments and victims


def write_suite(path: Path, *grids: dict[str, Any]) -> Path:
    """Writes grids with their `flags` as a suite; numbers, strings and lists are alike in JSON and TOML."""
    lines = []
    for grid in grids:
        entries = [f"{key} = {json.dumps(value)}" for key, value in grid.items() if key != "flags"]
        flags = [f"{key} = {json.dumps(value)}" for key, value in grid["flags"].items()]
        lines += ["[[grid]]", *entries, "[grid.flags]", *flags]
    path.write_text("\n".join(lines))
    return path


def start_sweep(suite: Path, out_dir: Path) -> subprocess.Popen:
    """A process that sweeps on the CPU; it prints into `{out_dir}.log`."""
    sweep = Path(__file__).with_name("sweep.py")
    command = [sys.executable, str(sweep), str(suite), "--out-dir", str(out_dir), "--device", "cpu"]
    with open(f"{out_dir}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def workers_of(out_dir: Path) -> dict[int, Path]:
    """Process ids of the runs below a folder, and their own folders."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            if "--run-dir" in words and str(out_dir) in words[words.index("--run-dir") + 1]:
                found[int(entry.name)] = Path(words[words.index("--run-dir") + 1])
    return found


def finished_records(folder: Path) -> dict[str, str]:
    """SHA-256 of the record of every seed of the finished runs of a sweep."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*/*/seed-*/metrics.jsonl")
        if (path.parent.parent / "result.json").exists()
    }


def sweep_under_kills(suite: Path, out_dir: Path, args: Sweep, cells: int) -> tuple[Counter[str], int]:
    """Sweeps, and kills until `args.kills` have landed or all `cells` are done. Returns the kills of sweeps
    and of workers, and the last sweep's exit status."""
    rng, kills, process = random.Random(args.seed), Counter(), start_sweep(suite, out_dir)
    while kills.total() < args.kills:
        time.sleep(rng.uniform(0.4, 1.6) * args.every)
        if len(finished_records(out_dir)) == cells:
            break
        victim = "sweep" if kills.total() % 4 == 3 else "worker"
        good = [pid for pid, folder in workers_of(out_dir).items() if BROKEN not in folder.name]
        pids = [process.pid] if victim == "sweep" else good
        if process.poll() is None and pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills[victim] += 1
        if victim == "sweep":
            process.wait()
        if process.poll() is not None:
            process = start_sweep(suite, out_dir)
    return kills, process.wait()


def sweep(args: Sweep) -> int:
    """Runs both sweeps and prints what happened; returns the number of problems."""
    with tempfile.TemporaryDirectory() as name:
        undisturbed, interrupted = Path(name) / "undisturbed", Path(name) / "interrupted"
        smoke, *_ = tomllib.loads(SMOKE.read_text())["grid"]
        good = smoke | {"seeds": args.seeds}
        bad = smoke | {"algorithms": smoke["algorithms"][:1], "seeds": 1}
        bad["flags"] = bad["flags"] | {"exp_name": BROKEN, "q_lr": 1e30}
        suite, cells = write_suite(Path(name) / "suite.toml", good, bad), len(good["algorithms"]) * args.seeds
        began = time.perf_counter()
        statuses = [start_sweep(suite, undisturbed).wait()]
        print(f"undisturbed: {time.perf_counter() - began:.0f} s", flush=True)
        began = time.perf_counter()
        kills, status = sweep_under_kills(suite, interrupted, args, cells)
        print(f"{dict(kills)} killed: {time.perf_counter() - began:.0f} s", flush=True)
        statuses.append(status)
        reference, records = finished_records(undisturbed), finished_records(interrupted)
        log = Path(f"{interrupted}.log").read_text()
        resumed = sum("resumed at step" in path.read_text() for path in interrupted.glob("*/*.log"))
    wrong = differences(reference, records)
    problems = [f"{name} differs" for name in wrong]
    problems += [f"exit status {status}, not 1" for status in statuses if status != 1]
    if len(reference) != cells:
        problems.append(f"{len(reference)} runs finished, not {cells}")
    if "error: non-finite " not in log.rpartition("failed: ")[2]:
        problems.append("the failing cell is not named")
    print(
        f"{len(records)} runs finished, {resumed} of them resumed; {len(wrong)} differ", *problems, sep="\n"
    )
    return len(problems)


@dataclass
class Cost:
    """Times the checkpoints of a run and its resumption, with a replay of a million transitions."""

    algorithm: str = "sac"  # a file of cleanrl_maxent, with a replay
    env_id: str = "Hopper-v4"
    num_seeds: tuple[Count, ...] = (1, 10)  # a row for each
    every: Count = 10_000  # steps between two checkpoints
    checkpoints: Count = 100


def cost(args: Cost) -> int:
    """Prints a Markdown table of medians over the checkpoints; returns 0. Raises UsageError."""
    check_algorithms([args.algorithm])
    has_replay = hasattr(algorithms()[args.algorithm].Args, "buffer_size")
    require(has_replay, f"{args.algorithm} has no replay, which is what is timed")
    print("| seeds | s a checkpoint | MB of replay | MB of state | s to resume |\n|---|---|---|---|---|")
    for num_seeds in args.num_seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            cells = time_checkpoints(args, num_seeds, folder)
        print(f"| {num_seeds} |", " | ".join(f"{cell:.3g}" for cell in cells), "|", flush=True)
    return 0


def time_checkpoints(args: Cost, num_seeds: int, folder: str) -> list[float]:
    """Seconds of a checkpoint, megabytes of its transitions and of its state, seconds to resume."""
    algorithm = algorithms()[args.algorithm]
    shared = dict(env_id=args.env_id, num_seeds=num_seeds, eval_episodes=0, run_dir=folder)
    chosen = algorithm.Args(**shared, total_timesteps=max(args.every * args.checkpoints, 1_000_000))
    envs, keys = start(chosen)
    state = per_seed(algorithm.init, shared=2, static_argnums=(1, 2))(keys.init, envs.task, chosen)

    def empty_replays():
        return create_replays(num_seeds, chosen.buffer_size, envs.example, "--num-seeds")

    shape, kind = ((), np.int32) if envs.task.discrete else ((envs.task.action_dim,), np.float32)
    envs.step(np.zeros((num_seeds, *shape), kind))
    transition: Any = envs.transition
    seconds = []
    with Run(chosen, envs) as run:
        run.resume(state, empty_replays())
        for number in range(args.checkpoints):
            run.unsaved = (number + 1) * args.every, state
            run.transitions = [transition] * args.every
            began = time.perf_counter()
            run.save()
            seconds.append(time.perf_counter() - began)
    replay = jax.block_until_ready(empty_replays())
    began = time.perf_counter()
    with Run(chosen, envs) as run:
        jax.block_until_ready(run.resume(state, replay)[2])
        resumed = time.perf_counter() - began
    files = [next(Path(folder, "checkpoint").glob(f"{kind}-*")) for kind in ("segment", "state")]
    return [statistics.median(seconds), *(file.stat().st_size / 1e6 for file in files), resumed]


def main(command: Kill | Sweep | Cost) -> int:
    """Runs a command; returns 1 if anything differs, else 0. Raises UsageError."""
    check_ranges(command)
    wrong = {Kill: kill, Sweep: sweep, Cost: cost}[type(command)](command)
    return int(wrong > 0)


if __name__ == "__main__":
    run_script(Kill | Sweep | Cost, main)

"""Kills runs and sweeps and compares what they end with to what nobody touched; and what commits cost.

    python benchmarks/faults.py kill --env-ids Hopper-v4 Ant-v4 Humanoid-v4 Pendulum-v1 --kills 25
    python benchmarks/faults.py sweep --seeds 10 --kills 40
    python benchmarks/faults.py cost

Every life of a run is killed after a random time, be it importing, compiling, learning, evaluating,
committing or resuming, and the same command is given again until the run ends. Then the SHA-256 of every
leaf of its state, of the replay, of the record and of the policies must be those of the reference.
Exit status 1 where one differs.
"""

import contextlib
import hashlib
import io
import json
import os
import random
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
from typing import Any

import jax
import numpy as np
import tyro

from cleanrl_maxent import sac
from cleanrl_maxent.common.checkpoint import Checkpoints
from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.replay import Replay
from cleanrl_maxent.common.runs import Run

SMOKE = Path(__file__).parent / "suites" / "smoke.toml"

# runs an algorithm, and kills this very process at the n-th call of module:function
DRIVER = """
import importlib, os, signal, sys
algorithm, point = sys.argv.pop(1), sys.argv.pop(1)
if point != "none":
    module, name, count = point.split(":")
    owner, calls = importlib.import_module(module), [0]
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    called = getattr(owner, name)
    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*args, **kwargs)
    setattr(owner, name, call)
from cleanrl_maxent.common.arguments import run_from_command_line
algorithm = importlib.import_module("cleanrl_maxent." + algorithm)
run_from_command_line(algorithm.Args, algorithm.train)
"""


def start(algorithm: str, flags: list[str], folder: Path, point: str = "none") -> subprocess.Popen:
    """A process that trains into `folder`, and kills itself at `point`, `module:function:n`, if given."""
    command = [sys.executable, "-c", DRIVER, algorithm, point, *flags, "--run-dir", str(folder)]
    environment = {"NPROC": "1", **os.environ}
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that a finished run ended with, clock and path aside."""

    def sha256(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    checkpoints = Checkpoints(folder / "checkpoint")
    commit = checkpoints.read(checkpoints.commits()[0])
    found = {name: sha256(array.tobytes()) for name, array in commit.arrays.items()}
    config = json.loads((folder / "config.json").read_text())
    segments = [vars(segment.load()) for segment in commit.segments]
    for name in segments[0] if segments else ():
        rows = np.concatenate([segment[name] for segment in segments], axis=1)
        kept = rows[:, -config["args"]["buffer_size"] - 1 :]
        found[f"replay/{name}"] = sha256(kept.tobytes())
    found["environments"] = sha256(json.dumps(commit.meta["envs"]).encode())
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
    """Kills runs with SIGKILL at random moments, resumes them, and compares the ends."""

    algorithms: tuple[str, ...] = ("ddpg", "td3", "sac", "sql")  # files of cleanrl_maxent
    env_ids: tuple[str, ...] = ("Hopper-v4", "Ant-v4", "Humanoid-v4", "Pendulum-v1")  # each with each
    kills: int = 25  # SIGKILLs of each algorithm on each environment
    total_timesteps: int = 1200  # steps of a run
    flags: str = (
        "--learning-starts 400 --buffer-size 700 --checkpoint-frequency 150 --eval-frequency 300 "
        "--eval-episodes 1"
    )  # further flags; by default the ring wraps, and networks have their real width
    workers: int = 1  # runs at the same time
    seed: int = 0  # of the moments of the kills


def torture(algorithm: str, env_id: str, args: Kill, folder: Path) -> tuple[int, int, list[str]]:
    """Kills that landed, runs completed, and what differed from the reference."""
    flags = ["--env-id", env_id, "--total-timesteps", str(args.total_timesteps), *args.flags.split()]
    reference = folder / "reference"
    for name in ("warm", "reference"):  # the first one fills the compilation cache
        began = time.perf_counter()
        if start(algorithm, flags, folder / name).wait():
            raise SystemExit((folder / f"{name}.log").read_text()[-2000:])
        seconds = time.perf_counter() - began
    expected, rng = digests(reference), random.Random(f"{args.seed} {algorithm} {env_id}")
    kills, runs, wrong = 0, 0, differences(expected, digests(folder / "warm"))
    run = folder / "run-0"
    while True:
        process = start(algorithm, flags, run)
        try:
            status = process.wait(rng.uniform(0.1, 0.9) * seconds if kills < args.kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            continue
        if status:
            raise SystemExit(f"status {status}: {run.with_suffix('.log').read_text()[-2000:]}")
        runs += 1
        wrong += [f"{run.name}: {name}" for name in differences(expected, digests(run))]
        shutil.rmtree(run)
        if kills >= args.kills:
            return kills, runs, wrong
        run = folder / f"run-{runs}"


def kill(args: Kill) -> int:
    """Prints a Markdown table; returns the number of differences."""
    cells = [(algorithm, env_id) for algorithm in args.algorithms for env_id in args.env_ids]
    print("| algorithm | environment | SIGKILLs | runs completed | differences |\n|---|---|---|---|---|")
    total = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:

        def one(cell: tuple[str, str]) -> tuple[int, int, list[str]]:
            place = Path(folder) / "-".join(cell)
            place.mkdir()
            return torture(*cell, args, place)

        for cell, (kills, runs, wrong) in zip(cells, pool.map(one, cells), strict=True):
            print(f"| {cell[0]} | {cell[1]} | {kills} | {runs} | {len(wrong)} |", *wrong, flush=True)
            total += len(wrong)
    return total


@dataclass
class Sweep:
    """Sweeps the suite `smoke` undisturbed, and again under random SIGKILLs, and compares the records.

    One more cell always fails, and must be named at the end.
    """

    seeds: int = 13  # of each of the three algorithms
    kills: int = 40  # SIGKILLs of unfinished runs, every fourth of the sweep itself
    every: tuple[float, float] = (2.0, 8.0)  # seconds between two kills, at least and at most
    seed: int = 0  # of the moments and victims


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
    """A process that sweeps on the CPU, with the tests' environments; it prints into `{out_dir}.log`."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "sweep.py"), str(suite), "--out-dir", str(out_dir)]
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}/tests:{os.environ.get('PYTHONPATH', '')}"}
    with open(f"{out_dir}.log", "ab") as log:
        return subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env=environment)


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


def storm(suite: Path, out_dir: Path, args: Sweep) -> tuple[Counter[str], int]:
    """Sweeps while killing until `args.kills` have landed or nothing is left to kill: how many of what, and
    the last sweep's exit status."""
    rng, kills, process = random.Random(args.seed), Counter(), start_sweep(suite, out_dir)
    while kills.total() < args.kills:
        time.sleep(rng.uniform(*args.every))
        if len(finished_records(out_dir)) == 3 * args.seeds:
            break
        victim = "sweep" if kills.total() % 4 == 3 else "worker"
        good = [pid for pid, folder in workers_of(out_dir).items() if "Nan" not in folder.name]
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
    """Prints what happened; returns the number of things that are not as they should be."""
    with tempfile.TemporaryDirectory() as name:
        calm, stormy = Path(name) / "calm", Path(name) / "stormy"
        smoke, *_ = tomllib.loads(SMOKE.read_text())["grid"]
        failing = {"algorithms": ["sac"], "env_ids": ["envs:NanReward-v0"], "seeds": 1}
        suite = write_suite(Path(name) / "suite.toml", smoke | {"seeds": args.seeds}, smoke | failing)
        began = time.perf_counter()
        statuses = [start_sweep(suite, calm).wait()]
        print(f"undisturbed: {time.perf_counter() - began:.0f} s", flush=True)
        began = time.perf_counter()
        kills, status = storm(suite, stormy, args)
        print(f"{dict(kills)} killed: {time.perf_counter() - began:.0f} s", flush=True)
        statuses.append(status)
        reference, records = finished_records(calm), finished_records(stormy)
        log = Path(f"{stormy}.log").read_text()
        resumed = sum("resumed at step" in path.read_text() for path in stormy.glob("*/*.log"))
    wrong = differences(reference, records)
    problems = [f"{name} differs" for name in wrong]
    problems += [f"exit status {status}, not 1" for status in statuses if status != 1]
    if len(reference) != 3 * args.seeds:
        problems.append(f"{len(reference)} runs finished, not {3 * args.seeds}")
    if "non-finite reward at step 3" not in log.rpartition("failed: ")[2]:
        problems.append("the failing cell is not named")
    print(
        f"{len(records)} runs finished, {resumed} of them resumed; {len(wrong)} differ", *problems, sep="\n"
    )
    return len(problems)


@dataclass
class Cost:
    """Times the commits of SAC and the resumption, with a replay of a million transitions."""

    env_id: str = "Hopper-v4"
    num_seeds: tuple[int, ...] = (1, 10)  # a row for each
    every: int = 10_000  # steps between two commits
    commits: int = 100


def cost(args: Cost) -> None:
    """Prints a Markdown table: medians over the commits; nothing can differ."""
    print("| seeds | s a commit | MB of replay | MB of state | s to resume |\n|---|---|---|---|---|")
    for num_seeds in args.num_seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            cells = time_commits(args, num_seeds, folder)
        print(f"| {num_seeds} |", " | ".join(f"{cell:.3g}" for cell in cells), "|", flush=True)


def time_commits(args: Cost, num_seeds: int, folder: str) -> list[float]:
    """Seconds of a commit, megabytes of its transitions and of its state, seconds to resume."""
    set_up_device("auto")
    given = sac.Args(env_id=args.env_id, num_seeds=num_seeds, eval_episodes=0, run_dir=folder)
    envs = SeedEnvs(given.env_id, given.seeds)
    dims = envs.obs_dim, envs.action_dim
    keys = jax.vmap(jax.random.key)(np.array(given.seeds))
    state = jax.jit(jax.vmap(lambda key: sac.init(key, *dims, given)))(keys)
    create = jax.jit(jax.vmap(lambda key: Replay.create(given.buffer_size, *dims)))
    envs.step(np.zeros((num_seeds, envs.action_dim), np.float32))
    seconds = []
    with Run(given, "sac") as run:
        run.resume(envs, state, create(keys))
        for number in range(args.commits):
            run.boundary = (number + 1) * args.every, envs, state
            run.transitions = [envs.transition] * args.every
            began = time.perf_counter()
            run.commit()
            seconds.append(time.perf_counter() - began)
    replay = jax.block_until_ready(create(keys))
    began = time.perf_counter()
    with Run(given, "sac") as run:
        jax.block_until_ready(run.resume(envs, state, replay)[2])
        resumed = time.perf_counter() - began
    files = [next(Path(folder, "checkpoint").glob(f"{kind}-*")) for kind in ("segment", "state")]
    return [statistics.median(seconds), *(file.stat().st_size / 1e6 for file in files), resumed]


if __name__ == "__main__":
    command = tyro.cli(Kill | Sweep | Cost)
    run = {Kill: kill, Sweep: sweep, Cost: cost}[type(command)]
    sys.exit(bool(run(command)))

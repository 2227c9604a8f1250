"""How fast environments step with `--env-workers`, and what share of a run evaluations take.

    python benchmarks/speed/workers.py steps         # environments alone, in 0, 1, 2 and 4 workers
    python benchmarks/speed/workers.py evaluation    # runs of 1, 4 and 16 seeds, on any device

Each prints a Markdown table. Exit status 1 if the bits of two numbers of workers differ.
"""

import contextlib
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.commands import applicable_flags, check_algorithms
from cleanrl_maxent import algorithms
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import EVERY, default_frequency

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Steps:
    """Steps environments with random actions, in rounds, each number of workers in turn."""

    env_id: str = "Hopper-v4"
    num_envs: int = 64
    workers: tuple[int, ...] = (0, 1, 2, 4)  # processes; 0: this one
    steps: int = 200  # of every environment, in a round
    rounds: int = 5  # the table has the medians


@dataclass
class Evaluation:
    """Trains a little, with two evaluations, and computes their share of a whole run.

    Only the second counts, since the first compiles. The share is of the time from one evaluation to the
    next, with the default frequency of one seed and with that of `num_seeds`.
    """

    algorithm: str = "sac"  # a file of cleanrl_maxent
    env_id: str = "HalfCheetah-v4"  # whose episodes all have 1,000 steps
    num_seeds: tuple[int, ...] = (1, 4, 16)
    env_workers: int | None = None  # as in a run
    half: int = 1_000  # environment steps between the two evaluations, a multiple of 1,000


def cpu_seconds(pid: int) -> float:
    """CPU time of a process that is running."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def steps(chosen: Steps) -> int:
    """Prints steps per second of all environments, and CPU time per step with workers; 1 if bits differ."""
    least = min(chosen.num_envs, chosen.steps, chosen.rounds)
    require(least > 0, "num_envs, steps and rounds must be at least 1")
    seeds = list(range(chosen.num_envs))
    envs = {workers: SeedEnvs(chosen.env_id, seeds, workers=workers) for workers in chosen.workers}
    rates: dict[int, list[float]] = {workers: [] for workers in envs}
    costs: dict[int, list[float]] = {workers: [] for workers in envs}
    digests = {workers: hashlib.sha256() for workers in envs}
    for index in range(chosen.rounds):
        for workers, stepped in envs.items():
            processes = stepped.pool.processes
            pids = [os.getpid(), *(process.pid for process in (processes.running if processes else ()))]
            rng, used, began = np.random.default_rng(index), sum(map(cpu_seconds, pids)), time.perf_counter()
            for _ in range(chosen.steps):
                shape = (chosen.num_envs, stepped.task.action_dim)
                stepped.step(rng.uniform(-1, 1, shape).astype(np.float32))
                digests[workers].update(stepped.obs.tobytes())
            taken = chosen.num_envs * chosen.steps
            rates[workers].append(taken / (time.perf_counter() - began))
            costs[workers].append((sum(map(cpu_seconds, pids)) - used) / taken)
    found = {workers: digest.hexdigest() for workers, digest in digests.items()}
    print(
        f"{chosen.num_envs} × {chosen.env_id}, medians of {chosen.rounds} rounds of {chosen.steps} steps each"
    )
    print("| workers | steps/s | CPU µs a step | SHA-256 of all observations |\n|---|---|---|---|")
    for workers, stepped in envs.items():
        rate, cost = statistics.median(rates[workers]), statistics.median(costs[workers])
        print(f"| {workers} | {rate:,.0f} | {1e6 * cost:.0f} | {found[workers][:12]} |")
        stepped.close()
    return int(len(set(found.values())) > 1)


def evaluation(chosen: Evaluation) -> int:
    """Prints the time of an evaluation and of a training step, and the shares that follow; returns 0."""
    check_algorithms([chosen.algorithm])
    print(f"{chosen.algorithm} on {chosen.env_id}")
    print("| seeds | an evaluation, s | a step of all seeds, ms | share, every 5,000 | by default | share |")
    print("|---|---|---|---|---|---|")
    for num_seeds in chosen.num_seeds:
        args, spent, step = measure(chosen, num_seeds)
        default = default_frequency(args)
        shares = [f"{spent / (spent + frequency * step):.1%}" for frequency in (EVERY, default)]
        cells = num_seeds, f"{spent:.2f}", f"{1e3 * step:.2f}", shares[0], f"every {default:,}", shares[1]
        print("|", *(f"{cell} |" for cell in cells), flush=True)
    return 0


def measure(chosen: Evaluation, num_seeds: int) -> tuple:
    """The arguments of a run, the seconds of its last evaluation, and those of a training step before it."""
    algorithm = algorithms()[chosen.algorithm]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        args = algorithm.Args(
            env_id=chosen.env_id,
            num_seeds=num_seeds,
            total_timesteps=2 * chosen.half,
            eval_frequency=chosen.half,
            env_workers=chosen.env_workers,
            run_dir=f"{folder}/run",
            **applicable_flags(chosen.algorithm, {"learning_starts": chosen.half // 2}),
        )
        algorithm.train(args)
        rows = [json.loads(row) for row in Path(folder, "run", "timing.jsonl").open()]
    evaluations = [row for row in rows if "evaluation_seconds" in row]
    require(len(evaluations) >= 2, f"{chosen.half} steps are too few for {chosen.algorithm}; raise --half")
    before, last = evaluations[-2:]
    # from the end of one evaluation to the start of the next
    seconds = last["seconds"] - last["evaluation_seconds"] - before["seconds"]
    return args, last["evaluation_seconds"], seconds / (last["global_step"] - before["global_step"])


def main(chosen: Steps | Evaluation) -> int:
    """Prints a table. Raises UsageError."""
    return steps(chosen) if isinstance(chosen, Steps) else evaluation(chosen)


if __name__ == "__main__":
    run_script(Steps | Evaluation, main)

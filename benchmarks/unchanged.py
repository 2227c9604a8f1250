"""Does this tree learn what an earlier commit learned, to the byte? For changes that should alter nothing.

    python benchmarks/unchanged.py main

Both trees run every algorithm that they share on a small task: with evaluations, checkpoints and a replay
that wraps, one seed and two. `metrics.jsonl` must be equal byte for byte, and so must the arrays of the
policies. Exit status 1 if a run differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.commands import ROOT, applicable_flags, check_algorithms, script, words
from cleanrl_maxent import algorithms
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import UsageError, require

TASKS = {"Box": "Pendulum-v1", "Discrete": "CartPole-v1"}
SMALL = {  # whichever of these an algorithm has
    "total_timesteps": 4000,
    "learning_starts": 1000,
    "buffer_size": 2500,
    "num_steps": 64,
    "eval_frequency": 1500,
    "eval_episodes": 2,
    "checkpoint_frequency": 900,
    "noise": "ou",
}


@dataclass(frozen=True)
class Args:
    """Runs both trees and compares their results."""

    commit: tyro.conf.Positional[str]  # to compare this tree with
    algorithms: tuple[str, ...] = ()  # files of cleanrl_maxent; none: all that both trees have
    num_seeds: tuple[int, ...] = (1, 2)  # seeds side by side, a run for each
    keep: Path | None = None  # folder in which each commit's runs are kept; those already there are reused
    workers: int = 2  # runs at the same time


def command(tree: Path, algorithm: str, env_id: str, num_seeds: int, folder: Path) -> list[str]:
    """The command that trains one case from a tree."""
    flags = {
        "env_id": env_id,
        "num_seeds": num_seeds,
        "run_dir": folder,
        **applicable_flags(algorithm, SMALL),
    }
    return [sys.executable, script(algorithm, tree), *words(flags)]


def train(tree: Path, folder: Path, case: tuple[str, str, int]) -> None:
    """Trains a case from a tree, on one thread, unless `folder` holds it; raises UsageError if that fails."""
    if (folder / "result.json").exists():
        return
    environment = {**os.environ, "PYTHONPATH": str(tree), "NPROC": "1"}
    done = subprocess.run(command(tree, *case, folder), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{tree}: {' '.join(map(str, case))}: {done.stderr[-2000:]}")


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two finished runs."""
    wrong = []
    for path in sorted(before.glob("seed-*/metrics.jsonl")):
        other = after / path.relative_to(before)
        if path.read_bytes() != other.read_bytes():
            rows = zip(*(map(json.loads, p.read_text().splitlines()) for p in (path, other)), strict=False)
            names = {name for a, b in rows for name in a | b if a.get(name) != b.get(name)}
            wrong.append(f"{path.relative_to(before)}: {', '.join(sorted(names)) or 'length'}")
    for path in sorted(before.glob("policy-*.npz")):
        with np.load(path) as old, np.load(after / path.name) as new:
            if set(old) != set(new):
                wrong.append(f"{path.name}: other names")
            wrong += [f"{path.name}: {name}" for name in old if not np.array_equal(old[name], new.get(name))]
    return wrong


def main(args: Args) -> int:
    """Prints a Markdown table; returns 1 if a run differs, else 0. Raises UsageError."""
    check_algorithms(args.algorithms)
    require(args.workers >= 1, f"workers must be at least 1; got {args.workers}")
    require(min(args.num_seeds, default=0) > 0, f"num_seeds must be at least 1; got {args.num_seeds}")
    with tempfile.TemporaryDirectory() as name:
        folder, tree = Path(name), Path(name) / "tree"
        for git in (["clone", "--quiet", ROOT, tree], ["-C", tree, "checkout", "--quiet", args.commit, "--"]):
            done = subprocess.run(["git", *git], capture_output=True, text=True)
            require(not done.returncode, f"git: {done.stderr.strip()}")
        asked = ["git", "-C", tree, "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        shared = {
            algorithm: module
            for algorithm, module in algorithms().items()
            if Path(script(algorithm, tree)).exists()
        }
        missing = ", ".join(sorted(set(args.algorithms) - shared.keys()))
        require(not missing, f"{args.commit} does not have {missing}")
        cases = [
            (algorithm, env_id, num_seeds)
            for algorithm in args.algorithms or shared
            for env_id in (TASKS[kind] for kind in shared[algorithm].Args.action_spaces)
            for num_seeds in args.num_seeds
        ]

        def compare(case: tuple[str, str, int]) -> list[str]:
            before = (args.keep or folder) / commit / "-".join(map(str, case))
            after = folder / "after" / "-".join(map(str, case))
            train(tree, before, case)
            train(ROOT, after, case)
            return differences(before, after)

        print("| algorithm | environment | seeds | differences |\n|---|---|---|---|", flush=True)
        with ThreadPoolExecutor(args.workers) as pool:
            differ = False
            for case, wrong in zip(cases, pool.map(compare, cases), strict=True):
                differ |= bool(wrong)
                print("|", *(f"{cell} |" for cell in case), "; ".join(wrong) or "none", "|", flush=True)
    return int(differ)


if __name__ == "__main__":
    run_script(Args, main)

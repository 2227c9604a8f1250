"""Seeds side by side on a GPU or TPU: steps per second with and without processes for the environments.

    python benchmarks/speed/accelerator.py --out speed-gpu.json

For each number of seeds, it times a run, as a user would start it, with a process per core for the
environments and with none; then the update, the action and the environments alone, which show what bounds the
run. This takes about 12 minutes on one H200, half of them compilation. Figures go to `--out` after each
measurement. Those already in the file are not measured again, so the work can be split into several sessions
on a machine that is lent by the minute.
"""

import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.commands import check_algorithms, words
from benchmarks.figures import plural
from benchmarks.speed.compare import environment, finish, ours
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.devices import cpu_count
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.files import write_file

MILLION = 1_000_000


@dataclass
class Args:
    """What to time, and how long."""

    algorithm: str = "sac"  # a file of cleanrl_maxent
    env_id: str = "Hopper-v4"
    num_seeds: tuple[int, ...] = (1, 4, 10, 32, 64)  # vmapped in one process
    # runs with processes for the environments, runs without, and what a step is made of
    measure: tuple[Literal["workers", "process", "parts"], ...] = ("workers", "process", "parts")
    warm: int = (
        2_000  # steps before the clock starts, 1,000 of them random; a multiple of 1,000, at least 2,000
    )
    steps: int = 8_000  # timed steps of all seeds together, at least 2,000 of each, in thousands
    limit: float = 120.0  # seconds that one measurement may take; it is left out if it takes longer
    out: Path | None = None  # JSON of all figures


def measurements(args: Args) -> dict[str, list[str]]:
    """Name → command, in the order in which they are taken."""
    common = ["--algorithm", args.algorithm, "--env-id", args.env_id]
    commands = {}
    for kind, count in itertools.product(args.measure, args.num_seeds):
        if kind == "parts":
            flags = {"num-seeds": count, "updates": 500}
            commands[f"{count}, parts"] = ["parts", *common, *words(flags)]
        else:
            steps = max(args.steps // count // 1000, 2) * 1000
            workers = cpu_count() if kind == "workers" else 0
            flags = {"num-seeds": count, "warm": args.warm, "steps": steps, "env-workers": workers}
            commands[f"{count}, {workers} workers"] = ["run", *common, *words(flags)]
    return commands


def measure(command: list[str], limit: float) -> dict[str, float] | None:
    """What a measurement of ours.py prints; None if it fails or takes longer than `limit` seconds."""
    try:
        printed = finish(ours(*command), env=environment(), timeout=limit)
    except (subprocess.TimeoutExpired, UsageError) as problem:
        print(f"left out: {problem}", file=sys.stderr, flush=True)
        return None
    return json.loads(printed.splitlines()[-1])


def table(figures: dict[str, dict[str, float]], workers: int) -> str:
    """Markdown: a row for each number of seeds. The time of a million steps is extrapolated from the rate."""
    lines = [
        "| seeds | steps per second of all, with workers | without | ms a step | a million steps, minutes "
        "| GB of GPU memory | update alone, ms | action, ms | environments without workers, ms |",
        "|---" * 9 + "|",
    ]
    for count in sorted({int(name.partition(",")[0]) for name in figures}):
        runs = [figures.get(f"{count}, {number} workers", {}) for number in (workers, 0)]
        rates = [run.get("steps_per_second") for run in runs]
        parts = figures.get(f"{count}, parts", {})
        best = max((rate for rate in rates if rate), default=None)
        cells: list[str] = [str(count), *("" if rate is None else f"{rate:,.0f}" for rate in rates)]
        cells += [f"{1e3 * count / best:.2f}", f"{MILLION * count / best / 60:.0f}"] if best else ["", ""]
        memory = max((run.get("device_megabytes", 0.0) for run in runs), default=0.0)
        cells.append(f"{memory / 1e3:.1f}" if memory else "")
        if parts:
            cells += [
                f"{1e3 * count / parts['updates_per_second']:.2f}",
                f"{parts['action_microseconds'] / 1e3:.2f}",
                f"{1e3 * count / parts['environment_steps_per_second']:.2f}",
            ]
        lines.append(f"| {' | '.join(cells + [''] * (9 - len(cells)))} |")
    return "\n".join(lines)


def main(args: Args) -> int:
    """Takes what is missing, and prints the table; returns 1 if something was left out. Raises UsageError."""
    check_algorithms([args.algorithm])
    require(min(args.num_seeds, default=0) > 0, f"num_seeds must be at least 1; got {args.num_seeds}")
    require(
        args.warm % 1000 == 0 and args.warm >= 2000,
        f"warm must be a multiple of 1,000, at least 2,000; got {args.warm}",
    )
    about: Any = measure(["about"], args.limit)
    require(about is not None, "JAX does not start here; see above")
    machine = {"cores": cpu_count(), **about}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    chosen = {name: getattr(args, name) for name in ("algorithm", "env_id", "warm", "steps")}
    about_figures = {"machine": machine, **chosen}
    changed = [name for name, value in about_figures.items() if kept.get(name, value) != value]
    others = f"{args.out} holds figures of another {' and '.join(changed)}; name another file"
    require(not changed, others)
    figures: dict[str, dict[str, float]] = kept.get("figures", {})
    for name, command in measurements(args).items():
        if name in figures:
            continue
        began = time.perf_counter()
        found = measure(command, args.limit)
        if found is not None:
            figures[name] = found
            print(f"{name}: {found}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            if args.out:
                text = json.dumps(about_figures | {"figures": figures}, indent=1) + "\n"
                write_file(args.out, text.encode())
    title = f"{args.algorithm} on {args.env_id}, {machine['device']['kind']}, {plural(cpu_count(), 'core')}"
    print(f"\n{title}\n\n{table(figures, cpu_count())}", flush=True)
    return int(not figures.keys() >= measurements(args).keys())


if __name__ == "__main__":
    run_script(Args, main)

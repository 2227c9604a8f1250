"""Speed, ours beside peers': programs take turns on one machine, and medians are quoted.

    python benchmarks/speed.py --peer-python ../peers/bin/python --out speed.json

A round runs every program once; ratios are taken within a round, where the machine was the same. Every
program warms up (compilation is over then) and is timed over the environment steps that follow, all of
them learning. `--steps` is the total: of k seeds each takes a k-th. Figures go to `--out` after each
round; to a file that exists rounds are added until there are `--rounds`.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import tyro

from cleanrl_maxent.common.devices import cpu_count
from cleanrl_maxent.common.machine import processor

HERE = Path(__file__).parent
PEERS = {"SBX": "sbx", "SB3": "stable_baselines3"}
Figures = dict[str, float]


@dataclass
class Args:
    """What to time, against what, and how long."""

    algorithms: tuple[str, ...] = ("sac",)  # files of cleanrl_maxent; peers by the same name
    env_id: str = "Hopper-v4"
    num_seeds: tuple[int, ...] = (1, 4, 10)
    peer_python: Path | None = None  # python with sbx-rl, stable-baselines3 and gymnasium[mujoco]
    peer_script: tuple[Path, ...] = ()  # scripts of a checkout of CleanRL or LeanRL; --peer-python runs them
    warm: int = 2_000  # environment steps before the clock starts, 1,000 of them random
    steps: int = 20_000  # timed environment steps of a program, in thousands for each seed
    rounds: int = 5
    evaluation: bool = True  # our run with evaluation too
    packed: bool = True  # one process per core, one thread and one seed each
    out: Path | None = None  # JSON of all figures


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def environment(**changes: str) -> dict[str, str]:
    quiet = {"PYTHONPATH": str(HERE.parent), "PYTHONWARNINGS": "ignore", "WANDB_MODE": "disabled"}
    return {**os.environ, **quiet, **changes}


def measure(command: list[str], **changes: str) -> Figures:
    """The JSON that a program prints last; ends with its errors where it fails."""
    done = subprocess.run(command, env=environment(**changes), capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(kind: str, *flags: object) -> list[str]:
    return [sys.executable, str(HERE / "speed_ours.py"), kind, *map(str, flags)]


def measure_packed(command: list[str], copies: int) -> Figures:
    """Rates and memory of `copies` processes at once, one XLA thread each, added up."""
    start = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(NPROC="1"))
    running = [subprocess.Popen(command, **start) for _ in range(copies)]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        fail(f"{' '.join(command)} failed")
    figures = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {name: sum(figure[name] for figure in figures) for name in figures[0]}


def measure_script(python: Path, script: Path, args: Args) -> Figures:
    """Rate of a script with CleanRL's flags: a long run's time less a short one's, so start-up cancels."""
    seconds = []
    for steps in (args.warm, args.warm + args.steps):
        flags = {"env-id": args.env_id, "total-timesteps": steps, "learning-starts": 1000}
        command = [str(python), str(script.resolve()), *(f"--{k}={v}" for k, v in flags.items())]
        began = time.perf_counter()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            fail(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return {"steps_per_second": args.steps / (seconds[1] - seconds[0])}


def programs(args: Args, algorithm: str) -> dict[str, Callable[[], Figures]]:
    """Name → measurement, in the order of a round."""
    cores = cpu_count()
    common = ["--algorithm", algorithm, "--env-id", args.env_id]
    chosen: dict[str, Callable[[], Figures]] = {}
    for k in args.num_seeds:
        steps = max(args.steps // k // 1000 * 1000, 1000)
        flags = [*common, "--num-seeds", k, "--warm", args.warm, "--steps", steps]
        chosen[f"run, {k} seeds"] = lambda flags=flags: measure(ours("run", *flags))
        if args.evaluation and steps >= 5000:  # as many as between two evaluations
            evaluated = [*flags, "--eval-episodes", 10]
            chosen[f"run, {k} seeds, evaluated"] = lambda flags=evaluated: measure(ours("run", *flags))
        flags = [*common, "--num-seeds", k, "--updates", max(1000 // k, 100)]
        chosen[f"parts, {k} seeds"] = lambda flags=flags: measure(ours("parts", *flags))
    if args.packed:
        command = ours("run", *common, "--warm", args.warm, "--steps", args.steps)
        chosen[f"run, packed on {cores}"] = lambda: measure_packed(command, cores)
    if args.peer_python:
        sizes = [args.env_id, str(args.warm), str(args.steps)]
        for name, package in PEERS.items():
            peer = [str(args.peer_python), str(HERE / "speed_peer.py"), package, algorithm.upper(), *sizes]
            chosen[name] = lambda peer=peer: measure(peer)
        for script in args.peer_script:
            chosen[script.name] = lambda script=script: measure_script(args.peer_python, script, args)
    return chosen


def spread(values: list[float], digits: int = 0) -> str:
    """Median (lowest–highest)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def table(rounds: list[dict[str, Figures]]) -> str:
    """Markdown: programs with rates and ratios within rounds, then the parts of a step."""

    def column(program: str, figure: str) -> list[float]:
        return [figures[program][figure] for figures in rounds]

    names = list(rounds[0])
    first = next(name for name in names if name.startswith("run"))
    lines = ["| program | steps per second, all seeds | ours is | peak MB |", "|---|---|---|---|"]
    for name in (name for name in names if not name.startswith("parts")):
        rates = column(name, "steps_per_second")
        ratio = statistics.median(
            a / b for a, b in zip(column(first, "steps_per_second"), rates, strict=True)
        )
        memory = rounds[0][name].get("peak_megabytes")
        lines.append(f"| {name} | {spread(rates)} | {ratio:.2f} × | {f'{memory:,.0f}' if memory else ''} |")
    for name in (name for name in names if name.startswith("parts")):
        whole = name.replace("parts", "run")
        bare, floor = column(name, "updates_per_second"), column(name, "floor_updates_per_second")
        shares = {"bare update / its floor": [a / b for a, b in zip(bare, floor, strict=True)]}
        if whole in names:
            rates = column(whole, "steps_per_second")
            shares["run / bare update"] = [a / b for a, b in zip(rates, bare, strict=True)]
        lines += ["", f"| {name} | median (lowest–highest) |", "|---|---|"]
        for figure, value in rounds[0][name].items():
            if isinstance(value, float):
                values = column(name, figure)
                lines.append(
                    f"| {figure.replace('_', ' ')} | {spread(values, 2 if max(values) < 10 else 0)} |"
                )
        lines += [f"| {share} | {spread(values, 2)} |" for share, values in shares.items()]
    return "\n".join(lines)


def describe(args: Args) -> dict:
    """The machine and the settings: figures of others are not to be mixed with these."""
    settings = {name: value for name, value in asdict(args).items() if "peer" not in name and name != "out"}
    return {"processor": processor(), "cores": cpu_count(), **settings}


def rounds_of(args: Args, machine: dict) -> dict[str, list[dict[str, Figures]]]:
    """Algorithm → the rounds that `--out` holds already; fails where they are not comparable."""
    if not args.out or not args.out.exists():
        return {}
    before = json.loads(args.out.read_text())
    if before["machine"] | {"rounds": 0} != machine | {"rounds": 0}:
        fail(f"{args.out} holds other settings or another machine's figures; name another file")
    for algorithm in before["rounds"].keys() & set(args.algorithms):
        if any(done.keys() != programs(args, algorithm).keys() for done in before["rounds"][algorithm]):
            fail(f"{args.out} compares with other peers; name another file")
    return before["rounds"]


def main(args: Args) -> None:
    """Runs the rounds; prints a table for each algorithm."""
    for number in ("warm", "steps"):
        if getattr(args, number) % 1000 or getattr(args, number) <= 0:
            fail(f"{number} must be a multiple of 1,000; got {getattr(args, number)}")
    machine = json.loads(json.dumps(describe(args)))
    kept = rounds_of(args, machine)
    for algorithm in args.algorithms:
        rounds = kept.setdefault(algorithm, [])
        while len(rounds) < args.rounds:
            done = {}
            for name, program in programs(args, algorithm).items():
                done[name] = program()
                print(algorithm, name, done[name], file=sys.stderr, flush=True)
            rounds.append(done)
            if args.out:
                args.out.write_text(json.dumps({"machine": machine, "rounds": kept}, indent=1) + "\n")
        print(f"\n{algorithm} on {args.env_id}, {len(rounds)} rounds\n\n{table(rounds)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))

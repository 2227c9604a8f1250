"""What a step of each program costs, timed in turns on one machine: benchmarks/studies/efficiency/cost.csv.

    python benchmarks/studies/efficiency/cost.py --peer-python ../peers/bin/python

Each program takes `steps` steps on Hopper-v4 on one core, after a warm-up in which it compiles; so a second
is a second of the processor. Every second round runs in reverse order. New rounds are appended to the file,
which is of one machine: delete it on another. Needs Linux.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.efficiency import COSTS, PROGRAMS
from benchmarks.records import read_csv
from benchmarks.speed.compare import PEER, measure, ours
from cleanrl_maxent.common.cli import run_script

ONE_CORE = dict(NPROC="1", OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu")

HERE = Path(__file__).parent
COLUMNS = ("round", "program", "milliseconds")


@dataclass
class Args:
    """How long, and how often."""

    peer_python: Path | None = None  # python with sbx-rl and gymnasium[mujoco]; None: without the peers
    warm: int = 2_000  # steps before the clock starts, 1,000 of them random
    steps: int = 4_000  # timed steps
    rounds: int = 3
    rows: Path = COSTS


def command(program: str, args: Args) -> list[str]:
    """The command that measures a program; empty for a peer without `--peer-python`."""
    if program.startswith("SBX "):
        words = ["sbx", program.removeprefix("SBX "), "Hopper-v4", str(args.warm), str(args.steps)]
        return [str(args.peer_python.absolute()), PEER, *words] if args.peer_python else []
    path = HERE / f"{program}.py"
    algorithm = str(path) if path.exists() else program
    return ours("run", "--algorithm", algorithm, "--warm", args.warm, "--steps", args.steps)


def main(args: Args) -> None:
    """Adds a row for each program and round, and prints it."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the programs inherit it
    commands = {program: command(program, args) for program in PROGRAMS}
    rows = read_csv(args.rows)
    first = 1 + max((int(row["round"]) for row in rows), default=0)
    with args.rows.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(COLUMNS)
        for number in range(first, first + args.rounds):
            for program in list(commands)[:: 1 if number % 2 else -1]:
                if commands[program]:
                    rate = measure(commands[program], **ONE_CORE)["steps_per_second"]
                    writer.writerow([number, program, f"{1e3 / rate:.3f}"])
                    file.flush()
                    print(f"{program}: {1e3 / rate:.2f} ms a step", flush=True)


if __name__ == "__main__":
    run_script(Args, main)

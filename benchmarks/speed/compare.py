"""Our speed beside that of peers: programs take turns on one machine, and medians are reported.

    python benchmarks/speed/compare.py --peer-python ../peers/bin/python --out speed.json

A round runs every program once, ours and its peers next to each other; every second round runs backwards.
Ratios are taken within a round. Every program warms up, which includes compilation, and is timed over the
environment steps that follow, all of which learn. `--steps` is the total: each of k seeds takes a k-th of it.
Figures go to `--out` after each round; if the file exists, rounds are added until there are `--rounds`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.commands import ROOT, check_algorithms
from benchmarks.figures import plural
from benchmarks.speed.batches import learns_from_batches
from benchmarks.speed.rates import Figures, table
from cleanrl_maxent import algorithm_names, algorithms
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.devices import cpu_count
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.files import write_file

OURS, PEER = (str(Path(__file__).with_name(f"{name}.py")) for name in ("ours", "peer"))
PEERS = {"SBX": "sbx", "SB3": "stable_baselines3", "SB3-contrib": "sb3_contrib"}
THREADS = ("NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")  # would favour one side
DIFFERENCES = (
    "Ours writes metrics, TensorBoard files and checkpoints, and computes float32 products in full (with jax "
    "before 0.12 on a CPU by Eigen; SBX by XLA's default); peers log nothing. Peers' replay is in NumPy, "
    "whose memory counts only once it is written to; ours counts whole. On-policy peers normalise in NumPy, "
    "at every step, ours in the compiled policy and update."
)
BOTH = ("SBX", "SB3")
RIVALS = {  # a peer's algorithm, and the peers that have it
    "ddpg": ("DDPG", BOTH),
    "td3": ("TD3", BOTH),
    "sac": ("SAC", BOTH),
    "crossq": ("CrossQ", ("SBX",)),
    "a2c": ("A2C", ("SB3",)),
    "trpo": ("TRPO", ("SB3-contrib",)),
    "ppo": ("PPO", BOTH),
    "maxent_pg": ("PPO", BOTH),
    "sql_discrete": ("DQN", BOTH),  # with alpha 0
}
BESIDE_SAC = ("crossq",)  # timed beside our SAC although peers have it


@dataclass
class Args:
    """What to time, against what, and how long."""

    algorithms: tuple[str, ...] = algorithm_names()  # files of cleanrl_maxent
    env_id: str = "Hopper-v4"
    num_seeds: tuple[int, ...] = (1, 4, 10)  # vmapped in one process
    evaluated: tuple[int, ...] = (1, 4, 10)  # numbers of seeds to time with evaluation too
    peer_python: Path | None = None  # python with sbx-rl, sb3-contrib and gymnasium[mujoco]
    peer_script: tuple[Path, ...] = ()  # scripts of CleanRL or LeanRL, {algorithm}_….py, for --peer-python
    torch_threads: int | None = None  # of peers; None: torch's choice, which is too many for small networks
    warm: int = 2_000  # environment steps before the clock starts, 1,000 of them random
    steps: int = 20_000  # timed environment steps of a program, in thousands for each seed
    rounds: int = 5
    packed: bool = True  # on a CPU: one process per core, one thread and one seed each
    out: Path | None = None  # JSON of all figures


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in THREADS}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | changes


def finish(command: list[str], **options: Any) -> str:
    """What a program prints; raises UsageError, with its errors, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise UsageError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout


def measure(command: list[str], **changes: str) -> dict[str, Any]:
    """The JSON that a program prints last; `changes`: environment variables to set for it."""
    return json.loads(finish(command, env=environment(**changes)).splitlines()[-1])


def ours(kind: str, *flags: object) -> list[str]:
    return [sys.executable, OURS, kind, *map(str, flags)]


def measure_packed(command: list[str], copies: int) -> Figures:
    """Rates and memory of `copies` processes at once, one XLA thread each, added up."""
    running = []
    for _ in range(copies):
        errors = tempfile.TemporaryFile("w+")
        process = subprocess.Popen(
            command, env=environment(NPROC="1"), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        running.append((process, errors))
    figures = []
    for process, errors in running:
        output = process.communicate()[0]
        if process.returncode:
            errors.seek(0)
            raise UsageError(f"{' '.join(command)}: {errors.read()[-2000:]}")
        figures.append(json.loads(output.splitlines()[-1]))
    return {name: sum(figure[name] for figure in figures) for name in figures[0]}


def measure_script(python: Path, script: Path, args: Args) -> Figures:
    """Rate of a script with CleanRL's flags: a long run's time less a short one's, so start-up cancels."""
    seconds = []
    for steps in (args.warm, args.warm + args.steps):
        flags = {"env-id": args.env_id, "total-timesteps": steps, "learning-starts": 1000}
        command = [str(python.absolute()), str(script.resolve()), *(f"--{k}={v}" for k, v in flags.items())]
        if script.stem.endswith("_torchcompile"):
            command.append("--compile")
        changes = environment(PYTHONPATH=str(script.resolve().parent.parent), WANDB_MODE="disabled")
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            finish(command, env=changes, cwd=folder)
            seconds.append(time.perf_counter() - began)
    return {"steps_per_second": args.steps / (seconds[1] - seconds[0])}


def programs(args: Args, algorithm: str, on_cpu: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name → measurement, in the order of a round; all are compared with the first."""
    common = ["--algorithm", algorithm, "--env-id", args.env_id]
    chosen: dict[str, Callable[[], dict[str, Any]]] = {}

    def add(name: str, command: list[str], **changes: str) -> None:
        chosen[name] = lambda: measure(command, **changes)

    def run(share: int, multiple: int, warm: int, *flags: object) -> list[str]:
        """A run that takes a `share`-th of the steps, a multiple of `multiple`."""
        steps = max(args.steps // share // multiple, 1) * multiple
        return ours("run", *common, "--warm", warm, "--steps", steps, *flags)

    def add_run(k: int) -> None:
        add(plural(k, "seed"), run(k, 1000, args.warm, "--num-seeds", k))

    add_run(args.num_seeds[0])
    if algorithm not in RIVALS or algorithm in BESIDE_SAC:
        sizes = ["--env-id", args.env_id, "--warm", args.warm, "--steps", args.steps]
        add("our SAC, 1 seed", ours("run", "--algorithm", "sac", *sizes))
    if algorithm in RIVALS and (python := args.peer_python):
        rival, peers = RIVALS[algorithm]
        for name in peers:
            sizes = [rival, args.env_id, str(args.warm), str(args.steps)]
            threads = {"OMP_NUM_THREADS": str(args.torch_threads)} if args.torch_threads else {}
            add(name, [str(python), PEER, PEERS[name], *sizes], **threads)
        for script in args.peer_script:
            if script.name.startswith(algorithm):
                name = "/".join(script.resolve().parts[-2:])
                chosen[name] = lambda script=script: measure_script(python, script, args)
    if args.packed and on_cpu:
        command = run(cpu_count(), 1000, args.warm)
        chosen[f"packed, {cpu_count()} processes"] = lambda: measure_packed(command, cpu_count())
    for k in args.num_seeds:
        if k != args.num_seeds[0]:
            add_run(k)
        if learns_from_batches(algorithms()[algorithm]):
            add(f"parts, {k}", ours("parts", *common, "--num-seeds", k, "--updates", max(1000 // k, 100)))
        if k in args.evaluated:  # whole evaluations, the first of them before the clock starts
            name = f"{plural(k, 'seed')}, evaluated"
            add(name, run(k, 5000, 6000, "--num-seeds", k, "--eval-episodes", 10))
    return chosen


def describe(args: Args) -> dict[str, Any]:
    """Machine, versions and settings; only figures that agree in all of these may be mixed."""
    settings = {k: v for k, v in asdict(args).items() if k in ("env_id", "torch_threads", "warm", "steps")}
    peers = {}
    if args.peer_python:
        for name, package in PEERS.items():
            peers[name] = measure([str(args.peer_python), PEER, package])
    differ = {"settings that differ": DIFFERENCES}
    return {"cores": cpu_count(), "ours": measure(ours("about")), "peers": peers, **settings, **differ}


def rounds_of(args: Args, machine: dict, on_cpu: bool) -> dict[str, list[dict[str, Figures]]]:
    """Algorithm → the rounds that `--out` holds already; raises UsageError if they are not comparable."""
    if not args.out or not args.out.exists():
        return {}
    before = json.loads(args.out.read_text())
    changed = [name for name in machine if before["machine"].get(name) != machine[name]]
    if changed:
        raise UsageError(f"{args.out} holds figures of another {' and '.join(changed)}; name another file")
    for algorithm in before["rounds"].keys() & set(args.algorithms):
        wanted = programs(args, algorithm, on_cpu).keys()
        if any(done.keys() != wanted for done in before["rounds"][algorithm]):
            raise UsageError(f"{args.out} holds rounds of other programs; name another file")
    return before["rounds"]


def main(args: Args) -> None:
    """Runs the rounds; prints a table for each algorithm. Raises UsageError."""
    check_algorithms(args.algorithms)
    warm = args.warm % 1000 == 0 and args.warm >= 2000
    require(warm, f"warm must be a multiple of 1,000, at least 2,000; got {args.warm}")
    steps = args.steps % 1000 == 0 and args.steps > 0
    require(steps, f"steps must be a multiple of 1,000; got {args.steps}")
    require(args.rounds >= 1, f"rounds must be at least 1; got {args.rounds}")
    require(min(args.num_seeds, default=0) > 0, f"num_seeds must be at least 1; got {args.num_seeds}")
    require(not args.peer_script or args.peer_python is not None, "peer_script needs --peer-python")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = describe(args)
    on_cpu = machine["ours"]["device"]["platform"] == "cpu"
    kept = rounds_of(args, machine, on_cpu)
    print(json.dumps(machine))
    for algorithm in args.algorithms:
        rounds, turns = kept.setdefault(algorithm, []), programs(args, algorithm, on_cpu)
        while len(rounds) < args.rounds:
            done: dict[str, Figures] = dict.fromkeys(turns, {})  # in the order of a round
            for name in list(turns)[:: -1 if len(rounds) % 2 else 1]:
                done[name] = turns[name]()
                print(algorithm, name, done[name], file=sys.stderr, flush=True)
            rounds.append(done)
            if args.out:
                text = json.dumps({"machine": machine, "rounds": kept}, indent=1) + "\n"
                write_file(args.out, text.encode())
        print(f"\n{algorithm} on {args.env_id}, {len(rounds)} rounds\n\n{table(rounds)}", flush=True)


if __name__ == "__main__":
    run_script(Args, main)

"""A run: its folder, its record and the mirrors of it, the line on the terminal, the result."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from cleanrl_maxent.common.arguments import RunArgs, UsageError
from cleanrl_maxent.common.envs import Episode, check_finite
from cleanrl_maxent.common.terminal import Terminal

PACKAGES = ("cleanrl_maxent", "jax", "jaxlib", "flax", "optax", "gymnasium", "mujoco", "numpy")
LOSSES_EVERY = 100  # environment steps between two rows of losses


def default_run_dir(args: RunArgs) -> Path:
    """`runs/{env_id}__{exp_name}__{seed}__{unix time}`, CleanRL's name for it."""
    env_id = args.env_id.replace("/", "_").replace(":", "_")
    return Path("runs") / f"{env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"


def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` where files differ from it; None outside git."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def describe_machine() -> dict:
    """Versions of Python and the packages, the device, and the threads XLA may use."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    device = jax.config.jax_default_device or jax.devices()[0]
    return {
        "versions": versions,
        "device": {"platform": device.platform, "kind": device.device_kind, "processor": processor()},
        "cpu_threads": int(os.environ.get("NPROC", 0)) or None,
        "git_commit": git_commit(),
    }


def processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.processor() or platform.machine()


def named_arrays(params) -> dict[str, np.ndarray]:
    """The leaves of a pytree under the paths that lead to them, `params/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


class Run:
    """Writes what a run leaves behind; files of seed s are in `seed-{s}/`.

    `metrics.jsonl` of each seed is the record and holds nothing of the wall clock, so that equal runs
    have equal records; TensorBoard and W&B mirror it; `timing.jsonl` has the clock.
    """

    def __init__(self, args: RunArgs, algorithm: str):
        """Makes the folder and writes `config.json`.

        Raises UsageError where the folder exists or cannot be written, or W&B has no key.
        """
        self.args = args
        self.folder = Path(args.run_dir) if args.run_dir else default_run_dir(args)
        if args.track:
            check_wandb(args)
        try:
            self.folder.mkdir(parents=True)
            for seed in args.seeds:
                self.seed_folder(seed).mkdir()
        except FileExistsError as problem:
            raise UsageError(f"{self.folder} exists; name another --run-dir, or remove it") from problem
        except OSError as problem:
            raise UsageError(f"cannot write to {self.folder}: {problem.strerror}") from problem
        config = {"algorithm": algorithm, "args": asdict(args), **describe_machine()}
        self.write_json("config.json", config)
        self.records = [open(self.seed_folder(seed) / "metrics.jsonl", "w") for seed in args.seeds]
        self.boards = [SummaryWriter(str(self.seed_folder(seed))) for seed in args.seeds]
        table = "|flag|value|\n|-|-|\n" + "\n".join(f"|{k}|{v}|" for k, v in asdict(args).items())
        for board in self.boards:
            board.add_text("hyperparameters", table)
        self.trackers = [self.start_tracker(seed, config) for seed in args.seeds] if args.track else []
        self.timing = open(self.folder / "timing.jsonl", "w")
        self.terminal = Terminal(args, self.folder)
        self.evaluations: list[dict] = [{} for _ in args.seeds]
        self.started = self.last_time = time.perf_counter()
        self.last_steps = 0

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def start_tracker(self, seed: int, config: dict):
        """The W&B run of one seed, in the group of this run."""
        import wandb

        tracker = wandb.init(
            project=self.args.wandb_project_name,
            entity=self.args.wandb_entity,
            group=self.folder.name,
            name=f"{self.folder.name}-seed-{seed}",
            config={**config, **config["args"], "seed": seed},
            mode=self.args.wandb_mode,
            dir=str(self.folder),
            reinit="create_new",
        )
        tracker.define_metric("*", step_metric="global_step")
        return tracker

    def record(self, index: int, steps: int, metrics: Mapping[str, float]) -> None:
        """One row of seed number `index`, counted from 0, after `steps` environment steps."""
        row = {name: float(value) for name, value in metrics.items()}
        line = json.dumps({"global_step": steps, **row}, allow_nan=False)
        self.records[index].write(line + "\n")
        self.records[index].flush()
        for name, value in row.items():
            self.boards[index].add_scalar(name, value, steps)
        if self.trackers:
            self.trackers[index].log({"global_step": steps, **row})

    def record_episodes(self, steps: int, episodes: list[Episode]) -> None:
        """A row for each episode that ended at this step."""
        for index, episodic_return, length in episodes:
            row = {"charts/episodic_return": episodic_return, "charts/episodic_length": length}
            self.record(index, steps, row)

    def record_losses(self, steps: int, losses: Mapping[str, jax.Array]) -> None:
        """Every LOSSES_EVERY steps, a row for each seed with the losses of the last update.

        `losses`: arrays `(seed,)` on the device; empty before the first update. Raises
        NonFiniteError.
        """
        if steps % LOSSES_EVERY:
            return
        self.terminal.steps = steps
        values = jax.device_get(losses)
        check_finite(steps, self.args.seeds, **values)
        for index in range(self.args.num_seeds if values else 0):
            self.record(index, steps, {name: value[index] for name, value in values.items()})
        if steps and steps % (10 * LOSSES_EVERY) == 0:
            self.record_speed(steps)

    def record_speed(self, steps: int) -> None:
        """A row of `timing.jsonl`: seconds since the start, and steps per second of each seed."""
        now = time.perf_counter()
        speed = (steps - self.last_steps) / max(now - self.last_time, 1e-9)
        self.last_time, self.last_steps = now, steps
        row = {"global_step": steps, "seconds": round(now - self.started, 3), "charts/SPS": round(speed, 1)}
        self.timing.write(json.dumps(row) + "\n")
        self.timing.flush()
        self.terminal.speed = speed
        self.terminal.tell(now)
        for board in self.boards:
            board.add_scalar("charts/SPS", speed, steps)

    def record_evaluation(self, steps: int, metrics: list[dict[str, float]]) -> None:
        """The rows of an evaluation, one for each seed."""
        for index, row in enumerate(metrics):
            self.record(index, steps, row)
            self.evaluations[index] = {"global_step": steps, **row}
        self.terminal.steps = steps
        self.terminal.show_evaluation(metrics)

    def save_policy(self, params) -> None:
        """Writes `policy-{seed}.npz` of every seed, without pickle; leaves lead with `(seed,)`.

        Raises NonFiniteError.
        """
        check_finite(self.args.total_timesteps, self.args.seeds, **named_arrays(params))
        for index, seed in enumerate(self.args.seeds):
            arrays = named_arrays(jax.tree.map(lambda leaf, i=index: leaf[i], params))
            np.savez(self.folder / f"policy-{seed}.npz", **arrays)

    def finish(self) -> dict:
        """Closes everything and writes `result.json`, which marks a finished run; returns it."""
        seconds = time.perf_counter() - self.started
        self.terminal.finish(seconds)
        self.close(exit_code=0)
        evaluations = {str(s): row for s, row in zip(self.args.seeds, self.evaluations, strict=True)}
        result = {
            "run_dir": str(self.folder),
            "total_timesteps": self.args.total_timesteps,
            "seconds": round(seconds, 3),
            "evaluations": evaluations,
        }
        self.write_json("result.json", result)
        return result

    def close(self, exit_code: int = 1) -> None:
        """Gives the terminal and the files back; the record is on disk row by row in any case."""
        self.terminal.stop()
        for file in (*self.records, self.timing):
            file.close()
        for board in self.boards:
            board.close()
        while self.trackers:
            self.trackers.pop().finish(exit_code=exit_code)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write_json(self, name: str, content: dict) -> None:
        """Writes a file as a whole or not at all."""
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self.folder / name)


def check_wandb(args: RunArgs) -> None:
    """Raises UsageError where `--track` cannot work: no package, or no key."""
    try:
        import wandb
    except ImportError as problem:
        raise UsageError("--track needs wandb: pip install wandb") from problem
    if args.wandb_mode == "online" and not wandb.login(prompt=False):
        raise UsageError("wandb has no API key: run `wandb login`, or add --wandb-mode offline")

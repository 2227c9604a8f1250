"""A run: its folder, its record, its exact state on disk, the line on the terminal, the result."""

import json
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.summary import scalar

from cleanrl_maxent.common.arguments import RunArgs
from cleanrl_maxent.common.checkpoint import Checkpoints, like, named_arrays, pack, write_file
from cleanrl_maxent.common.envs import Episode, SeedEnvs, check_finite
from cleanrl_maxent.common.folder import default_run_dir, find_commit, lock
from cleanrl_maxent.common.machine import describe_machine
from cleanrl_maxent.common.record import Record, check_wandb, start_trackers
from cleanrl_maxent.common.replay import Replay, Transition, refill
from cleanrl_maxent.common.signals import Stopped, stop_if_asked
from cleanrl_maxent.common.terminal import Terminal

LOSSES_EVERY = 100  # environment steps between two rows of losses
SEGMENT = 10_000  # transitions of the replay that wait in memory at most


class Run:
    """Writes what a run leaves behind; files of seed s are in `seed-{s}/`.

    In a folder that holds the unfinished run of the same arguments, goes on where its last good commit
    left off: `resume` then returns that state, and the record is cut to what it was.
    """

    def __init__(self, args: RunArgs, algorithm: str):
        """Makes the folder, or opens the one to resume.

        Raises UsageError where it cannot be written, is in use, or holds another run, and Finished
        where it holds this run, complete.
        """
        self.args = args
        self.folder = Path(args.run_dir) if args.run_dir else default_run_dir(args)
        if args.track:
            check_wandb(args)
        self.lock = lock(self.folder)
        try:
            self.open(algorithm)
        except BaseException:
            self.lock.close()
            raise

    def open(self, algorithm: str) -> None:
        """Finds the commit to go on from, and opens the files, cut to what they were then."""
        args = self.args
        self.machine = describe_machine()
        self.config = config = {"algorithm": algorithm, "args": asdict(args), **self.machine}
        self.checkpoints = Checkpoints(self.folder / "checkpoint")
        self.found = find_commit(self.folder, self.checkpoints, args, config)
        if not self.found:
            self.write_json("config.json", config)
        meta = self.found.meta if self.found else {}
        lengths = [record["bytes"] for record in meta.get("records", [{"bytes": 0}] * args.num_seeds)]
        self.records = [
            Record(self.folder / f"seed-{seed}", length, asdict(args))
            for seed, length in zip(args.seeds, lengths, strict=True)
        ]
        if args.track:
            start_trackers(args, self.records, self.folder, config)
        self.evaluations: list[dict] = [{} for _ in args.seeds]  # the last ones
        self.started = time.perf_counter() - meta.get("seconds", 0.0)
        self.last_time, self.last_steps = time.perf_counter(), self.found.steps if self.found else 0
        self.open_timing()
        self.terminal = Terminal(args, self.folder)
        if args.num_seeds > 1 and self.machine["device"]["platform"] == "cpu":
            self.terminal.print_line(
                "faster on a CPU: one process per core and seed, NPROC=1 (docs/speed.md)"
            )
        self.boundary: tuple[int, SeedEnvs, Any] | None = None  # the end of the last step, until committed
        self.transitions: list[Transition] = []  # since the last segment
        self.capacity = 0  # transitions to keep: the replay's, and the one in flight

    def open_timing(self) -> None:
        """Opens `timing.jsonl`, keeping the rows up to the resumed step."""
        path = self.folder / "timing.jsonl"
        lines = path.read_text().splitlines() if self.found and path.exists() else []
        self.timing = open(path, "w")
        for line in lines:
            with suppress(ValueError):  # the last row may be cut short
                row = json.loads(line)
                if row["global_step"] <= self.last_steps:
                    self.write_timing(row)

    def resume(self, envs: SeedEnvs, state, replay: Replay | None = None) -> tuple[int, Any, Replay | None]:
        """The steps taken so far, and the state and replay at that point; `envs` are put there too.

        `state`, `replay`: freshly made, leading axis `(seed,)`; returned as they are at the start of a
        run. The replay's arrays are consumed. Raises UsageError where the state does not fit or an
        environment cannot be restored.
        """
        self.capacity = replay.capacity + 1 if replay else 0
        commit, self.found = self.found, None
        if commit is None:
            return 0, state, replay
        envs.restore(commit.steps, commit.meta["envs"], below("envs/", commit.arrays))
        state = like(state, below("state/", commit.arrays))
        if replay:
            replay = refill(replay, commit.segments, commit.steps)
        self.write_json("config.json", self.config)
        (self.folder / "result.json").unlink(missing_ok=True)
        self.terminal.steps = commit.steps
        self.terminal.print_line(f"resumed at step {commit.steps:,}")
        return commit.steps, state, replay

    def checkpoint(self, steps: int, envs: SeedEnvs, state) -> None:
        """The end of a step: commits where `--checkpoint-frequency` says so, and at the last one.

        `steps`: environment steps so far. `state`: everything learned. Raises Stopped after a signal (the
        run commits on its way out), NonFiniteError, and OSError where the disk does not take it; the
        commit before is kept.
        """
        self.boundary = steps, envs, state
        if self.capacity:
            self.transitions.append(envs.transition)
        if len(self.transitions) == SEGMENT:
            self.write_segment(steps)
        frequency = self.args.checkpoint_frequency
        if steps == self.args.last_step or (frequency and self.args.passes(steps, frequency)):
            self.commit()
        stop_if_asked()

    def write_segment(self, steps: int) -> None:
        """Moves the transitions gathered so far to the disk."""
        if self.transitions:
            self.checkpoints.add(steps, self.transitions)
            self.transitions = []

    def commit(self) -> None:
        """Writes the state at the last boundary."""
        if self.boundary is None:
            return
        (steps, envs, state), self.boundary = self.boundary, None
        learned = named_arrays(state)
        check_finite(steps, self.args.seeds, **learned)
        environments, arrays = envs.snapshot()
        meta = {
            "args": asdict(self.args),
            "machine": self.machine,
            "envs": environments,
            "records": [record.sync() for record in self.records],
            "seconds": time.perf_counter() - self.started,
        }
        arrays = {f"envs/{name}": array for name, array in arrays.items()}
        arrays |= {f"state/{name}": array for name, array in learned.items()}
        self.write_segment(steps)
        self.checkpoints.commit(steps, meta, arrays, self.capacity)

    def record_episodes(self, steps: int, episodes: list[Episode]) -> None:
        """A row for each episode that ended at this step."""
        for index, episodic_return, length in episodes:
            row = {"charts/episodic_return": episodic_return, "charts/episodic_length": length}
            self.records[index].write(steps, row)

    def record_losses(self, steps: int, losses: Mapping[str, jax.Array]) -> None:
        """Every LOSSES_EVERY steps, a row for each seed with the losses of the last update; every tenth
        time the speed too.

        `losses`: arrays `(seed,)` on the device; empty before the first update. Raises
        NonFiniteError.
        """
        if not self.args.passes(steps, LOSSES_EVERY):
            return
        self.terminal.steps = steps
        values = jax.device_get(losses)
        check_finite(steps, self.args.seeds, **values)
        for index in range(self.args.num_seeds if values else 0):
            self.records[index].write(steps, {name: value[index] for name, value in values.items()})
        if self.args.passes(steps, 10 * LOSSES_EVERY):
            self.record_speed(steps)

    def record_speed(self, steps: int) -> None:
        """A row of `timing.jsonl`: seconds since the start, and steps per second of each seed."""
        now = time.perf_counter()
        speed = (steps - self.last_steps) / max(now - self.last_time, 1e-9)
        self.last_time, self.last_steps = now, steps
        seconds = round(now - self.started, 3)
        self.write_timing({"global_step": steps, "seconds": seconds, "charts/SPS": round(speed, 1)})
        self.terminal.speed = speed
        self.terminal.print_progress(now)

    def write_timing(self, row: dict[str, float]) -> None:
        self.timing.write(json.dumps(row) + "\n")
        self.timing.flush()
        for record in self.records:
            record.board.add(row["global_step"], scalar("charts/SPS", row["charts/SPS"]))

    def record_evaluation(self, steps: int, metrics: list[dict[str, float]]) -> None:
        """The rows of an evaluation, one for each seed."""
        for index, row in enumerate(metrics):
            self.records[index].write(steps, row)
            self.evaluations[index] = {"global_step": steps, **row}
        self.terminal.steps = steps
        self.terminal.show_evaluation(metrics)

    def save_policy(self, params) -> None:
        """Writes `policy-{seed}.npz` of every seed, without pickle; leaves lead with `(seed,)`."""
        for index, seed in enumerate(self.args.seeds):
            arrays = named_arrays(jax.tree.map(lambda leaf, i=index: leaf[i], params))
            write_file(self.folder / f"policy-{seed}.npz", pack(arrays))

    def finish(self) -> dict:
        """Closes everything and writes `result.json`, which marks a finished run; returns it."""
        seconds = time.perf_counter() - self.started
        self.terminal.finish(seconds)
        self.close(exit_code=0)
        result = {
            "run_dir": str(self.folder),
            "total_timesteps": self.args.total_timesteps,
            "seconds": round(seconds, 3),
            "evaluations": {str(s): row for s, row in zip(self.args.seeds, self.evaluations, strict=True)},
        }
        self.write_json("result.json", result)
        return result

    def close(self, exit_code: int = 1) -> None:
        """Gives the terminal and the files back; the record is on disk row by row in any case."""
        self.terminal.stop()
        self.timing.close()
        for record in self.records:
            record.close(exit_code)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, problem, traceback) -> None:
        with self.lock, closing(self):
            if isinstance(problem, Stopped):
                self.commit()
                where = f"at step {self.checkpoints.steps:,}; go on with --resume {self.folder}"
                problem.args = (f"{problem} {where}",)

    def write_json(self, name: str, content: dict) -> None:
        write_file(self.folder / name, json.dumps(content, indent=2).encode() + b"\n")


def below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

"""A run: its folder, its record, its exact state on disk, the line on the terminal, the result."""

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.summary import scalar

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.seeds import Episode, SeedEnvs
from cleanrl_maxent.common.errors import Stopped
from cleanrl_maxent.common.files import named_arrays, restore_tree, subtree, write_file
from cleanrl_maxent.common.policy import save_policies
from cleanrl_maxent.common.run.checkpoint import Checkpoints, refill
from cleanrl_maxent.common.run.folder import default_run_dir, find_checkpoint, lock
from cleanrl_maxent.common.run.machine import describe_machine
from cleanrl_maxent.common.run.record import Record, check_wandb, start_trackers
from cleanrl_maxent.common.run.terminal import Terminal
from cleanrl_maxent.common.run.timing import Timing
from cleanrl_maxent.common.signals import stop_if_asked

LOSSES_EVERY = 100  # environment steps between two rows of losses
SEGMENT_LENGTH = 10_000  # transitions of the replay that wait in memory at most


class Run:
    """Writes what a run leaves behind; files of seed s are in `seed-{s}/`.

    In a folder that holds the unfinished run of the same arguments, resumes it from its last good checkpoint:
    `resume` then returns that state, and the record is cut to what it was.
    """

    def __init__(self, args: RunArgs, envs: SeedEnvs):
        """Makes the folder, or opens the one to resume.

        Raises UsageError if it cannot be written, is in use, or holds another run, and Finished
        if it holds this run, complete.
        """
        self.args, self.envs = args, envs
        self.folder = Path(args.run_dir) if args.run_dir else default_run_dir(args)
        if args.track:
            check_wandb(args)
        self.lock = lock(self.folder)
        try:
            self.open()
        except BaseException:
            self.lock.close()
            raise

    def open(self) -> None:
        """Finds the checkpoint to resume from, and opens the files, cut back to their length then."""
        args = self.args
        self.machine = describe_machine()
        task = self.envs.task._asdict()
        self.config = {"algorithm": args.algorithm(), "args": asdict(args), "task": task, **self.machine}
        self.checkpoints = Checkpoints(self.folder / "checkpoint")
        self.resumed_from = find_checkpoint(self.folder, self.checkpoints, args, self.config)
        if not self.resumed_from:
            self.write_json("config.json", self.config)
        meta = self.resumed_from.meta if self.resumed_from else {}
        lengths = [record["bytes"] for record in meta.get("records", [{"bytes": 0}] * args.num_seeds)]
        self.records = [
            Record(self.folder / f"seed-{seed}", length, asdict(args))
            for seed, length in zip(args.seeds, lengths, strict=True)
        ]
        if args.track:
            start_trackers(args, self.records, self.folder, self.config)
        self.losses: dict[str, Any] = {}  # the last known value of each, (seed,)
        self.evaluations: list[dict] = [{} for _ in args.seeds]  # the last ones
        steps = self.resumed_from.steps if self.resumed_from else 0
        self.timing = Timing(self.folder / "timing.jsonl", steps, meta.get("seconds", 0.0))
        self.terminal = Terminal(args, self.folder)
        for row in self.timing.rows:
            self.record_speed(row)
        if args.num_seeds > 1 and self.machine["device"]["platform"] == "cpu":
            self.terminal.print_line(
                "faster on a CPU: one process per core and seed, NPROC=1 (docs/develop/speed.md)"
            )
        self.unsaved: tuple[int, Any] | None = None  # the end of the last step, until it is saved
        self.transitions: list[Transition] = []  # since the last segment
        self.capacity = 0  # transitions to keep: the replay's, and the one in flight

    def resume(self, state, replay: Replay | None = None) -> tuple[int, Any, Replay | None]:
        """The steps taken so far, and the state and replay at that point; the environments are restored too.

        `state`, `replay`: freshly made, leading axis `(seed,)`; returned as they are at the start of a
        run. The replay's arrays are consumed. Raises UsageError if the state does not fit or an
        environment cannot be restored.
        """
        self.capacity = replay.capacity + 1 if replay else 0
        found, self.resumed_from = self.resumed_from, None
        if found is None:
            return 0, state, replay
        self.envs.restore(found.steps, found.meta["envs"], subtree("envs/", found.arrays))
        self.losses = subtree("metrics/", found.arrays)
        state = restore_tree(state, subtree("state/", found.arrays))
        if replay:
            replay = refill(replay, found.segments, found.steps)
        self.write_json("config.json", self.config)
        (self.folder / "result.json").unlink(missing_ok=True)
        self.terminal.steps = found.steps
        self.terminal.print_line(f"resumed at step {found.steps:,}")
        return found.steps, state, replay

    def end_step(
        self, steps: int, state, losses: Mapping[str, jax.Array], episodes: Iterable[Episode] = ()
    ) -> None:
        """Ends a step: records it, and saves every `--checkpoint-frequency` steps and at the last one.

        `steps`: environment steps so far. `state`: everything learned. `losses`, `episodes`: see
        `record_losses` and `record_episodes`. Raises Stopped after a signal (the run saves on its way
        out), NonFiniteError, and OSError if the disk does not take it; the checkpoint before is kept.
        """
        self.record_episodes(steps, episodes)
        self.record_losses(steps, losses)
        self.unsaved = steps, state
        if self.capacity:
            self.transitions.append(self.envs.transition)
        if len(self.transitions) == SEGMENT_LENGTH:
            self.write_segment(steps)
        frequency = self.args.checkpoint_frequency
        if steps == self.args.last_step or (frequency and self.args.crosses_multiple_of(frequency, steps)):
            self.save()
        stop_if_asked()

    def write_segment(self, steps: int) -> None:
        """Moves the transitions gathered so far to the disk."""
        if self.transitions:
            self.checkpoints.add_segment(steps, self.transitions)
            self.transitions = []

    def save(self) -> None:
        """Writes a checkpoint of the last boundary."""
        if self.unsaved is None:
            return
        (steps, state), self.unsaved = self.unsaved, None
        learned = named_arrays(state)
        check_finite(steps, self.args.seeds, **learned)
        environments, arrays = self.envs.snapshot()
        meta = {
            "args": asdict(self.args),
            "machine": self.machine,
            "envs": environments,
            "records": [record.sync() for record in self.records],
            "seconds": self.timing.seconds(),
        }
        arrays = {f"envs/{name}": array for name, array in arrays.items()}
        arrays |= {f"state/{name}": array for name, array in learned.items()}
        arrays |= {f"metrics/{name}": np.asarray(array) for name, array in self.losses.items()}
        self.write_segment(steps)
        self.checkpoints.write(steps, meta, arrays, self.capacity)

    def record_episodes(self, steps: int, episodes: Iterable[Episode]) -> None:
        """A row for each episode that ended at this step."""
        for index, episodic_return, length in episodes:
            row = {"charts/episodic_return": episodic_return, "charts/episodic_length": length}
            self.records[index].write(steps, row)

    def record_losses(self, steps: int, losses: Mapping[str, jax.Array]) -> None:
        """Every LOSSES_EVERY steps, a row for each seed with the last known value of each loss; every tenth
        time the speed too.

        `losses`: arrays `(seed,)` on the device, of the last update; a loss that it did not measure keeps its
        last value. Raises NonFiniteError.
        """
        self.losses |= losses
        if not self.args.crosses_multiple_of(LOSSES_EVERY, steps):
            return
        self.terminal.steps = steps
        values = jax.device_get(self.losses)
        check_finite(steps, self.args.seeds, **values)
        for index in range(self.args.num_seeds if values else 0):
            self.records[index].write(steps, {name: value[index] for name, value in values.items()})
        if self.args.crosses_multiple_of(10 * LOSSES_EVERY, steps):
            self.record_speed(self.timing.measure(steps))

    def record_speed(self, row: dict[str, float]) -> None:
        """Shows a row of `timing.jsonl` in TensorBoard and on the terminal."""
        for record in self.records:
            record.tensorboard.add(int(row["global_step"]), scalar("charts/SPS", row["charts/SPS"]))
        self.terminal.show_speed(row["charts/SPS"])

    def record_evaluation(self, steps: int, metrics: list[dict[str, float]]) -> None:
        """The rows of an evaluation, one for each seed."""
        for index, row in enumerate(metrics):
            self.records[index].write(steps, row)
            self.evaluations[index] = {"global_step": steps, **row}
        self.terminal.steps = steps
        self.terminal.show_evaluation(metrics)

    def finish(self, policies) -> dict:
        """Writes every policy, closes everything, and writes `result.json`, which marks a finished run.

        `policies`: leading axis `(seed,)`. Returns what `result.json` holds.
        """
        save_policies(self.folder, self.args.seeds, policies)
        seconds = self.timing.seconds()
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
                self.save()
                where = f"at step {self.checkpoints.steps:,}; resume with --resume {self.folder}"
                problem.args = (f"{problem} {where}",)

    def write_json(self, name: str, content: dict) -> None:
        write_file(self.folder / name, json.dumps(content, indent=2).encode() + b"\n")

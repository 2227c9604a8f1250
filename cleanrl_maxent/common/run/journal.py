"""What a run records and shows: rows, wall clock, terminal, films, W&B."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.seeds import Episode
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.run.capture import Filming, image_summary
from cleanrl_maxent.common.run.record import Record, scalars
from cleanrl_maxent.common.run.terminal import Terminal
from cleanrl_maxent.common.run.timing import Timing
from cleanrl_maxent.common.run.tracker import Tracker

LOSSES_EVERY = 100  # environment steps between two rows of losses


class Journal:
    """The record of every seed, and its copies in the terminal, TensorBoard and W&B."""

    def __init__(self, args: RunArgs, folder: Path, steps: int, meta: Mapping[str, Any]):
        """Opens the files of a run in `folder` that starts or resumes at `steps` environment steps.

        `meta`: that of the checkpoint, empty for a new run; files are truncated to the lengths in it.
        Raises OSError.
        """
        self.args = args
        lengths = [record["bytes"] for record in meta.get("records", [{"bytes": 0}] * args.num_seeds)]
        self.records = [
            Record(folder / f"seed-{seed}", length, asdict(args))
            for seed, length in zip(args.seeds, lengths, strict=True)
        ]
        self.losses: dict[str, Any] = {}  # the last known value of each, (seed,)
        self.absent: set[str] = set()  # metrics whose values were not finite
        self.evaluations: list[dict] = [{} for _ in args.seeds]  # the last ones
        self.timing = Timing(folder / "timing.jsonl", steps, meta.get("seconds", 0.0))
        self.terminal = Terminal(args, folder)
        self.filming = Filming(args, folder, self.terminal.print_line)
        for row in self.timing.rows:
            if "charts/SPS" in row:
                self.show_speed(row)
        with self.filming.attempt():
            for taken, film in self.filming.earlier(steps):
                self.show_film(taken, film)
        self.tracker = Tracker(args, folder, self.terminal.print_line)

    def record_episodes(self, steps: int, episodes: Iterable[Episode]) -> None:
        """Writes a row for each episode that ended at this step."""
        for index, episodic_return, length in episodes:
            row = {"charts/episodic_return": episodic_return, "charts/episodic_length": length}
            self.records[index].write(steps, row)

    def record_losses(self, steps: int, losses: Mapping[str, jax.Array]) -> None:
        """Every LOSSES_EVERY steps, writes a row per seed with the last known value of each loss; every tenth
        time, also the speed. The last step also has a row if the run cannot be extended.

        `losses`: arrays `(seed,)` on the device, of the last update; a loss that it did not measure keeps its
        last value. A loss that is not finite raises NonFiniteError; any other metric that is not finite,
        such as a ratio that overflows while training is sound, is left out of the row.
        """
        self.losses |= losses
        ends = self.args.length_is_fixed and steps == self.args.last_step
        if not (ends or self.args.crosses_multiple_of(LOSSES_EVERY, steps)):
            return
        self.terminal.steps = steps
        values = jax.device_get(self.losses)
        for name, value in values.items():
            shape = np.shape(value)[1:]
            require(not shape, f"the metric {name} must be a number; it has the shape {shape}: average it")
        check_finite(
            steps, self.args.seeds, **{name: v for name, v in values.items() if name.endswith("_loss")}
        )
        for index, seed in enumerate(self.args.seeds if values else ()):
            row = {name: value[index] for name, value in values.items()}
            finite = {name: value for name, value in row.items() if np.isfinite(value)}
            self.say_absent(steps, seed, row.keys() - finite.keys())
            self.records[index].write(steps, finite)
        if self.args.crosses_multiple_of(10 * LOSSES_EVERY, steps):
            self.show_speed(self.timing.measure(steps))

    def say_absent(self, steps: int, seed: int, names: Collection[str]) -> None:
        """Warns once for each metric that values that are not finite are left out."""
        for name in sorted(set(names) - self.absent):
            self.terminal.print_line(
                f"warning: {name} is not finite at step {steps:,}, seed {seed}: left out"
            )
        self.absent |= set(names)

    def evaluate(
        self, evaluation: Evaluation, steps: int, policies, keys: jax.Array, temperature: Any
    ) -> None:
        """Evaluates, writes a row for each seed, and films if due. Raises Stopped, NonFiniteError."""
        self.terminal.steps, began = steps, time.perf_counter()
        with doing("evaluating", say_time=False):
            metrics = evaluation(steps, policies, keys, temperature)
        seconds = time.perf_counter() - began
        # before the rows, so that a run stopped while filming does not record its evaluation twice
        due = self.filming.due(steps)
        filmed = self.filming.film(steps, evaluation, policies, keys) if due else None
        for index, row in enumerate(metrics):
            self.records[index].write(steps, row)
            self.evaluations[index] = {"global_step": steps, **row}
        self.timing.add(steps, evaluation_seconds=seconds)
        self.terminal.show_evaluation(metrics, seconds)
        if filmed:
            self.timing.add(steps, film_seconds=filmed.seconds)
            self.show_film(steps, filmed.path)

    def show_speed(self, row: Mapping[str, float]) -> None:
        """Shows a row of `timing.jsonl` in TensorBoard and on the terminal."""
        speed = row["charts/SPS"]
        for record in self.records:
            record.tensorboard.add(int(row["global_step"]), scalars({"charts/SPS": speed}))
        self.terminal.show_speed(speed)

    def show_film(self, steps: int, film: Path) -> None:
        """Shows a film of the first seed in TensorBoard."""
        self.records[0].tensorboard.add(steps, image_summary(film))

    def snapshot(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Flushes the record to disk; returns what a checkpoint keeps: JSON values, and arrays `(seed,)`."""
        meta = {"records": [record.sync() for record in self.records], "seconds": self.timing.seconds()}
        return meta, {f"metrics/{name}": np.asarray(array) for name, array in self.losses.items()}

    def close(self) -> None:
        """Releases the terminal and closes the files; every row is on disk already."""
        self.terminal.stop()
        self.timing.close()
        for record in self.records:
            record.close()

"""The wall clock of a run, `timing.jsonl`: not in the record, so that equal runs have equal records."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cleanrl_maxent.common.files import write_file
from cleanrl_maxent.common.output import warn

AGAIN = {"evaluation_seconds", "film_seconds"}  # measured after the step's checkpoint, and again on resume


class Timing:
    """Seconds since the start of a run, including those of earlier processes, and its speed.

    If the file cannot be read or written, a warning says so, and the run continues without it.
    """

    def __init__(self, path: Path, steps: int, seconds: float):
        """Opens the file of a run that has taken `steps` steps in `seconds`.

        Later rows are dropped, as are those of an evaluation or a film at that step, which is made again.
        """
        self.started = time.perf_counter() - seconds
        self.last_time, self.last_steps = time.perf_counter(), steps
        self.rows: list[dict[str, float]] = []  # those kept
        self.file: TextIO | None = None
        try:
            lines = path.read_text(errors="replace").splitlines() if steps and path.exists() else []
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):  # the last row may be cut short
                    row = json.loads(line)
                    again = row["global_step"] == steps and AGAIN & row.keys()
                    if row["global_step"] <= steps and not again:
                        self.rows.append(row)
            write_file(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
            self.file = open(path, "a")
        except OSError as problem:
            self.give_up(problem)
        self.evaluating = sum(row.get("evaluation_seconds", 0.0) for row in self.rows)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def measure(self, steps: int) -> dict[str, float]:
        """A new row: seconds since the start, and steps per second of each seed since the last row."""
        now = time.perf_counter()
        speed = (steps - self.last_steps) / max(now - self.last_time, 1e-9)
        self.last_time, self.last_steps = now, steps
        return self.add(steps, **{"charts/SPS": round(speed, 1)})

    def add(self, steps: int, **measured: float) -> dict[str, float]:
        """A new row: seconds since the start, and what was measured, such as seconds of an evaluation."""
        row = {"global_step": steps, "seconds": round(self.seconds(), 3)}
        row |= {name: round(value, 3) for name, value in measured.items()}
        self.write(row)
        return row

    def write(self, row: dict[str, float]) -> None:
        self.evaluating += row.get("evaluation_seconds", 0.0)
        try:
            if self.file:
                self.file.write(json.dumps(row) + "\n")
                self.file.flush()
        except OSError as problem:
            self.give_up(problem)

    def give_up(self, problem: OSError) -> None:
        self.close()
        warn(f"the run continues without timing.jsonl: {problem}")

    def close(self) -> None:
        with suppress(OSError):
            if self.file:
                self.file.close()
        self.file = None

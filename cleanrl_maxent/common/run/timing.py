"""The wall clock of a run, `timing.jsonl`: what the record, which equal runs share, leaves out."""

import json
import time
from contextlib import suppress
from pathlib import Path


class Timing:
    """Seconds since the start of a run, those of the processes before this one included, and its speed."""

    def __init__(self, path: Path, steps: int, seconds: float):
        """Opens the file of a run that has taken `steps` steps in `seconds`; later rows are dropped."""
        self.started = time.perf_counter() - seconds
        self.last_time, self.last_steps = time.perf_counter(), steps
        lines = path.read_text().splitlines() if steps and path.exists() else []
        self.rows: list[dict[str, float]] = []  # those kept
        for line in lines:
            with suppress(ValueError):  # the last row may be cut short
                row = json.loads(line)
                if row["global_step"] <= steps:
                    self.rows.append(row)
        self.file = open(path, "w")
        for row in self.rows:
            self.write(row)

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
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()

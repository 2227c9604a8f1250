"""The record of one seed, `metrics.jsonl`, and its copy for TensorBoard; `mirror` makes the one for W&B."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import text

from cleanrl_maxent.common.files import flushing_if_possible
from cleanrl_maxent.common.output import warn

FLUSH_EVERY = 5.0  # seconds between flushes of TensorBoard's file, each of which waits for the disk


class TensorBoardFile:
    """TensorBoard's file: a copy of the record; if it cannot be written, the run continues without it.

    `tensorboardX.SummaryWriter` writes from a thread; if a full disk ends it, the program hangs.
    """

    def __init__(self, folder: Path):
        """Starts a new file."""
        self.name = folder.name
        self.file: EventsWriter | None = None
        self.flushed = time.perf_counter()
        try:
            for events in folder.glob("events.*"):
                events.unlink()
            self.file = EventsWriter(str(folder / "events"))
        except OSError as problem:
            warn(f"{folder.name} is not shown in TensorBoard: {problem}")

    def add(self, steps: int, summary) -> None:
        """Adds a summary from `tensorboardX.summary`, at `steps` environment steps."""
        if self.file:
            try:
                self.file.write_event(Event(wall_time=time.time(), step=steps, summary=summary))
                if time.perf_counter() - self.flushed > FLUSH_EVERY:
                    with flushing_if_possible():
                        self.file.flush()
                    self.flushed = time.perf_counter()
            except OSError as problem:
                warn(f"{self.name} is no longer shown in TensorBoard: {problem}")
                self.close()

    def close(self) -> None:
        with suppress(OSError):
            if self.file:
                self.file.close()
        self.file = None


class Record:
    """Rows of metrics, written one by one, without the wall clock, so that equal runs have equal records.

    TensorBoard's file is rebuilt from the record whenever it is opened.
    """

    def __init__(self, folder: Path, length: int, settings: Mapping[str, Any]):
        """Opens `folder`, keeping the first `length` bytes; `settings` are shown in TensorBoard."""
        folder.mkdir(exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = read_start(self.path, length)
        self.file = open(self.path, "ab")
        self.file.truncate(length)
        self.file.seek(length)  # otherwise tell() is the old end until the first write
        self.sha256 = hashlib.sha256(kept)
        self.tensorboard = TensorBoardFile(folder)
        table = "".join(f"|{name}|{value}|\n" for name, value in settings.items())
        table = table.encode(errors="replace").decode()  # a folder's name need not be UTF-8
        self.tensorboard.add(0, text("hyperparameters", f"|flag|value|\n|-|-|\n{table}"))
        for line in kept.splitlines():
            self.show(json.loads(line))

    def write(self, steps: int, metrics: Mapping[str, float]) -> None:
        """Writes one row, after `steps` environment steps; raises ValueError if a metric is not finite."""
        row = {"global_step": steps, **{name: float(value) for name, value in metrics.items()}}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with add_path(self.path):
            self.file.write(line)
            self.file.flush()
        self.sha256.update(line)
        self.show(row)

    def show(self, row: Mapping[str, float]) -> None:
        """Sends a row to TensorBoard."""
        self.tensorboard.add(int(row["global_step"]), scalars(row))

    def sync(self) -> dict[str, Any]:
        """Waits until the rows are on disk; returns their length in bytes and their SHA-256."""
        with add_path(self.path), flushing_if_possible():
            os.fsync(self.file.fileno())
        return {"bytes": self.file.tell(), "sha256": self.sha256.hexdigest()}

    def close(self) -> None:
        """Closes the files. Rows that cannot be written now were never part of a checkpoint."""
        self.tensorboard.close()
        with suppress(OSError):
            self.file.close()


@contextmanager
def add_path(path: Path) -> Iterator[None]:
    """Adds the path of a file to an OSError that has none."""
    try:
        yield
    except OSError as problem:
        if problem.errno is None or problem.filename:
            raise
        raise OSError(problem.errno, problem.strerror, str(path)) from problem


def scalars(row: Mapping[str, float]) -> Summary:
    """The metrics of a row for TensorBoard, all in one event."""
    metrics = [(name, value) for name, value in row.items() if name != "global_step"]
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics])


def read_start(path: Path, length: int) -> bytes:
    """The first `length` bytes of a file; fewer if it is shorter."""
    if not length:
        return b""
    with open(path, "rb") as file:
        return file.read(length)


def is_intact(path: Path, synced: Mapping[str, Any]) -> bool:
    """True if a record still starts with the bytes that `Record.sync` described."""
    start = read_start(path, synced["bytes"]) if path.exists() else b""
    return len(start) == synced["bytes"] and hashlib.sha256(start).hexdigest() == synced["sha256"]

"""The exact state of a run on disk: written whole or not at all, with checksums and without pickle.

    checkpoint/checkpoint-{steps}.json    names the files of the state after that step, with their SHA-256
    checkpoint/state-{steps}.npz          arrays: all that is learned, and the environments' actions
    checkpoint/segment-{steps}.npz        the transitions since the previous segment; never rewritten

A checkpoint's JSON file is written last, by a rename: a process killed at any moment leaves earlier
checkpoints intact. Two are kept.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cleanrl_maxent.common.data import Replay, Transition, store
from cleanrl_maxent.common.errors import Damaged, UsageError
from cleanrl_maxent.common.files import digest, named_arrays, pack, unpack, write_file

FORMAT = 2


class Segment(NamedTuple):
    """Transitions `start` … `stop` - 1 of a run, on disk; `load` reads them, axes `(seed, transition)`."""

    start: int
    stop: int
    load: Callable[[], Transition]


class Checkpoint(NamedTuple):
    """The state after `steps` environment steps of each seed."""

    steps: int
    meta: dict[str, Any]  # what JSON can hold: arguments, environments, length of the record
    arrays: dict[str, np.ndarray]
    segments: list[Segment]  # oldest first, without a gap; one may begin with the last one's last transition


class Checkpoints:
    """The checkpoints of a run, in `folder`; `last` is the newest one written or read, at step `steps`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.last: Path | None = None
        self.steps = 0
        self.segments: dict[str, dict] = {}  # of the next one: file name -> start, stop, SHA-256

    def add_segment(self, steps: int, transitions: list[Transition]) -> None:
        """Writes the transitions up to step `steps` for the next checkpoint; raises OSError."""
        self.folder.mkdir(exist_ok=True)
        rows = jax.tree.map(lambda *rows: np.stack(rows, axis=1), *transitions)
        name, content = f"segment-{steps:010}.npz", pack(named_arrays(rows))
        write_file(self.folder / name, content)
        start = steps - len(transitions)
        self.segments[name] = {"start": start, "stop": steps, "sha256": digest(content)}

    def write(
        self, steps: int, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], capacity: int
    ) -> None:
        """Writes the state after `steps` environment steps, with the segments added so far.

        Segments without any of the last `capacity` transitions are dropped. Raises OSError; earlier
        checkpoints stay as they were.
        """
        self.folder.mkdir(exist_ok=True)
        segments = {name: s for name, s in self.segments.items() if s["stop"] > steps - capacity}
        name, content = f"state-{steps:010}.npz", pack(arrays)
        write_file(self.folder / name, content)
        body = {
            "format": FORMAT,
            "steps": steps,
            "state": {"name": name, "sha256": digest(content)},
            "segments": segments,
            "meta": meta,
        }
        text = json.dumps(body, indent=1, allow_nan=False).encode()
        path = self.folder / f"checkpoint-{steps:010}.json"
        write_file(path, f"{digest(text)}\n".encode() + text)
        before, self.last, self.steps, self.segments = self.last, path, steps, segments
        self.remove_others({before, path} - {None})

    def remove_others(self, kept: set[Path]) -> None:
        """Removes every file that no checkpoint in `kept` names, and every other checkpoint.

        Nothing if one of them cannot be read; what cannot be removed is left to a later call.
        """
        named = set()
        for path in kept:
            try:
                body = self.read_body(path)
            except (Damaged, OSError):
                return
            named |= {path.name, body["state"]["name"], *body["segments"]}
        for path in self.folder.iterdir():
            if path.name not in named and path.is_file():
                with suppress(OSError):
                    path.unlink()

    def paths(self) -> list[Path]:
        """The checkpoints' JSON files, newest first."""
        return sorted(self.folder.glob("checkpoint-*.json"), reverse=True)

    def check_version(self) -> None:
        """Raises UsageError if an earlier version of this program wrote the folder."""
        if any(self.folder.glob("commit-*.json")):
            raise UsageError(
                f"{self.folder} was written by an earlier version, which alone can resume it; "
                "name another --run-dir"
            )

    def read_body(self, path: Path) -> dict:
        """The content of a checkpoint's JSON file; raises Damaged, and UsageError for a newer format."""
        sha256, _, text = path.read_bytes().partition(b"\n")
        if digest(text).encode() != sha256:
            raise Damaged(f"{path} fails its checksum")
        body = json.loads(text)
        if body["format"] > FORMAT:
            raise UsageError(f"{path} has format {body['format']}, this program reads up to {FORMAT}: update")
        return body

    def read_arrays(self, name: str, sha256: str) -> dict[str, np.ndarray]:
        """The arrays of a file; raises Damaged if it is missing or not what was written."""
        path = self.folder / name
        if path.name != name or not path.exists():
            raise Damaged(f"{path} is missing")
        content = path.read_bytes()
        if digest(content) != sha256:
            raise Damaged(f"{path} fails its checksum")
        try:
            return unpack(content)
        except (ValueError, zipfile.BadZipFile) as problem:
            raise Damaged(f"{path} is refused: {problem}") from problem

    def read_segment(self, name: str, sha256: str) -> Transition:
        """The transitions of a segment; raises Damaged."""
        arrays = self.read_arrays(name, sha256)
        arrays = {"truncated": np.zeros_like(arrays.get("terminated", 0))} | arrays  # older segments lack it
        if arrays.keys() != Transition.__annotations__.keys():
            raise Damaged(f"{self.folder / name} was written by other code")
        return Transition(**arrays)

    def read(self, path: Path) -> Checkpoint:
        """A checkpoint, after checking all files that it names; segments are loaded later. Raises Damaged."""
        body = self.read_body(path)
        arrays = self.read_arrays(**body["state"])
        segments = []
        for name, segment in body["segments"].items():
            load = partial(self.read_segment, name, segment["sha256"])
            load()
            segments.append(Segment(segment["start"], segment["stop"], load))
        self.last, self.steps, self.segments = path, body["steps"], body["segments"]
        return Checkpoint(body["steps"], body["meta"], arrays, segments)


def refill(replays: Replay, segments: list[Segment], steps: int) -> Replay:
    """The rings with all that they held after `steps` steps; the last transition is stored in the next step.

    The arrays of `replays`, leading axis `(seed,)`, are consumed.
    """
    stored = steps - 1
    for start, stop, load in segments:
        index = np.arange(max(start, stored - replays.capacity), min(stop, stored))
        if index.size:
            transitions = jax.tree.map(lambda leaf, rows=index - start: leaf[:, rows], load())
            replays = store(replays, transitions, index)
    return replays

"""The exact state of a run on disk: written whole or not at all, checksummed, without pickle.

    checkpoint/commit-{steps}.json    what belongs together after so many environment steps, and its SHA-256s
    checkpoint/state-{steps}.npz      arrays: all that is learned, and the environments' actions
    checkpoint/segment-{steps}.npz    the transitions since the segment before; never rewritten

A commit's file comes last, by a rename: a process killed at any moment leaves the commits before it as
they were. Two are kept.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cleanrl_maxent.common.arguments import UsageError
from cleanrl_maxent.common.replay import Segment, Transition

FORMAT = 1
KEPT = 2  # commits on disk


class Damaged(Exception):
    """A file that does not have the content it was written with; says which."""


class Commit(NamedTuple):
    """The state after `steps` environment steps of each seed."""

    steps: int
    meta: dict[str, Any]  # what JSON can hold: arguments, environments, length of the record
    arrays: dict[str, np.ndarray]
    segments: list[Segment]  # oldest first, without a gap


def named_arrays(tree) -> dict[str, np.ndarray]:
    """The leaves of a pytree under the paths that lead to them, `params/Dense_0/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def like(tree, arrays: Mapping[str, np.ndarray]):
    """A pytree like `tree` (structure, shapes, dtypes, devices) with the values of `arrays`.

    Raises UsageError where they do not fit each other, naming the leaf.
    """
    expected = named_arrays(tree)
    other = expected.keys() ^ arrays.keys()
    other |= {n for n in expected.keys() & arrays.keys() if kind(expected[n]) != kind(arrays[n])}
    if other:
        raise UsageError(f"the checkpoint was written by other code: {min(other)} does not fit")
    leaves, structure = jax.tree.flatten(tree)
    # .at[...].set keeps what a fresh array would lose: the weak type and the devices
    values = [leaf.at[...].set(arrays[name]) for leaf, name in zip(leaves, expected, strict=True)]
    return jax.tree.unflatten(structure, values)


def kind(array: np.ndarray) -> tuple:
    return array.shape, array.dtype


def write_file(path: Path, content: bytes) -> None:
    """Puts a file in place as a whole: temporary name, fsync, rename, fsync of the folder.

    Raises OSError, leaving what was there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise OSError(problem.errno, problem.strerror, str(path)) from problem
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file; raises ValueError for one that holds pickled objects."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Checkpoints:
    """The commits of a run, in `folder`; `last` is the newest good one, written or read, at `steps`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.last: Path | None = None
        self.steps = 0
        self.segments: dict[str, dict] = {}  # for the next commit: file name -> its transitions, its SHA-256

    def add(self, steps: int, transitions: list[Transition]) -> None:
        """Writes a segment, the transitions up to step `steps`, for the next commit; raises OSError."""
        self.folder.mkdir(exist_ok=True)
        rows = jax.tree.map(lambda *rows: np.stack(rows, axis=1), *transitions)
        name, content = f"segment-{steps:010}.npz", pack(named_arrays(rows))
        write_file(self.folder / name, content)
        start = steps - len(transitions)
        self.segments[name] = {"start": start, "stop": steps, "sha256": digest(content)}

    def commit(
        self, steps: int, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], capacity: int
    ) -> None:
        """Writes the state after `steps` environment steps, with the segments added so far.

        Those without any of the last `capacity` transitions are forgotten. Raises OSError; the commits
        before stay as they were.
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
        commit = self.folder / f"commit-{steps:010}.json"
        write_file(commit, f"{digest(text)}\n".encode() + text)
        before, self.last, self.steps, self.segments = self.last, commit, steps, segments
        self.remove_others({before, commit} - {None})

    def remove_others(self, commits: set[Path]) -> None:
        """Removes every file that none of the `commits` names, and what names nothing any more."""
        named = set()
        for path in commits:
            with suppress(Damaged, OSError):
                body = self.read_commit(path)
                named |= {path.name, body["state"]["name"], *body["segments"]}
        for path in self.folder.iterdir():
            if path.name not in named and path.is_file():
                path.unlink()

    def commits(self) -> list[Path]:
        """The commits' files, newest first."""
        return sorted(self.folder.glob("commit-*.json"), reverse=True)

    def read_commit(self, path: Path) -> dict:
        """The content of a commit's file; raises Damaged, and UsageError for a newer format."""
        sha256, _, text = path.read_bytes().partition(b"\n")
        if digest(text).encode() != sha256:
            raise Damaged(f"{path} fails its checksum")
        body = json.loads(text)
        if body["format"] > FORMAT:
            raise UsageError(f"{path} has format {body['format']}, this program reads up to {FORMAT}: update")
        return body

    def read_arrays(self, name: str, sha256: str) -> dict[str, np.ndarray]:
        """The arrays of a file; raises Damaged where it is missing or not what was written."""
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
        if arrays.keys() != Transition.__annotations__.keys():
            raise Damaged(f"{self.folder / name} was written by other code")
        return Transition(**arrays)

    def read(self, path: Path) -> Commit:
        """A commit, everything it names checked; segments are loaded later. Raises Damaged."""
        body = self.read_commit(path)
        arrays = self.read_arrays(**body["state"])
        segments = []
        for name, segment in body["segments"].items():
            load = partial(self.read_segment, name, segment["sha256"])
            load()
            segments.append(Segment(segment["start"], segment["stop"], load))
        self.last, self.steps, self.segments = path, body["steps"], body["segments"]
        return Commit(body["steps"], body["meta"], arrays, segments)

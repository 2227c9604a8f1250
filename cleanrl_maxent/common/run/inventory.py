"""The runs below a folder and their progress; needs no JAX, and changes nothing."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from cleanrl_maxent.common.errors import Damaged
from cleanrl_maxent.common.run.locking import acquire

MARKS = {"config.json", "result.json", ".lock"}  # a folder with one of these holds a run
RETURNS = ("eval/return_mean", "eval_stochastic/return_mean")  # the second one if the first is missing
TAILS = (2**16, 2**20, 2**24)  # bytes at the end of a record in which to look for its last evaluation


class Row(NamedTuple):
    """A run; `steps` and `total` are environment steps per seed, `size` is in bytes."""

    folder: Path
    algorithm: str
    env_id: str
    seeds: str  # "1" or "1-4"
    steps: int  # taken; for a stopped run, those of its newest checkpoint, from which it resumes
    total: int  # asked for
    last_return: float | None  # of the last evaluation, mean over seeds
    state: str  # finished, running, stopped
    size: int


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs in `folder`, itself included, sorted; links are followed, each folder once."""
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(path)
        is_run = bool(MARKS.intersection(files))
        if is_run and place not in seen:
            yield Path(path)
        # one mark alone may be a stray file in a folder of runs
        is_whole = "config.json" in files and len(MARKS.intersection(files)) > 1
        folders[:] = [] if is_whole or place in seen else sorted(folders)
        seen.add(place)


def describe(folder: Path) -> Row:
    """The row of a run; raises Damaged, saying why, if the folder does not hold one."""
    try:
        config = read_object(folder / "config.json")
        args, path = config["args"], folder / "result.json"
        first, number, total = (int(args[name]) for name in ("seed", "num_seeds", "total_timesteps"))
        if path.exists():
            state, ends = "finished", finished_seeds(read_object(path)["evaluations"], total)
        else:
            state, ends = "stopped", [read_end(file) for file in folder.glob("seed-*/metrics.jsonl")]
        steps = max((steps for steps, _ in ends), default=0)
        returns = [last_return for _, last_return in ends if last_return is not None]
        if is_locked(folder):
            state = "running"
        elif state == "stopped":
            steps = last_checkpoint(folder)
        return Row(
            folder,
            str(config["algorithm"]),
            str(args["env_id"]),
            f"{first}-{first + number - 1}" if number > 1 else f"{first}",
            steps,
            total,
            fmean(returns) if returns else None,
            state,
            size(folder),
        )
    except OSError as problem:
        name = Path(problem.filename or folder).name
        raise Damaged(f"{name}: {problem.strerror}") from problem
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as problem:
        raise Damaged(f"files of something else ({type(problem).__name__}: {problem})") from problem


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises OSError, and Damaged if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise Damaged(f"{path.name} is damaged: {problem}") from problem
    if not isinstance(content, dict):
        raise Damaged(f"{path.name} does not belong to a run")
    return content


def finished_seeds(evaluations: dict[str, dict], total: int) -> list[tuple[int, float | None]]:
    """The steps of each seed, and the return of its last evaluation, from `result.json`."""
    return [(int(row.get("global_step", total)), return_of(row)) for row in evaluations.values()]


def return_of(row: dict[str, Any]) -> float | None:
    """The mean return in a row of metrics, of the deterministic policy if there is one; None if absent."""
    return next((float(row[name]) for name in RETURNS if name in row), None)


def read_end(path: Path) -> tuple[int, float | None]:
    """The step of the last complete row of a record, and the mean return of its last evaluation.

    Reads only the end of the file. Raises OSError, and KeyError or TypeError if the rows are not a run's.
    """
    steps = None
    for length in TAILS:
        with open(path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - length)
            file.seek(start)
            content = file.read(length)
        rows = content.split(b"\n")[1 if start else 0 : -1]  # the first and the last may be cut
        for line in reversed(rows):
            if steps is None or b'"eval' in line:
                with suppress(ValueError):  # garbage after a crash; a resumed run cuts it off
                    row = json.loads(line)
                    steps = int(row["global_step"]) if steps is None else steps
                    if (last_return := return_of(row)) is not None:
                        return steps, last_return
        if start == 0:
            break
    return steps or 0, None


def last_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint, from its name; 0 without one."""
    names = (path.stem.removeprefix("checkpoint-") for path in folder.glob("checkpoint/checkpoint-*.json"))
    return max((int(steps) for steps in names if steps.isdecimal()), default=0)


def is_locked(folder: Path) -> bool:
    """True if a process holds the run; tests by taking its lock for a moment. Raises OSError."""
    with suppress(FileNotFoundError), open(folder / ".lock") as file:
        try:
            acquire(file, shared=True)
        except BlockingIOError:
            return True
    return False


def size(folder: Path) -> int:
    """The bytes of all files in a folder; files that disappear meanwhile are skipped."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total

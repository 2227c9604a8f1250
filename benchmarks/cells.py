"""Suites: TOML files of grids, and the cells, which are single runs, that the grids stand for."""

import difflib
import itertools
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import tyro

from benchmarks.commands import algorithm_module, check_algorithms, is_file, script, words
from benchmarks.records import group_of, runs_in
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.config import changed_arguments, has_changed, read_config
from cleanrl_maxent.common.data import transition_bytes
from cleanrl_maxent.common.devices import recorded_settings
from cleanrl_maxent.common.env.make import EnvChoice, chosen_env, make_env
from cleanrl_maxent.common.env.task import describe_task
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.output import warn
from cleanrl_maxent.common.run.folder import check_same_args, file_name, is_under_way, read_json
from cleanrl_maxent.common.run.inventory import is_locked

HERE = Path(__file__).parent
SUITES = {path.stem: path for path in sorted([*HERE.glob("suites/*.toml"), *HERE.glob("studies/*/*.toml")])}
MOST_SEEDS = 10_000  # of a grid
PROCESS_BYTES = 700e6  # a process without its replay: JAX, MuJoCo and compiled programs


@dataclass(frozen=True)
class Grid:
    """Every algorithm on every environment with seeds 1 … `seeds`, in every variant."""

    algorithms: list[str]
    env_ids: list[str]
    seeds: int
    flags: dict[str, Any] = field(default_factory=dict)  # of the algorithm: learning_rate = 1e-3
    variants: dict[str, Any] = field(default_factory=dict)  # exp_name = { further flags }


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a command line, and the folder that it fills."""

    algorithm: str  # its name, or the path of a file of the user's
    flags: tuple[str, ...]  # without --run-dir and --device
    folder: Path
    device: str

    def command(self) -> list[str]:
        """What a person would type, with the absolute path of the script; giving it again resumes the run."""
        destination = ("--device", self.device, "--run-dir", str(self.folder))
        return [sys.executable, script(self.algorithm), *self.flags, *destination]

    @cached_property
    def args(self) -> Any:
        """The parsed arguments; raises UsageError, after tyro's message, if a flag is wrong."""
        try:
            program = f"python {os.path.relpath(script(self.algorithm))}"
            return tyro.cli(algorithm_module(self.algorithm).Args, args=self.command()[2:], prog=program)
        except SystemExit as problem:
            raise UsageError("a flag is wrong, see above") from problem

    def finished(self) -> bool:
        """True if the folder holds this very run, with as many steps as the suite asks for.

        A folder that is damaged or holds another run counts as unfinished: the cell's command says why.
        """
        try:
            config, result = (read_json(self.folder / name) for name in ("config.json", "result.json"))
            check_same_args(self.folder, config["args"], self.args)
            enough = result["total_timesteps"] >= self.args.total_timesteps
            return enough and config["algorithm"] == self.args.algorithm()
        except (OSError, UsageError, KeyError, TypeError, ValueError, AttributeError):
            return False

    def is_outdated(self) -> bool:
        """True if the algorithm's file has changed since the run was started."""
        return has_changed(self.args, read_json(self.folder / "config.json"))

    def in_use(self) -> bool:
        """True while a process of this machine holds the lock of the run's folder."""
        return is_locked(self.folder)

    def threads(self) -> int | None:
        """XLA's CPU threads when the run began, which exact resume needs again; None before it began."""
        return recorded_settings(str(self.folder)).get("cpu_threads")

    def variables(self, slot: dict[str, str]) -> dict[str, str]:
        """The environment variables of a slot, with the threads that a begun run needs."""
        threads = self.threads()
        return slot | ({"NPROC": str(threads)} if threads else {})

    def progress(self) -> dict[str, float]:
        """The last values in `timing.jsonl`: global_step, seconds, charts/SPS; {} before the first."""
        try:
            lines = (self.folder / "timing.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return {}
        last = {}
        for line in lines[-20:]:
            with suppress(ValueError):  # still being written
                last |= json.loads(line)
        return last

    def log(self) -> Path:
        """The file for what the run's processes print."""
        return self.folder.parent / f"{self.folder.name}.log"


def read_suite(name: str) -> tuple[str, list[Grid]]:
    """The suite's name and its grids; raises UsageError if it cannot be read or is not one."""
    path = (
        Path(os.path.expanduser(name))
        if name.endswith(".toml")
        else SUITES.get(name, HERE / "suites" / f"{name}.toml")
    )
    try:
        suite = tomllib.loads(path.read_text())
    except OSError as problem:
        known, close = ", ".join(sorted(SUITES)), difflib.get_close_matches(name, SUITES, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        if Path(f"{name}.toml").exists():
            hint = f" For the file in this folder, write {name}.toml."
        raise UsageError(f"cannot read {path}: {problem.strerror}; suites: {known}.{hint}") from problem
    except ValueError as problem:
        raise UsageError(f"{path}: {problem}") from problem
    if unknown := suite.keys() - {"grid"}:
        inside = "seeds, flags and variants belong to a grid: [[grid]], [grid.flags], [grid.variants]"
        raise UsageError(f"{path} has the unknown key {min(unknown)!r} outside its grids; {inside}")
    tables = suite.get("grid")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        raise UsageError(f"{path} has no [[grid]]")
    grids = [read_grid(path, table) for table in tables]
    check_stems(path, {Path(name) for grid in grids for name in grid.algorithms if is_file(name)})
    return path.stem, grids


def check_stems(suite: Path, files: Iterable[Path]) -> None:
    """Raises UsageError if two algorithms' files have one name, by which reports tell algorithms apart."""
    seen: dict[str, Path] = {}
    for file in sorted(files):
        other = seen.setdefault(file.stem, file)
        require(other == file, f"{suite}: {other} and {file} have the same name; rename one")


def read_grid(path: Path, table: dict[str, Any]) -> Grid:
    """A grid; raises UsageError if a key is missing or unknown, or a value of the wrong kind."""
    if missing := {"algorithms", "env_ids", "seeds"} - table.keys():
        raise UsageError(f"{path}: a grid lacks {', '.join(sorted(missing))}")
    if unknown := table.keys() - {entry.name for entry in fields(Grid)}:
        raise UsageError(f"{path}: a grid has the unknown key {min(unknown)!r}")
    for name in ("algorithms", "env_ids"):
        names = table[name]
        if not isinstance(names, list) or not names or not all(isinstance(word, str) for word in names):
            raise UsageError(f"{path}: {name} must be a list of names; got {names!r}")
    if type(seeds := table["seeds"]) is not int or not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"{path}: seeds must be a whole number >= 1, at most {MOST_SEEDS}; got {seeds!r}")
    if not isinstance(variants := table.get("variants", {}), dict):
        raise UsageError(f"{path}: variants must be tables of flags; got {variants!r}")
    flags = read_flags(path, "flags", table.get("flags", {}))
    variants = {name: read_flags(path, name, variant) for name, variant in variants.items()}
    check_algorithms((word for word in table["algorithms"] if not is_file(word)), f"{path}: ")
    chosen = [resolve_algorithm(word, path) for word in table["algorithms"]]
    return replace(Grid(**table), algorithms=chosen, flags=flags, variants=variants)


def read_flags(path: Path, name: str, flags: Any) -> dict[str, Any]:
    """A table of flags, `total_timesteps` or `total-timesteps`, with underscores; raises UsageError."""
    if not isinstance(flags, dict):
        raise UsageError(f"{path}: {name} must be a table of flags; got {flags!r}")
    plain = {flag.replace("-", "_"): value for flag, value in flags.items()}
    require(len(plain) == len(flags), f"{path}: {name} has a flag with - and with _")
    if taken := plain.keys() & {"env_id", "seed", "num_seeds", "run_dir", "resume", "device"}:
        raise UsageError(f"{path}: {min(taken)} is not for a suite's flags: the sweep sets it")
    for flag, value in plain.items():
        try:
            json.dumps(value)
        except TypeError as problem:  # TOML has dates
            raise UsageError(f"{path}: {flag} of {name}: {problem}") from problem
    return plain


def resolve_algorithm(algorithm: str, suite: Path) -> str:
    """An algorithm's name unchanged; for a file, whose path is relative to the suite, its absolute path.

    Raises UsageError if the file is not an algorithm.
    """
    if not is_file(algorithm):
        return algorithm
    path = str((suite.parent / os.path.expanduser(algorithm)).resolve())
    try:
        algorithm_module(path)
    except UsageError as problem:
        raise UsageError(f"{suite}: {problem}") from problem
    return path


def expand(grids: list[Grid], folder: Path, device: str, seeds_per_run: int) -> Iterator[Cell]:
    """The cells of a suite in its order; with 0 `seeds_per_run` all seeds of a grid side by side."""
    for grid in grids:
        variants = [{"exp_name": name, **flags} for name, flags in grid.variants.items()] or [{}]
        per_run = seeds_per_run or grid.seeds
        starts = range(1, grid.seeds + 1, per_run)
        for env_id, algorithm, variant, first in itertools.product(
            grid.env_ids, grid.algorithms, variants, starts
        ):
            last = min(first + per_run - 1, grid.seeds)
            flags = {"env_id": env_id, "seed": first, "num_seeds": last - first + 1, **grid.flags, **variant}
            seeds = str(first) if first == last else f"{first}-{last}"
            name = file_name(f"{env_id}__{flags.get('exp_name', Path(algorithm).stem)}__{seeds}")
            yield Cell(algorithm, tuple(words(flags)), folder / name, device)


@cache
def row_bytes(choice: EnvChoice) -> int:
    """Bytes of a transition; raises UsageError if the environment cannot be made."""
    env = make_env(choice)
    env.close()
    return transition_bytes(describe_task(env.observation_space, env.action_space).example)


def memory_bytes(cell: Cell) -> float:
    """Bytes of memory that a run needs, estimated from its replay."""
    args, capacity = cell.args, getattr(cell.args, "buffer_size", 0)
    return PROCESS_BYTES + args.num_seeds * capacity * row_bytes(chosen_env(args))


def check(cells: list[Cell]) -> None:
    """Raises UsageError, before any cell starts, if one could not or if two share a folder.

    Warns of the first two that train the same thing.
    """
    for cell in cells:
        try:
            validate(cell.args)
            row_bytes(chosen_env(cell.args))
        except UsageError as problem:
            raise UsageError(f"{cell.folder.name}: {problem}") from problem
    folders: dict[str, Cell] = {}
    for cell in cells:
        other = folders.setdefault(cell.folder.name, cell)
        require(other is cell, describe_clash(cell, other))
    runs: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        others = {runs.setdefault(run, cell) for run in cell_runs(cell)} - {cell}
        if others:
            both = f"{others.pop().folder.name} and {cell.folder.name} train the same thing"
            warn(f"{both}; name only one of them in a report")
            break


def describe_clash(cell: Cell, other: Cell) -> str:
    """What is wrong with a suite in which two cells have the same folder."""
    name = cell.folder.name
    if (cell.algorithm, cell.flags) == (other.algorithm, other.flags):
        return f"{name} is in the suite twice"
    if cell.algorithm != other.algorithm:
        both = f"{other.algorithm} and {cell.algorithm} share the folder {name}"
        return f"{both}; put each in its own grid, with its own exp_name or names of variants"
    return f"two cells share the folder {name}; give each grid or variant its own exp_name"


@cache
def cell_runs(cell: Cell) -> frozenset[tuple[str, ...]]:
    """The cell's training runs, from what its `config.json` will say."""
    args = json.loads(json.dumps(asdict(cell.args)))
    changed = changed_arguments(cell.args)
    return training_runs({"algorithm": cell.args.algorithm(), "args": args, "changed": changed})


def training_runs(config: dict[str, Any]) -> frozenset[tuple[str, ...]]:
    """The training runs of a `config.json`, one for each seed, as reports tell them apart."""
    first, group = config["args"]["seed"], group_of(config).values()
    seeds = range(first, first + config["args"]["num_seeds"])
    return frozenset((*group, str(seed)) for seed in seeds)


def check_begun(cells: list[Cell]) -> None:
    """Raises UsageError if a folder holds another run than its cell's, as after an edit of the suite.

    Damaged folders are left to the cell's own command, which says what is wrong.
    """
    advice = "give the suite another name, or the sweep another --out-dir"
    for cell in cells:
        try:
            begun = read_config(cell.folder)
            steps = int(begun["args"]["total_timesteps"])
        except (UsageError, KeyError, TypeError, ValueError):
            continue
        same = begun["algorithm"] == cell.args.algorithm()
        require(same, f"{cell.folder} is a run of {begun['algorithm']}; {advice}")
        check_same_args(cell.folder, begun["args"], cell.args, advice)
        if steps > cell.args.total_timesteps and cell.finished():
            warn(f"{cell.folder} has {steps:,} steps, more than the suite asks for; it counts as done")
    check_seeds(cells)


def check_seeds(cells: list[Cell]) -> None:
    """Raises UsageError if another folder of the sweep holds a seed that is still to be trained."""
    todo = {run for cell in cells if not cell.finished() for run in cell_runs(cell)}
    own = {cell.folder.name for cell in cells}
    others = [folder for folder in runs_in(cells[0].folder.parent) if folder.name not in own]
    holders: list[tuple[int, Path]] = []  # number of seeds, folder
    for folder in (each for each in others if is_under_way(each) or is_locked(each)):
        try:
            config = read_config(folder)
            if todo.intersection(training_runs(config)):
                holders.append((config["args"]["num_seeds"], folder))
        except (UsageError, KeyError, TypeError):  # damaged, or of an earlier version
            continue
    if holders:
        seeds, folder = max(holders)
        same = f"give --seeds-per-run {seeds} if it was trained with that, else another --out-dir"
        raise UsageError(f"{folder} has seeds that would be trained again: {same}, or move it away")

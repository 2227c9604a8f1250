"""Evaluations of finished runs as rows, the curves of their seeds, and published means to set beside them.

Runs are grouped by algorithm and number of steps. A run that has its own name and flags that change what is
learned, or that trains a file outside the package, is a variant.
"""

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.commands import algorithm_module, words
from benchmarks.figures import plural
from cleanrl_maxent import algorithm_names
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.config import read_config
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.files import write_file
from cleanrl_maxent.common.output import warn
from cleanrl_maxent.common.run.folder import MAY_DIFFER, read_json
from cleanrl_maxent.common.run.locking import acquire

RESULTS = Path(__file__).parent / "results"
PUBLISHED = Path(__file__).parent / "published.csv"
METRICS = {  # columns of evaluations.csv
    "return_deterministic": "eval/return_mean",
    "return_stochastic": "eval_stochastic/return_mean",
}
COLUMN_OF = {  # protocol of a curve -> its column; the first protocol that a run has is its main one
    "deterministic": "return_deterministic",
    "sampled": "return_stochastic",
    "training": "return_training",
}
GROUP = ("algorithm", "exp_name", "flags", "env_id", "total_timesteps")  # what the seeds of a curve share
POSITION = (*GROUP, "seed", "step", "seconds")
COLUMNS = (*POSITION, *COLUMN_OF.values())
# arguments that do not change what is learned: those that may differ on resume, and these
NOT_LEARNED = MAY_DIFFER | {
    "env_id",
    "seed",
    "num_seeds",
    "exp_name",
    "eval_frequency",
    "eval_episodes",
    "deterministic",
}
LAST_ALIKE = 4  # last version of MuJoCo's tasks whose returns compare: version 5 changed some rewards
TASK_FLAGS = "--env-kwargs ", "--max-episode-steps "  # they change the environment that the id names
COMPARABLE = {  # protocol of a curve -> beginnings of comparable protocols in published.csv
    "deterministic": ("deterministic evaluation", "evaluation, determinism not stated"),
    "sampled": ("sampled evaluation",),
    "training": ("training returns",),
}


def finished_runs(paths: Iterable[Path]) -> list[Path]:
    """The finished runs among `paths` and one level below; warns of unfinished ones, which are left out.

    Raises UsageError if a path holds no run, or if no run is finished.
    """
    runs = run_folders(paths)
    finished = [folder for folder in runs if (folder / "result.json").exists()]
    unfinished = plural(len(runs) - len(finished), "unfinished run")
    if not finished:
        raise UsageError(f"no finished run, but {unfinished}: no result.json in {runs[0]}")
    if len(finished) < len(runs):
        warn(f"{unfinished} left out")
    return finished


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """The runs among `paths` and one level below, each once; raises UsageError if a path holds none."""
    paths, found = list(paths), dict[Path, Path]()
    for path in (path for path in paths if not path.is_file()):
        runs = runs_in(path)
        if not runs:
            raise UsageError(f"{path} holds no run: no config.json in it or one level below")
        for folder in runs:
            found.setdefault(folder.resolve(), folder)
    if not found:
        raise UsageError(f"name a run, or a folder of runs; got {' '.join(map(str, paths)) or 'nothing'}")
    return list(found.values())


def runs_in(path: Path) -> list[Path]:
    """The folder itself if it is a run, and the runs one level below it."""
    return sorted(entry.parent for entry in (*path.glob("config.json"), *path.glob("*/config.json")))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, every value a string; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a last line that is still being written is left out.

    Raises UsageError if there is no such file, or if it is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except FileNotFoundError as problem:
        raise UsageError(f"{path} is missing") from problem
    except ValueError as problem:
        raise UsageError(f"{path} is damaged: {problem}") from problem


def changed_flags(config: dict[str, Any]) -> str:
    """The flags, as on a command line, that change what is learned and differ from the algorithm's defaults.

    Flags that today's version of the algorithm lacks are left out. Flags that a user's file adds to the
    algorithm it extends are kept. A file that extends none is compared with its own defaults.
    """
    known = known_algorithm(config["algorithm"])
    is_known = known in algorithm_names()
    defaults = json.loads(json.dumps(asdict(algorithm_module(known).Args() if is_known else RunArgs())))
    given = {name: value for name, value in config["args"].items() if name not in NOT_LEARNED}
    if not is_known and "changed" in config:
        return " ".join(words({name: value for name, value in given.items() if name in config["changed"]}))
    if is_ours(config):
        given = {name: value for name, value in given.items() if name in defaults}
    changed = {
        name: value for name, value in given.items() if name not in defaults or value != defaults[name]
    }
    return " ".join(words(changed))


def task_of(env_id: str, flags: str) -> str:
    """`Hopper-v4`, or with changed flags of the environment `Hopper-v4 --max-episode-steps 200`."""
    given = re.split(r" (?=--)", flags)
    return " ".join([env_id, *(flag for flag in given if flag.startswith(TASK_FLAGS))])


def family_of(env_id: str) -> str:
    """The environment's name, with its version if that is above `LAST_ALIKE`: `Hopper`, `Hopper-v5`."""
    name, _, version = env_id.rpartition("-v")
    return name if version.isdecimal() and int(version) <= LAST_ALIKE else env_id


def is_ours(config: dict[str, Any]) -> bool:
    """True if one of this project's files trained a run; False for a file of the user's."""
    return config["algorithm"] in algorithm_names()


def known_algorithm(name: str) -> str:
    """The longest name of our algorithms that `name` is or begins with; `name` itself if there is none.

    So a run of `sac_glorot.py`, a file that was not kept, is a variant of SAC.
    """
    beginnings = [
        known for known in algorithm_names() if name == known or name.startswith((f"{known}_", f"{known}-"))
    ]
    return max(beginnings, key=len, default=name)


def group_of(config: dict[str, Any]) -> dict[str, str]:
    """What the seeds of a curve share: algorithm, name, environment, number of steps, and changed flags.

    A run of ours goes by its `exp_name` if it has changed flags, else by its algorithm's name. A run of a
    user's file goes by its `exp_name`, unless that is the name of one of our algorithms.
    """
    args, flags, name = config["args"], changed_flags(config), config["algorithm"]
    if flags if is_ours(config) else args["exp_name"] not in algorithm_names():
        name = args["exp_name"]
    return {
        "algorithm": known_algorithm(config["algorithm"]),
        "exp_name": name,
        "env_id": args["env_id"],
        "total_timesteps": str(args["total_timesteps"]),
        "flags": flags,
    }


@contextmanager
def name_damaged(path: Path) -> Iterator[None]:
    """Raises UsageError that names `path` for an error that missing or wrong entries of a file cause."""
    try:
        yield
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise UsageError(f"{path} is damaged: {problem!r}") from problem


def read_run(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Rows of a finished run, and its entry in the manifest. Raises UsageError if a file is damaged."""
    with name_damaged(folder):
        return rows_and_entry(folder)


def rows_and_entry(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """What `read_run` returns; missing or wrong entries raise KeyError, TypeError, ValueError or the like."""
    config = read_config(folder)
    config["args"].pop("run_dir", None)  # a path of this machine
    result = read_json(folder / "result.json")
    clock = folder / "timing.jsonl"
    timing = read_lines(clock) if clock.is_file() else []  # a run does without it if it must
    steps, seconds = ([0, *(row[name] for row in timing)] for name in ("global_step", "seconds"))
    group, rows = group_of(config), []
    for seed, last in result["evaluations"].items():
        path = folder / f"seed-{seed}" / "metrics.jsonl"
        record = read_lines(path)
        if not record or record[-1]["global_step"] < last.get("global_step", 0):
            raise UsageError(f"{path} is damaged: it ends before the run does")
        evaluations: dict[int, dict[str, str]] = defaultdict(dict)
        for metrics in record:
            for column, name in METRICS.items():
                if name in metrics:
                    evaluations[metrics["global_step"]][column] = exact(metrics[name])
        end = last.get("global_step", config["args"]["total_timesteps"])
        if (training := training_return(record, end)) is not None:
            evaluations[end]["return_training"] = exact(training)
        for step, returns in evaluations.items():
            taken = f"{np.interp(step, steps, seconds):.0f}" if timing else ""
            rows.append(group | {"seed": seed, "step": str(step), "seconds": taken} | returns)
    return rows, config | {"seconds": result["seconds"]}


def round_return(value: float) -> str:
    """A return as evaluations.csv has it, with three significant digits or more."""
    if abs(value) < 1:
        return f"{value:.4g}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def exact(value: float) -> str:
    """A return with all its digits; raises ValueError if it is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"a return is {value}")
    return repr(float(value))


def training_return(record: list[dict[str, Any]], end: int) -> float | None:
    """Mean return of the training episodes that ended in the last 5% of `end` steps; None if none did."""
    name = "charts/episodic_return"
    late = [metrics for metrics in record if in_last_twentieth(metrics["global_step"], end)]
    returns = [metrics[name] for metrics in late if name in metrics]
    return float(np.mean(returns)) if returns else None


def in_last_twentieth(steps: ArrayLike, end: int) -> np.ndarray:
    """Which steps lie in the last 5% of `end` steps, 95% itself included: booleans shaped like `steps`."""
    return 20 * np.asarray(steps) >= 19 * end


def read_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Rows of the finished runs among `paths` and one level below.

    Warns if seeds of a curve were trained by different versions of a file. Raises UsageError.
    """
    runs = read_runs(finished_runs(paths))
    warn_of_versions(entry for _, entry in runs)
    return [row for rows, _ in runs for row in rows]


def read_runs(folders: Iterable[Path]) -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    """`read_run` of each folder.

    Raises UsageError if two folders hold the same seed of a curve, if seeds of a curve were trained by
    different files, or if no folder has an evaluation.
    """
    folders, holders, files = list(folders), {}, {}
    runs = [read_run(folder) for folder in folders]
    for folder, (rows, entry) in zip(folders, runs, strict=True):
        for row in rows:
            enter_holder(row, folder, holders)
            enter_file(row, entry["algorithm"], files)
    if not any(rows for rows, _ in runs):
        more = f" and {plural(len(folders) - 1, 'more run')}" if len(folders) > 1 else ""
        raise UsageError(f"no evaluations in {folders[0]}{more}")
    return runs


def curve_of(config: dict[str, Any]) -> tuple[str, ...]:
    """The algorithm's file, and what `group_of` says of a run: equal for the seeds of a curve."""
    return config["algorithm"], *group_of(config).values()


def warn_of_versions(configs: Iterable[dict[str, Any]]) -> None:
    """Warns if runs that share a curve were trained by different versions of the algorithm's file."""
    versions = defaultdict(set)
    for config in configs:
        versions[curve_of(config)].add(config.get("algorithm_sha256"))
    for (file, _, name, env_id, *_), digests in versions.items():
        if len(digests - {None}) > 1:
            warn(f"seeds of {name} on {env_id} were trained by different versions of {file}.py")


def enter_holder(row: dict[str, str], holder: Path | str, holders: dict[str, Path | str]) -> None:
    """Enters in `holders` where a row's training run is; raises UsageError if it is elsewhere too."""
    other = holders.setdefault(identity(row), holder)
    if other != holder:
        name = f"{row['exp_name']} {row['flags']}".strip()
        place = f"seed {row['seed']} of {name} on {row['env_id']}"
        raise UsageError(f"{place} is in both {other} and {holder}; name only one of them")


def enter_file(row: dict[str, str], file: str, files: dict[tuple[str, ...], str]) -> None:
    """Enters in `files` which file trained a curve; raises UsageError if another one trained it too."""
    other = files.setdefault(tuple(row[name] for name in GROUP), file)
    if other != file:
        both = f"runs of {other}.py and of {file}.py are both named {row['exp_name']}"
        raise UsageError(f"{both}: name only one of them, or train it with another --exp-name")


def read_results(results: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Rows of evaluations.csv, each with its run's changed flags, and manifest.json.

    The flags are those that differ from today's defaults, which may have changed since the runs were
    collected. Raises UsageError if a file is damaged, or if the rows are of an earlier version, which did
    not state them.
    """
    path, manifest_path = results / "evaluations.csv", results / "manifest.json"
    stored = read_csv(path)
    text = path.read_text() if path.exists() else "flags\n"
    whole = text.endswith("\n") and all(None not in (*row, *row.values()) for row in stored)
    if not whole or "flags" not in text.partition("\n")[0].split(","):
        raise UsageError(f"{path} is damaged or of an earlier version: collect its runs into a new folder")
    entries = read_manifest(manifest_path)
    with name_damaged(manifest_path):
        flags = {key: changed_flags(entry) for key, entry in entries.items()}
    rows, manifest, holders = [], {}, {}
    for before in stored:
        key = identity(before)
        if key not in flags:
            lacks = f"{manifest_path} lacks the run {key}, which {path} has"
            raise UsageError(f"{lacks}: put the right file back, or collect its runs into a new folder")
        row = before | {"flags": flags[key]}
        enter_holder(row, key, holders)
        manifest[identity(row)] = entries[key]
        rows.append(row)
    return rows, manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of manifest.json; empty if there is none. Raises UsageError if it is damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as problem:
        raise UsageError(f"{path} is damaged: {problem}") from problem


def identity(row: dict[str, str]) -> str:
    """The key in the manifest of the training run that a row evaluates."""
    names = ("algorithm", "exp_name", "env_id", "total_timesteps", "seed", "flags")
    return " ".join(row[name] for name in names).strip()


def collect(run_dirs: Iterable[Path], results: Path) -> tuple[int, int]:
    """Reads every run into evaluations.csv and manifest.json; waits while another process does so.

    Returns how many seeds it read, and how many of them were there before. Warns as `read_rows` does. Raises
    UsageError.
    """
    runs = read_runs(run_dirs)
    results.mkdir(parents=True, exist_ok=True)
    with open(results / "collect.lock", "w") as file:
        if no_lock := acquire(file, wait=True):
            warn(f"cannot lock {results} ({no_lock}): collect into it by one command at a time")
        return add_runs(runs, results)


def add_runs(runs: list[tuple[list[dict[str, str]], dict[str, Any]]], results: Path) -> tuple[int, int]:
    """Adds runs to the results, for `collect`, which holds the lock; returns what `collect` does."""
    rows, manifest = read_results(results)
    before, read, files = manifest.keys(), set(), {}
    for row in rows:
        enter_file(row, manifest[identity(row)]["algorithm"], files)
    for added, entry in runs:
        for row in added:
            enter_file(row, entry["algorithm"], files)
            for column in COLUMN_OF.values():
                if row.get(column):
                    row[column] = round_return(float(row[column]))
        identities = {identity(row) for row in added}
        read |= identities
        rows = [row for row in rows if identity(row) not in identities] + added
        manifest = manifest | dict.fromkeys(identities, entry)
    added_to = {curve_of(entry) for _, entry in runs}
    warn_of_versions(entry for entry in manifest.values() if curve_of(entry) in added_to)
    order = ("exp_name", "env_id", "total_timesteps", "algorithm", "flags", "seed", "step")
    numbers = {"total_timesteps", "seed", "step"}
    rows.sort(key=lambda row: [int(row[name]) if name in numbers else row[name] for name in order])
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = results / "manifest.json"
    # first with the entries of both tables, so that every row has one whenever this is killed
    write_manifest(path, read_manifest(path) | manifest)
    write_file(results / "evaluations.csv", table.getvalue().encode())
    write_manifest(path, manifest)
    return len(read), len(read & before)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json, whole or not at all."""
    write_file(path, (json.dumps(dict(sorted(manifest.items())), indent=1) + "\n").encode())


@dataclass(frozen=True, eq=False)
class Curve:
    """The seeds of one algorithm or variant on one environment, evaluated at the same steps."""

    algorithm: str
    name: str  # the algorithm's, or a variant's
    flags: str  # those that differ from the defaults and change what is learned
    env_id: str
    budget: int  # steps that the runs were given; runs of whole rollouts may end a little earlier
    protocol: str  # deterministic or sampled evaluation, or training
    seeds: list[str]
    steps: np.ndarray  # (evaluations,)
    returns: np.ndarray  # (seeds, evaluations), in reward units

    @property
    def is_variant(self) -> bool:
        """True if it has a name of its own."""
        return self.name != self.algorithm

    @property
    def task(self) -> str:
        """The environment's id, and the flags that change it."""
        return task_of(self.env_id, self.flags)

    @property
    def changes_task(self) -> bool:
        """True if its flags change the environment that its id names."""
        return self.task != self.env_id

    @property
    def family(self) -> str:
        """The environment as `family_of` names it."""
        return family_of(self.env_id)

    def final(self) -> np.ndarray:
        """Mean of each seed's evaluations in the last 5% of its steps, `(seeds,)`."""
        return self.near(int(self.steps[-1]))

    def near(self, step: int) -> np.ndarray:
        """Mean of each seed's evaluations within 5% of a step, `(seeds,)`; empty if there are none."""
        chosen = in_last_twentieth(self.steps, step) & (20 * self.steps <= 21 * step)
        return self.returns[:, chosen].mean(axis=1) if chosen.any() else np.array([])


def group_curves(rows: list[dict[str, str]]) -> list[Curve]:
    """For each group of seeds, a curve of each protocol that all of them have, the main one first.

    Steps that some seeds lack are left out. Raises UsageError if none is left in the last 5%.
    """
    groups: dict[tuple[str, ...], dict] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[tuple(row[name] for name in GROUP)][row["seed"]][int(row["step"])] = row
    curves = []
    for (algorithm, name, flags, env_id, budget), seeds in groups.items():
        found = 0
        for protocol, column in COLUMN_OF.items():
            table = [
                {step: float(row[column]) for step, row in evaluations.items() if row.get(column)}
                for evaluations in seeds.values()
            ]
            steps = sorted(set.intersection(*map(set, table)))
            without = [seed for seed, evaluations in zip(seeds, table, strict=True) if not evaluations]
            if protocol != "training" and 0 < len(without) < len(seeds):
                lack = f"{protocol} evaluations of {name} on {env_id} are left out"
                warn(f"{lack}: there are none of seed {', '.join(without)}")
            if steps and in_last_twentieth(steps[-1], max(map(max, table))):
                returns = np.array([[evaluations[step] for step in steps] for evaluations in table])
                kind = algorithm, name, flags, env_id, int(budget), protocol
                curves.append(Curve(*kind, list(seeds), np.array(steps), returns))
                found += 1
        if not found:
            raise UsageError(
                f"the seeds of {name} on {env_id} have no evaluation step in common in their last 5% of steps"
            )
    return curves


def main_curves(curves: Iterable[Curve]) -> list[Curve]:
    """The curves of the main protocol: deterministic evaluation, else sampled, else training."""
    chosen = {}
    for curve in curves:
        chosen.setdefault((curve.algorithm, curve.name, curve.flags, curve.env_id, curve.budget), curve)
    return list(chosen.values())


@cache
def published_rows() -> list[dict[str, str]]:
    """Every row of published.csv."""
    return read_csv(PUBLISHED)


def published_on_task(curve: Curve) -> list[dict[str, str]]:
    """Published rows of a curve's algorithm and environment, of any protocol and step.

    Versions up to `LAST_ALIKE` count as one environment. A variant has the rows under its own name, if there
    are any and we have no algorithm of that name, else its algorithm's. A changed task has none.
    """
    return [] if curve.changes_task else published_on_family(curve, curve.family)


def published_on_older_versions(curve: Curve) -> list[dict[str, str]]:
    """Published rows of a curve's algorithm on versions of its environment that do not compare with it."""
    name = curve.env_id.rpartition("-v")[0]
    return [] if curve.family == name else published_on_family(curve, name)


def published_on_family(curve: Curve, family: str) -> list[dict[str, str]]:
    """Published rows of a curve's algorithm, or of the variant's name, on environments of a `family_of`."""
    names = {row["algorithm"] for row in published_rows()}.difference(algorithm_names())
    name = curve.name if curve.name in names else curve.algorithm
    return [
        row for row in published_rows() if row["algorithm"] == name and family_of(row["env_id"]) == family
    ]


def published(curve: Curve) -> list[dict[str, str]]:
    """Published rows to compare a curve with: those on its task of the same protocol, up to its last step.

    Deterministic evaluations are never compared with training episodes or exploration.
    """
    return [
        row
        for row in published_on_task(curve)
        if row["protocol"].startswith(COMPARABLE[curve.protocol])
        if in_last_twentieth(curve.steps[-1], int(row["step"]))
    ]


def published_at_end(curve: Curve) -> list[dict[str, str]]:
    """The published rows at the curve's number of steps."""
    return [row for row in published(curve) if int(row["step"]) == curve.budget]

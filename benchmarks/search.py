"""Searches an algorithm's hyperparameters with Optuna; after a kill the same command resumes.

    pip install optuna
    python benchmarks/search.py --env-id Hopper-v4 --total-timesteps 100000 --trials 20

An example to copy: `space` has the flags that are searched, `value` what is maximised. A trial is a run, in
`trial-0`, `trial-1`, … of the folder; the study is in `study.db` there. A killed trial has its parameters in
the study and its steps in its folder, so it is resumed first and ends with the same bits.

Exit status 2 for bad input, 75 if a trial was stopped.
"""

import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.cells import Cell, check
from benchmarks.commands import applicable_flags, check_algorithms, split_flags, words
from benchmarks.tables import number
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import Stopped, UsageError, can_resume, require
from cleanrl_maxent.common.output import say
from cleanrl_maxent.common.ranges import Count
from cleanrl_maxent.common.run.folder import read_json
from cleanrl_maxent.common.run.inventory import return_of
from cleanrl_maxent.common.run.locking import acquire


@dataclass(frozen=True)
class Args:
    """What is searched, and for how long."""

    algorithm: str = "sac"
    env_id: str = "Pendulum-v1"
    total_timesteps: Count = 20_000  # steps of each seed of a trial
    num_seeds: Count = 2  # seeds of a trial, side by side
    flags: str = ""  # further flags of every trial: --flags="--learning-starts 1000"
    device: Literal["auto", "cpu", "cuda", "tpu"] = "auto"
    trials: Count = 20  # trials of the study, those of earlier commands included
    folder: Path = Path("runs/search")  # of the study and its runs


CRASHED = 1  # exit status of a run that ends with a traceback
DIVERGED = "error: non-finite "  # begins the line that ends a run when a NaN or an infinity arises


def space(optuna: Any) -> dict[str, Any]:
    """The flags that are searched and their ranges; those that an algorithm lacks are left out."""
    number = optuna.distributions.FloatDistribution
    rate = number(1e-4, 3e-3, log=True)
    return {
        "policy_lr": rate,
        "q_lr": rate,
        "learning_rate": rate,
        "tau": number(1e-3, 5e-2, log=True),
        "gae_lambda": number(0.8, 1.0),
    }


def value(folder: Path) -> float:
    """What is maximised: the last evaluation of a finished run, averaged over its seeds."""
    evaluations = read_json(folder / "result.json")["evaluations"].values()
    return float(np.array([return_of(last) for last in evaluations], float).mean())


def round_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters with six significant digits, as a person would type them."""
    return {name: float(f"{x:.6g}") if isinstance(x, float) else x for name, x in parameters.items()}


def flag_names(args: Args) -> set[str]:
    """The names that `--flags` sets, `gae_lambda`; raises UsageError for those that the search sets."""
    given = [word.partition("=")[0] for word in split_flags(args.flags) if word.startswith("--")]
    names = {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in given}
    if taken := names & {"env_id", "total_timesteps", "num_seeds", "run_dir", "resume", "device"}:
        raise UsageError(f"{min(taken)} is not for --flags: the search sets it")
    return names


def cell_of(number: int, parameters: dict[str, Any], args: Args) -> Cell:
    """The run of a trial."""
    shared = {name: asdict(args)[name] for name in ("env_id", "total_timesteps", "num_seeds")}
    flags = *words(shared | round_parameters(parameters)), *split_flags(args.flags)
    return Cell(args.algorithm, flags, args.folder / f"trial-{number}", args.device)


def train(cell: Cell) -> float | None:
    """Runs or resumes a trial; returns its value, None if its training diverged or its environment crashed.

    Raises Stopped if it was stopped or killed, and UsageError if it could not start or resume.
    """
    while cell.in_use():  # the trial's process outlives a search that is killed alone
        time.sleep(1)
    errors, environment = [], os.environ | cell.variables({})
    piped: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(cell.command(), env=environment, **piped) as process:
        copy = threading.Thread(target=copy_lines, args=(process.stderr, errors), daemon=True)
        copy.start()
        try:
            status = process.wait()
        except KeyboardInterrupt as stop:  # Ctrl-C goes to the trial too, which saves
            process.wait()
            raise Stopped(
                f"the search in {cell.folder.parent} is stopped; the same command resumes it"
            ) from stop
        finally:
            copy.join(timeout=5)  # a process that the trial leaves behind may keep its stderr open
    if can_resume(status):
        raise Stopped(f"{cell.folder} is unfinished; the same command resumes it")
    if status and cell.in_use():  # a process that a killed search left had not locked the folder yet
        return train(cell)
    failed = status == CRASHED or any(line.startswith(DIVERGED) for line in errors)
    begun = (cell.folder / "config.json").exists()
    if status and not (begun and failed):
        wanted = "resume" if begun else "start"
        raise UsageError(f"{cell.folder.name} could not {wanted}, see above; the same command tries it again")
    return value(cell.folder) if status == 0 else None


def copy_lines(source: Iterable[str], lines: list[str]) -> None:
    """Appends every line to `lines`, and prints it on stderr at once."""
    for line in source:
        lines.append(line)
        sys.stderr.write(line)


def search(
    study: Any, distributions: dict[str, Any], trials: int, run: Callable[[int, dict[str, Any]], float | None]
) -> None:
    """Runs trials until the study has `trials` of them, first those that a kill left unfinished."""
    while True:
        unfinished = [trial for trial in study.trials if not trial.state.is_finished()]
        if not unfinished and len(study.trials) >= trials:
            return
        trial = unfinished[0] if unfinished else study.ask(distributions)
        found = None
        if trial.params.keys() == distributions.keys():  # else it was killed while they were drawn
            found = run(trial.number, trial.params)
        if found is None:
            study.tell(trial.number, state=type(study.trials[trial.number].state).FAIL)
        else:
            study.tell(trial.number, found)


def open_study(optuna: Any, args: Args) -> Any:
    """The study in the search's folder; raises UsageError if it searched something else."""
    args.folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{args.folder / 'study.db'}"
    study = optuna.create_study(
        storage=storage, study_name="search", direction="maximize", load_if_exists=True
    )
    may_differ = ("trials", "device", "folder")  # a folder may be moved
    fixed = {name: str(given) for name, given in asdict(args).items() if name not in may_differ}
    before = study.user_attrs.get("search", fixed)
    different = ", ".join(f"{name}={before[name]}" for name in fixed if before[name] != fixed[name])
    if different:
        raise UsageError(f"{args.folder} holds a search with {different}; name another --folder")
    study.set_user_attr("search", fixed)
    return study


@contextmanager
def sole_search(folder: Path) -> Iterator[None]:
    """Holds a folder's `search.lock`; raises UsageError if another search has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "search.lock", "w") as file:
        try:
            acquire(file)
        except BlockingIOError as problem:
            raise UsageError(f"another search runs in {folder}; name another --folder") from problem
        yield


def main(args: Args) -> None:
    """Searches, and prints the best trial's flags. Raises UsageError and Stopped."""
    try:
        optuna = importlib.import_module("optuna")
    except ModuleNotFoundError as missing:
        raise UsageError(f"{missing}; pip install optuna") from missing
    require(args.trials > 0, f"trials must be > 0; got {args.trials}")
    is_run = (args.folder / "config.json").exists()
    require(not is_run, f"{args.folder} is a run; name another --folder for the search")
    check_algorithms([args.algorithm])
    fixed = flag_names(args)
    first = cell_of(0, {}, args)
    check([first])
    require(first.args.eval_episodes > 0, "a search needs evaluations: --eval-episodes must be > 0")
    searched = applicable_flags(args.algorithm, space(optuna))
    distributions = {name: found for name, found in searched.items() if name not in fixed}
    require(
        bool(distributions),
        f"there is nothing to search: {args.algorithm} has no flag of `space` that --flags does not set",
    )

    def run(number: int, parameters: dict[str, Any]) -> float | None:
        cell = cell_of(number, parameters, args)
        try:
            check([cell])
        except UsageError as problem:  # these parameters do not go together
            say(f"{problem}")
            return None
        return train(cell)

    with sole_search(args.folder):
        study = open_study(optuna, args)
        search(study, distributions, args.trials, run)
    finished = [trial for trial in study.trials if trial.value is not None]
    require(bool(finished), f"every trial failed; see the messages above, and {args.folder}")
    best = max(finished, key=lambda trial: trial.value)
    flags = " ".join(words(round_parameters(best.params)))
    failed = len(study.trials) - len(finished)
    count = f"{len(finished)} ({failed} more failed)" if failed else f"{len(finished)}"
    print(f"best of {count}: trial-{best.number}, {number(best.value)}: {flags}")


if __name__ == "__main__":
    run_script(Args, main)

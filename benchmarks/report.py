"""Collects finished runs, draws and tabulates them, and compares them with published curves or each other.

    python benchmarks/report.py collect runs/cpu             # adds its finished runs to benchmarks/results/
    python benchmarks/report.py draw                         # their figures and tables, also in the documents
    python benchmarks/report.py draw runs/mine --out-dir my_report
    python benchmarks/report.py compare runs/mine            # inside the published band, or outside?
    python benchmarks/report.py compare runs/a runs/b        # which returns more?
    python benchmarks/report.py compare sac runs/mine        # the collected runs of SAC, or mine?
    python benchmarks/report.py plot losses/entropy runs/mine

Exit status 2 for bad input; 1 if `compare` finds a mean outside its band.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.comparison import compare_sets, compare_with_published
from benchmarks.figures import plural
from benchmarks.metric import plot_metric
from benchmarks.pages import draw_results, draw_scores, draw_tasks, refreshed_pages, report
from benchmarks.records import (
    RESULTS,
    Curve,
    collect,
    finished_runs,
    group_curves,
    read_results,
    read_rows,
    run_folders,
    runs_in,
)
from cleanrl_maxent import algorithm_names
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import UsageError, require

Paths = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass
class Collect:
    """Adds the evaluations of finished runs to the results; replaces a run that is there already, with the
    same algorithm, name, environment, steps, seed and changed flags.
    The column of a policy that an algorithm lacks stays empty."""

    run_dirs: Paths  # runs, folders of runs, or patterns in quotes
    results: Path = RESULTS  # folder of evaluations.csv and manifest.json


@dataclass
class Draw:
    """Draws learning curves and writes report.md with the tables. Without `run_dirs`, uses the collected
    results; without `out_dir` too, also updates the README and the pages that show results."""

    run_dirs: Paths = ()  # runs, folders of runs, or patterns in quotes; none: what is collected in results
    out_dir: Path | None = None  # folder of the figures and of report.md; needed with run_dirs or --results
    results: Path = RESULTS  # folder of evaluations.csv and manifest.json


@dataclass
class Compare:
    """With two sets of runs: which returns more, task by task? With any other number: does the mean of the
    seeds lie in the published band, at each published step?

    The band is the 95% prediction interval for the mean of as many seeds of one more implementation, from the
    spread of published seeds and between published implementations. If only one of these states a spread, the
    band of two or more seeds holds the means that do not differ significantly from its mean (Welch's test). A
    quoted pattern is one set: "runs/cpu/*sac*". The name of an algorithm, or of a variant on its page, stands
    for its collected runs, unless a folder has that name.
    """

    run_dirs: Paths  # runs, folders of runs, patterns in quotes, or names of algorithms


@dataclass
class Plot:
    """Draws a recorded metric of runs, finished or not, in a figure for each task and number of steps. Prints
    its mean over the last 5% of the steps, for the seeds that have reached them."""

    metric: tyro.conf.Positional[str]  # such as losses/entropy; an unknown one lists those that exist
    run_dirs: Paths  # runs, folders of runs, or patterns in quotes
    out_dir: Path = Path(".")  # folder of the figures


def is_pattern(path: Path) -> bool:
    """True if a path that does not exist has a `*`, `?` or `[`."""
    return bool({"*", "?", "["}.intersection(str(path))) and not path.exists()


def match_pattern(path: Path) -> list[Path]:
    """The folders with runs that match a pattern; another path as it is.

    A `[` stands for itself if that finds something. Raises UsageError if nothing matches.
    """
    if not is_pattern(path):
        return [path]
    literal = str(path).replace("[", "[[]")
    if not (found := sorted(map(Path, glob(literal) or glob(str(path))))):
        raise UsageError(f"nothing matches {path}")
    return [path for path in found if runs_in(path)] or found[:1]


def match_all(paths: Iterable[Path]) -> list[Path]:
    """`match_pattern` of every path."""
    return [folder for path in paths for folder in match_pattern(path)]


def curves_of(*paths: Path) -> list[Curve]:
    """The curves of the finished runs among `paths`. Raises UsageError."""
    return group_curves(read_rows(match_all(paths)))


def compared_curves(*paths: Path) -> list[Curve]:
    """`curves_of`, where the name of an algorithm or variant stands for its collected runs, unless a folder
    has that name. Raises UsageError."""
    missing = [path for path in paths if not path.exists() and not is_pattern(path)]
    collected = group_curves(read_results(RESULTS)[0]) if missing else []
    others = {curve.name for curve in collected}.difference(algorithm_names())
    for name in map(str, missing):
        if name not in others.union(algorithm_names()):
            if len(Path(name).parts) > 1:
                raise UsageError(f"there is no folder {name}")
            known = algorithm_names()
            meant = " or ".join(get_close_matches(name, [*known, *sorted(others)]))
            advice = f"did you mean {meant}?" if meant else f"there are {', '.join(known)}"
            raise UsageError(f"{name} is neither a folder, an algorithm nor a variant; {advice}")
    curves: list[Curve] = []
    for name in map(str, dict.fromkeys(missing)):
        own = [curve for curve in collected if curve.name == name]
        if not own:
            raise UsageError(f"{RESULTS} has no run of {name}")
        curves += own
    folders = [path for path in paths if path not in missing]
    return curves + (curves_of(*folders) if folders or not missing else [])


def sources(path: Path) -> set[Path]:
    """The runs in a folder or of a pattern, resolved; else the path, a name."""
    if path.exists() or is_pattern(path):
        return {folder.resolve() for folder in run_folders(match_pattern(path))}
    return {path}


def draw(curves: list[Curve], out_dir: Path) -> str:
    """Draws every curve of a task and number of steps together; writes report.md, whose text is returned."""
    out_dir.mkdir(parents=True, exist_ok=True)
    draw_tasks(curves, out_dir)
    draw_scores(curves, out_dir)
    text = report(curves)
    (out_dir / "report.md").write_text(text)
    return text


def main(command: Collect | Draw | Compare | Plot) -> int:
    """Runs a command and returns its exit status. Raises UsageError."""
    if isinstance(command, Collect):
        folders = finished_runs(match_all(command.run_dirs))
        read, replaced = collect(folders, command.results)
        hint = "; report.py draw makes the figures and tables" if command.results == RESULTS else ""
        seeds = f"{plural(read, 'seed')} of {plural(len(folders), 'run')}"
        print(f"{seeds} collected in {command.results}, {replaced} of them replaced earlier ones{hint}")
    elif isinstance(command, Plot):
        require(
            bool(command.run_dirs), f"name a metric, then a run or a folder of runs; got {command.metric}"
        )
        for path in plot_metric(command.metric, match_all(command.run_dirs), command.out_dir):
            print(path)
    elif isinstance(command, Compare):
        without_logs = [path for path in command.run_dirs if path.suffix != ".log" or path.is_dir()]
        sets = without_logs or command.run_dirs
        if len(sets) == 2:
            a, b = map(compared_curves, sets)
            if shared := sources(sets[0]) & sources(sets[1]):
                raise UsageError(f"{min(shared)} is in both sets")
            compare_sets(a, b)
        else:
            if len(sets) > 2:
                print(f"{len(sets)} sets, beside published means; name two to compare them with each other")
            return 0 if compare_with_published(compared_curves(*sets)) else 1
    elif command.out_dir:
        own = command.run_dirs
        print(draw(curves_of(*own) if own else collected_curves(command.results), command.out_dir))
    elif command.run_dirs or command.results != RESULTS:
        raise UsageError("name an --out-dir for a report of your own runs")
    else:
        refresh_documents()
    return 0


def collected_curves(results: Path) -> list[Curve]:
    """The curves of the collected runs; raises UsageError if there are none."""
    rows, _ = read_results(results)
    if not rows:
        raise UsageError(f"{results} has no collected runs: there is no evaluations.csv, or it is empty")
    return group_curves(rows)


def refresh_documents() -> None:
    """Draws the collected results and writes them where documents show them. Raises UsageError."""
    curves = collected_curves(RESULTS)
    pages = refreshed_pages(curves)  # raises before a figure is drawn
    drawn = draw_results(curves, RESULTS)
    for path in set(RESULTS.glob("*.png")) - set(drawn):
        path.unlink()
    for path, text in pages.items():
        path.write_text(text)
    print(f"{len(drawn)} figures in {RESULTS}; {len(pages)} pages")


if __name__ == "__main__":
    run_script(Collect | Draw | Compare | Plot, main)

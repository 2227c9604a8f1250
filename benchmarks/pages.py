"""The parts of the documents that `report.py draw` writes from the results, and their figures.

On a page they lie between the lines `<!-- results of sac, written by benchmarks/report.py draw -->` and
`<!-- end of results of sac -->`; in `README.md` they are the last three cells of each algorithm's row.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from html import escape
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.curves import draw_curves, draw_profiles, has_grid, title_of
from benchmarks.efficiency import draw_efficiency, efficiency_block
from benchmarks.figures import figure_name
from benchmarks.records import RESULTS, Curve, main_curves, published_at_end
from benchmarks.tables import (
    aggregate_table,
    algorithm_table,
    below_average,
    means_of,
    number,
    published_band,
    published_table,
    rows_with_spread,
    says_little,
    shared_tasks,
    task_table,
    variant_table,
    verdict,
    verdicts,
    worth_a_row,
)
from cleanrl_maxent import algorithm_names
from cleanrl_maxent.common.errors import UsageError

PAGE = ROOT / "docs" / "results.md"
EFFICIENCY = ROOT / "docs" / "explain" / "efficiency.md"
README = ROOT / "README.md"
FEWEST_SEEDS, FEWEST_STEPS = 3, 10_000  # of a row of the README's table
SHOWN_FIRST = ("HalfCheetah-v4", "Hopper-v4", "CartPole-v1")  # tasks of the README's table, if there are runs


def draw_results(curves: list[Curve], out_dir: Path) -> list[Path]:
    """Draws every task and number of steps, each algorithm's variants there, profiles and efficiency.

    Returns the figures' paths. Raises UsageError without matplotlib.
    """
    defaults, variants = split(curves)
    drawn = draw_tasks(defaults, out_dir)
    for algorithm, known in variant_names(variants).items():
        groups = variant_groups(curves, algorithm)
        drawn += [draw_curves(group, figure_of(group, out_dir, algorithm), known) for group in groups]
    return [*drawn, *draw_scores(curves, out_dir), draw_efficiency(curves, out_dir / "efficiency.png")]


def draw_scores(curves: list[Curve], out_dir: Path) -> list[Path]:
    """Draws performance profiles for each group of `shared_tasks`; returns the paths."""
    groups = shared_tasks(curves).items()
    return [draw_profiles(group, out_dir / profiles_file(*kind)) for kind, group in groups]


def profiles_file(budget: int, protocol: str) -> str:
    """The name of a figure of profiles: `profiles-100000.png`, `profiles-100000-sampled.png`."""
    return f"profiles-{budget}{'' if protocol == 'deterministic' else f'-{protocol}'}.png"


def variant_groups(curves: list[Curve], algorithm: str) -> list[list[Curve]]:
    """An algorithm's variants by task and number of steps, each group after its own curves there."""
    own, variants = split(main_curves(curve for curve in curves if curve.algorithm == algorithm))
    return [
        [curve for curve in own if (curve.task, curve.budget) == (group[0].task, group[0].budget)] + group
        for group in by_task_and_budget(variants)
    ]


def variant_names(variants: Iterable[Curve]) -> dict[str, list[tuple[str, str]]]:
    """The names and flags of each algorithm's variants, on any task, in order."""
    found = defaultdict(set)
    for curve in variants:
        found[curve.algorithm].add((curve.name, curve.flags))
    return {algorithm: sorted(found[algorithm]) for algorithm in sorted(found)}


def draw_tasks(curves: list[Curve], out_dir: Path) -> list[Path]:
    """Draws the main curves of each task and number of steps, and `sampled_groups`; returns the paths."""
    main = by_task_and_budget(main_curves(curves))
    drawn = [draw_curves(group, figure_of(group, out_dir)) for group in main]
    sampled = sampled_groups(curves)
    return drawn + [draw_curves(group, figure_of(group, out_dir, sampled=True)) for group in sampled]


def split(curves: Iterable[Curve]) -> tuple[list[Curve], list[Curve]]:
    """The algorithms' own curves, and those of variants."""
    curves = list(curves)
    return [curve for curve in curves if not curve.is_variant], [
        curve for curve in curves if curve.is_variant
    ]


def by_task(curves: Iterable[Curve]) -> list[list[Curve]]:
    """Curves grouped by task."""
    return group_by(curves, attrgetter("task"))


def by_task_and_budget(curves: Iterable[Curve]) -> list[list[Curve]]:
    """Curves grouped by task and number of steps: those that can share an axis."""
    return group_by(curves, attrgetter("task", "budget"))


def sampled_groups(curves: Iterable[Curve]) -> list[list[Curve]]:
    """Sampled evaluations by task and number of steps; only groups in which a curve with a published mean is
    missing from the main figure."""
    curves = list(curves)
    main = set(main_curves(curves))
    groups = by_task_and_budget(curve for curve in curves if curve.protocol == "sampled")
    return [group for group in groups if any(published_at_end(curve) for curve in set(group) - main)]


def group_by(curves: Iterable[Curve], key: Callable[[Curve], Any]) -> list[list[Curve]]:
    """Curves of the same `key` together, in the order of the keys."""
    groups = defaultdict(list)
    for curve in curves:
        groups[key(curve)].append(curve)
    return [groups[value] for value in sorted(groups)]


def figure_of(group: list[Curve], folder: Path, algorithm: str = "", sampled: bool = False) -> Path:
    """The file of a figure: `Hopper-v4-100000.png`, or with variants `sql-Hopper-v4-100000.png`."""
    name = f"{figure_name(group[0].task)}-{group[0].budget}{'-sampled' if sampled else ''}.png"
    return folder / (f"{algorithm}-{name}" if algorithm else name)


def report(curves: list[Curve]) -> str:
    """The text of report.md: every table, with the sources of published means."""
    tables = [task_section(group, "") for group in by_task(curves)]
    others = aggregate_table(curves), published_table(worth_a_row(curves))
    tables += [table for table in others if table[2:]]
    return "\n\n".join("\n".join(table) for table in tables) + "\n"


def task_section(curves: list[Curve], figures: str) -> list[str]:
    """Heading, table and figures of a task; `figures` is the path of their folder, "" for no figures."""
    lines = [f"### {curves[0].task}", "", *task_table(curves)]
    if not figures:
        return lines
    sampled = images(sampled_groups(curves), figures, sampled=True)
    return [*lines, "", *images(by_task_and_budget(main_curves(curves)), figures), *sampled]


def images(groups: list[list[Curve]], folder: str, algorithm: str = "", sampled: bool = False) -> list[str]:
    """The figures of some groups of curves, half as wide as a page, or its full width if they have a grid."""
    tags = []
    for group in groups:
        source = f"{folder}/{figure_of(group, Path(), algorithm, sampled)}"
        alt = f"Returns on {title_of(group)}"
        tags.append(f'<img src="{source}" width="{98 if has_grid(group) else 49}%" alt="{escape(alt)}">')
    return tags


def results_block(curves: list[Curve]) -> list[str]:
    """What docs/results.md has between its marks: every task, and scores over tasks."""
    defaults, _ = split(curves)
    lines = [verdicts(defaults), below_average(defaults)]
    for group in by_task(defaults):
        lines += ["", *task_section(group, "../benchmarks/results")]
    table = aggregate_table(curves)
    if table:
        lines += ["", "### Scores over tasks", "", *table]
    for budget, protocol in shared_tasks(curves):
        source = f"../benchmarks/results/{profiles_file(budget, protocol)}"
        alt = f"Performance profiles, {budget:,} steps, {protocol}"
        lines += ["", f'<img src="{source}" width="60%" alt="{alt}">']
    return lines


def algorithm_block(curves: list[Curve], algorithm: str) -> list[str]:
    """What an algorithm's page has between its marks: its rows, then its variants' rows and figures."""
    defaults, variants = split(curve for curve in curves if curve.algorithm == algorithm)
    lines = algorithm_table(defaults) if defaults else ["No run is committed yet."]
    if variants:
        figures = images(variant_groups(curves, algorithm), "../../benchmarks/results", algorithm)
        lines = [*lines, "", "With other settings:", "", *variant_table(variants), "", *figures]
    return lines


def write_block(text: str, name: str, lines: list[str]) -> str:
    """`text` with new lines between the marks of `name`; raises UsageError unless it has them once."""
    start, end = f"<!-- {name}, written by benchmarks/report.py draw -->", f"<!-- end of {name} -->"
    block = "\n".join([start, "", *lines, "", end])
    text, count = re.subn(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise UsageError(f"a page must have exactly one block from {start} to {end}")
    return text


def readme_cells(curves: list[Curve], algorithm: str) -> list[str]:
    """An algorithm's cells in the README: task and steps, our mean, and the published means.

    The task is the first of `SHOWN_FIRST` that has runs, else the first by name, with the most steps. A
    protocol with a band is preferred, then one with published means. Runs with changed flags, which are then
    stated, are shown only if there are no others. Trials with few seeds or steps are not shown.
    """
    own = [curve for curve in worth_a_row(curves) if curve.name == curve.algorithm == algorithm]
    own = [curve for curve in own if len(curve.seeds) >= FEWEST_SEEDS and curve.budget >= FEWEST_STEPS]
    own = [curve for curve in own if not curve.flags] or own
    if not own:
        return ["", "", ""]
    order = {task: place for place, task in enumerate(SHOWN_FIRST)}
    curve = min(
        own,
        key=lambda curve: (
            order.get(curve.env_id, len(order)),
            curve.env_id,
            -curve.budget,
            published_band(published_at_end(curve), curve.final()) is None,
            not published_at_end(curve),
        ),
    )
    returns, rows = curve.final(), published_at_end(curve)
    mean = float(returns.mean())
    evaluation = "" if curve.protocol == "deterministic" else f", {curve.protocol}"
    published = ""
    if rows:
        low, high = (number(limit(means_of(rows))) for limit in (min, max))
        published = low if low == high else f"{low} to {high}"
        if band := published_band(rows, returns):
            judged = "too wide:" if says_little(mean, band) else verdict(mean, band)
            single = ", from one implementation" if len(rows_with_spread(rows)) == 1 else ""
            published += f" ({judged} {' to '.join(number(bound, mean) for bound in band)}{single})"
    flags = f", `{curve.flags}`" if curve.flags else ""
    return [f"{curve.env_id}, {curve.budget:,}{evaluation}{flags}", number(mean), published]


def refresh_readme(text: str, curves: list[Curve]) -> str:
    """README.md with the last three cells of each algorithm's row as the results give them."""
    lines = text.splitlines()
    for algorithm in algorithm_names():
        for place, line in enumerate(lines):
            if line.startswith("|") and f"(cleanrl_maxent/{algorithm}.py)" in line:
                cells = line.split("|")[1:4]
                lines[place] = f"|{'|'.join(cells)}| {' | '.join(readme_cells(curves, algorithm))} |"
    return "\n".join(lines) + "\n"


def refreshed_pages(curves: list[Curve]) -> dict[Path, str]:
    """The text of every page that shows results, by its path. Raises UsageError if marks are missing."""
    pages = {
        PAGE: write_block(PAGE.read_text(), "results", results_block(curves)),
        EFFICIENCY: write_block(EFFICIENCY.read_text(), "efficiency", efficiency_block(curves)),
        README: refresh_readme(README.read_text(), curves),
        RESULTS / "report.md": report(curves),
    }
    for algorithm in algorithm_names():
        path = ROOT / "docs" / "algorithms" / f"{algorithm}.md"
        if path.exists():
            block = algorithm_block(curves, algorithm)
            pages[path] = write_block(path.read_text(), f"results of {algorithm}", block)
    return pages

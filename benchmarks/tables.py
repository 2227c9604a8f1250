"""Tables in Markdown of curves beside published means, and the verdict on each."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.intervals import (
    interquartile_mean,
    mean_interval,
    prediction_interval,
    stratified_bootstrap,
    weighted_interquartile_mean,
    welch_band,
)
from benchmarks.records import COMPARABLE, Curve, main_curves, published, published_at_end

# returns of a random policy and of TD3 after a million steps: the constants of
# https://github.com/DAVIAN-Robotics/SimbaV2 scale_rl/envs/mujoco.py; for the last three tasks, means of 100
# episodes of uniform actions and of TD3's rows in published.csv
REFERENCE_RETURNS = {
    "HalfCheetah": (-289.415, 10_574),
    "Hopper": (18.791, 3_226),
    "Walker2d": (2.791, 3_946),
    "Ant": (-70.288, 3_942),
    "Humanoid": (120.423, 5_165),
    "Swimmer": (0.8, 74.2),
    "Reacher": (-43.4, -3.9),
    "InvertedDoublePendulum": (59.1, 9_079),
}
FEWEST_TASKS = 5  # for scores over several tasks


def markdown_table(titles: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in [titles, ["---"] * len(titles), *rows]]


def number(value: float, reference: float | None = None) -> str:
    """A return: `5,152`, `−4.3`, `0.0143`; with as many decimals as `reference` would have."""
    size = abs(value if reference is None else reference)
    return with_decimals(value, decimals(size) if abs(value) < 1 else min(decimals(size), 1))


def decimals(size: float) -> int:
    """How many decimals a number of this size is written with."""
    if 0 < size < 1:
        return min(2 - math.floor(math.log10(size)), 12)
    return 0 if size >= 100 else 1


def with_decimals(value: float, digits: int) -> str:
    """`1,002.5`, `−4.3`: a number with so many decimals."""
    return f"{value:z,.{digits}f}".replace("-", "−")  # z: no minus before a value that rounds to 0


def name_with_flags(curve: Curve) -> str:
    """The name of a curve, followed by the changed flags."""
    return f"{curve.name} {code(curve.flags)}".strip()


def code(words: str) -> str:
    """Words as code, or "" without words: a variant from its own file may have no changed flags."""
    return f"`{words}`" if words else ""


def mean_with_interval(values: np.ndarray, write: Callable[[float, float], str] = number) -> str:
    """`5,152 ± 1,607`; without an interval if there is one seed. `write` formats a number like another."""
    mean = float(values.mean())
    interval = f" ± {write(mean_interval(values), mean)}" if len(values) > 1 else ""
    return write(mean, mean) + interval


def means_of(rows: list[dict[str, str]]) -> list[float]:
    """The means of published rows."""
    return [float(row["mean"]) for row in rows]


def rows_with_spread(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The published rows that a band is made of: evaluations of two seeds or more, with their spread."""
    return [
        row
        for row in rows
        if float(row["spread"] or 0) > 0 and int(row["seeds"] or 0) > 1
        if not row["protocol"].startswith(COMPARABLE["training"])
    ]


def published_band(rows: list[dict[str, str]], returns: np.ndarray) -> tuple[float, float] | None:
    """The band for the mean of our `returns`, `(seeds,)`, from published rows of one step; None without a
    spread.

    Returns in training have no band: implementations average them over different windows, which lag behind.
    If only one implementation states a spread, that of our seeds counts too, if there are two or more.
    """
    with_spread = rows_with_spread(rows)
    if not with_spread:
        return None
    means, spreads, counts = (
        [float(row[name]) for row in with_spread] for name in ("mean", "spread", "seeds")
    )
    if len(means) == 1 and len(returns) > 1:
        return welch_band(means[0], spreads[0], counts[0], returns)
    return prediction_interval(means, spreads, counts, len(returns))


def says_little(mean: float, band: tuple[float, float]) -> bool:
    """True if a mean is inside a band that is too wide to judge by: its ends differ in sign, or by more than
    a factor of three."""
    low, high = band
    return verdict(mean, band) == "inside" and (low * high <= 0 or not 1 / 3 <= low / high <= 3)


def verdict(mean: float, band: tuple[float, float] | None) -> str:
    """`inside`, `outside` or `no band`."""
    if band is None:
        return "no band"
    return "inside" if band[0] <= mean <= band[1] else "outside"


def worth_a_row(curves: Iterable[Curve]) -> list[Curve]:
    """Each group's curve of the main protocol, and any other that has published means to compare with."""
    curves = list(curves)
    main = set(main_curves(curves))
    return [curve for curve in curves if curve in main or published_at_end(curve)]


def result_cells(curve: Curve) -> list[str]:
    """Seeds, evaluation, mean, IQM, published means and the verdict on them."""
    returns, rows = curve.final(), published_at_end(curve)
    mean, band = float(returns.mean()), published_band(rows, returns)
    means = ", ".join(number(value, mean) for value in sorted(means_of(rows)))
    cells = [str(len(returns)), curve.protocol, mean_with_interval(returns)]
    cells += [number(float(interquartile_mean(returns)), mean), means]
    if band is None:
        return [*cells, ""]
    inside, too_wide = verdict(mean, band) == "inside", says_little(mean, band)
    low, high = (number(value, mean) for value in band)
    remarks = ["of one implementation"] if len(rows_with_spread(rows)) == 1 else []
    remarks += ["too wide"] if too_wide else []
    remark = f" ({', '.join(remarks)})" if remarks else ""
    return [*cells, f"{'inside' if inside else '**outside**'} {low} to {high}{remark}"]


RESULT_TITLES = ["seeds", "evaluation", "mean ± 95%", "IQM", "published", "their band"]


def task_table(curves: list[Curve]) -> list[str]:
    """Results on one task: a row for each number of steps and algorithm."""
    chosen = sorted(worth_a_row(curves), key=lambda curve: (curve.budget, curve.name))
    rows = [[f"{curve.budget:,}", name_with_flags(curve), *result_cells(curve)] for curve in chosen]
    return markdown_table(["steps", "algorithm", *RESULT_TITLES], rows)


def algorithm_table(curves: list[Curve]) -> list[str]:
    """Results of one algorithm: a row for each task, number of steps and set of changed flags."""
    chosen = sorted(worth_a_row(curves), key=lambda curve: (curve.env_id, curve.budget, curve.flags))
    rows = [
        [
            f"{curve.env_id} `{curve.flags}`" if curve.flags else curve.env_id,
            f"{curve.budget:,}",
            *result_cells(curve),
        ]
        for curve in chosen
    ]
    return markdown_table(["task", "steps", *RESULT_TITLES], rows)


def variant_table(curves: list[Curve]) -> list[str]:
    """Results of one algorithm's variants, with their names and flags."""
    chosen = sorted(worth_a_row(curves), key=lambda curve: (curve.env_id, curve.budget, curve.name))
    rows = [
        [curve.env_id, f"{curve.budget:,}", curve.name, code(curve.flags), *result_cells(curve)]
        for curve in chosen
    ]
    return markdown_table(["task", "steps", "name", "changed flags", *RESULT_TITLES], rows)


def published_table(curves: list[Curve]) -> list[str]:
    """The published rows at the curves' numbers of steps, with source and protocol."""
    rows = {}
    for curve in curves:
        for row in published_at_end(curve):
            mean = float(row["mean"])
            deviation = f" ± {number(float(row['spread']), mean)}" if row["spread"] else ""
            cells = [row["algorithm"], row["env_id"], f"{int(row['step']):,}", number(mean) + deviation]
            rows[*cells, row["seeds"], row["protocol"], row["source"]] = None  # once, for all variants
    titles = ["algorithm", "task", "steps", "published mean ± std", "seeds", "protocol", "source"]
    return markdown_table(titles, [list(cells) for cells in rows])


def verdicts(curves: Iterable[Curve]) -> str:
    """A sentence that says how many means lie inside their band, and which do not.

    Also how many of those inside have a band that `says_little`.
    """
    inside, wide, outside = 0, 0, []
    for curve in worth_a_row(curves):
        returns, rows = curve.final(), published_at_end(curve)
        mean = float(returns.mean())
        if band := published_band(rows, returns):
            if verdict(mean, band) == "inside":
                inside += 1
                wide += says_little(mean, band)
            else:
                side = "above" if mean > band[1] else "below"
                place = f"{name_with_flags(curve)} on {curve.env_id} after {curve.budget:,} steps"
                outside.append(f"{place} ({curve.protocol}, {side})")
    count = inside + len(outside)
    if not count:
        return ""
    judged = f"Inside their band: {inside} of the {count} means that have one."
    if wide:
        judged += f" Of these {inside} bands, {wide} are too wide to judge by: their ends differ in sign, or "
        judged += "by more than a factor of three."
    return f"{judged} Outside: {', '.join(outside)}." if outside else judged


def below_average(curves: Iterable[Curve]) -> str:
    """A sentence that says how many evaluations are below the average of the published ones beside them.

    If only chance decides, each has one chance in two.
    """
    below = defaultdict(list)
    for curve in worth_a_row(curves):
        rows = published_at_end(curve)
        if rows and curve.protocol != "training":
            below[curve.budget].append(curve.final().mean() < np.mean(means_of(rows)))
    counts = [
        f"after {budget:,} steps {sum(found)} of {len(found)}" for budget, found in sorted(below.items())
    ]
    return f"Below the average of the published means beside them: {', '.join(counts)}." if counts else ""


def score(curve: Curve) -> np.ndarray:
    """Final returns of the seeds on a scale from 0, a random policy, to 1, TD3 after a million steps."""
    low, high = REFERENCE_RETURNS[curve.family]
    return (curve.final() - low) / (high - low)


def shared_tasks(curves: Iterable[Curve]) -> dict[tuple[int, str], dict[str, list[Curve]]]:
    """By number of steps and evaluation, deterministic or sampled, the algorithms that share at least five
    tasks with a scale, and their curves there.

    Runs with changed flags, algorithms with fewer tasks, and tasks that another one lacks are left out; so is
    an algorithm alone with its sampled actions.
    """
    groups: dict[tuple[int, str], dict[str, dict[str, Curve]]] = defaultdict(lambda: defaultdict(dict))
    for curve in curves:
        plain = curve.family in REFERENCE_RETURNS and not curve.is_variant and not curve.flags
        if plain and curve.protocol != "training":
            groups[curve.budget, curve.protocol][curve.name][curve.env_id] = curve
    found = {}
    for (budget, protocol), algorithms in sorted(groups.items()):
        broad = {name: tasks for name, tasks in algorithms.items() if len(tasks) >= FEWEST_TASKS}
        shared = sorted(set.intersection(*map(set, broad.values()))) if broad else []
        if len(shared) >= FEWEST_TASKS and (protocol == "deterministic" or len(broad) > 1):
            chosen = {name: [tasks[task] for task in shared] for name, tasks in broad.items()}
            found[budget, protocol] = chosen
    return found


def aggregate_table(curves: Iterable[Curve]) -> list[str]:
    """IQM of the scores over tasks and seeds, with its bootstrap interval, and the mean score of each task,
    since the IQM leaves out the lowest and the highest quarter of the runs; [] for fewer than five tasks."""
    rows = []
    for (budget, protocol), algorithms in shared_tasks(curves).items():
        for name, group in algorithms.items():
            tasks = [score(curve) for curve in group]
            iqm = f"{weighted_interquartile_mean(tasks):.2f}"
            several = min(map(len, tasks)) > 1
            interval = "{:.2f} to {:.2f}".format(*stratified_bootstrap(tasks)) if several else "one seed"
            means = [f"{curve.family} {own.mean():.2f}" for curve, own in zip(group, tasks, strict=True)]
            rows.append([f"{budget:,}", protocol, name, iqm, interval, ", ".join(means)])
    titles = ["steps", "evaluation", "algorithm", "IQM of scores", "95%", "mean score of each task"]
    return markdown_table(titles, rows) if rows else []


def points_with_bands(curve: Curve) -> list[tuple[int, np.ndarray, list[dict[str, str]]]]:
    """For each published step near an evaluation of the curve: step, returns of the seeds, published rows."""
    by_step = defaultdict(list)
    for row in published(curve):
        by_step[int(row["step"])].append(row)
    return [(step, curve.near(step), by_step[step]) for step in sorted(by_step) if len(curve.near(step))]

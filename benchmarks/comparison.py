"""Compares runs with published means, and two sets of runs with each other, task by task."""

import math
import re
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.figures import plural
from benchmarks.intervals import difference_interval, improvement_interval, probability_of_improvement
from benchmarks.records import (
    COMPARABLE,
    Curve,
    known_algorithm,
    main_curves,
    published_on_older_versions,
    published_on_task,
    round_return,
)
from benchmarks.tables import (
    decimals,
    mean_with_interval,
    number,
    points_with_bands,
    published_band,
    rows_with_spread,
    says_little,
    verdict,
    with_decimals,
)
from cleanrl_maxent import algorithm_names
from cleanrl_maxent.common.errors import UsageError

FEWEST_SEEDS = 5  # of each side, for a bootstrap interval: fewer draw too few different samples


def compare_with_published(curves: list[Curve]) -> bool:
    """Prints a verdict at each published step; True if none lies outside."""
    inside, main = True, set(main_curves(curves))
    for curve in curves:
        points = points_with_bands(curve)
        if points or curve in main:
            how = "returns in training" if curve.protocol == "training" else f"{curve.protocol} evaluation"
            print(f"{place(curve)}, {list_seeds(curve.seeds)}, {how}")
        if not points and curve in main:
            print(f"  nothing published to compare with{why_not(curve)}")
        for step, returns, rows in points:
            inside &= compare_at(step, returns, rows)
    return inside


def why_not(curve: Curve) -> str:
    """Why a curve has no published means: its task, evaluation or steps, or the name of a user's file."""
    if curve.changes_task:
        return ": the flags change the task"
    if curve.algorithm in algorithm_names():
        rows = published_on_task(curve)
        if not rows:
            older = published_on_older_versions(curve)
            other = "; what is published is of versions with other rewards" if older else ""
            return f" for {curve.algorithm} on this task{other}"
        alike = any(row["protocol"].startswith(COMPARABLE[curve.protocol]) for row in rows)
        return " at these steps" if alike else " for this kind of evaluation"
    return f": {curve.algorithm}.py is not one of our algorithms; a file named sac_….py is compared with sac"


def compare_at(step: int, returns: np.ndarray, rows: list[dict[str, str]]) -> bool:
    """Prints the mean of our seeds at a step and the published means; False if it is outside their band."""
    mean, band = float(returns.mean()), published_band(rows, returns)
    words = (
        "training windows differ" if rows[0]["protocol"].startswith("training") else "no spread was published"
    )
    if band:
        words = f"band {number(band[0], mean)} to {number(band[1], mean)}"
        if says_little(mean, band):
            words += ", too wide to judge by"
        if len(rows_with_spread(rows)) == 1:
            words += ", of a single implementation: differences between implementations are not in it"
    judged = verdict(mean, band)
    print(f"  {step:,} steps: {number(mean)}  {judged}  ({words})")
    for row in rows:
        theirs = float(row["mean"])
        deviation = f" ± {number(float(row['spread']), theirs)}" if row["spread"] else ""
        print(f"      {number(theirs)}{deviation}  {row['env_id']}, {row['protocol']}: {row['source']}")
    return judged != "outside"


def compare_sets(a: list[Curve], b: list[Curve]) -> None:
    """Prints which of two sets of runs returns more, for each task, number of steps and protocol.

    Also, for each number of steps, the average over several comparisons; then what was not compared. Raises
    UsageError if they have nothing in common.
    """
    found = list(pairs(a, b))
    for of_a, of_b in found:
        print(f"{of_a.task}, {of_a.budget:,} steps, {of_a.protocol}")
        write = number_of_difference(of_a.final(), of_b.final())
        for letter, curve in (("A", of_a), ("B", of_b)):
            seeds = plural(len(curve.seeds), "seed")
            print(f"  {letter}: {whole_name(curve)}, {seeds}: {mean_with_interval(curve.final(), write)}")
        for line in conclusion(of_a.final(), of_b.final(), write):
            print(f"  {line}")
        if same := same_seeds(of_a, of_b):
            print(f"  {list_seeds(same)} of A and B have identical returns: are they the same runs?")
    if not found:
        ours, theirs = (some_of({place(curve) for curve in side}) for side in (a, b))
        how = "sets of several are paired by algorithm, name and flags"
        raise UsageError(f"nothing to compare: A has {ours}; B has {theirs}; {how}")
    several = [pair for pair in found if min(len(curve.seeds) for curve in pair) > 1]
    for budget in sorted({of_a.budget for of_a, _ in several}):
        alike = [(of_a.final(), of_b.final()) for of_a, of_b in several if of_a.budget == budget]
        if len(alike) > 1:
            words = f"{budget:,} steps, averaged over {len(alike)} comparisons with at least two seeds a side"
            print(f"{words}: a seed of B beats one of A with probability {chance(alike)}")
    for letter, side, paired in zip("AB", (a, b), zip(*found, strict=True), strict=True):
        if alone := {place(curve) for curve in side} - {place(curve) for curve in paired}:
            print(f"not compared, in {letter}: {some_of(alone)}")


def pairs(a: list[Curve], b: list[Curve]) -> Iterator[tuple[Curve, Curve]]:
    """Pairs of curves, one of each set, with the same task and steps and the main protocol that both have.

    If each set has one algorithm or variant there, these are paired; else those of the same algorithm, name
    and flags.
    """
    for task in dict.fromkeys((curve.task, curve.budget) for curve in a):
        sides = [[curve for curve in side if (curve.task, curve.budget) == task] for side in (a, b)]
        alone = all(len({whole_name(curve) for curve in side}) == 1 for side in sides)
        taken = set()
        for of_a in sides[0]:
            for of_b in sides[1]:
                alike = alone or whole_name(of_a) == whole_name(of_b)
                if alike and of_a.protocol == of_b.protocol and whole_name(of_a) not in taken:
                    taken.add(whole_name(of_a))
                    yield of_a, of_b


def list_seeds(seeds: list[str]) -> str:
    """`seed 2`, `seeds 1 2 3`."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {' '.join(seeds)}"


def same_seeds(a: Curve, b: Curve) -> list[str]:
    """The seeds whose returns, rounded as evaluations.csv has them, are the same in both curves."""
    written = [
        {
            seed: {step: round_return(value) for step, value in zip(curve.steps, returns, strict=True)}
            for seed, returns in zip(curve.seeds, curve.returns, strict=True)
        }
        for curve in (a, b)
    ]
    return [seed for seed in a.seeds if written[0][seed] == written[1].get(seed)]


def number_of_difference(a: np.ndarray, b: np.ndarray) -> Callable[[float, float], str]:
    """`number` for both means, their intervals and their difference, all with the same decimals.

    They are enough for two significant digits of half the width of the difference's interval or, without one,
    of the difference.
    """
    means = float(a.mean()), float(b.mean())
    scale = abs(means[1] - means[0])
    if min(len(a), len(b)) > 1:
        low, high = difference_interval(a, b)
        scale = (high - low) / 2 or scale
    scale = round(scale, 9)  # without digits of rounding errors
    fine = 1 - math.floor(math.log10(scale)) if scale else 0
    digits = max(decimals(max(map(abs, means))), fine)
    return lambda value, _: with_decimals(value, digits)


def conclusion(a: np.ndarray, b: np.ndarray, write: Callable[[float, float], str]) -> list[str]:
    """What the final returns of A's and B's seeds say about the difference, in one or two lines."""
    mean = float(b.mean() - a.mean())
    difference = f"B − A: {write(mean, mean)}"
    if min(len(a), len(b)) < 2:
        return [f"{difference}; one seed gives no estimate of the spread"]
    low, high = difference_interval(a, b)
    if low == high and mean:
        return [f"{difference}; all seeds of each side are equal, which gives no estimate of the spread"]
    beats = f"a seed of B beats one of A with probability {chance([(a, b)])}"
    interval = f"{write(low, mean)} to {write(high, mean)}"
    if low > 0 or high < 0:
        more = "B" if low > 0 else "A"
        better = f"{more} returns more: the difference is larger than chance explains (95%)."
    else:
        better = "These seeds cannot tell which of them returns more."
        if probability_of_improvement(a, b) in (0, 1):
            more, less = ("B", "A") if mean > 0 else ("A", "B")
            every = f"Every seed of {more} returns more than every seed of {less}"
            better = f"{every}, but with so few seeds the 95% interval still contains 0."
    return [f"{difference} (95%: {interval}); {beats}", better]


def chance(tasks: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Probability of improvement, averaged over tasks; with its interval if there are enough seeds."""
    mean = np.mean([probability_of_improvement(*task) for task in tasks])
    low, high = improvement_interval(tasks)
    enough = min(len(side) for task in tasks for side in task) >= FEWEST_SEEDS
    return f"{mean:.2f} ({low:.2f} to {high:.2f})" if enough and low < high else f"{mean:.2f}"


def whole_name(curve: Curve) -> str:
    """Name and changed flags, after the algorithm's name if the name does not begin with it."""
    is_clear = re.match(rf"{re.escape(curve.algorithm)}([-_]|$)", curve.name)
    is_clear = is_clear and known_algorithm(curve.name) in (curve.algorithm, curve.name)
    return f"{'' if is_clear else curve.algorithm} {curve.name} {curve.flags}".strip()


def some_of(names: set[str]) -> str:
    """Names, three at most, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def place(curve: Curve) -> str:
    """`sac on Hopper-v4 for 100,000 steps`."""
    return f"{whole_name(curve)} on {curve.env_id} for {curve.budget:,} steps"

"""Draws any recorded metric of runs, finished or not: losses, entropy, temperature, returns in training."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.curves import Lines, draw_lines, label_of
from benchmarks.figures import figure_name, plural
from benchmarks.records import (
    enter_file,
    enter_holder,
    group_of,
    in_last_twentieth,
    name_damaged,
    read_lines,
    run_folders,
    task_of,
    warn_of_versions,
)
from benchmarks.tables import mean_with_interval
from cleanrl_maxent.common.config import read_config
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.folder import read_json

BINS = 100  # of steps, to average a metric that seeds have often or at different steps
Points = tuple[np.ndarray, np.ndarray]  # steps and values of a seed, (points,) each


@dataclass(frozen=True)
class Seed:
    """What one seed recorded of a metric."""

    name: str
    steps: np.ndarray  # (points,)
    values: np.ndarray  # (points,)
    end: int  # last step of the run; a finished run of whole rollouts may end a little earlier than planned

    def at_the_end(self) -> float | None:
        """Mean of the values in the last 5% of the steps; None if the seed has none there."""
        late = in_last_twentieth(self.steps, self.end)
        return float(self.values[late].mean()) if late.any() else None


def plot_metric(metric: str, run_dirs: list[Path], out_dir: Path) -> list[Path]:
    """Draws a metric for each task and number of steps, and prints its mean over the last 5% of the steps.

    Seeds without the metric are left out, which is printed too. Returns the figures' paths. Raises UsageError
    if no run has the metric, with the names of those there are; if it is never a finite number; if two
    folders hold the same seed; if different files trained seeds of one name; or if a run is damaged.
    """
    groups, known, without = defaultdict(lambda: defaultdict(list)), set(), Counter()
    holders, files = {}, {}
    configs = {folder: read_config(folder) for folder in run_folders(run_dirs)}
    for folder, config in configs.items():
        with name_damaged(folder):
            group = group_of(config)
            budget = int(group["total_timesteps"])
            seeds, names = read_seeds(metric, folder, budget)
        known |= names
        enter_file(group, config["algorithm"], files)
        kind = group["algorithm"], group["exp_name"], group["flags"]
        task = task_of(group["env_id"], group["flags"])
        for name, seed in seeds.items():
            enter_holder(group | {"seed": name}, folder, holders)
            if seed:
                groups[task, budget][kind].append(seed)
            else:
                without[folder] += 1
    if not groups:
        names = ", ".join(sorted(known - {"global_step"})) or "none"
        raise UsageError(f"no run has the metric {metric!r}; there are: {names}")
    seeds = [seed for kinds in groups.values() for group in kinds.values() for seed in group]
    if not any(np.isfinite(seed.values).any() for seed in seeds):
        raise UsageError(f"{metric!r} is never a finite number in these runs")
    warn_of_versions(configs.values())
    drawn = [draw_task(metric, task, seeds, out_dir) for task, seeds in sorted(groups.items())]
    for folder, count in without.items():
        print(f"{folder}: {plural(count, 'seed')} left out, without {metric}")
    return drawn


def read_seeds(metric: str, folder: Path, budget: int) -> tuple[dict[str, Seed | None], set[str]]:
    """What each seed of a run recorded of a metric, None for nothing; and the names of all recorded metrics.

    A damaged run raises UsageError, KeyError, TypeError, ValueError, AttributeError or IndexError.
    """
    names = {path.parent.name.removeprefix("seed-") for path in folder.glob("seed-*/metrics.jsonl")}
    result, found, known = folder / "result.json", {}, set()
    is_finished = result.exists()
    if is_finished:
        names.update(read_json(result)["evaluations"])
    for name in sorted(names, key=lambda name: (len(name), name)):
        record = read_lines(folder / f"seed-{name}" / "metrics.jsonl")
        known.update(*record)
        end = record[-1]["global_step"] if is_finished else budget
        points = [(row["global_step"], row[metric]) for row in record if metric in row]
        steps, values = np.array(points, float).reshape(-1, 2).T
        found[name] = Seed(name, steps, values, end) if points else None
    return found, known


def draw_task(
    metric: str, task: tuple[str, int], groups: dict[tuple[str, str, str], list[Seed]], out_dir: Path
) -> Path:
    """One figure, and a printed line for each algorithm or variant in it."""
    place, budget = task
    lines, names = [], [name for _, name, _ in groups]
    for (algorithm, name, flags), seeds in sorted(groups.items()):
        variant, counted = name != algorithm, plural(len(seeds), "seed")
        name = label_of(name, flags, variant, names)
        steps, values = on_common_steps([(seed.steps, seed.values) for seed in seeds])
        lines.append(Lines(algorithm, f"{name}, {counted}", variant, steps, values))
        print(f"{name} on {place}, last 5% of {budget:,} steps: {metric} {end_in_words(seeds)}")
    path = out_dir / f"{figure_name(metric)}-{figure_name(place)}-{budget}.png"
    return draw_lines(lines, budget, f"{place}, {budget:,} steps", metric, path)


def end_in_words(seeds: list[Seed]) -> str:
    """Mean over the seeds that have values at the end, each of these, and the last step of the others."""
    at_end = {seed.name: seed.at_the_end() for seed in seeds}
    ends = np.array([value for value in at_end.values() if value is not None])
    words = []
    if len(ends):
        each = ", ".join(three_digits(value, ends.mean()) for value in ends)
        words.append(f"{mean_with_interval(ends, three_digits)}, {plural(len(ends), 'seed')}: {each}")
    words += [
        f"seed {seed.name} left out, last value at step {int(seed.steps[-1]):,}"
        for seed in seeds
        if at_end[seed.name] is None
    ]
    return "; ".join(words)


def three_digits(value: float, reference: float) -> str:
    """A value with as many decimals as three significant digits of `reference` need: `0.982`, `5,152`."""
    magnitude = math.floor(math.log10(abs(reference))) if reference and math.isfinite(reference) else 0
    return f"{value:z,.{min(max(2 - magnitude, 0), 12)}f}".replace("-", "−")  # z: as in `number`


def on_common_steps(seeds: list[Points]) -> Points:
    """Steps `(points,)` and values `(seeds, points)`.

    Values at many or different steps are averaged in `BINS` parts of the steps. Where only other seeds have
    a value, a seed's own is interpolated; before its first and after its last, and where its own is not
    finite, it is NaN.
    """
    first = seeds[0][0]
    if len(first) <= BINS and all(np.array_equal(steps, first) for steps, _ in seeds):
        return first, np.stack([values for _, values in seeds])
    edges = np.linspace(0, max(steps[-1] for steps, _ in seeds), BINS + 1)
    table, gaps = np.full((len(seeds), BINS), np.nan), np.zeros((len(seeds), BINS), bool)
    for row, gap, (steps, values) in zip(table, gaps, seeds, strict=True):
        place = np.clip(np.searchsorted(edges, steps) - 1, 0, BINS - 1)
        counts = np.bincount(place, minlength=BINS)
        np.divide(np.bincount(place, values, BINS), counts, out=row, where=counts > 0)
        gap[:] = (counts > 0) & ~np.isfinite(row)
    some = (np.isfinite(table) | gaps).any(axis=0)
    common, table = edges[1:][some], table[:, some]
    for row, gap in zip(table, gaps[:, some], strict=True):
        if (own := np.isfinite(row)).any():
            row[:] = np.interp(common, common[own], row[own], left=np.nan, right=np.nan)
            row[gap] = np.nan
    return common, table

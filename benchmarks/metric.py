"""Any metric of the record of runs, finished or not: losses, entropy, temperature, returns in training."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.curves import Lines, draw_lines
from benchmarks.figures import plural
from benchmarks.intervals import mean_interval
from benchmarks.records import group_of, read_lines, run_folders
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.folder import file_name

BINS = 100  # of steps, in which a metric is averaged that the seeds have at different steps, or often
Points = tuple[np.ndarray, np.ndarray]  # steps and values of a seed, (points,) each


def plot_metric(metric: str, run_dirs: tuple[Path, ...], out_dir: Path) -> list[Path]:
    """Draws a metric for each task and number of steps, and prints its mean over the last 5% of the steps.

    Returns the figures' paths. Raises UsageError, with the metrics that there are, if no run has it.
    """
    groups, known = defaultdict(lambda: defaultdict(list)), set()
    for folder in run_folders(run_dirs, "config.json", "run"):
        group = group_of(json.loads((folder / "config.json").read_text()))
        for path in sorted(folder.glob("seed-*/metrics.jsonl")):
            record = read_lines(path)
            known.update(*record)
            points = [(row["global_step"], row[metric]) for row in record if metric in row]
            if points:
                steps, values = np.array(points, float).T
                task = group["env_id"], int(group["total_timesteps"])
                groups[task][group["algorithm"], group["exp_name"], group["flags"]].append((steps, values))
    if not groups:
        names = ", ".join(sorted(known - {"global_step"})) or "none"
        raise UsageError(f"no run has the metric {metric!r}; there are: {names}")
    return [draw_task(metric, task, seeds, out_dir) for task, seeds in sorted(groups.items())]


def draw_task(
    metric: str, task: tuple[str, int], groups: dict[tuple[str, str, str], list[Points]], out_dir: Path
) -> Path:
    """One figure, and a printed line for each algorithm or variant in it."""
    env_id, budget = task
    lines, names = [], [name for _, name, _ in groups]
    for (algorithm, name, flags), seeds in sorted(groups.items()):
        name = f"{name} {flags}" if names.count(name) > 1 else name
        counted = plural(len(seeds), "seed")
        variant = name.split()[0] != algorithm
        lines.append(Lines(algorithm, f"{name}, {counted}", variant, *on_common_steps(seeds)))
        ends = np.array([at_the_end(*points) for points in seeds])
        reached = int(max(steps[-1] for steps, _ in seeds))
        mean = f"{ends.mean():.4g}" + (f" ± {mean_interval(ends):.2g}" if len(ends) > 1 else "")
        seeds_alone = ", ".join(f"{value:.4g}" for value in ends)
        print(f"{name} on {env_id}, last 5% of {reached:,} steps: {metric} {mean}, {counted}: {seeds_alone}")
    path = out_dir / f"{file_name(metric)}-{file_name(env_id)}-{budget}.png"
    return draw_lines(lines, budget, f"{env_id}, {budget:,} steps", metric, path)


def at_the_end(steps: np.ndarray, values: np.ndarray) -> float:
    """Mean of a seed's values in the last 5% of its steps."""
    return float(values[steps > 0.95 * steps[-1]].mean())


def on_common_steps(seeds: list[Points]) -> Points:
    """Steps `(points,)` and values `(seeds, points)`, NaN where a seed has none."""
    first = seeds[0][0]
    if len(first) <= BINS and all(np.array_equal(steps, first) for steps, _ in seeds):
        return first, np.stack([values for _, values in seeds])
    edges = np.linspace(0, max(steps[-1] for steps, _ in seeds), BINS + 1)
    table = np.full((len(seeds), BINS), np.nan)
    for row, (steps, values) in zip(table, seeds, strict=True):
        place = np.clip(np.searchsorted(edges, steps) - 1, 0, BINS - 1)
        counts = np.bincount(place, minlength=BINS)
        np.divide(np.bincount(place, values, BINS), counts, out=row, where=counts > 0)
    some = np.isfinite(table).any(axis=0)
    return edges[1:][some], table[:, some]

"""Collects finished runs, draws and tabulates them, and compares them with published curves.

    python benchmarks/report.py collect runs/cpu             # adds its finished runs to benchmarks/results/
    python benchmarks/report.py draw                         # figures and tables of these, docs/results.md
    python benchmarks/report.py draw runs/mine --out-dir my_report
    python benchmarks/report.py compare runs/mine            # inside the published band, or outside?

Exit status 2 for bad input; 1 if `compare` finds a mean outside.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.figures import plural, pyplot, save_figure
from benchmarks.intervals import (
    interquartile_mean,
    mean_interval,
    performance_profile,
    prediction_interval,
    stratified_bootstrap,
)
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.folder import file_name

RESULTS = Path(__file__).parent / "results"
PUBLISHED = Path(__file__).parent / "published.csv"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
RETURNS = {
    "return_deterministic": "eval/return_mean",
    "return_stochastic": "eval_stochastic/return_mean",
}
COLUMNS = ("algorithm", "exp_name", "env_id", "seed", "step", "seconds", *RETURNS)
# random policy, and TD3 at 1M steps; v4, https://github.com/DAVIAN-Robotics/SimbaV2 scale_rl/envs/mujoco.py
REFERENCE_RETURNS = {
    "HalfCheetah": (-289.415, 10_574),
    "Hopper": (18.791, 3_226),
    "Walker2d": (2.791, 3_946),
    "Ant": (-70.288, 3_942),
    "Humanoid": (120.423, 5_165),
}


@dataclass
class Collect:
    """Adds the evaluations of finished runs to the results; a run that is there already is replaced.
    A policy that an algorithm does not have leaves its column empty."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # runs, or folders of runs
    results: Path = RESULTS  # folder of evaluations.csv and manifest.json


@dataclass
class Draw:
    """Draws learning curves and profiles, and writes report.md with the tables; without `run_dirs` the tables
    of docs/results.md too."""

    run_dirs: Annotated[
        tuple[Path, ...], tyro.conf.Positional
    ] = ()  # runs, or folders of runs; none: results/
    out_dir: Path | None = None  # folder of the figures and of report.md; needed with run_dirs


@dataclass
class Compare:
    """Says at each published step whether the mean of the seeds lies in the published band.

    The band is the 95% prediction interval for the mean of as many seeds of one more program, from the
    spread of published seeds and between published programs.
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # runs, or folders of runs


def finished_runs(paths: Iterable[Path]) -> list[Path]:
    """The finished runs among `paths` and one level below; raises UsageError if a path holds none."""
    found = []
    for path in (path for path in paths if not path.is_file()):
        below = sorted(file.parent for file in (*path.glob("result.json"), *path.glob("*/result.json")))
        if not below:
            raise UsageError(f"{path} holds no finished run: no result.json in it or one level below")
        found += below
    if not found:
        raise UsageError("name a run, or a folder of runs")
    return found


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, every value a string; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path) -> list[dict]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_run(folder: Path) -> tuple[list[dict[str, str]], dict]:
    """Rows of a finished run, and its entry in the manifest."""
    config = json.loads((folder / "config.json").read_text())
    del config["args"]["run_dir"]  # a path of this machine
    result = json.loads((folder / "result.json").read_text())
    timing = read_lines(folder / "timing.jsonl")
    steps, seconds = ([0, *(row[name] for row in timing)] for name in ("global_step", "seconds"))
    run = {
        "algorithm": config["algorithm"],
        **{name: config["args"][name] for name in ("exp_name", "env_id")},
    }
    rows = []
    for seed in result["evaluations"]:
        for metrics in read_lines(folder / f"seed-{seed}" / "metrics.jsonl"):
            returns = {column: f"{metrics[name]:.1f}" for column, name in RETURNS.items() if name in metrics}
            if returns:
                step = metrics["global_step"]
                position = {
                    "seed": seed,
                    "step": str(step),
                    "seconds": f"{np.interp(step, steps, seconds):.0f}",
                }
                rows.append(run | position | returns)
    return rows, config | {"seconds": result["seconds"]}


def read_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Rows of the finished runs among `paths` and one level below. Raises UsageError."""
    return [row for folder in finished_runs(paths) for row in read_run(folder)[0]]


def collect(run_dirs: Iterable[Path], results: Path) -> None:
    """Reads every run into evaluations.csv and manifest.json."""
    rows, manifest_path = read_csv(results / "evaluations.csv"), results / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    for folder in run_dirs:
        added, entry = read_run(folder)
        identities = {identity(row) for row in added}
        rows = [row for row in rows if identity(row) not in identities] + added
        manifest |= {" ".join(name): entry for name in identities}
    rows.sort(key=lambda row: (row["exp_name"], row["env_id"], int(row["seed"]), int(row["step"])))
    results.mkdir(parents=True, exist_ok=True)
    with (results / "evaluations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    manifest_path.write_text(json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def identity(row: dict[str, str]) -> tuple[str, str, str]:
    """Which training run a row is an evaluation of."""
    return row["exp_name"], row["env_id"], row["seed"]


@dataclass
class Curve:
    """The seeds of one algorithm on one environment, evaluated at the same steps."""

    algorithm: str
    exp_name: str
    env_id: str
    protocol: str  # deterministic or sampled evaluation
    seeds: list[str]
    steps: np.ndarray  # (evaluations,)
    returns: np.ndarray  # (seeds, evaluations), in reward units
    seconds: np.ndarray  # (seeds, evaluations); NaN if they were not recorded

    @property
    def family(self) -> str:
        """The environment whatever its version."""
        return self.env_id.rpartition("-v")[0]

    def final(self) -> np.ndarray:
        """Mean of each seed's evaluations in the last 5% of its steps, `(seeds,)`."""
        return self.near(int(self.steps[-1]))

    def near(self, step: int) -> np.ndarray:
        """Mean of each seed's evaluations within 5% of a step, `(seeds,)`; empty if there are none."""
        chosen = np.abs(self.steps - step) <= 0.05 * step
        return self.returns[:, chosen].mean(axis=1) if chosen.any() else np.array([])


def group_curves(rows: list[dict[str, str]]) -> list[Curve]:
    """A curve for each name and environment; steps that not all of its seeds have are left out."""
    groups = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["algorithm"], row["exp_name"], row["env_id"]][row["seed"]][int(row["step"])] = row
    curves = []
    for (algorithm, exp_name, env_id), seeds in groups.items():
        steps = sorted(set.intersection(*(set(evaluations) for evaluations in seeds.values())))
        if not steps:
            raise UsageError(f"the seeds of {exp_name} on {env_id} have no evaluation step in common")
        table = [[evaluations[step] for step in steps] for evaluations in seeds.values()]
        deterministic = bool(table[0][0].get("return_deterministic"))
        column = "return_deterministic" if deterministic else "return_stochastic"
        returns, seconds = (
            np.array([[float(row.get(name) or "nan") for row in line] for line in table])
            for name in (column, "seconds")
        )
        protocol = "deterministic" if deterministic else "sampled"
        curve = Curve(algorithm, exp_name, env_id, protocol, list(seeds), np.array(steps), returns, seconds)
        curves.append(curve)
    return curves


@cache
def published_rows() -> list[dict[str, str]]:
    """Every row of published.csv."""
    return read_csv(PUBLISHED)


def published(curve: Curve) -> list[dict[str, str]]:
    """Published rows of the same algorithm, environment family and protocol, up to our last step, whatever
    the version.

    Deterministic evaluations are never set against training episodes or exploration.
    """
    protocols = {
        "deterministic": ("deterministic evaluation", "evaluation, determinism not stated"),
        "sampled": ("sampled evaluation",),
    }[curve.protocol]
    return [
        row
        for row in published_rows()
        if row["algorithm"] == curve.algorithm and row["env_id"].rpartition("-v")[0] == curve.family
        if row["protocol"].startswith(protocols) and 0.95 * int(row["step"]) <= curve.steps[-1]
    ]


def draw(rows: list[dict[str, str]], out_dir: Path) -> str:
    """Writes the figures and report.md, whose text is returned. Raises UsageError without matplotlib."""
    curves = group_curves(rows)
    out_dir.mkdir(parents=True, exist_ok=True)
    for env_id in sorted({curve.env_id for curve in curves}):
        of_env = [curve for curve in curves if curve.env_id == env_id]
        draw_curves(of_env, out_dir / f"{file_name(env_id)}.png")
    if scored(curves):
        draw_profiles(curves, out_dir / "profiles.png")
    tables = final_table(curves), aggregate_table(curves), published_table(curves)
    text = "\n\n".join("\n".join(table) for table in tables) + "\n"
    (out_dir / "report.md").write_text(text)
    return text


def line_style(number: int) -> str:
    """Dashes for the lines after the tenth, where matplotlib's colours begin again."""
    return "-" if number < 10 else "--"


def draw_curves(curves: list[Curve], path: Path) -> None:
    """Return against steps and against hours: mean, 95% interval of three seeds or more, published means."""
    figure, (by_step, by_time) = pyplot().subplots(1, 2, figsize=(12, 3.6), sharey=True, layout="constrained")
    for number, curve in enumerate(curves):
        mean, color, style = curve.returns.mean(axis=0), f"C{number}", line_style(number)
        half_width = 0.0  # the interval of two seeds is as wide as the figure
        if len(curve.seeds) >= 3:
            half_width = np.array([mean_interval(returns) for returns in curve.returns.T])
        label = f"{curve.exp_name}, {curve.protocol}, {plural(len(curve.seeds), 'seed')}"
        by_step.plot(curve.steps, mean, style, color=color, label=label)
        by_step.fill_between(curve.steps, mean - half_width, mean + half_width, color=color, alpha=0.2, lw=0)
        for row in published(curve) if curve.exp_name == curve.algorithm else []:
            # algorithms next to each other
            beside = (number - (len(curves) - 1) / 2) * 0.015 * curve.steps[-1]
            point = int(row["step"]) + beside, float(row["mean"]), float(row["spread"] or 0)
            by_step.errorbar(*point, fmt="o", color=color, mfc="none", lw=0.8)
        hours = curve.seconds.mean(axis=0) / 3600
        by_time.plot(hours, mean, style, color=color)
        by_time.fill_between(hours, mean - half_width, mean + half_width, color=color, alpha=0.2, lw=0)
    by_step.set(xlabel="environment steps", ylabel="return", title=curves[0].env_id)
    title = "circles: published ± standard deviation"
    figure.legend(loc="outside right upper", frameon=False, title=title, fontsize="small")
    by_step.locator_params(axis="x", nbins=5)  # labels of six digits need room
    by_step.xaxis.set_major_formatter("{x:,.0f}")
    by_time.set(xlabel="hours")
    for axes in (by_step, by_time):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def score(curve: Curve) -> np.ndarray:
    """Final returns of the seeds on a scale from 0, a random policy, to 1, TD3 after a million steps."""
    low, high = REFERENCE_RETURNS[curve.family]
    return (curve.final() - low) / (high - low)


def scored(curves: list[Curve]) -> dict[tuple[str, int], list[Curve]]:
    """Curves with a scale, by name and number of steps."""
    groups = defaultdict(list)
    for curve in curves:
        if curve.family in REFERENCE_RETURNS:
            groups[curve.exp_name, int(curve.steps[-1])].append(curve)
    return groups


def draw_profiles(curves: list[Curve], path: Path) -> None:
    """Share of runs above each score, by algorithm; some curve must have a scale."""
    figure, axes = pyplot().subplots(figsize=(9, 3.6), layout="constrained")
    thresholds = np.linspace(0, 1.2, 200)
    for number, ((exp_name, steps), group) in enumerate(scored(curves).items()):
        profile = performance_profile([score(curve) for curve in group], thresholds)
        environments = ", ".join(curve.family for curve in group)
        label = f"{exp_name}, {steps:,} steps, {environments}"
        axes.plot(thresholds, profile, line_style(number), label=label)
    axes.set(xlabel="score τ (0: random, 1: TD3 after 1M steps)", ylabel="share of runs with score > τ")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def markdown_table(titles: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in [titles, ["---"] * len(titles), *rows]]


def final_table(curves: list[Curve]) -> list[str]:
    """Final returns of the seeds, and the published means at that step."""
    rows = []
    for curve in curves:
        final_returns, last = curve.final(), int(curve.steps[-1])
        others = [row for row in published(curve) if int(row["step"]) == last]
        half = f" ± {mean_interval(final_returns):,.0f}" if len(final_returns) > 1 else ""
        mean = f"{final_returns.mean():,.0f}{half}"
        summary = (
            *(interquartile_mean(final_returns), np.median(final_returns)),
            *(final_returns.min(), final_returns.max()),
        )
        numbers = [f"{value:,.0f}" for value in summary]
        cells = [curve.exp_name, curve.env_id, curve.protocol, str(len(final_returns)), f"{last:,}", mean]
        band = published_band(others, len(final_returns))
        means = ", ".join(f"{float(row['mean']):,.0f}" for row in others)
        rows.append([*cells, *numbers, means, f"{band[0]:,.0f} to {band[1]:,.0f}" if band else ""])
    titles = ["name", "environment", "evaluation", "seeds", "steps", "mean ± 95%"]
    return markdown_table([*titles, "IQM", "median", "lowest", "highest", "published", "their band"], rows)


def refresh_page(text: str, curves: list[Curve]) -> str:
    """The text of docs/results.md with its two tables as the curves give them, between their marks."""
    defaults = [curve for curve in curves if curve.exp_name == curve.algorithm]
    variants = [curve for curve in curves if curve.exp_name != curve.algorithm]
    for name, chosen in (("algorithms", defaults), ("variants", variants)):
        start = f"<!-- table of {name}, written by benchmarks/report.py draw -->"
        end = f"<!-- end of the table of {name} -->"
        table = "\n".join([start, "", *final_table(chosen), "", end])
        text = re.sub(f"{start}.*{end}", lambda _, table=table: table, text, flags=re.DOTALL)
    return text


def published_table(curves: list[Curve]) -> list[str]:
    """The published points of the figures, with source and protocol."""
    rows = {}
    for curve in curves:
        for row in published(curve):
            deviation = f" ± {float(row['spread']):,.0f}" if row["spread"] else ""
            mean = f"{float(row['mean']):,.0f}{deviation}"
            cells = [row["algorithm"], row["env_id"], f"{int(row['step']):,}", mean, row["seeds"]]
            rows[(*cells, row["protocol"], row["source"])] = None  # once, for all variants
    titles = ["algorithm", "environment", "steps", "published", "seeds", "protocol", "source"]
    return markdown_table(titles, [list(cells) for cells in rows])


def aggregate_table(curves: list[Curve]) -> list[str]:
    """IQM of the scores over environments and seeds, with its bootstrap interval."""
    rows = []
    for (exp_name, steps), group in scored(curves).items():
        tasks = [score(curve) for curve in group]
        environments = ", ".join(curve.env_id for curve in group)
        iqm = f"{interquartile_mean(np.concatenate(tasks)):.2f}"
        several = min(map(len, tasks)) > 1
        interval = "{:.2f} to {:.2f}".format(*stratified_bootstrap(tasks)) if several else "one seed"
        rows.append([exp_name, f"{steps:,}", environments, iqm, interval])
    return markdown_table(["name", "steps", "environments", "IQM of scores", "95%"], rows)


def compare(rows: list[dict[str, str]]) -> bool:
    """Prints a verdict at each published step; True if none lies outside."""
    inside = True
    for curve in group_curves(rows):
        print(
            f"{curve.exp_name} on {curve.env_id}, seeds {' '.join(curve.seeds)}, {curve.protocol} evaluation"
        )
        by_step = defaultdict(list)
        for row in published(curve):
            by_step[int(row["step"])].append(row)
        steps = [step for step in sorted(by_step) if len(curve.near(step))]
        if not steps:
            print("  nothing published to compare with at these steps")
        for step in steps:
            inside &= compare_at(step, curve.near(step), by_step[step])
    return inside


def published_band(rows: list[dict[str, str]], seeds: int) -> tuple[float, float] | None:
    """Where the mean of `seeds` seeds should lie by published rows of one step; None without a spread."""
    with_spread = [row for row in rows if row["spread"] and int(row["seeds"] or 0) > 1]
    if not with_spread:
        return None
    means, spreads, counts = (
        [float(row[name]) for row in with_spread] for name in ("mean", "spread", "seeds")
    )
    return prediction_interval(means, spreads, counts, seeds)


def compare_at(step: int, returns: np.ndarray, rows: list[dict[str, str]]) -> bool:
    """Prints where the mean of our seeds lies at a step, and against what; False if it is outside."""
    mean, verdict, words = float(returns.mean()), "no band", "no spread was published"
    if band := published_band(rows, len(returns)):
        verdict = "inside" if band[0] <= mean <= band[1] else "outside"
        words = f"band {band[0]:,.0f} to {band[1]:,.0f}"
        if len(rows) == 1:
            words += ", of a single program: how much programs differ is not in it"
    print(f"  {step:,} steps: {mean:,.0f}  {verdict}  ({words})")
    for row in rows:
        deviation = f" ± {float(row['spread']):,.0f}" if row["spread"] else ""
        print(
            f"      {float(row['mean']):,.0f}{deviation}  {row['env_id']}, {row['protocol']}: {row['source']}"
        )
    return verdict != "outside"


def main(command: Collect | Draw | Compare) -> int:
    """Exit status of a command. Raises UsageError."""
    if isinstance(command, Draw) and not command.run_dirs:
        rows = read_csv(RESULTS / "evaluations.csv")
        print(draw(rows, command.out_dir or RESULTS))
        if command.out_dir is None:
            PAGE.write_text(refresh_page(PAGE.read_text(), group_curves(rows)))
        return 0
    if isinstance(command, Draw):
        out_dir = command.out_dir
        if out_dir is None:
            raise UsageError("name an --out-dir for a report of your own runs")
        print(draw(read_rows(command.run_dirs), out_dir))
        return 0
    if isinstance(command, Collect):
        folders = finished_runs(command.run_dirs)
        collect(folders, command.results)
        hint = "; report.py draw makes the figures and tables" if command.results == RESULTS else ""
        print(f"{len(folders)} runs are in {command.results}{hint}")
        return 0
    return 0 if compare(read_rows(command.run_dirs)) else 1


if __name__ == "__main__":
    run_script(Collect | Draw | Compare, main)

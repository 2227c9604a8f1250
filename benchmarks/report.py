"""Collects finished runs into `benchmarks/results/`, and draws and tabulates what lies there.

python benchmarks/report.py collect runs/*      # adds evaluations.csv rows and their manifest
python benchmarks/report.py draw                # figures and tables from the committed rows
"""

import csv
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

RESULTS = Path(__file__).parent / "results"
RETURNS = {
    "return_deterministic": "eval/return_mean",
    "return_stochastic": "eval_stochastic/return_mean",
}
COLUMNS = ("algorithm", "env_id", "seed", "step", *RETURNS)


@dataclass
class Collect:
    """Adds the evaluations of finished runs to the results; a run that is there already is replaced.
    A policy that an algorithm does not have leaves its column empty."""

    run_dirs: Annotated[list[Path], tyro.conf.Positional]  # folders that hold a result.json


@dataclass
class Draw:
    """Draws return against steps, one figure for each environment, and prints the table."""


def read_rows() -> list[dict]:
    """Rows of evaluations.csv, every value a string."""
    path = RESULTS / "evaluations.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def collect(run_dirs: list[Path]) -> None:
    """Reads `metrics.jsonl` and `config.json` of every run; raises SystemExit for an unfinished one."""
    rows = read_rows()
    manifest_path = RESULTS / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    for folder in run_dirs:
        if not (folder / "result.json").exists():
            raise SystemExit(f"error: {folder} is not a finished run: it has no result.json")
        config = json.loads((folder / "config.json").read_text())
        del config["args"]["run_dir"]  # a path of this machine
        result = json.loads((folder / "result.json").read_text())
        algorithm, env_id = config["algorithm"], config["args"]["env_id"]
        for seed in result["evaluations"]:
            cell = {"algorithm": algorithm, "env_id": env_id, "seed": seed}
            rows = [row for row in rows if any(row[name] != cell[name] for name in cell)]
            for line in (folder / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines():
                metrics = json.loads(line)
                returns = {
                    column: f"{metrics[name]:.1f}" for column, name in RETURNS.items() if name in metrics
                }
                if returns:
                    rows.append(cell | {"step": str(metrics["global_step"])} | returns)
            manifest[f"{algorithm} {env_id} {seed}"] = config | {"seconds": result["seconds"]}
    rows.sort(key=lambda row: (row["algorithm"], row["env_id"], int(row["seed"]), int(row["step"])))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "evaluations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    manifest_path.write_text(json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def draw() -> None:
    """Writes `{algorithm}-{env_id}.png`, and prints the mean of each seed's last two evaluations."""
    import matplotlib.pyplot as plt

    curves = defaultdict(lambda: defaultdict(list))
    for row in read_rows():
        point = int(row["step"]), float(row["return_deterministic"])
        curves[row["algorithm"], row["env_id"]][int(row["seed"])].append(point)
    print("| algorithm | environment | seeds | steps | mean | median | lowest | highest |")
    print("|---|---|---|---|---|---|---|---|")
    for (algorithm, env_id), seeds in curves.items():
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        for seed, points in seeds.items():
            axes.plot(*zip(*points, strict=True), linewidth=1, label=f"seed {seed}")
        axes.set(xlabel="environment steps", ylabel="return, deterministic policy", title=env_id)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        figure.savefig(RESULTS / f"{algorithm}-{env_id}.png", dpi=120)
        plt.close(figure)
        ends = [statistics.mean(value for _, value in points[-2:]) for points in seeds.values()]
        last = max(step for points in seeds.values() for step, _ in points)
        summary = (statistics.mean(ends), statistics.median(ends), min(ends), max(ends))
        cells = " | ".join(f"{value:,.0f}" for value in summary)
        print(f"| {algorithm} | {env_id} | {len(ends)} | {last:,} | {cells} |")


if __name__ == "__main__":
    command = tyro.cli(Collect | Draw)
    if isinstance(command, Collect):
        collect(command.run_dirs)
    else:
        draw()

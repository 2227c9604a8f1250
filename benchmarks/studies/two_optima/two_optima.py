"""Why MaxEnt RL is not an entropy bonus: PPO and maxent_pg.py on the two rooms, with the diff below them.

    python benchmarks/studies/two_optima/two_optima.py    # trains what is not trained yet; table and figure

Both weight entropy with 0.5 reward per nat; advantages, rewards and observations are not scaled. Trains in
runs/two-optima/, and writes docs/figures/two-optima.png and a row for each seed, all in the folder it is run
from. Needs matplotlib (the extra `plots`).
"""

import csv
import difflib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.curves import name_whole_ticks
from benchmarks.figures import COLORS, plural, pyplot, save_figure
from benchmarks.studies.corridor.corridor import probabilities
from cleanrl_maxent import maxent_pg, ppo
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.signals import listen
from cleanrl_maxent.environments.finite import two_rooms
from cleanrl_maxent.tabular import bonus_policy, optimal_policy

ALPHA, GAMMA = 0.5, 0.99
RIGHT_REWARD = 0.5  # what an episode in the right room returns; one in the left room returns 1 or -1
BIN = 2_500  # steps over which training episodes are counted
LABELS = {ppo: "PPO, --ent-coef 0.5", maxent_pg: "maxent_pg, --alpha 0.5"}
FLAGS = {ppo: {"ent_coef": ALPHA}, maxent_pg: {"alpha": ALPHA}}
OPTIMA = {ppo: bonus_policy, maxent_pg: optimal_policy}
NAMES = {ppo: "bonus-only optimum", maxent_pg: "soft optimum"}
DIFF_COLORS = {"-": "tab:red", "+": "tab:green", "@": "tab:blue"}  # of the diff's lines


@dataclass(frozen=True)
class Args:
    """The two optima of the two rooms, exact and learned."""

    seeds: int = 5  # of each algorithm
    total_timesteps: int = 49_152  # steps of a seed, 48 rollouts
    out_dir: Path = Path("docs/figures")  # of the figure
    rows: Path = Path("benchmarks/studies/two_optima/learned.csv")  # what was learned


def learned(algorithm: ModuleType, args: Args) -> tuple[list[float], list[list[float]]]:
    """For each seed: P(right room) of the trained policy, and the share of training episodes that ended there
    in each bin; trains them unless their run is finished. Raises as `train`."""
    run_dir = Path("runs/two-optima") / algorithm.Args.algorithm()
    chosen = algorithm.Args(
        env_id="cleanrl_maxent/TwoRooms-v0",
        num_seeds=args.seeds,
        total_timesteps=args.total_timesteps,
        gamma=GAMMA,
        **FLAGS[algorithm],
        norm_adv=False,
        normalize_observation=False,
        normalize_reward=False,
        num_envs=32,
        num_steps=32,
        num_minibatches=2,
        learning_rate=3e-3,
        hidden_dims=(32,),
        eval_episodes=0,
        checkpoint_frequency=0,
        run_dir=str(run_dir),
    )
    algorithm.train(chosen)
    seeds = range(1, args.seeds + 1)
    trained = [float(probabilities(run_dir, seed)[0, 4:].sum()) for seed in seeds]
    return trained, [training_shares(run_dir / f"seed-{seed}" / "metrics.jsonl") for seed in seeds]


def training_shares(metrics: Path) -> list[float]:
    """The share of training episodes in the right room, for each whole bin of steps."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    episodes = [row for row in rows if "charts/episodic_return" in row]
    steps = np.array([row["global_step"] for row in episodes])
    right = np.array([row["charts/episodic_return"] == RIGHT_REWARD for row in episodes])
    return [float(right[(steps - 1) // BIN == index].mean()) for index in range(steps.max() // BIN)]


def diff_lines() -> Iterator[str]:
    """The lines of the diff from ppo.py to maxent_pg.py by which entropy is backed up."""
    for name in ("make_samples", "actor_loss"):
        before, after = (inspect.getsource(getattr(file, name)).splitlines() for file in (ppo, maxent_pg))
        yield f"@@ {name}"
        for line in difflib.unified_diff(before, after, n=0, lineterm=""):
            if re.match(r"[-+] .*(soft_reward|alpha \* |advantages\(|entropy\)|entropy:)", line):
                yield line


def draw(args: Args, exact: dict, found: dict, shares: dict) -> Path:
    """Draws a thin line for each seed, a thick one for their mean, a dot for each final policy, a dashed line
    for each optimum, and the diff below them; returns the figure's path."""
    sizes = {"figsize": (7.2, 5.6), "height_ratios": (3, 2), "layout": "constrained"}
    figure, (curves, text) = pyplot().subplots(2, 1, **sizes)
    for algorithm, label in LABELS.items():
        color, values = COLORS[algorithm.Args.algorithm()], np.transpose(shares[algorithm])
        steps = BIN * (np.arange(len(values)) + 0.5)
        curves.plot(steps, values, color=color, lw=0.7, alpha=0.5)
        curves.plot(steps, values.mean(axis=1), color=color, lw=2.2, label=label)
        dots = {"marker": "o", "linestyle": "none", "color": color, "markersize": 4}
        curves.plot([args.total_timesteps] * args.seeds, found[algorithm], **dots)
        name = f"{NAMES[algorithm]}, exact: {exact[algorithm]:.3f}"
        curves.axhline(exact[algorithm], color=color, linestyle="--", lw=1, label=name)
    curves.plot([], [], marker="o", linestyle="none", color="0.4", markersize=4, label="final policies")
    where = f"Episodes that end in the right room, where all actions pay {RIGHT_REWARD}"
    title = f"{where}; {plural(args.seeds, 'seed')}"
    curves.set_title(title, fontsize=10)
    curves.set(xlabel="environment steps", ylabel="share of episodes", ylim=(0.3, 0.85))
    curves.legend(frameon=False, fontsize=9, loc="center right")
    name_whole_ticks(curves)
    text.set_axis_off()
    lines = ["git diff --no-index ppo.py maxent_pg.py", "", *diff_lines()]
    for number, line in enumerate(lines):
        style = {"color": DIFF_COLORS.get(line[:1], "black"), "family": "monospace", "size": 8}
        text.text(-0.08, 0.95 - 0.09 * number, line, **style, transform=text.transAxes)
    return save_figure(figure, args.out_dir / "two-optima.png")


def main(args: Args) -> None:
    """Prints the table, and writes rows and figure; a signal saves the current run first.

    Raises UsageError, and as `learned`.
    """
    pyplot()  # before the training
    listen()
    P, R, _ = two_rooms()
    exact = {algorithm: float(find(P, R, GAMMA, ALPHA)[0, 4:].sum()) for algorithm, find in OPTIMA.items()}
    found, shares = {}, {}
    for algorithm in LABELS:
        found[algorithm], shares[algorithm] = learned(algorithm, args)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    with args.rows.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["algorithm", "seed", "exact", "learned"])
        for algorithm, values in found.items():
            name, optimum = algorithm.Args.algorithm(), f"{exact[algorithm]:.4f}"
            writer.writerows([name, seed, optimum, f"{x:.4f}"] for seed, x in enumerate(values, 1))
    print("| algorithm | exact P(right room) | learned | median |\n| --- | --- | --- | --- |")
    for algorithm, label in LABELS.items():
        values = ", ".join(f"{x:.3f}" for x in found[algorithm])
        print(f"| {label} | {exact[algorithm]:.3f} | {values} | {np.median(found[algorithm]):.3f} |")
    print(draw(args, exact, found, shares))


if __name__ == "__main__":
    run_script(Args, main)

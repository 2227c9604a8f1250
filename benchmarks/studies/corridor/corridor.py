"""Why MaxEnt RL is not entropy-regularised policy gradient: the corridor, learned and exact.

    python benchmarks/studies/corridor/corridor.py    # trains what is not trained yet, then table and figure

Both branches of the corridor are `depth` steps long. On the left one action in eight pays 1 and the others
cost 1, on the right all eight pay 0.85. Trains `maxent_pg.py` with `--backup-entropy` and without, at every
depth, in runs/corridor/, and writes docs/figures/corridor-learned.png, both in the folder it is run from.
Needs matplotlib (the extra `plots`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.figures import COLORS, plural, pyplot, save_figure
from cleanrl_maxent import load_policy, maxent_pg
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.signals import listen
from cleanrl_maxent.environments.finite import corridor
from cleanrl_maxent.tabular import bonus_policy, optimal_policy

ALPHA, GAMMA = 0.1, 0.99
LABELS = {True: "backed up", False: "as a bonus only"}
STYLES = {True: "-", False: "--"}  # of the exact optimum


@dataclass(frozen=True)
class Args:
    """The corridor's two optima, exact and learned."""

    depths: tuple[int, ...] = (1, 2, 3, 5)  # steps of both branches
    seeds: int = 3  # runs of each depth and flag
    total_timesteps: int = 100_000  # steps of a run
    out_dir: Path = Path("docs/figures")  # of the figure


def learned(depth: int, backup: bool, seed: int, args: Args) -> float:
    """P(right branch) of a trained policy; trains it unless its run is finished. Raises as `train`."""
    run_dir = Path("runs/corridor") / f"depth-{depth}__{'backed-up' if backup else 'bonus'}__{seed}"
    chosen = maxent_pg.Args(
        env_id="cleanrl_maxent/Corridor-v0",
        env_kwargs=json.dumps({"depth": depth}),
        seed=seed,
        total_timesteps=args.total_timesteps,
        alpha=ALPHA,
        gamma=GAMMA,
        backup_entropy=backup,
        normalize_observation=False,
        normalize_reward=False,
        learning_rate=1e-3,
        num_minibatches=8,
        eval_episodes=0,
        run_dir=str(run_dir),
    )
    maxent_pg.train(chosen)
    return float(probabilities(run_dir, seed)[0, 4:].sum())


def probabilities(run_dir: Path, seed: int = 1) -> np.ndarray:
    """π of a seed of a finished run on one-hot observations, `(num_states, actions)`."""
    policy = load_policy(run_dir, seed)
    logits = policy.parameters(jnp.eye(policy.task.obs_dim)).logits
    return np.asarray(jax.nn.softmax(logits), np.float64)


def draw(args: Args, exact: dict[bool, list[float]], found: dict[bool, list[list[float]]]) -> Path:
    """Draws a line for each optimum and a dot for each run; returns the figure's path."""
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    color = COLORS[maxent_pg.Args.algorithm()]
    for backup, label in LABELS.items():
        axes.plot(args.depths, exact[backup], STYLES[backup], color=color, label=f"entropy {label}: exact")
        labels = [f"learned, {plural(args.seeds, 'seed')}"] + [None] * (args.seeds - 1)
        dots = {"color": color, "markerfacecolor": color if backup else "none"}
        axes.plot(args.depths, found[backup], "o", **dots, label=labels)
    axes.set_title(f"The branch that optima and policies prefer, α = {ALPHA}, γ = {GAMMA}")
    axes.set(xlabel="depth of both branches (steps)", ylabel="P(branch where all 8 actions succeed)")
    axes.set_xticks(args.depths)
    axes.legend(frameon=False)
    return save_figure(figure, args.out_dir / "corridor-learned.png")


def main(args: Args) -> None:
    """Prints the table and writes the figure; a signal saves the current run first.

    Raises UsageError, and as `learned`.
    """
    require(args.seeds >= 1, f"seeds must be at least 1; got {args.seeds}")
    pyplot()  # before the training
    listen()
    seeds = range(1, args.seeds + 1)
    exact, found = {}, {}
    for backup, find in ((True, optimal_policy), (False, bonus_policy)):
        policies = [find(*corridor(depth)[:2], GAMMA, ALPHA) for depth in args.depths]
        exact[backup] = [pi[0, 4:].sum() for pi in policies]
        found[backup] = [[learned(depth, backup, seed, args) for seed in seeds] for depth in args.depths]
    print("| depth | entropy | exact P(right) | learned |\n| --- | --- | --- | --- |")
    for backup, label in LABELS.items():
        for depth, value, learned_values in zip(args.depths, exact[backup], found[backup], strict=True):
            print(f"| {depth} | {label} | {value:.4f} | {', '.join(f'{x:.3f}' for x in learned_values)} |")
    print(draw(args, exact, found))


if __name__ == "__main__":
    run_script(Args, main)

"""Why MaxEnt RL is not entropy-regularised policy gradient: the corridor, learned and exact.

    python benchmarks/corridor.py                  # trains what is not trained yet, then table and figure

Both branches of the corridor are `depth` steps long. On the left one action in eight pays 1 and the others
cost 1, on the right all eight pay 0.85. Trains `maxent_pg.py` with `--backup-entropy` and without, at every
depth, in runs/corridor/, and writes docs/figures/corridor-learned.png, both in the folder it is run from.
Needs matplotlib (the extra `plots`).
"""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import unflatten_dict
from report import pyplot

from cleanrl_maxent import maxent_pg
from cleanrl_maxent.common.arguments import Finished, UsageError
from cleanrl_maxent.common.signals import STOPPED, Stopped, listen
from cleanrl_maxent.environments.finite import Corridor, corridor
from cleanrl_maxent.tabular import bonus_policy, optimal_policy, save

ALPHA, GAMMA = 0.1, 0.99
LABELS = {True: "backed up", False: "as a bonus only"}


@dataclass(frozen=True)
class Args:
    """The corridor's two optima, exact and learned."""

    depths: tuple[int, ...] = (1, 2, 3, 5)  # steps of both branches
    seeds: int = 3  # runs of each depth and flag
    total_timesteps: int = 100_000  # steps of a run
    out_dir: Path = Path("docs/figures")  # of the figure


def learned(depth: int, backup: bool, seed: int, args: Args) -> float:
    """P(right branch) of a trained policy; trains it unless its run is finished. Raises as `train`."""
    env_id = f"CorridorOfDepth{depth}-v0"
    if env_id not in gym.registry:
        gym.register(env_id, Corridor, kwargs={"depth": depth})
    run_dir = Path("runs/corridor") / f"depth-{depth}__{'backed-up' if backup else 'bonus'}__{seed}"
    given = maxent_pg.Args(
        env_id=env_id,
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
    with suppress(Finished):
        maxent_pg.train(given)
    return float(probabilities(run_dir / f"policy-{seed}.npz", 1 + 2 * depth)[0, 4:].sum())


def probabilities(path: Path, num_states: int) -> np.ndarray:
    """π of a saved categorical policy of one-hot observations, `(num_states, actions)`."""
    with np.load(path) as saved:
        policy = unflatten_dict(dict(saved), sep="/")
    return np.asarray(jax.nn.softmax(maxent_pg.heads(policy["actor"], jnp.eye(num_states))), np.float64)


def draw(axes, args: Args, exact: dict[bool, list[float]], found: dict[bool, list[list[float]]]) -> None:
    """A line for each optimum, a dot for each run."""
    for backup, label in LABELS.items():
        (line,) = axes.plot(args.depths, exact[backup], label=f"entropy {label}: exact")
        labels = [f"learned, {args.seeds} seeds"] + [None] * (args.seeds - 1)
        dots = {"marker": "o", "linestyle": "none", "color": line.get_color()}
        axes.plot(args.depths, found[backup], **dots, label=labels)
    axes.set(xlabel="depth of both branches (steps)", ylabel="P(branch where all 8 actions succeed)")
    axes.legend(frameon=False)


def main(args: Args) -> None:
    """Prints the table and writes the figure. Raises UsageError, and as `learned`."""
    pyplot()  # before the training
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
    path = args.out_dir / "corridor-learned.png"
    print(save(lambda axes: draw(axes, args, exact, found), path))


if __name__ == "__main__":
    listen()
    try:
        main(tyro.cli(Args))
    except Stopped as stop:
        print(stop)
        sys.exit(STOPPED)
    except UsageError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)

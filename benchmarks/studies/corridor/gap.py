"""Why the corridor's learned policies differ from the exact ones: one flag of maxent_pg.py changed at a time.

    python benchmarks/studies/corridor/gap.py    # trains what is not trained yet, then both tables

The first table is of trained runs, in runs/corridor-gap/ of the folder it is run from. The second repeats the
actor's update on a table of logits, with exact advantages: with the expected counts of states and actions, or
with drawn ones. A row for each seed goes to gap.csv.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.studies.corridor.corridor import ALPHA, GAMMA, probabilities
from cleanrl_maxent import maxent_pg
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.signals import listen
from cleanrl_maxent.environments.finite import corridor
from cleanrl_maxent.tabular import (
    boltzmann,
    bonus_policy,
    evaluate,
    log_prob,
    optimal_policy,
    soft_evaluate,
)

RUNS = Path("runs/corridor-gap")
NO_CLIP: dict[str, Any] = {"clip_coef": 0.0}
LONGER: dict[str, Any] = NO_CLIP | {"total_timesteps": 300_000}
SWITCHES: tuple[dict[str, Any], ...] = (
    {"gae_lambda": 1.0},
    {"gamma_power": True},
    {"max_grad_norm": 1e6},
    {"norm_adv": False},
    {"update_epochs": 2},
    {"num_minibatches": 32},
    {"learning_rate": 3e-3},
    {"learning_rate": 3e-4},
    {"anneal_lr": False},
    {"total_timesteps": 400_000},
    {"clip_coef": 0.5},
    NO_CLIP,
    LONGER,
)
COLUMNS: tuple[str, ...] = (
    "program",
    "depth",
    "entropy",
    "changes",
    "seed",
    "exact",
    "learned",
    "given_later",
    "fails_left",
)


@dataclass(frozen=True)
class Args:
    """The corridor's optimum, learned with one flag changed at a time."""

    seeds: int = 5  # of each row
    rows: Path = Path("benchmarks/studies/corridor/gap.csv")  # what was learned


class Trial(NamedTuple):
    """A run, described by what it changes in the arguments that `train` gives."""

    depth: int = 3
    backup: bool = True
    changes: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        changes = [f"{name}-{Path(str(value)).name}" for name, value in self.changes.items()]
        name = "backed-up" if self.backup else "bonus"
        return RUNS / "__".join([f"depth-{self.depth}", name, *changes])


def trials() -> Iterator[Trial]:
    """Every run: the switches, one that starts from a longer run's policy, other depths, the other flag."""
    yield Trial()
    yield from (Trial(changes=changes) for changes in SWITCHES)
    yield Trial(changes={"init_from": str(Trial(changes=LONGER).folder)})
    for depth, backup in ((1, True), (2, True), (5, True), (1, False), (2, False), (3, False), (5, False)):
        yield from (Trial(depth, backup, changes) for changes in ({}, NO_CLIP))
    yield Trial(backup=False, changes=LONGER)


def train(trial: Trial, seeds: int) -> None:
    """Trains all seeds side by side, unless the run is finished. Raises as `maxent_pg.train`."""
    chosen: dict[str, Any] = dict(
        env_id="cleanrl_maxent/Corridor-v0",
        env_kwargs=json.dumps({"depth": trial.depth}),
        num_seeds=seeds,
        total_timesteps=100_000,
        alpha=ALPHA,
        gamma=GAMMA,
        backup_entropy=trial.backup,
        normalize_observation=False,
        normalize_reward=False,
        learning_rate=1e-3,
        num_minibatches=8,
        eval_episodes=0,
        run_dir=str(trial.folder),
    )
    maxent_pg.train(maxent_pg.Args(**chosen | trial.changes))


def surrogate_ascent(clip: float, episodes: int, inside: bool, backup: bool, seed: int) -> np.ndarray:
    """π, `(S, A)`, after 50 rollouts of 80 Adam steps on eq. 8, with exact advantages, at depth 3.

    `episodes`: number sampled per rollout; 0: expected counts. `inside`: the entropy is part of the advantage
    and clipped with it, instead of a term of its own. The learning rate falls to 0.
    """
    P, R, _ = corridor(3)
    rng, logits, m, v = np.random.default_rng(seed), *np.zeros((3, *R.shape))
    for rollout in range(50):
        old = boltzmann(logits, 1)
        Q, V = soft_evaluate(P, R, GAMMA, ALPHA, old) if backup else evaluate(P, R, GAMMA, old)
        advantage = Q - V[:, None] - (ALPHA * log_prob(old) if inside else 0)
        first = rng.multinomial(episodes, old[0]) if episodes else old[0]
        visits = np.repeat([first.sum(), first[:4].sum(), first[4:].sum()], (1, 3, 3))
        counts = rng.multinomial(visits, old) if episodes else visits[:, None] * old
        counts[0] = first
        counts = counts / counts.sum()
        advantage -= np.sum(counts * advantage)
        std = np.sqrt(np.sum(counts * advantage**2)) + 1e-8
        for t in range(80 * rollout, 80 * rollout + 80):
            pi = boltzmann(logits, 1)
            moves = (pi / old - 1) * np.sign(advantage) < clip if clip else 1  # not clipped
            score = counts * moves * pi / old * advantage / std
            if not inside:
                score -= ALPHA / std * counts.sum(axis=1, keepdims=True) * pi * log_prob(pi)
            gradient = score - pi * score.sum(axis=1, keepdims=True)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-5)
            logits = logits + 0.01 * (1 - t / 4_000) * step
    return boltzmann(logits, 1)


def row(program: str, trial: Trial, changes: str, seed: int, pi: np.ndarray) -> dict[str, Any]:
    """A row about a policy: P(right branch) exact, learned, and optimal given its choices in later states."""
    P, R, _ = corridor(trial.depth)
    best = (optimal_policy if trial.backup else bonus_policy)(P, R, GAMMA, ALPHA)
    Q = soft_evaluate(P, R, GAMMA, ALPHA, pi)[0] if trial.backup else evaluate(P, R, GAMMA, pi)[0]
    right = [policy[0, 4:].sum() for policy in (best, pi, boltzmann(Q, ALPHA))]
    fails = 1 - pi[1 : trial.depth + 1, 0].mean()  # on the left, where action 0 alone succeeds
    name = "backed up" if trial.backup else "bonus only"
    numbers = [f"{x:.5f}" for x in (*right, fails)]
    return dict(zip(COLUMNS, (program, trial.depth, name, changes, seed, *numbers), strict=True))


def trained_rows(seeds: int) -> Iterator[dict[str, Any]]:
    for trial in trials():
        train(trial, seeds)
        changes = ", ".join(f"{name}={value}" for name, value in trial.changes.items()) or "none"
        changes = changes.replace(str(Trial(changes=LONGER).folder), "the run above")
        for seed in range(1, seeds + 1):
            yield row("maxent_pg", trial, changes, seed, probabilities(trial.folder, seed))


def table_rows(seeds: int) -> Iterator[dict[str, Any]]:
    for inside, backup in ((False, True), (True, True), (False, False)):
        for clip, n in ((clip, n) for clip in (0.2, 0.0) for n in (0, 512, 4096)):
            drawn = f"{n} episodes" if n else "expected counts"
            changes = f"clip {clip}, {drawn}, entropy {'clipped too' if inside else 'apart'}"
            for seed in range(1, (seeds if n else 1) + 1):
                pi = surrogate_ascent(clip, n, inside, backup, seed)
                yield row("table", Trial(backup=backup), changes, seed, pi)


def main(args: Args) -> None:
    """Prints both tables and writes the rows; a signal saves the current run first.

    Raises UsageError, and as `train`.
    """
    listen()
    rows = [*trained_rows(args.seeds), *table_rows(args.seeds)]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    with args.rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(
        "| program | depth | entropy | changes | exact | learned ± std | exact given the rest | fails, left |"
    )
    print("|" + " --- |" * 8)
    for key in dict.fromkeys(tuple(row[name] for name in COLUMNS[:4]) for row in rows):
        of_row = [row for row in rows if tuple(row[name] for name in COLUMNS[:4]) == key]
        exact, learned, given, fails = (np.array([float(row[x]) for row in of_row]) for x in COLUMNS[5:])
        print(
            f"| {' | '.join(map(str, key))} | {exact[0]:.3f} | {learned.mean():.3f} ± {learned.std():.3f} | "
            f"{given.mean():.3f} | {fails.mean():.4f} |"
        )


if __name__ == "__main__":
    run_script(Args, main)

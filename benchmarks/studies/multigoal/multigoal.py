"""A point in the plane and four goals: soft Q-learning, SAC and DDPG beside the exact soft optimum.

    python benchmarks/studies/multigoal/multigoal.py             # trains what is not trained, then draws
    python benchmarks/studies/multigoal/multigoal.py --no-train  # draws what is finished in runs/multigoal/
    python benchmarks/studies/multigoal/multigoal.py --no-runs   # the exact soft optimum alone, in a minute

Prints a table and writes docs/figures/multigoal.png, the figure of Haarnoja et al. 2017
(https://arxiv.org/abs/1702.08165): contours of Q at three points with 100 actions of each policy there, and
100 episodes. The runs are those of multigoal.toml beside this file. Needs matplotlib (the extra `plots`).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.special import logsumexp, softmax

from benchmarks import sweep
from benchmarks.figures import pyplot, save_figure
from benchmarks.trained import trained_state
from cleanrl_maxent import algorithms
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.environments.multigoal import BOUND, GOALS, MultiGoal

ENV_ID = "cleanrl_maxent/MultiGoal-v0"
ALPHA, GAMMA = 10.0, 0.99  # reward per nat; discount per step
STATES = np.array([[-2.5, 0.0], [0.0, 0.0], [2.5, 2.5]])  # where the paper draws its contours
GRID = np.linspace(-BOUND, BOUND, 57)  # positions of the dynamic program, in each dimension
CELL = 0.1  # side of a cell of actions
CELLS = (np.arange(20) + 0.5) * CELL - 1  # their centres, in each dimension
ACTIONS = np.stack(np.meshgrid(CELLS, CELLS, indexing="ij"), axis=-1).reshape(-1, 2)  # (400, 2)
Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # positions (n, 2) -> actions (n, 2)


@dataclass(frozen=True)
class Args:
    """Soft Q-learning, SAC and DDPG on the multi-goal task, beside the exact soft optimum."""

    runs: bool = True  # trained policies too; without: the exact optimum alone
    train: bool = True  # train what is not trained yet, as sweep.py multigoal does
    episodes: int = 200  # of each policy in the table
    out_dir: Path = Path("docs/figures")  # of the figure


def soft_values(env: MultiGoal, tolerance: float = 1e-6) -> np.ndarray:
    """V of the soft optimum on GRID × GRID, `(57, 57)`, by dynamic programming; exact up to the grids.

    V(p) = α log ∫ exp(Q(p, a)/α) da by the midpoint rule on the cells of actions, Q(p, a) = r + γ V(p'), with
    V interpolated linearly and 0 where a goal ends the episode.
    """
    positions = np.stack(np.meshgrid(GRID, GRID, indexing="ij"), axis=-1)
    V = np.zeros((len(GRID), len(GRID)))
    while True:
        new_V = ALPHA * (logsumexp(action_values(env, V, positions) / ALPHA, axis=-1) + 2 * np.log(CELL))
        if np.abs(new_V - V).max() < tolerance:
            return new_V
        V = new_V


def action_values(env: MultiGoal, V: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Q of every cell of actions, `(..., 400)`, at positions `(..., 2)`."""
    new_positions, reward, reached = env.move(positions[..., None, :], ACTIONS)
    coordinates = np.moveaxis((new_positions + BOUND) / (GRID[1] - GRID[0]), -1, 0)
    return reward + GAMMA * np.where(reached, 0.0, map_coordinates(V, coordinates, order=1, mode="nearest"))


def soft_policy(env: MultiGoal, V: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Probability of every cell of actions under exp(Q/α)/Z, `(..., 400)`."""
    return softmax(action_values(env, V, positions) / ALPHA, axis=-1)


def play(policy: Policy, episodes: int, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Plays episodes at the same time; `options` are those of MultiGoal.

    Returns their undiscounted `returns`, `lengths` (steps), `goals` (index into GOALS, -1 if none was
    reached in time), each `(episodes,)`, and `paths`, a `(steps + 1, 2)` array each.
    """
    rng = np.random.default_rng(seed)
    envs = [gym.make(ENV_ID, **options) for _ in range(episodes)]
    positions = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    paths = [[position.copy()] for position in positions]
    returns, goals, running = np.zeros(episodes), np.full(episodes, -1), np.ones(episodes, bool)
    while running.any():
        actions = policy(positions, rng)
        for i in np.flatnonzero(running):
            positions[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            paths[i].append(positions[i].copy())
            returns[i] += reward
            running[i] = not (terminated or truncated)
            if terminated:
                goals[i] = np.argmin(np.sum((positions[i] - GOALS) ** 2, axis=1))
    lengths = np.array([len(path) - 1 for path in paths])
    return {"returns": returns, "lengths": lengths, "goals": goals, "paths": [np.array(p) for p in paths]}


def exact_policy(env: MultiGoal, V: np.ndarray) -> Policy:
    """Samples of the soft optimum: a cell, and a point in it."""

    def act(positions, rng):
        cumulative = soft_policy(env, V, np.asarray(positions, np.float64)).cumsum(axis=-1)
        cells = (cumulative < rng.random((len(positions), 1)) * cumulative[:, -1:]).sum(axis=-1)
        return ACTIONS[cells] + rng.uniform(-CELL / 2, CELL / 2, (len(positions), 2))

    return act


def exact_values(env: MultiGoal, V: np.ndarray, position: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Q of actions `(n, 2)` at a position under the exact optimum, interpolated between cells, `(n,)`."""
    q = action_values(env, V, position).reshape(len(CELLS), len(CELLS))
    return map_coordinates(q, ((actions + 1) / CELL - 0.5).T, order=1, mode="nearest")


def trained_policy(algorithm: ModuleType, state: Any, deterministic: bool) -> Policy:
    """The policy of one seed's state."""
    act, learned = jax.jit(algorithm.act, static_argnums=3), algorithm.policy(state)

    def policy(positions, rng):
        key = jax.random.key(int(rng.integers(2**31)))
        return np.asarray(act(learned, jnp.float32(positions), key, deterministic))

    return policy


def learned_values(state: Any, position: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Q of actions `(n, 2)` at a position, the minimum over the critics, in the critics' units, `(n,)`."""
    critics = state.critic if hasattr(state, "critic") else state.critics
    obs = jnp.broadcast_to(jnp.float32(position), actions.shape)
    q = np.asarray(critics.apply_fn(critics.params, obs, jnp.float32(actions)))
    return q if q.ndim == 1 else q.min(axis=0)


def row(name: str, played: dict[str, Any]) -> str:
    """A line of the table."""
    returns, lengths, goals = played["returns"], played["lengths"], played["goals"]
    shares = " ".join(f"{np.mean(goals == goal):.0%}" for goal in range(len(GOALS)))
    success = np.mean(goals >= 0)
    return (
        f"| {name} | {returns.mean():.0f} ± {returns.std():.0f} | {lengths.mean():.2f} | {success:.1%} "
        f"| {shares} |"
    )


def draw(shown: list[tuple], path: Path) -> Path:
    """A figure with a row for each `(name, Q of (position, actions), policy)`: three states, and episodes.

    Returns its path.
    """
    size = {"figsize": (10, 0.5 + 2.2 * len(shown)), "layout": "constrained", "squeeze": False}
    figure, axes = pyplot().subplots(len(shown), 4, sharex="col", **size)
    fine = np.linspace(-1, 1, 41)
    mesh = np.stack(np.meshgrid(fine, fine, indexing="ij"), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    for panels, (name, values, policy) in zip(axes, shown, strict=True):
        for panel, position in zip(panels[:3], STATES, strict=True):
            panel.contour(fine, fine, values(position, mesh).reshape(41, 41).T, 12, linewidths=0.8)
            samples = policy(np.tile(np.float32(position), (100, 1)), rng)
            panel.plot(*samples.T, ".", color="C3", markersize=4)
            panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        panels[0].set_ylabel("action in y")
        side = {"rotation": 90, "ha": "center", "va": "center", "weight": "bold"}
        panels[0].text(-0.42, 0.5, name, transform=panels[0].transAxes, **side)
        for episode in play(policy, 100)["paths"]:
            panels[3].plot(*episode.T, linewidth=0.7, alpha=0.6)
        panels[3].plot(*GOALS.T, "k*", markersize=9)
        panels[3].set(xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND), xticks=(-5, 0, 5), yticks=(-5, 0, 5))
        panels[3].set_ylabel("y")
        for panel in panels:
            panel.set_aspect("equal")
    for panel, (x, y) in zip(axes[0, :3], STATES, strict=True):
        panel.set_title(f"Q and 100 actions at ({x:g}, {y:g})".replace("-", "−"), fontsize=10)
    axes[0, 3].set_title("100 episodes", fontsize=10)
    for panel, label in zip(axes[-1], ("action in x",) * 3 + ("x",), strict=True):
        panel.set_xlabel(label)
    return save_figure(figure, path)


def finished_cells() -> list[sweep.Cell]:
    """The suite's finished runs; names the others. Raises UsageError if none is finished."""
    name, grids = sweep.read_suite("multigoal")
    cells = list(sweep.expand(grids, Path("runs") / name, "cpu", 1))
    finished = [cell for cell in cells if cell.finished()]
    if not finished:
        raise UsageError(f"no run in {Path('runs') / name} is finished; leave --no-train out to train them")
    for cell in cells:
        if cell not in finished:
            print(f"{cell.folder} is not finished: left out", file=sys.stderr)
    return finished


def compare(args: Args, env: MultiGoal, V: np.ndarray, cells: list[sweep.Cell]) -> None:
    """Prints a row for every run and draws the first of each name beside the optimum."""
    set_up_device("cpu")
    shown = {"": ("exact soft optimum", partial(exact_values, env, V), exact_policy(env, V))}
    for cell in cells:
        algorithm, label = algorithms()[cell.algorithm], cell.args.exp_name
        state, _ = trained_state(algorithm, cell.folder)
        policy = trained_policy(algorithm, state, deterministic=cell.algorithm == "ddpg")
        starts: dict[str, dict[str, Any]] = {"": {}, ", from (0, 0)": {"init_sigma": 0.0}}
        for start, options in starts.items():
            print(row(f"{label}, seed {cell.args.seed}{start}", play(policy, args.episodes, **options)))
        first = f"{label}, seed {cell.args.seed}", partial(learned_values, state), policy
        shown.setdefault(label, first)
    print(draw([*shown.values()], args.out_dir / "multigoal.png"))


def main(args: Args) -> int:
    """Trains, prints and draws; returns the exit status. Raises UsageError without matplotlib or the runs."""
    require(args.episodes >= 1, f"episodes must be >= 1; got {args.episodes}")
    if args.runs:
        pyplot()  # before hours of training
    if args.runs and args.train:
        status = sweep.main(sweep.Args(suite="multigoal", device="cpu", seeds_per_run=1))
        if status:
            return status
    cells = finished_cells() if args.runs else []
    env = MultiGoal()
    V = soft_values(env)
    origin = soft_policy(env, V, np.zeros(2))
    entropy = float(-np.sum(origin * np.log(origin / CELL**2)))
    value = V[len(GRID) // 2, len(GRID) // 2]
    print(
        f"exact soft optimum, α = {ALPHA:g}: V(0, 0) = {value:.1f}, entropy of π(·|0, 0) {entropy:.3f} nats"
    )
    print("\n| policy | return | length | success | right, left, up, down |\n| --- | --- | --- | --- | --- |")
    print(row("exact soft optimum, 4,000 episodes", play(exact_policy(env, V), 4000)))
    if args.runs:
        compare(args, env, V, cells)
    return 0


if __name__ == "__main__":
    run_script(Args, main)

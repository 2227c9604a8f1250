"""What Q promises and what its policy reaches, iteration by iteration, on one batch of CartPole-v1.

    python benchmarks/studies/fitted_q/cartpole.py    # about ten minutes; then the table and the figure

`fitted_q.init` and `fitted_q.update` fit Q to 20,000 uniform steps: with one critic, with the minimum of two,
and soft. Every ten iterations the greedy policy plays 20 episodes. The figure shows their return, and their
discounted return beside max Q in their first states: these two would be equal if Q were right.
Writes docs/figures/fitted-q-cartpole.png and its rows, both in the folder it is run from. Needs matplotlib
(the extra `plots`).
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.figures import COLORS, pyplot, save_figure
from cleanrl_maxent import fitted_q
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.task import describe_task
from cleanrl_maxent.common.errors import require

ENV_ID, STEPS, EPISODES = "CartPole-v1", 20_000, 20
LARGEST = 1 / (1 - fitted_q.Args.gamma)  # discounted return: each step pays 1
ARMS: dict[str, dict[str, Any]] = {
    "one critic": {"n_critics": 1},
    "two critics": {},
    "two critics, soft, α = 0.1": {"alpha": 0.1},
}
COLUMNS: tuple[str, ...] = ("arm", "seed", "iteration", "return", "discounted_return", "max_q")


@dataclass(frozen=True)
class Args:
    """Return and max Q of fitted Q-iteration on one batch, by iterations."""

    iterations: int = 200
    every: int = 10  # iterations between two evaluations
    seeds: int = 3  # of batch, networks and episodes
    out_dir: Path = Path("docs/figures")  # of the figure
    rows: Path = Path("benchmarks/studies/fitted_q/cartpole.csv")  # what was computed


def uniform_batch(seed: int) -> Replay:
    """Transitions of a uniform policy, episode after episode."""
    env, steps = gym.make(ENV_ID), []
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    for _ in range(STEPS):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((obs, np.int32(action), reward, next_obs, terminated, truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    obs, action, *others = map(np.array, zip(*steps, strict=True))
    return Replay(Transition(jnp.array(obs), jnp.array(action), *(jnp.float32(x) for x in others)))


def play(policy: Callable[[np.ndarray], np.ndarray], seed: int, gamma: float) -> tuple[np.ndarray, ...]:
    """Return, discounted return and first observation of each episode, `(EPISODES, ...)`.

    `policy`: from observations `(EPISODES, obs_dim)` to the actions' numbers `(EPISODES,)`.
    """
    envs = [gym.make(ENV_ID) for _ in range(EPISODES)]
    first = np.stack([env.reset(seed=1_000 * seed + number)[0] for number, env in enumerate(envs)])
    obs, running, step = first.copy(), np.ones(EPISODES, bool), 0
    returns = np.zeros((2, EPISODES))
    while running.any():
        action = policy(obs)
        for row in map(int, np.flatnonzero(running)):
            obs[row], reward, terminated, truncated, _ = envs[row].step(int(action[row]))
            returns[:, row] += float(reward), gamma**step * float(reward)
            running[row] = not (terminated or truncated)
        step += 1
    return *returns, first


def fit(name: str, seed: int, options: Args) -> Iterator[dict[str, Any]]:
    """A row for every evaluation of one arm with one seed."""
    args = fitted_q.Args(env_id=ENV_ID, total_timesteps=STEPS, collect_steps=STEPS, **ARMS[name])
    env = gym.make(ENV_ID)
    replay = uniform_batch(seed)
    init_key, sample_key, update_key = jax.random.split(jax.random.key(seed), 3)
    state = fitted_q.init(init_key, describe_task(env.observation_space, env.action_space), args)

    @jax.jit
    def iterate(state, index):
        size = args.updates_per_iteration * args.batch_size
        rows = replay.sample(jax.random.fold_in(sample_key, index), size, STEPS)
        batches = jax.tree.map(lambda x: x.reshape(-1, args.batch_size, *x.shape[1:]), rows)
        return fitted_q.update(state, batches, update_key, index, args)[0]

    act = jax.jit(partial(fitted_q.act, deterministic=True))
    for iteration in range(options.iterations + 1):
        if iteration % options.every == 0:
            policy = fitted_q.policy(state)
            returns, discounted, first = play(
                lambda obs, policy=policy: np.asarray(act(policy, obs, update_key)), seed, args.gamma
            )
            measured = returns.mean(), discounted.mean(), float(policy(first).max(axis=-1).mean())
            numbers = (f"{x:.6g}" for x in measured)
            yield dict(zip(COLUMNS, (name, seed, iteration, *numbers), strict=True))
        state = iterate(state, iteration)


def curve(rows: list[dict[str, Any]], arm: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations, and a column for each seed, `(seed, iteration)`."""
    chosen = [row for row in rows if row["arm"] == arm]
    iterations, seeds = ([*dict.fromkeys(row[name] for row in chosen)] for name in ("iteration", "seed"))
    values = np.array([float(row[column]) for row in chosen]).reshape(len(seeds), -1)
    return np.array(iterations, int), values


def draw(rows: list[dict[str, Any]], args: Args) -> Path:
    """Returns by iteration, and what Q promises beside them; returns the figure's path."""
    figure, panels = pyplot().subplots(2, len(ARMS), figsize=(13, 6.5), sharex=True, sharey="row")
    for arm, (returns, promises) in zip(ARMS, panels.T, strict=True):
        for panel, column, color, label in (
            (returns, "return", COLORS["fitted_q"], "return"),
            (promises, "discounted_return", COLORS["fitted_q"], "discounted return of the greedy policy"),
            (promises, "max_q", "0.25", "max Q in the first state"),
        ):
            iterations, values = curve(rows, arm, column)
            panel.plot(iterations, values.T, color=color, lw=0.8, alpha=0.4)
            panel.plot(iterations, values.mean(axis=0), color=color, lw=2.2, label=label)
        promises.axhline(LARGEST, color="0.3", ls=":", label="no return is larger")
        returns.set_title(arm)
        promises.set_xlabel("iteration of Q")
    panels[0, 0].set_ylabel("return of the greedy policy")
    panels[1, 0].set_ylabel("reward, discounted with γ = 0.99")
    panels[1, 0].legend(frameon=False, loc="upper left")
    figure.suptitle(f"{ENV_ID}, one batch of {STEPS:,} uniform steps; thin: a seed, thick: their mean")
    figure.tight_layout()
    return save_figure(figure, args.out_dir / "fitted-q-cartpole.png")


def main(args: Args) -> None:
    """Prints the table, and writes rows and figure. Raises UsageError, OSError."""
    for name in ("iterations", "every", "seeds"):
        value = getattr(args, name)
        require(value >= 1, f"{name} must be at least 1; got {value}")
    pyplot()
    rows = [row for arm in ARMS for seed in range(1, args.seeds + 1) for row in fit(arm, seed, args)]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    with args.rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| | iteration | return | discounted return | max Q |\n|" + " --- |" * 5)
    for arm in ARMS:
        curves = [curve(rows, arm, column) for column in COLUMNS[3:]]
        iterations = curves[0][0]
        for at in (len(iterations) // 4, -1):
            means = (f"{values[:, at].mean():,.1f}" for _, values in curves)
            print(f"| {arm} | {iterations[at]} | {' | '.join(means)} |")
    print(draw(rows, args))


if __name__ == "__main__":
    run_script(Args, main)

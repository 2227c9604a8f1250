"""When is the gradient of soft Q-learning a policy gradient plus a value regression?

    python benchmarks/studies/policy_gradient/policy_gradient.py    # a few minutes; table, figure

Learns on a random MDP with the update of `sql_discrete.py`, one environment step per update, in float64. On
the way it compares two directions, both without sampling error: -∇J_Q of its `critic_loss`, with states and
actions of the policy of `age` updates ago; and, on the same states, α ∇J plus the value regression, with
actions of the present policy. Writes docs/figures/cosine.png and its rows, both in the folder it is run from.
Needs matplotlib (the extra `plots`).
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.figures import pyplot, save_figure
from cleanrl_maxent import sql_discrete
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.environments.finite import random_mdp
from cleanrl_maxent.tabular import boltzmann, visits

P, R, START = random_mdp(seed=0, num_states=5, num_actions=3)
GAMMA, ALPHAS = 0.9, (1.0, 0.3, 0.1)
AGES = (0, 1, 3, 10, 30, 100, 300, 1_000, 2_000)  # in updates
FIRST, LAST, APART = 2_000, 4_000, 500  # gradients are compared after every APART updates from FIRST to LAST
COLUMNS: tuple[str, ...] = ("alpha", "seed", "update", "age", "cosine", "policy_cosine", "share", "policy_tv")


@dataclass(frozen=True)
class Args:
    """Cosine between the soft Q-learning gradient and the policy gradient with its value regression."""

    seeds: int = 10  # of each temperature
    out_dir: Path = Path("docs/figures")  # of the figure
    rows: Path = Path("benchmarks/studies/policy_gradient/rows.csv")  # what was compared


def arguments(alpha: float) -> sql_discrete.Args:
    """A small network, and targets that follow it."""
    return sql_discrete.Args(
        env_id="cleanrl_maxent/RandomMDP-v0",
        alpha=alpha,
        gamma=GAMMA,
        tau=0.01,
        target_network_frequency=1,
        hidden_dims=(32, 32),
        batch_size=64,
    )


def begin(key: jax.Array, args: sql_discrete.Args) -> tuple:
    """Learner, empty replay, state of the environment and key of one seed."""
    init_key, key = jax.random.split(key)
    task = Task(*R.shape, discrete=True)
    learner, replay = sql_discrete.init(init_key, task, args), Replay.create(LAST, task.example)
    return *double((learner, replay)), jnp.int32(0), key


def step(carry: tuple, index: jax.Array, args: sql_discrete.Args) -> tuple:
    """A step of the environment and an update; also Q, `(S, A)`, of the policy that acted."""
    learner, replay, s, key = carry
    key, act_key, next_key, sample_key = jax.random.split(key, 4)
    one_hot, none = jnp.eye(len(R)), jnp.zeros(())
    policy = sql_discrete.policy(learner)
    action = sql_discrete.act(policy, one_hot[s], act_key, deterministic=False).astype(jnp.int32)
    next_s = jax.random.choice(next_key, len(R), p=jnp.asarray(P)[s, action]).astype(jnp.int32)
    transition = Transition(one_hot[s], action, jnp.asarray(R)[s, action], one_hot[next_s], none, none)
    replay = replay.store(transition, index)
    batch = replay.sample(sample_key, args.batch_size, index + 1)
    learner, _ = sql_discrete.update(learner, batch, sample_key, 0, args)
    return (learner, replay, next_s, key), policy(one_hot)


def gradients(learner: sql_discrete.State, args: sql_discrete.Args) -> tuple[jax.Array, ...]:
    """-∇ of `critic_loss` at each transition, `(S A S, parameters)`; α ∇J and minus the gradient of the value
    regression at each state, `(S, parameters)`; Q, `(S, A)`."""
    s, a, next_s = (jnp.ravel(x) for x in jnp.indices(P.shape))
    one_hot, zeros = jnp.eye(len(R)), jnp.zeros(P.size)
    every = Transition(one_hot[s], a, jnp.asarray(R)[s, a], one_hot[next_s], zeros, zeros)
    every = jax.tree.map(lambda x: x[:, None], every)  # each a batch of one
    params, apply = learner.critics.params, learner.critics.apply_fn

    def loss(params, batch):
        return sql_discrete.critic_loss(params, learner, batch, args)[0]

    target = jnp.sum(
        P * sql_discrete.bellman_target(learner, every, args).reshape(P.shape), axis=-1
    )  # (S, A)

    def objective(params):
        """E_π[y - α log π] in each state, whose gradient is J's."""
        q = apply(params, one_hot).min(axis=0)
        log_prob = (q - sql_discrete.soft_value(q, args)[:, None]) / args.alpha
        return jnp.sum(jnp.exp(log_prob) * (target - args.alpha * log_prob), axis=-1)

    def regression(params):
        v = sql_discrete.soft_value(apply(params, one_hot).min(axis=0), args)
        return 0.5 * (v - jax.lax.stop_gradient(objective(params))) ** 2

    flat = jax.vmap(lambda gradient: ravel_pytree(gradient)[0])
    of_critic = flat(jax.vmap(jax.grad(loss), (None, 0))(params, every))
    of_policy, of_value = (flat(jax.jacrev(function)(params)) for function in (objective, regression))
    return -of_critic, args.alpha * of_policy, -of_value, apply(params, one_hot).min(axis=0)


def double(tree: Any) -> Any:
    """The same with float64 in place of float32."""
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, arrays)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def compare(found: tuple, old: np.ndarray, alpha: float) -> dict[str, float]:
    """Compares both directions; `old` is Q, `(S, A)`, of the policy that made the data."""
    of_critic, of_policy, of_value, Q = found
    now, acted = boltzmann(Q, alpha), boltzmann(old, alpha)
    states = (1 - GAMMA) * visits(P, GAMMA, START, acted)
    left = (states[:, None, None] * acted[..., None] * P).ravel() @ of_critic
    policy, value = states @ of_policy, states @ of_value
    return {
        "cosine": cosine(left, policy + value),
        "policy_cosine": cosine(left - value, policy),
        "share": float(np.linalg.norm(policy) / (np.linalg.norm(policy) + np.linalg.norm(value))),
        "policy_tv": float(np.abs(now - acted).sum(axis=-1).max() / 2),
    }


def rows_of(alpha: float, seeds: int) -> list[dict[str, Any]]:
    """Learns with `seeds` seeds, and compares the directions on the way."""
    args = arguments(alpha)
    carry = jax.vmap(begin, (0, None))(jax.random.split(jax.random.key(0), seeds), args)
    scan = jax.jit(jax.vmap(lambda c, i: jax.lax.scan(lambda c, i: step(c, i, args), c, i), (0, None)))
    differentiate = jax.jit(jax.vmap(lambda learner: gradients(learner, args)))
    history, rows = [], []
    for update in range(APART, LAST + 1, APART):
        carry, q = scan(carry, jnp.arange(update - APART, update))
        history.append(np.asarray(q))
        if update < FIRST:
            continue
        found = [np.asarray(x) for x in differentiate(carry[0])]
        past = np.concatenate([*history, found[-1][:, None]], axis=1)  # (seed, update, S, A)
        for seed in range(seeds):
            for age in AGES:
                values = compare(tuple(x[seed] for x in found), past[seed, -1 - age], alpha)
                texts = {name: f"{x:.10g}" for name, x in values.items()}
                rows.append({"alpha": alpha, "seed": seed + 1, "update": update, "age": age} | texts)
    return rows


def column(rows: list[dict[str, Any]], name: str, alpha: float, age: int) -> np.ndarray:
    """Values of all seeds and updates."""
    return np.array([float(r[name]) for r in rows if (r["alpha"], r["age"]) == (alpha, age)])


def draw(rows: list[dict[str, Any]], args: Args) -> Path:
    """Median cosine by age, and the middle half of seeds and updates; returns the figure's path."""
    figure, both = pyplot().subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    titles = {"cosine": "the whole gradient", "policy_cosine": "without the value regression"}
    for axes, (name, title) in zip(both, titles.items(), strict=True):
        for alpha in ALPHAS:
            values = [column(rows, name, alpha, age) for age in AGES]
            low, median, high = np.transpose([np.percentile(x, (25, 50, 75)) for x in values])
            (line,) = axes.plot(AGES, median, "o-", ms=4, label=f"α = {alpha:g}")
            axes.fill_between(AGES, low, high, color=line.get_color(), alpha=0.2, lw=0)
        axes.set_xscale("symlog", linthresh=1)
        axes.set(xlabel="age of the data (updates)", title=title)
    both[0].set(ylabel="cosine to the on-policy gradient", ylim=(None, 1.03))
    both[0].legend(frameon=False, title="median, middle half")
    return save_figure(figure, args.out_dir / "cosine.png")


def main(args: Args) -> None:
    """Prints the table, and writes rows and figure. Raises UsageError, OSError."""
    require(args.seeds >= 1, f"seeds must be at least 1; got {args.seeds}")
    pyplot()
    with jax.enable_x64(True):
        rows = [row for alpha in ALPHAS for row in rows_of(alpha, args.seeds)]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    with args.rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| α | age | cosine | policy part | share of the policy part | total variation |\n|" + " --- |" * 6)
    for alpha in ALPHAS:
        for age in AGES:
            means = [column(rows, name, alpha, age).mean() for name in COLUMNS[4:]]
            print(f"| {alpha:g} | {age:,} | {' | '.join(f'{x:.3f}' for x in means)} |")
    print(draw(rows, args))


if __name__ == "__main__":
    run_script(Args, main)

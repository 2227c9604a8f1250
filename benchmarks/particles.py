"""What soft Q-learning's particles are worth: how well the sampler samples, how biased the soft value is, and
what both cost.

    python benchmarks/particles.py samplers     # five known distributions, three ways to take Stein's step
    python benchmarks/particles.py proposals    # bias of the soft value: uniform proposals, and better ones
    python benchmarks/particles.py trained --run-dir runs/…   # the same with the Q and the sampler of a run
    python benchmarks/particles.py cost         # updates per second over the number of particles, beside SAC

Each prints a Markdown table; docs/sql.md has them, and what follows from them.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from multigoal import newest_commit, trained_state
from scipy.special import logsumexp
from speed_ours import prepare_update

from cleanrl_maxent import sac, sql
from cleanrl_maxent.common.arguments import UsageError, recorded
from cleanrl_maxent.common.checkpoint import Damaged
from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.replay import Transition

Energy = Callable[[jax.Array], jax.Array]  # actions (..., D) -> Q/α, (...)
BINS = 20  # of a histogram, in each dimension
STATES = 4_000  # over which the bias of the soft value is averaged


@dataclass(frozen=True)
class Args:
    """Measures soft Q-learning's particles."""

    # the table to print; trained needs --run-dir
    what: tyro.conf.Positional[Literal["samplers", "proposals", "trained", "cost"]]
    run_dir: str | None = None  # trained: a run of sql.py
    steps: int = 2_000  # Adam steps of each sampler
    updates: int = 30  # timed updates of each row of the cost, three times over


def flat(action: jax.Array) -> jax.Array:
    """Every action is as good."""
    return jnp.zeros(action.shape[:-1])


def double_well(action: jax.Array) -> jax.Array:
    """Modes at ±0.6 in every dimension."""
    return -8 * jnp.sum((action**2 - 0.36) ** 2, axis=-1)


def slope(action: jax.Array) -> jax.Array:
    """The mode is the bound."""
    return 5 * action.sum(axis=-1)


ENERGIES: list[tuple[str, Energy, int]] = [
    ("0, D = 1", flat, 1),
    ("0, D = 2", flat, 2),
    ("−8(a² − 0.36)², D = 1", double_well, 1),
    ("−8 Σ(a² − 0.36)², D = 2", double_well, 2),
    ("5a, D = 1", slope, 1),
]


def with_energy(args: sql.Args, energy: Energy, dim: int) -> sql.State:
    """A state whose critic is `args.alpha` times the energy, whatever the observation."""
    state = sql.init(jax.random.key(0), 1, dim, args)
    critics = state.critics.replace(apply_fn=lambda params, obs, action: args.alpha * energy(action)[None])
    return state.replace(critics=critics)


def uncorrected(particle: jax.Array, obs: jax.Array, state: sql.State, args: sql.Args) -> jax.Array:
    """Q/α of particles that are actions, without the Jacobian of tanh: eq. 13 read literally."""
    obs = sql.repeat(obs, particle.shape[1])
    return state.critics.apply_fn(state.critics.params, obs, particle)[0] / args.alpha


def train_sampler(
    energy: Energy, dim: int, space: str, steps: int, hidden_dims=(128, 128), policy_lr: float = 3e-4
) -> np.ndarray:
    """100,000 actions of a sampler after Adam steps on a batch of 64 with 32 particles, `(100000, dim)`.

    `space`: "raw" or "action", as in sql.py, or "uncorrected".
    """
    svgd_space = "raw" if space == "raw" else "action"
    args = sql.Args(svgd_space=svgd_space, svgd_particles=32, hidden_dims=hidden_dims, policy_lr=policy_lr)
    state, zeros = with_energy(args, energy, dim), np.zeros(64, np.float32)
    batch = Transition(zeros[:, None], np.zeros((64, dim), np.float32), zeros, zeros[:, None], zeros)

    def step(state, key):
        grads, _ = jax.grad(sql.actor_loss, has_aux=True)(state.actor.params, state, batch, key, args)
        return state.replace(actor=state.actor.apply_gradients(grads=grads)), None

    density = uncorrected if space == "uncorrected" else sql.log_density
    with mock.patch.object(sql, "log_density", density):
        keys = jax.random.split(jax.random.key(1), steps)
        state = jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(state)
    return np.asarray(sql.act(state.actor.params, jnp.zeros((100_000, 1)), jax.random.key(2), False))


def fine_probabilities(energy: Energy, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of 20 · BINS cells in each dimension, and exp(Q/α)/Z of the cells, `(20 · BINS,) * dim`."""
    fine = (np.arange(20 * BINS) + 0.5) / (10 * BINS) - 1
    mesh = np.stack(np.meshgrid(*[fine] * dim, indexing="ij"), axis=-1)
    density = np.exp(np.asarray(energy(jnp.asarray(mesh)), np.float64))
    return fine, density / density.sum()


def bin_probabilities(energy: Energy, dim: int) -> np.ndarray:
    """exp(Q/α)/Z of BINS equal bins in each dimension, `(BINS,) * dim`."""
    _, probabilities = fine_probabilities(energy, dim)
    return probabilities.reshape((BINS, 20) * dim).sum(axis=tuple(range(1, 2 * dim, 2)))


def total_variation(actions: np.ndarray, energy: Energy) -> float:
    """½ Σ |share of the actions - probability| over the bins; 100,000 exact samples have 0.006 in one
    dimension and 0.025 in two."""
    dim = actions.shape[-1]
    counts, _ = np.histogramdd(actions, BINS, [(-1, 1)] * dim)
    return 0.5 * float(np.abs(counts / len(actions) - bin_probabilities(energy, dim)).sum())


def rarest_orthant(actions: np.ndarray) -> float:
    """Share of the actions in the orthant that has fewest."""
    orthants = (actions > 0) @ 2 ** np.arange(actions.shape[-1])
    return float(np.bincount(orthants, minlength=2 ** actions.shape[-1]).min() / len(actions))


def compare_samplers(steps: int) -> None:
    """Prints E[a²], the distance to exp(Q/α)/Z, and the share of the rarest orthant."""
    print("| Q/α | particles | E[a²] | exact | total variation | rarest orthant |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, energy, dim in ENERGIES:
        fine, probabilities = fine_probabilities(energy, dim)
        square = probabilities.sum(axis=tuple(range(1, dim))) @ fine**2
        for space in ("raw", "action", "uncorrected"):
            actions = train_sampler(energy, dim, space, steps)
            print(
                f"| {name} | {space} | {np.mean(actions**2):.3f} | {square:.3f} "
                f"| {total_variation(actions, energy):.3f} | {rarest_orthant(actions):.2f} |",
                flush=True,
            )


def target_energy(state: sql.State, obs: jax.Array, args: sql.Args) -> Energy:
    """Q/α of the target critics, `(batch, count)`, as a function of actions `(batch, count, D)` in `obs`."""

    def energy(action):
        rows = sql.repeat(obs, action.shape[1])
        return state.critics.apply_fn(state.target_critics, rows, action).min(axis=0) / args.alpha

    return energy


def mixture_value(energy: Energy, samples: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """log ∫ exp(Q/α) da, `(batch,)`, by half uniform proposals and half from a squashed Gaussian.

    The Gaussian has the mean and 1.5 times the deviation of a sampler's `samples` before tanh,
    `(batch, K, D)`; each proposal is weighted by the density of the mixture.
    """
    uniform_key, normal_key = jax.random.split(key)
    mean, std = samples.mean(axis=1, keepdims=True), 1.5 * samples.std(axis=1, keepdims=True) + 1e-3
    shape = (len(samples), count // 2, samples.shape[-1])
    uniform = jnp.arctanh(jax.random.uniform(uniform_key, shape, minval=-1 + 1e-6, maxval=1 - 1e-6))
    u = jnp.concatenate([uniform, mean + std * jax.random.normal(normal_key, shape)], axis=1)
    log_jacobian = (2 * (math.log(2) - u - nn.softplus(-2 * u))).sum(axis=-1)
    log_normal = -0.5 * ((u - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    log_density = jnp.logaddexp(log_normal.sum(axis=-1) - log_jacobian, -shape[-1] * math.log(2))
    weights = energy(jnp.tanh(u)) - log_density + math.log(2)
    return nn.logsumexp(weights, axis=1) - math.log(2 * (count // 2))


def compare_proposals() -> None:
    """Prints the bias of the soft value for Q/α = κ Σ a, whose value is D log(2 sinh κ/κ), in nats.

    The Gaussian of the mixture is fitted to exact samples of exp(Q/α)/Z, as many as there are proposals.
    """
    print("| κ | D | proposals | uniform | mixture | mixture, standard deviation |\n" + "| --- " * 6 + "|")
    for kappa, dim in ((1, 1), (10, 1), (3, 6), (10, 6)):
        exact = dim * math.log(2 * math.sinh(kappa) / kappa)

        def energy(action, kappa=kappa):
            return kappa * action.sum(axis=-1)

        for count in (16, 50, 256):
            args = sql.Args(value_particles=count)
            uniform_key, mixture_key = jax.random.split(jax.random.key(0))
            state = with_energy(args, energy, dim)
            uniform = sql.soft_value(state, jnp.zeros((STATES, 1)), dim, uniform_key, args)
            share = np.random.default_rng(0).uniform(1e-6, 1, (STATES, count, dim))
            action = 1 + np.log(share + (1 - share) * math.exp(-2 * kappa)) / kappa  # inverse of the cdf
            samples = jnp.arctanh(jnp.clip(jnp.float32(action), -1 + 1e-6, 1 - 1e-6))
            mixture = mixture_value(energy, samples, mixture_key, count)
            print(
                f"| {kappa} | {dim} | {count} | {uniform.mean() - exact:.2f} | {mixture.mean() - exact:.2f} "
                f"| {mixture.std():.2f} |"
            )


def compare_on_a_run(folder: str) -> None:
    """Prints bias and deviation of the soft value of 200 of a run's last states, in nats of exp(Q/α).

    The mixture's Gaussian is fitted to 16 samples of the run's own sampler. The value itself is that of 64
    times 256 proposals of the mixture; half of them tell how far it can be trusted.
    """
    args = recorded(sql.Args, folder)
    commit = newest_commit(Path(folder))
    newest = commit.segments[-1].load()
    obs, dim = jnp.asarray(newest.obs[0][-1000::5]), newest.action.shape[-1]
    state = trained_state(sql, commit, args, obs.shape[-1], dim)
    samples_key, *keys = jax.random.split(jax.random.key(0), 97)
    samples = sql.sample(state.actor.params, sql.repeat(obs, 16), samples_key)
    # soft_value reads the targets; here the newest critics are meant
    state = state.replace(target_critics=state.critics.params)
    energy = target_energy(state, obs, args)

    @partial(jax.jit, static_argnums=1)
    def uniform(key, count):
        few = replace(args, value_particles=count)
        return sql.soft_value(state, obs, dim, key, few) / args.alpha

    @partial(jax.jit, static_argnums=1)
    def mixture(key, count):
        return mixture_value(energy, samples, key, count)

    values = np.stack([mixture(key, 256) for key in keys[:64]])
    half, exact = (logsumexp(values[:count], axis=0) - math.log(count) for count in (32, 64))
    print(
        f"{folder} at step {commit.steps:,}: V/α is {exact.mean():.1f} nats in the mean of {len(obs)} states"
    )
    print(f"({half.mean() - exact.mean():+.2f} with half of the proposals)\n")
    print(
        "| proposals | uniform: bias | standard deviation | mixture: bias | standard deviation |\n"
        + "| --- " * 5
        + "|"
    )
    for count in (16, 50, 256):
        cells = []
        for estimate in (uniform, mixture):
            errors = np.stack([estimate(key, count) for key in keys[64:]]) - exact
            cells += [f"{errors.mean():.2f}", f"{errors.std(axis=0).mean():.2f}"]
        print(f"| {count} | {' | '.join(cells)} |")


def updates_per_second(algorithm: Any, args: Any, envs: SeedEnvs, updates: int) -> Callable[[], float]:
    """A function that times `updates` updates; compiled already."""
    update, state, (batch, keys) = prepare_update(algorithm, args, envs)
    state, _ = update(state, batch, keys, 0)

    def measure():
        nonlocal state  # donated to each update
        jax.block_until_ready(state)
        start = time.perf_counter()
        for index in range(updates):
            state, _ = update(state, batch, keys, index)
        jax.block_until_ready(state)
        return updates / (time.perf_counter() - start)

    return measure


def compare_cost(updates: int) -> None:
    """Prints updates per second, medians of three rounds in turn, and SAC's beside them."""
    args, envs = sql.Args(), SeedEnvs("HalfCheetah-v4", [1])
    rows = {"SAC": updates_per_second(sac, sac.Args(), envs, updates)}
    for value, svgd in ((4, 4), (8, 8), (16, 16), (32, 16), (16, 32), (32, 32), (50, 32)):
        particles = replace(args, value_particles=value, svgd_particles=svgd)
        rows[f"SQL, {value} for the value, {svgd} of Stein"] = updates_per_second(
            sql, particles, envs, updates
        )
    for name, changes in (
        ("two critics", {"n_critics": 2}),
        ("SAC's layers", {"hidden_dims": sac.Args.hidden_dims}),
    ):
        rows[f"SQL, 16 and 16, {name}"] = updates_per_second(sql, replace(args, **changes), envs, updates)
    rounds = [{name: measure() for name, measure in rows.items()} for _ in range(3)]
    print("| update | per second | of SAC's |\n| --- | --- | --- |")
    for name in rows:
        rate = statistics.median(figures[name] for figures in rounds)
        share = statistics.median(figures[name] / figures["SAC"] for figures in rounds)
        print(f"| {name} | {rate:.0f} | {share:.2f} |")


def main(args: Args) -> None:
    """Raises UsageError for bad input."""
    if args.steps < 1 or args.updates < 1:
        raise UsageError(f"steps and updates must be >= 1; got {args.steps} and {args.updates}")
    set_up_device("auto")
    if args.what == "samplers":
        compare_samplers(args.steps)
    elif args.what == "proposals":
        compare_proposals()
    elif args.what == "cost":
        compare_cost(args.updates)
    elif args.run_dir is None:
        raise UsageError("name the run of sql.py: --run-dir runs/…")
    else:
        compare_on_a_run(args.run_dir)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UsageError, Damaged) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)

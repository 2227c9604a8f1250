"""What soft Q-learning's particles are worth: how well the sampler samples, how biased the soft value is, and
what both cost.

    python benchmarks/studies/particles/particles.py samplers
    python benchmarks/studies/particles/particles.py proposals
    python benchmarks/studies/particles/particles.py trained --run-dir runs/…
    python benchmarks/studies/particles/particles.py cost

`samplers`: five known distributions, three ways to take Stein's step. `proposals`: bias of the soft value
with uniform proposals, and with those of sql_mixture.py. `trained`: the same with the Q and the sampler of a
run. `cost`: updates per second over the number of particles, beside SAC. Each prints a Markdown table;
docs/algorithms/sql.md has them, and what follows from them.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from scipy.special import logsumexp

from benchmarks.speed.batches import BatchUpdate
from benchmarks.studies.mixture.sql_mixture import mixture_value, target_energy
from benchmarks.trained import trained_state
from cleanrl_maxent import sac, sql
from cleanrl_maxent.common.cli import recorded_args, run_script
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import require

Energy = Callable[[jax.Array], jax.Array]  # actions (..., D) -> Q/α, (...)
BINS = 20  # of a histogram, in each dimension
STATES = 4_000  # over which the bias of the soft value is averaged


@dataclass(frozen=True)
class Args:
    """Measures soft Q-learning's particles."""

    # the table to print; trained needs --run-dir
    what: tyro.conf.Positional[Literal["samplers", "proposals", "trained", "cost"]]
    run_dir: Path | None = None  # trained: a run of sql.py
    steps: int = 2_000  # Adam steps of each sampler
    updates: int = 30  # timed updates of each row of the cost, three times over


def flat(action: jax.Array) -> jax.Array:
    """All actions are equally good."""
    return jnp.zeros(action.shape[:-1])


def double_well(action: jax.Array) -> jax.Array:
    """Modes at ±0.6 in every dimension."""
    return -8 * jnp.sum((action**2 - 0.36) ** 2, axis=-1)


def slope(action: jax.Array) -> jax.Array:
    """The mode is at the upper bound."""
    return 5 * action.sum(axis=-1)


ENERGIES: list[tuple[str, Energy, int]] = [
    ("0, D = 1", flat, 1),
    ("0, D = 2", flat, 2),
    ("−8(a² − 0.36)², D = 1", double_well, 1),
    ("−8 Σ(a² − 0.36)², D = 2", double_well, 2),
    ("5a, D = 1", slope, 1),
]


def with_energy(args: sql.Args, energy: Energy, dim: int) -> Any:
    """A state whose critic is `args.alpha` times the energy, whatever the observation."""
    state: Any = sql.init(jax.random.key(0), Task(1, dim), args)
    critics = state.critics.replace(apply_fn=lambda params, obs, action: args.alpha * energy(action)[None])
    return state.replace(critics=critics)


def uncorrected(particle: jax.Array, obs: jax.Array, state: sql.State, args: sql.Args) -> jax.Array:
    """Q/α of particles that are actions, without the Jacobian of tanh: eq. 13 read literally."""
    obs = sql.repeat(obs, particle.shape[1])
    return state.critics.apply_fn(state.critics.params, obs, particle)[0] / args.alpha


def uncorrected_loss(params, state, batch, key, args, log_density=uncorrected):
    """`sql.actor_loss` with `log_density` as the density of the particles."""
    (moved, fixed), (fixed_key, moved_key) = args.particles, jax.random.split(key)
    fixed = sql.sample_particles(sql.policy(state), batch.obs, fixed_key, fixed, args)
    moved = sql.sample_particles(Partial(state.actor.apply_fn, params), batch.obs, moved_key, moved, args)
    score = jax.grad(lambda fixed: log_density(fixed, batch.obs, state, args).sum())(fixed)
    direction = jax.vmap(sql.stein_direction)(fixed, jax.lax.stop_gradient(moved), score)
    return -jnp.mean(jnp.sum(direction * moved, axis=-1)), {}


def train_sampler(
    energy: Energy, dim: int, space: str, steps: int, hidden_dims=(128, 128), policy_lr: float = 3e-4
) -> np.ndarray:
    """100,000 actions of a sampler after Adam steps on a batch of 64 with 32 particles, `(100000, dim)`.

    `space`: "raw" or "action", as in sql.py, or "uncorrected".
    """
    svgd_space = "raw" if space == "raw" else "action"
    args = sql.Args(svgd_space=svgd_space, svgd_particles=32, hidden_dims=hidden_dims, policy_lr=policy_lr)
    state, zeros = with_energy(args, energy, dim), jnp.zeros(64)
    batch = Transition(zeros[:, None], jnp.zeros((64, dim)), zeros, zeros[:, None], zeros)
    loss = uncorrected_loss if space == "uncorrected" else sql.actor_loss

    def step(state, key):
        grads, _ = jax.grad(loss, has_aux=True)(state.actor.params, state, batch, key, args)
        return state.replace(actor=state.actor.apply_gradients(grads=grads)), None

    keys = jax.random.split(jax.random.key(1), steps)
    state = jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(state)
    return np.asarray(sql.act(sql.policy(state), jnp.zeros((100_000, 1)), jax.random.key(2), False))


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


def compare_proposals() -> None:
    """Prints the bias of the soft value for Q/α = b Σ a, whose value is D log(2 sinh b/b), in nats.

    The Gaussian of the mixture is fitted to exact samples of exp(Q/α)/Z, as many as there are proposals.
    """
    print("| b | D | proposals | uniform | mixture | mixture, standard deviation |\n" + "| --- " * 6 + "|")
    for b, dim in ((1, 1), (10, 1), (3, 6), (10, 6)):
        exact = dim * math.log(2 * math.sinh(b) / b)

        def energy(action, b=b):
            return b * action.sum(axis=-1)

        for count in (16, 50, 256):
            args = sql.Args(value_particles=count)
            uniform_key, mixture_key = jax.random.split(jax.random.key(0))
            state = with_energy(args, energy, dim)
            uniform = sql.soft_value(state, jnp.zeros((STATES, 1)), dim, uniform_key, args)
            share = np.random.default_rng(0).uniform(1e-6, 1, (STATES, count, dim))
            action = 1 + np.log(share + (1 - share) * math.exp(-2 * b)) / b  # inverse of the cdf
            samples = jnp.arctanh(jnp.clip(jnp.float32(action), -1 + 1e-6, 1 - 1e-6))
            mixture = mixture_value(energy, samples, mixture_key, count)
            print(
                f"| {b} | {dim} | {count} | {uniform.mean() - exact:.2f} | {mixture.mean() - exact:.2f} "
                f"| {mixture.std():.2f} |"
            )


def compare_on_a_run(folder: str) -> None:
    """Prints bias and standard deviation of the soft value V/α in 200 of a run's last states, in nats.

    The mixture's Gaussian is fitted to 16 samples of the run's own sampler. The value taken as exact is that
    of 64 times 256 proposals of the mixture; the value from half of them tells how far it can be trusted.
    """
    args: Any = recorded_args(sql.Args, folder)
    state, checkpoint = trained_state(sql, Path(folder))
    newest = checkpoint.segments[-1].load()
    obs, dim = jnp.asarray(newest.obs[0][-1000::5]), newest.action.shape[-1]
    samples_key, *keys = jax.random.split(jax.random.key(0), 97)
    samples = sql.policy(state)(sql.repeat(obs, 16), samples_key)
    # soft_value reads the targets; the newest critics are to be measured
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
    half, exact = (np.asarray(logsumexp(values[:count], axis=0)) - math.log(count) for count in (32, 64))
    mean = f"V/α is {exact.mean():.1f} nats, the mean of {len(obs)} states"
    print(f"{folder} at step {checkpoint.steps:,}: {mean}")
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


def updates_per_second(update: BatchUpdate, updates: int) -> float:
    """Updates per second, timed over `updates` of them."""
    update.wait()
    start = time.perf_counter()
    for index in range(updates):
        update(index)
    update.wait()
    return updates / (time.perf_counter() - start)


def compare_cost(updates: int) -> None:
    """Prints updates per second, as medians of three rounds in which rows take turns, and relative to SAC."""
    args, envs = sql.Args(), SeedEnvs("HalfCheetah-v4", [1])
    rows = {"SAC": BatchUpdate(sac, sac.Args(), envs)}
    for value, svgd in ((4, 4), (8, 8), (16, 16), (32, 16), (16, 32), (32, 32), (50, 32)):
        particles = replace(args, value_particles=value, svgd_particles=svgd)
        rows[f"SQL, {value} for the value, {svgd} of Stein"] = BatchUpdate(sql, particles, envs)
    for name, changes in (
        ("two critics", {"n_critics": 2}),
        ("SAC's layers", {"hidden_dims": sac.Args.hidden_dims}),
    ):
        rows[f"SQL, 16 and 16, {name}"] = BatchUpdate(sql, replace(args, **changes), envs)
    for update in rows.values():
        update.compile()
    rounds = [{name: updates_per_second(update, updates) for name, update in rows.items()} for _ in range(3)]
    print("| update | per second | of SAC's |\n| --- | --- | --- |")
    for name in rows:
        rate = statistics.median(figures[name] for figures in rounds)
        share = statistics.median(figures[name] / figures["SAC"] for figures in rounds)
        print(f"| {name} | {rate:.0f} | {share:.2f} |")


def main(args: Args) -> None:
    """Prints the table that was asked for. Raises UsageError for bad input."""
    positive = args.steps >= 1 and args.updates >= 1
    require(positive, f"steps and updates must be >= 1; got {args.steps} and {args.updates}")
    set_up_device("auto")
    if args.what == "samplers":
        compare_samplers(args.steps)
    elif args.what == "proposals":
        compare_proposals()
    elif args.what == "cost":
        compare_cost(args.updates)
    else:
        require(bool(args.run_dir), "name the run of sql.py: --run-dir runs/…")
        compare_on_a_run(str(args.run_dir))


if __name__ == "__main__":
    run_script(Args, main)

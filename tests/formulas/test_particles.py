"""Soft Q-learning's sampler on known distributions, and its soft value with a mixture of proposals."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.studies.mixture import sql_mixture
from benchmarks.studies.particles import particles
from cleanrl_maxent import sql
from cleanrl_maxent.common.errors import UsageError
from tests.support.references import ACTION_DIM, TASK, make_batch, mlp
from tests.support.runs import rows, small_args

QUICK = dict(steps=500, hidden_dims=(64, 64), policy_lr=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2])
def test_sampler_of_a_flat_energy(dim):
    """Uniform actions have E[a²] = 1/3; the published step's have the density ∝ Π(1 - a²), 1/5."""
    squares = {
        space: np.mean(particles.train_sampler(particles.flat, dim, space, **QUICK) ** 2)
        for space in ("raw", "action")
    }
    assert squares["raw"] == pytest.approx(1 / 3, abs=0.03)
    assert squares["action"] == pytest.approx(1 / 5, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2])
def test_sampler_of_several_modes(dim):
    """Modes at ±0.6 in every dimension: all are sampled, and raw particles come nearest to exp(Q)/Z."""
    energy = particles.double_well
    actions = {s: particles.train_sampler(energy, dim, s, **QUICK) for s in ("raw", "action")}
    distance = {space: particles.total_variation(found, energy) for space, found in actions.items()}
    assert distance["raw"] < (0.05 if dim == 1 else 0.12) < distance["action"]
    assert particles.rarest_orthant(actions["raw"]) > 0.8 / 2**dim


def test_distance_to_known_samples():
    """Samples of exp(5a)/Z by the inverse of its distribution have none; uniform ones have 0.67."""
    share = np.random.default_rng(0).random((100_000, 1))
    exact = 1 + np.log(share + (1 - share) * math.exp(-10)) / 5
    edges = np.linspace(-1, 1, 21)
    weights = np.diff(np.exp(5 * edges)) / (math.exp(5) - math.exp(-5))
    assert particles.bin_probabilities(particles.slope, 1) == pytest.approx(weights, abs=1e-3)
    assert particles.total_variation(exact, particles.slope) < 0.01
    uniform = particles.total_variation(2 * share - 1, particles.slope)
    assert uniform == pytest.approx(0.5 * np.abs(weights - 1 / 20).sum(), abs=0.01)
    assert uniform == pytest.approx(0.67, abs=0.01)


def test_mixture_of_proposals():
    """Half uniform, half fitted, they estimate V/α = D log(2 sinh κ/κ) of Q/α = κ Σ a."""
    exact = 2 * math.log(2 * math.sinh(3) / 3)
    share = np.random.default_rng(0).uniform(1e-6, 1, (100, 64, 2))
    samples = jnp.float32(np.arctanh(1 + np.log(share + (1 - share) * math.exp(-6)) / 3))
    mixture_value = jax.jit(sql_mixture.mixture_value, static_argnums=(0, 3))
    value = mixture_value(lambda a: 3 * a.sum(-1), samples, jax.random.key(0), 4096)
    assert np.allclose(value, exact, atol=0.1) and float(value.mean()) == pytest.approx(exact, abs=0.01)


def test_soft_value_of_the_mixture_is_that_of_the_smaller_target():
    """By quadrature over the square of actions."""
    args = sql_mixture.Args(hidden_dims=(16, 16), alpha=0.3, value_particles=8192, n_critics=2)
    init = jax.jit(lambda seed: sql_mixture.init(jax.random.key(seed), TASK, args))
    state, obs = init(0).replace(target_critics=init(100).critics.params), make_batch().obs
    middles = (np.arange(40) + 0.5) / 20 - 1
    grid = np.stack(np.meshgrid(*[middles] * ACTION_DIM), axis=-1).reshape(1, -1, ACTION_DIM)
    x = np.concatenate([np.repeat(obs[:, None], 1600, axis=1), grid.repeat(len(obs), axis=0)], axis=-1)
    q = [mlp(jax.tree.map(lambda p, i=i: p[i], state.target_critics), x)[..., 0] for i in range(2)]
    exact = 0.3 * np.log(np.exp(np.min(q, axis=0) / 0.3).mean(axis=1) * 2**ACTION_DIM)
    value = jax.jit(lambda state, key: sql_mixture.soft_value(state, obs, ACTION_DIM, key, args))
    assert np.allclose(value(state, jax.random.key(0)), exact, atol=0.02)


@pytest.mark.slow
def test_training_with_the_mixture(tmp_path):
    """Its soft value is what its critics learn from; sql.py does not resume such a run."""
    folder, given = tmp_path / "run", dict(value_particles=4, total_timesteps=200, eval_episodes=0)
    args = small_args(sql_mixture, **given, run_dir=str(folder))
    with pytest.raises(UsageError, match="value_particles must be even, half of each kind; got 3"):
        sql_mixture.train(replace(args, value_particles=3))
    called, original = [], sql_mixture.soft_value

    def soft_value(*inputs):
        called.append(inputs)
        return original(*inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_mixture, "soft_value", soft_value)
        sql_mixture.train(args)
    assert called and np.isfinite(rows(folder / "seed-1" / "metrics.jsonl")[-1]["losses/qf1_loss"])
    with pytest.raises(UsageError, match="is a run of sql_mixture"):
        sql.train(small_args(sql, **given, run_dir=str(folder)))

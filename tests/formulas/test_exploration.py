"""Deterministic policies, which explore by noise: the noise, and problems whose solution is known."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cleanrl_maxent
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from tests.support.probes import Echo
from tests.support.references import trained_on
from tests.support.runs import SMALL, interrupted, record_actions

MODULES = {
    name: module for name, module in cleanrl_maxent.algorithms().items() if hasattr(module, "next_noise")
}
ALGORITHMS = pytest.mark.parametrize("algorithm", MODULES.values(), ids=MODULES)


OU = (  # theta, sigma, dt; stationary standard deviation, and steps until the autocorrelation is 1/e
    (0.15, 0.2, 1.0, 0.380, 6.2),
    (0.15, 0.3, 1.0, 0.569, 6.2),
    (0.15, 0.2, 0.01, 0.365, 666),
)


@ALGORITHMS
@pytest.mark.parametrize(("theta", "sigma", "dt", "std", "correlation_time"), OU)
def test_ornstein_uhlenbeck(algorithm, theta, sigma, dt, std, correlation_time):
    """512 chains; each starts at 0."""
    args = algorithm.Args(noise="ou", ou_theta=theta, ou_sigma=sigma, ou_dt=dt)

    def step(noise, given):
        elapsed, key = given
        noise = algorithm.next_noise(noise, elapsed, key, args)
        return noise, noise

    @jax.jit
    def play(first):
        keys = jax.random.split(jax.random.key(0), 8_000)
        return jax.lax.scan(step, first, (jnp.arange(8_000), keys))[1]

    chains = np.asarray(play(jnp.full(512, 5.0)), np.float64)
    assert chains[0].std() == pytest.approx(sigma * math.sqrt(dt), rel=0.15)
    assert abs(chains[0].mean()) < 0.15 * sigma * math.sqrt(dt)  # whatever was there before the episode
    late = chains[4_000:]
    assert late.std() == pytest.approx(std, rel=0.03)
    decay = (late[1:] * late[:-1]).mean() / (late[:-1] ** 2).mean()
    assert -1 / math.log(decay) == pytest.approx(correlation_time, rel=0.03)


@ALGORITHMS
def test_gaussian_noise_is_fresh_at_every_step(algorithm):
    args = algorithm.Args(exploration_noise=0.1)
    keys = jax.random.split(jax.random.key(0), 4_000)
    noise = jax.vmap(lambda key: algorithm.next_noise(jnp.full(2, 5.0), 1, key, args))(keys)
    assert np.std(noise) == pytest.approx(0.1, rel=0.03) and abs(np.mean(noise)) < 0.005
    assert abs(np.corrcoef(np.asarray(noise).T)[0, 1]) < 0.06


@ALGORITHMS
def test_noise_that_diverges_is_refused(algorithm):
    with pytest.raises(UsageError, match="noise diverges"):
        validate(algorithm.Args(noise="ou", ou_theta=2.5))
    validate(algorithm.Args(ou_theta=2.5))


def learn_nothing(state, batch, key, index, args):
    """In place of `update`."""
    return state, {}


LENGTHS = (20, 25, 40, 50)  # of the episodes of four copies of Echo


@pytest.mark.slow
@ALGORITHMS
def test_exploration(algorithm, tmp_path, monkeypatch):
    """Bounds ±0.4 and [-1, 3], an actor that does not learn: noise in units of the normalised action,
    clipped, anew in every episode of every copy, of its own for every seed and dimension."""
    monkeypatch.setattr(algorithm, "update", learn_nothing)
    monkeypatch.setattr(Echo, "actions", [])
    monkeypatch.setattr(Echo, "lengths", iter(LENGTHS))
    asked = record_actions(monkeypatch)
    algorithm.train(
        algorithm.Args(
            env_id="Echo-v0",
            num_seeds=4,
            total_timesteps=1_200,
            learning_starts=200,
            batch_size=8,
            hidden_dims=(8,),
            noise="ou",
            ou_sigma=0.3,
            eval_episodes=0,
            env_reset="restart",
            run_dir=str(tmp_path / "run"),
        )
    )
    asked = np.array(asked)  # (step, seed, dim)
    assert np.abs(asked).max() == 1 and np.allclose(
        np.array(Echo.actions).reshape(asked.shape), asked * [0.4, 2] + [0, 1], atol=1e-6
    )
    noise = asked[200:] - np.median(asked[200:], axis=0)
    first = np.concatenate([noise[::length, seed].ravel() for seed, length in enumerate(LENGTHS)])
    assert first.std() == pytest.approx(0.3, rel=0.15)
    others = [(seed, t) for seed in range(4) for t in range(1000) if t % LENGTHS[seed] > 14]
    at_reset = [noise[t, seed] for seed, t in others if any(t % length == 0 for length in LENGTHS)]
    assert np.std(at_reset) == pytest.approx(0.55, rel=0.15)
    rows = noise.reshape(1000, 8)
    fresh = rows[1:] - 0.85 * rows[:-1]
    inside = (np.abs(asked[201:]) < 1).all((1, 2)) & (np.abs(asked[200:-1]) < 1).all((1, 2))
    corr = np.corrcoef(fresh[inside].T)
    assert np.abs(corr - np.eye(8)).max() < 0.25


@pytest.mark.slow
@ALGORITHMS
def test_a_restarted_episode_starts_without_noise(algorithm, tmp_path, monkeypatch):
    """`--env-reset restart` begins a new episode on resume; the noise starts from 0 there."""
    monkeypatch.setattr(algorithm, "update", learn_nothing)
    args = SMALL | dict(noise="ou", env_reset="restart", eval_episodes=0)
    interrupted(args, tmp_path / "run", monkeypatch, 300, algorithm)
    seen, original = [], algorithm.next_noise

    def next_noise(noise, elapsed, key, args):
        after = original(noise, elapsed, key, args)
        jax.debug.callback(lambda *given: seen.append(given), noise, elapsed, jax.random.key_data(key), after)
        return after

    monkeypatch.setattr(algorithm, "next_noise", next_noise)
    algorithm.train(algorithm.Args(**args | dict(total_timesteps=310), run_dir=str(tmp_path / "run")))
    jax.effects_barrier()
    (saved, elapsed, key, after), (following, later, *_), *_ = seen
    assert elapsed == 0 and later == 1 and np.abs(saved).min() > 0
    key, args = jax.random.wrap_key_data(jnp.asarray(key)), algorithm.Args(**args)
    assert np.allclose(after, original(jnp.zeros_like(saved), 1, key, args), atol=1e-7)
    assert np.array_equal(following, after)


VALUES = {  # Q of the observations and how close it must be; those of Counting are numbers of steps
    "ConstantReward-v0": (lambda obs: np.full(len(obs), 10.0), 0.5),
    "Counting-v0": (lambda obs: np.array([2.71, 1.9, 1.0])[obs.astype(int)], 0.1),
}


@pytest.mark.slow
@ALGORITHMS
@pytest.mark.parametrize(
    "env_id", VALUES, ids=["constant reward, a time limit does not cut the bootstrap", "termination cuts it"]
)
def test_values_of_a_probe(algorithm, env_id):
    """Reward 1 for ever: Q is 1/(1 - γ) = 10. Reward 1 for three steps: 1 + γ + γ², 1 + γ, 1."""
    args = algorithm.Args(hidden_dims=(64,), gamma=0.9, learning_rate=3e-3, tau=0.05)
    state, rows = trained_on(algorithm, args, env_id)
    critics = state.critic if hasattr(state, "critic") else state.critics
    q = critics.apply_fn(critics.params, np.asarray(rows.obs), rows.action)
    expected, tolerance = VALUES[env_id]
    assert np.allclose(q, expected(np.asarray(rows.obs)[:, 0]), atol=tolerance)


def paid_at_once(key):
    """Reward -(a - 0.3)², and the episode ends."""
    action = jax.random.uniform(key, (256, 1), minval=-1, maxval=1)
    obs = jnp.zeros((256, 2))
    return Transition(obs, action, -((action[:, 0] - 0.3) ** 2), obs, jnp.ones(256))


def paid_a_step_later(key):
    """The first action is seen a step later, where it is paid -(a + 0.4)²."""
    action_key, seen_key = jax.random.split(key)
    action = jax.random.uniform(action_key, (256, 1), minval=-1, maxval=1)
    seen = jax.random.uniform(seen_key, (256,), minval=-1, maxval=1)
    first = jnp.arange(256) < 128
    obs = jnp.stack([jnp.where(first, 0.0, 1.0), jnp.where(first, 0.0, seen)], axis=1)
    next_obs = jnp.stack([jnp.ones(256), jnp.where(first, action[:, 0], 0.0)], axis=1)
    reward = jnp.where(first, 0.0, -((seen + 0.4) ** 2))
    return Transition(obs, action, reward, next_obs, jnp.where(first, 0.0, 1.0))


@cache
def learned_actions(algorithm, steps=3000):
    """μ(0) of both problems after updates on batches of them, side by side."""
    args = algorithm.Args(hidden_dims=(64, 64), learning_rate=1e-3, gamma=0.9, tau=0.02)

    def step(states, index):
        batch_key, key = jax.random.split(jax.random.fold_in(jax.random.key(5), index))
        batches = jax.tree.map(
            lambda *rows: jnp.stack(rows), paid_at_once(batch_key), paid_a_step_later(batch_key)
        )
        return jax.vmap(lambda state, batch: algorithm.update(state, batch, key, index, args)[0])(
            states, batches
        ), None

    @jax.jit
    def learn(keys):
        states = jax.vmap(lambda key: algorithm.init(key, Task(2, 1), args))(keys)
        return jax.lax.scan(step, states, jnp.arange(steps))[0]

    policies = algorithm.policy(learn(jnp.stack([jax.random.key(0)] * 2)))
    act = jax.vmap(lambda policy: algorithm.act(policy, jnp.zeros(2), None, True)[0])
    return np.asarray(act(policies))


@pytest.mark.slow
@ALGORITHMS
def test_reward_that_depends_on_the_action(algorithm):
    assert learned_actions(algorithm)[0] == pytest.approx(0.3, abs=0.05)


@pytest.mark.slow
@ALGORITHMS
def test_credit_over_two_steps(algorithm):
    """Only the bootstrap can tell."""
    assert learned_actions(algorithm)[1] == pytest.approx(-0.4, abs=0.1)

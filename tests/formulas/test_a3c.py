"""a3c.py: its rounds against the box of the paper, worker by worker in float64 NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import a2c, a3c
from tests.support.contract import Case, record_inputs
from tests.support.pytrees import distance
from tests.support.rollouts import (
    double,
    flat,
    float64,
    make_args,
    make_rollout,
    make_state,
    moved,
    new_state,
    numeric_gradient,
    reference_entropy,
    reference_log_prob,
    reference_value,
    rmsprop,
)

NAMES = ("actor", "critic")

update = jax.jit(a3c.update, static_argnums=4)


def box(theta, workers, squares, rollout, args):
    """A round: every worker in turn runs Algorithm S3 from `dθ ← 0` on, with R and V of its own."""
    steps = jax.device_get(rollout.transition)
    for worker, own in enumerate(workers):
        obs, action, reward = (x[:, worker] for x in (steps.obs, steps.action, steps.reward))
        value, next_value = (
            reference_value(own["critic"], x[:, worker]) for x in (steps.obs, steps.next_obs)
        )
        returns, R = np.zeros(len(reward)), next_value[-1]
        for t in reversed(range(len(reward))):
            if rollout.ended[t, worker]:
                R = 0 if steps.terminated[t, worker] else next_value[t]
            R = reward[t] + args.gamma * R
            returns[t] = R

        def of_actor(params, obs=obs, action=action, advantage=returns - value):
            entropy = reference_entropy(params, obs)
            return -np.mean(reference_log_prob(params, obs, action) * advantage + args.ent_coef * entropy)

        def of_critic(params, obs=obs, returns=returns):
            return 0.5 * np.mean((returns - reference_value(params, obs)) ** 2)

        for name, loss in (("actor", of_actor), ("critic", of_critic)):
            gradient = numeric_gradient(loss, own[name])
            given = gradient, squares[name], args.learning_rate, args.max_grad_norm
            step, squares[name] = rmsprop(*given)
            theta[name] = moved(theta[name], step)
        workers[worker] = dict(theta)
    return theta, workers, squares


@float64()
def test_rounds_are_those_of_the_box():
    """Two rounds, so that in the second each worker differentiates at parameters which others have left."""
    args = make_args(a3c, num_envs=3, ent_coef=0.3, gamma=0.9, learning_rate=0.05)
    state = double(a3c.synchronize(make_state(a3c, args), args))
    theta = {name: jax.device_get(getattr(state, name).params) for name in NAMES}
    workers = [dict(theta) for _ in range(3)]
    squares = {name: np.ones(flat(theta[name]).size) for name in NAMES}
    for seed in range(2):
        rollout = double(make_rollout(a3c, args, seed=seed))
        state, _ = update(state, rollout, jax.random.key(0), seed, args)
        theta, workers, squares = box(theta, workers, squares, rollout, args)
        for name in NAMES:
            assert distance(getattr(state, name).params, theta[name]) < 1e-9, name
            for number, own in enumerate(workers):
                found = jax.tree.map(lambda leaf, i=number: leaf[i], getattr(state.workers, name))
                assert distance(found, own[name]) < 1e-9, (name, number)
    assert all(distance(workers[0][name], workers[1][name]) > 0.01 for name in NAMES)


def stale(state):
    """The state with workers that differ."""
    count = len(flat(state.returns.running))
    factors = jnp.linspace(0.5, 1.5, count)
    workers = jax.tree.map(lambda x: jnp.stack([factor * x[0] for factor in factors]), state.workers)
    return state.replace(workers=workers)


def test_only_the_last_worker_of_a_round_has_the_shared_parameters():
    """The first one's are older."""
    args = make_args(a3c)
    state, _ = update(stale(make_state(a3c, args)), make_rollout(a3c, args), jax.random.key(0), 0, args)
    for name in NAMES:
        last = jax.tree.map(lambda leaf: leaf[-1], getattr(state.workers, name))
        assert distance(last, getattr(state, name).params) == 0
        first = jax.tree.map(lambda leaf: leaf[0], getattr(state.workers, name))
        assert distance(last, first) > 1e-4


@pytest.mark.parametrize("count", [1, 4])
@float64()
def test_one_worker_is_a2c_and_four_are_not(count):
    """Over two rounds of the same steps."""
    states = {}
    for algorithm in (a2c, a3c):
        args = make_args(algorithm, num_envs=count, ent_coef=0.3, learning_rate=0.02)
        state = make_state(algorithm, args)
        state = double(a3c.synchronize(state, args) if algorithm is a3c else state)
        step = jax.jit(algorithm.update, static_argnums=4)
        for seed in range(2):
            rollout = double(make_rollout(algorithm, args, seed=seed))
            state, _ = step(state, rollout, jax.random.key(0), seed, args)
        states[algorithm] = state
    for name in NAMES:
        difference = distance(getattr(states[a2c], name).params, getattr(states[a3c], name).params)
        assert difference < 1e-14 if count == 1 else difference > 1e-3


def test_workers_begin_with_the_shared_parameters():
    args = make_args(a3c)
    state = new_state(a3c, args)
    for name in NAMES:
        for number in range(args.num_envs):
            own = jax.tree.map(lambda leaf, i=number: leaf[i], getattr(state.workers, name))
            assert distance(own, getattr(state, name).params) == 0


@pytest.mark.slow
def test_each_environment_is_acted_in_by_its_own_worker(monkeypatch, tmp_path):
    """Workers with means 0.2, 0.4 and 0.6 and hardly any noise."""
    args = make_args(
        a3c,
        **dict(
            num_envs=3,
            num_steps=4,
            total_timesteps=12,
            env_id="tests.support.probes:Echo-v0",
            log_std_init=-9.0,
        ),
        **dict(normalize_observation=False, eval_episodes=0, run_dir=str(tmp_path / "run")),
    )
    original = a3c.init

    def init(key, task, args):
        state = original(key, task, args)
        actor = jax.tree.map(lambda leaf: 1 * leaf, state.workers.actor)
        actor["params"]["mean"]["bias"] += jnp.array([0.2, 0.4, 0.6])[:, None]
        return state.replace(workers=state.workers.replace(actor=actor))

    monkeypatch.setattr(a3c, "init", init)
    inputs = record_inputs(Case("", "Box", a3c), monkeypatch, args)
    action = inputs.data[0].transition.action  # (seed, step, worker, dim)
    assert np.allclose(action, np.array([0.2, 0.4, 0.6])[:, None], atol=0.02)


def test_the_learning_rate_falls_with_every_turn():
    """Linearly to 0: two rounds of four turns fit into 50 steps."""
    args = make_args(a3c, anneal_lr=True, total_timesteps=50)
    assert args.gradient_steps == 8
    state = make_state(a3c, args)
    for seed in range(2):
        state, _ = update(state, make_rollout(a3c, args, seed=seed), jax.random.key(0), seed, args)
    assert int(state.actor.step) == int(state.critic.step) == 8
    after, _ = update(state, make_rollout(a3c, args, seed=2), jax.random.key(0), 2, args)
    assert distance(after.actor.params, state.actor.params) == 0
    assert distance(after.critic.params, state.critic.params) == 0


def test_workers_draw_noise_of_their_own(monkeypatch, tmp_path):
    """In the first step, where parameters and observations are alike in all environments."""
    args = make_args(a3c, num_envs=3, num_steps=2, total_timesteps=6, env_id="tests.support.probes:Echo-v0")
    args = replace(args, normalize_observation=False, eval_episodes=0, run_dir=str(tmp_path / "run"))
    actions = []

    def note(state, rollout, key, index, args):
        jax.debug.callback(lambda action: actions.append(np.asarray(action)), rollout.transition.action)
        return state, {}

    monkeypatch.setattr(a3c, "update", note)
    a3c.train(args)
    jax.effects_barrier()
    assert len(np.unique(actions[0][0], axis=0)) == 3


@pytest.mark.slow
def test_a_run_from_another_begins_with_workers_that_agree(monkeypatch, tmp_path):
    """Even if it has more of them; the other run's were left with parameters that later ones changed."""
    shared = dict(num_steps=4, total_timesteps=12, env_id="tests.support.probes:Echo-v0", eval_episodes=0)
    first, second = (
        make_args(a3c, **shared, num_envs=num_envs, run_dir=str(tmp_path / str(num_envs)))
        for num_envs in (2, 3)
    )
    a3c.train(first)
    seen = []

    def note(state, rollout, key, index, args):
        jax.debug.callback(lambda *both: seen.append(both), state.workers.actor, state.actor.params)
        return state, {}

    monkeypatch.setattr(a3c, "update", note)
    a3c.train(replace(second, init_from=first.run_dir))
    jax.effects_barrier()
    ((workers, params),) = seen
    assert all(distance(jax.tree.map(lambda x, i=i: x[i], workers), params) == 0 for i in range(3))

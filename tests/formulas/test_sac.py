"""Every formula of sac.py against float64 NumPy or a closed form, and problems with known optima."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.tree_util import Partial

from cleanrl_maxent import sac
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.task import Task
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import (
    ACTION_DIM,
    TASK,
    finite_difference,
    make_batch,
    reference_q,
    reference_sample,
    trained_on,
)

ARGS = sac.Args(hidden_dims=(16, 16), batch_size=8, alpha=0.3)
KEY = jax.random.key(7)

critic_loss = jax.jit(jax.value_and_grad(sac.critic_loss, has_aux=True), static_argnums=4)
actor_loss = jax.jit(jax.value_and_grad(sac.actor_loss, has_aux=True))
sample_action = jax.jit(sac.sample_action)


@cache
def make_state():
    """A state whose targets differ from its critics, as after some training."""
    init = jax.jit(lambda seed: sac.init(jax.random.key(seed), TASK, ARGS))
    state, other = init(0), init(100)
    return state.replace(target_critics=other.critics.params)


def constant_policy(mean, log_std):
    """An actor without hidden layers whose Gaussian is the same everywhere."""
    bias = jnp.asarray(np.hstack([mean, log_std]), jnp.float32)
    params = {"params": {"Dense_0": {"kernel": jnp.zeros((1, bias.size)), "bias": bias}}}
    return Partial(sac.Actor((), bias.size // 2).apply, params)


# --- the tanh-Gaussian ---


def sample_at(monkeypatch, mean, log_std, u):
    """Action and log-density of sample_action if the Gaussian drew `u`."""
    noise = jnp.asarray((u - mean) / math.exp(log_std), jnp.float32)[:, None]
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    action, log_prob = sac.sample_action(constant_policy(mean, log_std), jnp.zeros((len(u), 1)), None)
    return np.float64(action[:, 0]), np.float64(log_prob)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (4.0, 1.0), (0.0, 0.1)])
def test_density_integrates_to_one(monkeypatch, mean, std):
    u = np.linspace(mean - 8 * std, mean + 8 * std, 20001)
    action, log_prob = sample_at(monkeypatch, mean, math.log(std), u)
    assert np.allclose(action, np.tanh(u), atol=1e-6)
    assert np.trapezoid(np.exp(log_prob) / np.cosh(u) ** 2, u) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 3.0])
def test_entropy_of_the_squashed_gaussian(monkeypatch, std):
    """H(tanh u) = H(u) + E[log(1 - tanh² u)], the expectation by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    log_jacobian = -2 * np.log(np.cosh(std * nodes))
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    entropy += weights @ log_jacobian / math.sqrt(2 * math.pi)
    u = np.linspace(-9 * std, 9 * std, 20001)
    log_prob = sample_at(monkeypatch, 0.0, math.log(std), u)[1]
    density = np.exp(-0.5 * (u / std) ** 2) / (std * math.sqrt(2 * math.pi))
    assert np.trapezoid(-log_prob * density, u) == pytest.approx(entropy, abs=1e-3)


def test_density_is_exact_where_tanh_saturates(monkeypatch):
    u = np.array([-12.0, -9.0, 9.0, 12.0])
    log_prob = sample_at(monkeypatch, 0.0, math.log(5.0), u)[1]
    normal = -0.5 * (u / 5) ** 2 - math.log(5 * math.sqrt(2 * math.pi))
    log_jacobian = math.log(4) - 2 * np.abs(u) - 2 * np.log1p(np.exp(-2 * np.abs(u)))
    assert np.allclose(log_prob, normal - log_jacobian, atol=1e-4)


def test_density_sums_over_dimensions():
    means, log_stds, key = [0.3, -1.0], [0.1, -0.7], jax.random.key(3)
    noise = np.float64(jax.random.normal(key, (2,)))
    action, log_prob = sample_action(constant_policy(means, log_stds), jnp.zeros(1), key)
    u = np.array(means) + np.exp(log_stds) * noise
    each = -0.5 * noise**2 - log_stds - 0.5 * math.log(2 * math.pi) - np.log(1 - np.tanh(u) ** 2)
    assert log_prob.shape == () and log_prob == pytest.approx(each.sum(), abs=1e-5)
    assert np.allclose(action, np.tanh(u), atol=1e-6)


def test_act_is_tanh_of_the_mean_or_a_sample():
    policy, key = constant_policy([0.5, -2.0], [0.0, 0.0]), jax.random.key(0)
    assert np.allclose(sac.act(policy, jnp.zeros(1), key, True), np.tanh([0.5, -2.0]))
    sampled = sac.sample_action(policy, jnp.zeros(1), key)[0]
    assert np.array_equal(sac.act(policy, jnp.zeros(1), key, False), sampled)


def test_the_standard_deviation_is_clipped():
    mean, log_std = constant_policy([1.0, 2.0], [-30.0, 3.0])(jnp.zeros(1))
    assert mean.tolist() == [1, 2] and log_std.tolist() == [-20, 2]


# --- losses ---


def target(state, batch, target_critics):
    """y = r + γ(1 - d)[min Q̄(s', a') - α log π(a'|s')], in float64."""
    next_action, next_log_prob = reference_sample(state.actor.params, batch.next_obs, KEY)
    next_q = reference_q(target_critics, batch.next_obs, next_action).min(axis=0)
    return batch.reward + 0.99 * (1 - batch.terminated) * (next_q - ARGS.alpha * next_log_prob)


def test_critic_loss_and_metrics():
    state, batch = make_state(), make_batch()
    (loss, metrics), _ = critic_loss(state.critics.params, state, batch, KEY, ARGS)
    y = target(state, batch, state.target_critics)
    q = reference_q(state.critics.params, batch.obs, batch.action)
    assert loss == pytest.approx(0.5 * ((q - y) ** 2).mean(axis=1).sum(), rel=1e-5)
    assert metrics["losses/qf1_loss"] == pytest.approx(0.5 * ((q[0] - y) ** 2).mean(), rel=1e-5)
    assert metrics["losses/qf2_values"] == pytest.approx(q[1].mean(), rel=1e-4)


def reference_actor_loss(params, state, batch):
    """E[α log π - min Q], in float64."""
    action, log_prob = reference_sample(params, batch.obs, KEY)
    return (ARGS.alpha * log_prob - reference_q(state.critics.params, batch.obs, action).min(axis=0)).mean()


def test_actor_loss():
    state, batch = make_state(), make_batch()
    (loss, metrics), _ = actor_loss(state.actor.params, state, batch, KEY)
    assert loss == pytest.approx(reference_actor_loss(state.actor.params, state, batch), rel=1e-4)
    _, log_prob = reference_sample(state.actor.params, batch.obs, KEY)
    assert metrics["losses/entropy"] == pytest.approx(-log_prob.mean(), rel=1e-4)


def test_critic_gradient_is_that_of_the_residual_alone():
    """Central differences of the float64 loss whose target is held fixed."""
    state, batch = make_state(), make_batch()
    state = state.replace(target_critics=state.critics.params)
    _, grads = critic_loss(state.critics.params, state, batch, KEY, ARGS)
    y = target(state, batch, state.critics.params)

    def reference(params):
        return 0.5 * ((reference_q(params, batch.obs, batch.action) - y) ** 2).mean(axis=1).sum()

    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (1, 0))]:
        expected = finite_difference(reference, state.critics.params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_actor_gradient():
    state, batch = make_state(), make_batch()
    _, grads = actor_loss(state.actor.params, state, batch, KEY)
    reference = partial(reference_actor_loss, state=state, batch=batch)
    for path, index in [
        (("Dense_0", "kernel"), (0, 1)),
        (("Dense_2", "bias"), (0,)),
        (("Dense_2", "bias"), (3,)),
    ]:
        expected = finite_difference(reference, state.actor.params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_no_gradient_where_none_belongs():
    """The critic loss is flat in the actor, the targets and the temperature."""
    state, batch = make_state(), make_batch()

    def of_others(actor, target, alpha):
        other = state.replace(
            actor=state.actor.replace(params=actor),
            target_critics=target,
            alpha=state.alpha.replace(params=alpha),
        )
        return sac.critic_loss(state.critics.params, other, batch, KEY, ARGS)[0]

    others = (state.actor.params, state.target_critics, state.alpha.params)
    flat = jax.jit(jax.grad(of_others, (0, 1, 2)))(*others)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


@pytest.mark.parametrize(("entropy", "sign"), [(-1.0, 1), (-3.0, -1)])
def test_alpha_falls_while_the_policy_is_too_random(entropy, sign):
    """With -D = -2 as target an entropy of -1 is too much: descent must lower α."""
    grads = jax.grad(sac.alpha_loss, has_aux=True)({"log_alpha": jnp.log(0.5)}, entropy, -2.0)[0]
    assert grads["log_alpha"] == pytest.approx(0.5 * (entropy + 2), rel=1e-6)
    assert np.sign(grads["log_alpha"]) == sign


def test_alpha_reaches_the_closed_form_of_the_dual():
    """For Q = -(k/2)|u|², unsquashed, H(α) = D/2 log(2πeα/k): the optimum is k exp(2H̄/D)/(2πe)."""
    k, dim, target = 3.0, 2, -2.0
    alpha = TrainState.create(apply_fn=None, params={"log_alpha": jnp.zeros(())}, tx=optax.sgd(0.2))

    def step(alpha, _):
        entropy = dim / 2 * jnp.log(2 * jnp.pi * jnp.e * jnp.exp(alpha.params["log_alpha"]) / k)
        grads = jax.grad(sac.alpha_loss, has_aux=True)(alpha.params, entropy, target)[0]
        return alpha.apply_gradients(grads=grads), None

    alpha = jax.lax.scan(step, alpha, None, length=30_000)[0]
    assert k * math.exp(2 * target / dim) / (2 * math.pi * math.e) == pytest.approx(0.023772, rel=1e-4)
    assert float(jnp.exp(alpha.params["log_alpha"])) == pytest.approx(0.023772, rel=1e-3)


def test_target_entropy_is_minus_the_number_of_actions():
    improve_policy = jax.jit(sac.improve_policy, static_argnums=3)
    _, metrics = improve_policy(make_state(), make_batch(), KEY, ARGS)
    expected = float(ARGS.alpha * (metrics["losses/entropy"] + ACTION_DIM))
    assert metrics["losses/alpha_loss"] == pytest.approx(expected, rel=1e-6)


# --- init and update ---


def test_init():
    """Glorot's uniform weights, critic by critic, and zero biases."""
    wide = jax.jit(lambda key: sac.init(key, Task(17, 6), sac.Args()))(jax.random.key(0))
    fans = {"Dense_0": (17, 256), "Dense_1": (256, 256), "Dense_2": (256, 12)}
    for name, layer in wide.actor.params["params"].items():
        bound = math.sqrt(6 / sum(fans[name]))
        assert layer["kernel"].shape == fans[name] and not layer["bias"].any()
        assert 0.98 * bound < np.abs(layer["kernel"]).max() <= bound
        assert np.std(layer["kernel"]) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    for layer, fan_in, fan_out in (("Dense_0", 23, 256), ("Dense_2", 256, 1)):
        kernel = wide.critics.params["params"][layer]["kernel"]
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert kernel.shape == (2, fan_in, fan_out) and 0.96 * bound < np.abs(kernel).max() <= bound
    kernel = make_state().critics.params["params"]["Dense_0"]["kernel"]  # (2, in, out)
    assert not np.allclose(kernel[0], kernel[1])
    assert float(sac.temperature(make_state())) == pytest.approx(0.3)


def test_frequencies_count_updates_and_targets_move_by_tau():
    """Which part of the state moves at which update; and metrics of the policy when it moves."""
    args = sac.Args(hidden_dims=(16, 16), policy_frequency=2, target_network_frequency=3)
    batch, key = make_batch(), jax.random.key(1)
    update = jax.jit(lambda state, index: sac.update(state, batch, key, index, args)[0])
    state, moved = make_state(), []
    for index in range(6):
        after = update(state, index)
        pairs = (
            (state.actor.params, after.actor.params),
            (state.alpha.params, after.alpha.params),
            (state.target_critics, after.target_critics),
            (state.critics.params, after.critics.params),
        )
        moved.append([changed(*pair) for pair in pairs])
        if moved[-1][2]:
            for old, new, target in leaves(state.target_critics, after.critics.params, after.target_critics):
                assert np.allclose(target, 0.005 * np.float64(new) + 0.995 * np.float64(old), atol=1e-7)
        state = after
    actor, alpha, targets, critics = zip(*moved, strict=True)
    assert actor == alpha == (True, False) * 3
    assert targets == (True, False, False) * 2 and all(critics)
    names = {"losses/actor_loss", "losses/entropy", "losses/alpha_loss", "losses/alpha"}
    for index, expected in ((2, names), (3, set())):
        of_index = partial(sac.update, batch=batch, key=key, index=index, args=args)
        _, metrics = jax.eval_shape(of_index, state)
        assert names & metrics.keys() == expected and "losses/qf1_loss" in metrics


def test_the_actor_steps_against_the_new_critics():
    """Gradient descent of the actor by 1, after a step of the critics that is large."""
    state, batch, descent = make_state(), make_batch(), optax.sgd(1.0)
    actor = state.actor.replace(tx=descent, opt_state=descent.init(state.actor.params))
    state = state.replace(actor=actor, critics=state.critics.replace(tx=optax.adam(0.1)))
    after = jax.jit(lambda state: sac.update(state, batch, KEY, 0, ARGS)[0])(state)
    _, actor_key = jax.random.split(KEY)

    def descended(critics):
        _, grads = actor_loss(state.actor.params, state.replace(critics=critics), batch, actor_key)
        return state.actor.apply_gradients(grads=grads).params

    assert distance(descended(after.critics), after.actor.params) < 1e-5
    assert distance(descended(state.critics), after.actor.params) > 1e-3


# --- known optima ---


@pytest.mark.slow
def test_one_step_problem_reaches_its_soft_optimum():
    """reward = α[log N(atanh ã; m, s²) − log(1 − ã²)] and the episode ends: π* = tanh N(m, s²).

    The temperature is fixed, and stays.
    """
    m, s, alpha = 0.4, 0.5, 0.5
    args = sac.Args(hidden_dims=(64, 64), autotune=False, alpha=alpha, q_lr=1e-3, policy_lr=1e-3)

    def step(state, index):
        key, action_key = jax.random.split(jax.random.fold_in(jax.random.key(5), index))
        action = jax.random.uniform(action_key, (256, 1), minval=-0.98, maxval=0.98)
        u = jnp.arctanh(action)
        log_density = -0.5 * ((u - m) / s) ** 2 - jnp.log(s * jnp.sqrt(2 * jnp.pi)) - jnp.log(1 - action**2)
        obs, ones = jnp.zeros((256, 1)), jnp.ones(256)
        batch = Transition(obs, action, alpha * log_density[:, 0], obs, ones)
        return sac.update(state, batch, key, index, args)[0], None

    @jax.jit
    def trained(key):
        return jax.lax.scan(step, sac.init(key, Task(1, 1), args), jnp.arange(5000))[0]

    state = trained(jax.random.key(0))
    mean, log_std = sac.policy(state)(jnp.zeros(1))
    assert mean[0] == pytest.approx(m, abs=0.1)
    assert math.exp(log_std[0]) == pytest.approx(s, rel=0.15)
    assert sac.temperature(state) == pytest.approx(alpha)


@pytest.mark.slow
def test_time_limit_does_not_cut_the_bootstrap():
    """Reward 1, horizon 50, γ 0.9, α fixed at 0: Q is 1/(1 - γ) = 10 everywhere, also at the limit."""
    assert np.allclose(values_of("tests.support.probes:ConstantReward-v0", gamma=0.9)[0], 10, atol=0.5)


@pytest.mark.slow
def test_termination_cuts_the_bootstrap():
    """Reward 1 for three steps and the end: Q is 1 + γ + γ², 1 + γ, 1."""
    q, obs = values_of("tests.support.probes:Counting-v0", gamma=0.9)
    assert np.allclose(q, np.array([2.71, 1.9, 1.0])[obs[:, 0].astype(int)], atol=0.1)


def values_of(env_id, gamma):
    """Both critics, `(2, 600)`, on the 600 transitions with uniform actions that taught them; the states."""
    args = sac.Args(hidden_dims=(64,), autotune=False, alpha=0.0, gamma=gamma, q_lr=3e-3, tau=0.05)
    state, rows = trained_on(sac, args, env_id)
    q = state.critics.apply_fn(state.critics.params, rows.obs, rows.action)
    return np.asarray(q), np.asarray(rows.obs)

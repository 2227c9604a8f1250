"""trpo.py: its linear algebra and its steps against closed forms, and which steps it refuses."""

import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from cleanrl_maxent import tabular, trpo
from cleanrl_maxent.common.env.task import Task
from tests.support.mdps import GAMMA, make_mdp
from tests.support.pytrees import distance
from tests.support.rollouts import (
    KINDS,
    double,
    flat,
    float64,
    make_args,
    make_rollout,
    make_state,
    new_state,
    numeric_gradient,
    on_host,
    reference_kl,
    reference_log_prob,
    reference_value,
    tabular_state,
)

make_samples = jax.jit(trpo.make_samples, static_argnums=2)
update = jax.jit(trpo.update, static_argnums=4)
search = on_host(jax.jit(trpo.line_search, static_argnums=3))
natural_step = on_host(jax.jit(trpo.natural_step, static_argnums=2))
conjugate_gradient = on_host(
    jax.jit(lambda H, g, n: trpo.conjugate_gradient(partial(jnp.matmul, H), g, n), static_argnums=2)
)
surrogate = jax.jit(trpo.surrogate)
surrogate_gradient = jax.jit(jax.grad(trpo.surrogate))


@partial(jax.jit, static_argnums=2)
def fisher(state, batch, args):
    """The matrix, column by column."""
    product = partial(trpo.fisher_vector_product, state=state, batch=batch, args=args)
    return jax.vmap(product)(jnp.eye(ravel_pytree(state.actor.params)[0].size))


def unchanged(before, after):
    """Whether the actor's parameters are the same bits."""
    return flat(before.actor.params).tobytes() == flat(after).tobytes()


@float64()
def test_conjugate_gradient_solves_in_as_many_steps_as_dimensions():
    """½xᵀHx - gᵀx falls with every step; the residual is that of x; further steps change nothing."""
    rng = np.random.default_rng(0)
    root, g = rng.normal(size=(12, 12)), rng.normal(size=12)
    H = root @ root.T + 0.1 * np.eye(12)
    heights, exact = [0.0], np.linalg.solve(H, g)
    for steps in range(1, 13):
        x, residual = conjugate_gradient(H, g, steps)
        heights.append(0.5 * x @ H @ x - g @ x)
        assert residual == pytest.approx(np.sum((H @ x - g) ** 2) / (g @ g), rel=1e-3, abs=1e-13)
    assert (np.diff(heights) < 0).all()
    assert np.linalg.norm(x - exact) < 1e-7 * np.linalg.norm(exact)
    x, residual = conjugate_gradient(H, g, 40)
    assert np.linalg.norm(x - exact) < 1e-7 * np.linalg.norm(exact) and residual < 1e-16


@float64()
def test_conjugate_gradient_needs_a_step_for_each_eigenvalue():
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    H, g = basis @ np.diag([2.0] * 3 + [5.0] * 5) @ basis.T, np.arange(1.0, 9)
    assert np.abs(conjugate_gradient(H, g, 2)[0] - np.linalg.solve(H, g)).max() < 1e-14
    assert np.abs(conjugate_gradient(H, g, 1)[0] - np.linalg.solve(H, g)).max() > 0.01


def test_conjugate_gradient_of_nothing_is_nothing():
    x, residual = conjugate_gradient(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), 10)
    assert not x.any() and residual == 0


def jacobian_fisher(state, obs):
    """Σ JᵀMJ / N, with J that of means and log σ or of logits, and M the Fisher matrix of these."""
    theta, unravel = ravel_pytree(state.actor.params)

    def outputs(theta):
        pi = state.actor.apply_fn(unravel(theta), obs)
        if isinstance(pi, trpo.Categorical):
            return pi.logits
        return jnp.concatenate([pi.mean, pi.log_std], axis=-1)

    J, heads = jax.device_get((jax.jit(jax.jacobian(outputs))(theta), outputs(theta)))
    total = np.zeros((theta.size, theta.size))
    for rows, head in zip(J, heads, strict=True):
        if "logits" in state.actor.params["params"]:
            p = np.exp(head) / np.exp(head).sum()
            M = np.diag(p) - np.outer(p, p)
        else:
            M = np.diag([*np.exp(-2 * head[2:]), 2, 2])
        total += rows.T @ M @ rows
    return total / len(obs)


@KINDS
@float64()
def test_fisher_vector_product(task):
    """Against the Jacobian's form; positive; damping is added to the diagonal."""
    args = make_args(trpo, cg_damping=0.0, log_std_init=-0.5)
    state, rollout = double((make_state(trpo, args, task), make_rollout(trpo, args, task)))
    batch = make_samples(state, rollout, args)
    found, expected = np.asarray(fisher(state, batch, args)), jacobian_fisher(state, batch.obs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 * max(1, np.abs(expected).max()))
    assert np.abs(expected).max() > 0.05 and np.linalg.eigvalsh(found).min() > -1e-12
    damped = fisher(state, batch, make_args(trpo, cg_damping=0.25))
    np.testing.assert_allclose(damped, found + 0.25 * np.eye(len(found)), rtol=0, atol=1e-15)
    if not task.discrete:
        paths = jax.tree_util.tree_flatten_with_path(state.actor.params)[0]
        labels = np.concatenate([np.full(leaf.size, "log_std" in str(path)) for path, leaf in paths])
        block = found[labels]
        np.testing.assert_allclose(block[:, labels], 2 * np.eye(2), rtol=0, atol=1e-14)
        assert np.abs(block[:, ~labels]).max() < 1e-15


@KINDS
@float64()
def test_divergence_is_flat_at_the_old_policy_and_its_direction_does_not_matter_there(task):
    """KL(old ‖ new) of each state, averaged; the Hessian of the reversed one is the same."""
    args = make_args(trpo, cg_damping=0.0, log_std_init=-0.5)
    state, rollout = double((make_state(trpo, args, task), make_rollout(trpo, args, task)))
    batch, params = make_samples(state, rollout, args), state.actor.params
    theta, unravel = ravel_pytree(params)

    def reverse(theta):
        return state.actor.apply_fn(unravel(theta), batch.obs).kl(batch.old).mean()

    @jax.jit
    def both(theta):
        return jax.value_and_grad(trpo.kl_divergence)(unravel(theta), state, batch), jax.hessian(reverse)(
            theta
        )

    (value, gradient), hessian = both(theta)
    assert abs(value) < 1e-15 and np.abs(flat(gradient)).max() < 1e-15
    np.testing.assert_allclose(fisher(state, batch, args), hessian, rtol=0, atol=1e-13)
    moved = jax.tree.map(lambda leaf: 0.7 * leaf + 0.1, params)
    expected = reference_kl(params, moved, batch.obs).mean()
    assert expected > 0.01 and reference_kl(moved, params, batch.obs).mean() != pytest.approx(
        expected, rel=0.01
    )
    assert float(trpo.kl_divergence(moved, state, batch)) == pytest.approx(expected, rel=1e-12)


@float64()
def test_fisher_matrix_from_every_third_state():
    """The gradient is of all steps; the step's length is that of the quadratic model."""
    args = make_args(trpo, fisher_stride=3, cg_damping=0.1, cg_iters=60)
    state, rollout = double((make_state(trpo, args), make_rollout(trpo, args)))
    batch = make_samples(state, rollout, args)
    g = flat(surrogate_gradient(state.actor.params, state, batch))
    F = jacobian_fisher(state, batch.obs[::3]) + 0.1 * np.eye(len(g))
    x = np.linalg.solve(F, g)
    full, residual = natural_step(state, batch, args)
    np.testing.assert_allclose(full, math.sqrt(2 * 0.01 / (x @ F @ x)) * x, rtol=0, atol=1e-8)
    assert residual < 1e-12
    other = np.linalg.solve(jacobian_fisher(state, batch.obs) + 0.1 * np.eye(len(g)), g)
    assert abs(x @ other) < 0.99 * np.linalg.norm(x) * np.linalg.norm(other)


@KINDS
@float64()
def test_surrogate(task):
    """Away from the policy that sampled, and its gradient."""
    args = make_args(trpo)
    state, rollout = double((make_state(trpo, args, task), make_rollout(trpo, args, task)))
    batch = jax.device_get(make_samples(state, rollout, args))
    old_log_prob = reference_log_prob(state.actor.params, batch.obs, batch.action)

    def reference(params):
        ratio = np.exp(reference_log_prob(params, batch.obs, batch.action) - old_log_prob)
        return np.mean(ratio * batch.advantage)

    params = jax.tree.map(lambda leaf: 0.8 * leaf, state.actor.params)
    assert float(surrogate(params, state, batch)) == pytest.approx(reference(params), rel=1e-12)
    found = flat(surrogate_gradient(params, state, batch))
    np.testing.assert_allclose(found, numeric_gradient(reference, params), rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
@float64()
def test_surrogate_of_all_states_and_actions(seed):
    """With d(s) π(a|s) as weights and the exact A it is L(π') - J(π), and its gradient that of J."""
    P, R, start, pi = make_mdp(seed)
    Q, V = tabular.evaluate(P, R, GAMMA, pi)
    visits = tabular.visits(P, GAMMA, start, pi)
    args = make_args(trpo, hidden_dims=())
    state = double(tabular_state(trpo, args, np.log(pi), np.zeros(6)))
    obs, action = np.repeat(np.eye(6), 4, axis=0), np.tile(np.arange(4), 6)
    weights = 24 * (visits[:, None] * pi * (Q - V[:, None])).ravel()
    old = trpo.Categorical(jnp.log(pi)[np.repeat(np.arange(6), 4)])
    batch = trpo.Samples(*map(jnp.array, (obs, action)), old, jnp.array(weights), jnp.zeros(24))

    def value(logits):
        return tabular.expected_return(P, R, GAMMA, start, tabular.boltzmann(logits, 1))

    exact = numeric_gradient(value, np.log(pi)).reshape(6, 4)
    found = surrogate_gradient(state.actor.params, state, batch)["params"]["logits"]["kernel"]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-7)
    logits = np.log(pi) + 0.3 * np.random.default_rng(seed).normal(size=(6, 4))
    new = tabular_state(trpo, args, logits, np.zeros(6)).actor.params
    gain = visits @ (tabular.boltzmann(logits, 1) * (Q - V[:, None])).sum(axis=-1)
    assert float(surrogate(new, state, batch)) == pytest.approx(gain, abs=1e-12)
    assert value(logits) >= tabular.trpo_bound(P, R, GAMMA, start, pi, tabular.boltzmann(logits, 1)) - 1e-9


BANDIT = dict(hidden_dims=(), cg_damping=0.0, normalize_observation=False)


def softmax_bandit(args):
    """Four arms; each is a row, weighted with its probability."""
    logits, reward = np.array([0.2, -0.1, 0.4, 0.0]), np.array([1, 0.5, -0.3, 0])
    pi = np.exp(logits) / np.exp(logits).sum()
    state = double(tabular_state(trpo, args, np.zeros((1, 4)), np.zeros(1)))
    params = {"params": {"logits": {"kernel": jnp.zeros((1, 4)), "bias": jnp.array(logits)}}}
    state = state.replace(actor=state.actor.replace(params=params))
    old, advantage = trpo.Categorical(jnp.tile(logits, (4, 1))), reward - pi @ reward
    batch = trpo.Samples(jnp.zeros((4, 1)), jnp.arange(4), old, jnp.array(4 * pi * advantage), jnp.zeros(4))
    return state, batch, advantage


def gaussian_bandit(args, mean=1.0, std=0.5):
    """Reward -½a²; rows are the nodes of a Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    task = Task(1, 1)
    state = double(make_state(trpo, args, task))
    head = {"kernel": jnp.zeros((1, 1)), "bias": jnp.array([mean])}
    params = {"params": {"log_std": jnp.array([math.log(std)]), "mean": head}}
    state = state.replace(actor=state.actor.replace(params=params))
    action = mean + std * nodes
    advantage = -0.5 * action**2 + 0.5 * (mean**2 + std**2)
    old = trpo.Gaussian(jnp.full((40, 1), mean), jnp.full((40, 1), math.log(std)))
    rows = jnp.zeros((40, 1)), jnp.array(action[:, None]), old, jnp.array(40 * weights * advantage)
    return state, trpo.Samples(*rows, jnp.zeros(40))


@float64()
def test_natural_gradient_of_a_softmax_bandit_is_the_advantage():
    """xᵀFx is the variance of A; the full step gains, but is longer than δ."""
    args = make_args(trpo, **BANDIT)
    state, batch, advantage = softmax_bandit(args)
    F, g = fisher(state, batch, args), flat(surrogate_gradient(state.actor.params, state, batch))
    x, _ = conjugate_gradient(F, g, 10)
    np.testing.assert_allclose(x[:4] - x[:4].mean(), advantage - advantage.mean(), rtol=0, atol=1e-12)
    assert x @ F @ x == pytest.approx(0.272030, abs=5e-7)
    full, _ = natural_step(state, batch, args)
    np.testing.assert_allclose(full, math.sqrt(2 * 0.01 / (x @ F @ x)) * x, rtol=0, atol=1e-12)
    params, metrics = search(full, state, batch, make_args(trpo, **BANDIT, line_search=False))
    np.testing.assert_allclose(flat(params), flat(state.actor.params) + full, rtol=0, atol=1e-15)
    assert metrics["losses/step_fraction"] == 1
    assert metrics["losses/kl"] == pytest.approx(0.010123, abs=5e-7)
    assert metrics["losses/actor_loss"] == pytest.approx(0.265539 - 0.340564, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "fraction"), [({}, 0.8), ({"backtrack_iters": 1}, 0), ({"backtrack_coef": 0.3}, 0.3)]
)
@float64()
def test_a_step_beyond_the_trust_region_is_shortened(given, fraction):
    """As often as there are candidates; with none left the parameters stay, to the bit."""
    args = make_args(trpo, **BANDIT, **given)
    state, batch, _ = softmax_bandit(args)
    full, _ = natural_step(state, batch, args)
    params, metrics = search(full, state, batch, args)
    assert metrics["losses/step_fraction"] == pytest.approx(fraction)
    assert unchanged(state, params) == (fraction == 0)
    np.testing.assert_allclose(flat(params), flat(state.actor.params) + fraction * full, rtol=0, atol=1e-15)
    assert metrics["losses/kl"] <= 0.01


@float64()
def test_natural_gradient_of_a_gaussian_bandit():
    args = make_args(trpo, **BANDIT)
    state, batch = gaussian_bandit(args)
    F, g = fisher(state, batch, args), flat(surrogate_gradient(state.actor.params, state, batch))
    x, _ = conjugate_gradient(F, g, 10)
    x = jax.device_get(ravel_pytree(state.actor.params)[1](jnp.array(x)))["params"]
    assert x["mean"]["bias"][0] == pytest.approx(-0.25, abs=1e-10)
    assert x["log_std"][0] == pytest.approx(-0.125, abs=1e-10)
    full, _ = natural_step(state, batch, args)
    params, metrics = search(full, state, batch, make_args(trpo, **BANDIT, line_search=False))
    assert params["params"]["mean"]["bias"][0] == pytest.approx(0.93333, abs=5e-6)
    assert math.exp(params["params"]["log_std"][0]) == pytest.approx(0.48361, abs=5e-6)
    assert metrics["losses/kl"] == pytest.approx(0.010638, abs=5e-7)
    params, metrics = search(full, state, batch, args)
    assert metrics["losses/step_fraction"] == pytest.approx(0.8)
    assert metrics["losses/kl"] == pytest.approx(0.006724, abs=5e-7)
    mean, std = params["params"]["mean"]["bias"][0], math.exp(params["params"]["log_std"][0])
    gain = 0.5 * (1 + 0.25) - 0.5 * (mean**2 + std**2)
    assert metrics["losses/actor_loss"] == pytest.approx(-gain, abs=1e-8)
    _, metrics = search(full, state, batch, make_args(trpo, **BANDIT, target_kl=0.0107))
    assert metrics["losses/step_fraction"] == 1


@pytest.mark.parametrize(("damping", "fraction"), [(0.1, 1.0), (0.001, 0.8)])
def test_steps_of_networks_stay_in_the_trust_region_and_gain(damping, fraction, solve):
    """Policies of the default size in 2,048 states each, float32, and rewards that favour some actions."""
    for key, scale in zip(jax.random.split(jax.random.key(0), 6), SCALES, strict=True):
        measured = jax.device_get(solve(key, scale, damping))
        assert measured["losses/step_fraction"] == pytest.approx(fraction)
        assert 0.006 < measured["losses/kl"] <= 0.01 and abs(measured["start"]) < 1e-7
        gain = -measured["losses/actor_loss"] / (fraction * measured["expected"])
        assert 0.75 < gain < 1
        assert measured["residual"] < (1e-5 if damping == 0.1 else 0.1)


SCALES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the rewarded action


@pytest.fixture(scope="module")
def solve():
    """What a step measures on a random problem, compiled."""
    args = vars(trpo.Args())
    state = new_state(trpo, trpo.Args(), Task(11, 3))

    @jax.jit
    def solve(key, scale, damping):
        given = SimpleNamespace(**args | {"cg_damping": damping})
        obs_key, action_key = jax.random.split(key)
        obs = jax.random.normal(obs_key, (2048, 11))
        old = state.actor.apply_fn(state.actor.params, obs)
        action = old.sample(action_key)
        reward = -jnp.sum((action - scale * jnp.sin(obs[:, :3])) ** 2, axis=-1)
        advantage = (reward - reward.mean()) / reward.std()
        batch = trpo.Samples(obs, action, old, advantage, advantage)
        full, residual = trpo.natural_step(state, batch, given)
        _, metrics = trpo.line_search(full, state, batch, given)
        expected = ravel_pytree(jax.grad(trpo.surrogate)(state.actor.params, state, batch))[0] @ full
        start = trpo.kl_divergence(state.actor.params, state, batch)
        return metrics | {"residual": residual, "expected": expected, "start": start}

    return solve


@pytest.mark.parametrize("line_search", [True, False], ids=["trpo", "npg"])
@pytest.mark.parametrize("advantage", [0.0, np.nan])
def test_without_a_finite_gradient_nothing_moves(advantage, line_search):
    """Not a bit of the parameters, and `step_fraction` is 0."""
    args = make_args(trpo, line_search=line_search)
    state = make_state(trpo, args)
    batch = make_samples(state, make_rollout(trpo, args), args)
    batch = batch.replace(advantage=jnp.zeros(24).at[3].set(advantage))
    full, residual = natural_step(state, batch, args)
    params, metrics = search(full, state, batch, args)
    assert unchanged(state, params) and metrics["losses/step_fraction"] == 0
    assert np.isfinite(metrics["losses/actor_loss"]) == np.isfinite(residual) == np.isfinite(advantage)


def test_a_step_that_loses_is_refused_but_by_npg():
    """Against the natural gradient the surrogate falls."""
    args = make_args(trpo)
    state = make_state(trpo, args)
    batch = make_samples(state, make_rollout(trpo, args), args)
    full, _ = natural_step(state, batch, args)
    params, metrics = search(-full, state, batch, args)
    assert unchanged(state, params) and metrics["losses/step_fraction"] == 0
    assert abs(metrics["losses/actor_loss"]) < 1e-7 and abs(metrics["losses/kl"]) < 1e-7
    params, metrics = search(-full, state, batch, make_args(trpo, line_search=False))
    assert np.allclose(flat(params), flat(state.actor.params) - full, atol=1e-6)
    assert metrics["losses/step_fraction"] == 1 and metrics["losses/actor_loss"] > 1e-3


def test_a_reward_that_is_not_a_number_leaves_the_policy_as_it_was():
    args = make_args(trpo)
    state, rollout = make_state(trpo, args), make_rollout(trpo, args)
    reward = rollout.transition.reward.copy()
    reward[2, 1] = np.nan
    rollout = rollout.replace(transition=rollout.transition.replace(reward=reward))
    after, metrics = update(state, rollout, jax.random.key(0), 0, args)
    assert unchanged(state, after.actor.params) and metrics["losses/step_fraction"] == 0


@float64()
def test_searches_side_by_side_are_those_alone():
    """One that takes the full step, one that shortens it, one that refuses, and one with NaN."""
    args = make_args(trpo, **BANDIT)
    state, shifted = gaussian_bandit(args)
    given = [gaussian_bandit(args, 0.2, 0.7), (state, shifted), (state, shifted), (state, shifted)]
    cases = [(jax.device_get(one.actor.params), batch) for one, batch in given]
    full = [natural_step(*one, args)[0] for one in given]
    full = [full[0] / 2, full[1], -full[1], np.full_like(full[1], np.nan)]

    @jax.jit
    @jax.vmap
    def side_by_side(full, case):
        params, batch = case
        return trpo.line_search(full, state.replace(actor=state.actor.replace(params=params)), batch, args)

    among = side_by_side(jnp.stack(full), jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases))
    fractions = []
    for number in range(4):
        params, metrics = search(full[number], *given[number], args)
        found = jax.tree.map(lambda leaf, i=number: leaf[i], among)
        np.testing.assert_allclose(flat(found[0]), flat(params), rtol=0, atol=1e-14)
        np.testing.assert_allclose(found[1]["losses/kl"], metrics["losses/kl"], rtol=0, atol=1e-14)
        fractions.append(float(found[1]["losses/step_fraction"]))
    assert fractions == pytest.approx([1, 0.8, 0, 0])


@float64()
def test_update():
    """A step of the actor within δ, measured at the new policy; then the critic's passes, on the targets of
    the values before."""
    args = make_args(trpo, cg_iters=40, critic_lr=0.01)
    state, rollout = double((make_state(trpo, args), make_rollout(trpo, args)))
    samples = make_samples(state, rollout, args)
    after, metrics = update(state, rollout, jax.random.key(0), 0, args)
    old, new = state.actor.params, after.actor.params
    divergence = reference_kl(old, new, samples.obs).mean()
    assert metrics["losses/kl"] == pytest.approx(divergence, rel=1e-9) and 0.003 < divergence <= 0.01
    log_ratio = (reference_log_prob(params, samples.obs, samples.action) for params in (new, old))
    gain = np.mean(np.exp(np.subtract(*log_ratio)) * samples.advantage) - samples.advantage.mean()
    assert -metrics["losses/actor_loss"] == pytest.approx(float(gain), rel=1e-9) and gain > 0.01
    full, residual = natural_step(state, samples, args)
    moved = flat(new) - flat(old)
    np.testing.assert_allclose(moved, metrics["losses/step_fraction"] * full, rtol=0, atol=1e-14)
    assert metrics["losses/cg_residual"] == pytest.approx(float(residual), abs=1e-20)
    error, after_error = (
        reference_value(params, samples.obs) - samples.value_target
        for params in (state.critic.params, after.critic.params)
    )
    assert int(after.critic.step) == 4 and 0.01 < distance(state.critic.params, after.critic.params) < 0.041
    assert (after_error**2).mean() < (error**2).mean()


def test_the_critics_adam_has_an_epsilon_of_its_own():
    """1e-5, so that a first gradient of that size moves by half the rate."""
    critic = make_state(trpo, make_args(trpo, critic_lr=0.01)).critic
    after = critic.apply_gradients(grads=jax.tree.map(lambda x: jnp.full_like(x, 1e-5), critic.params))
    np.testing.assert_allclose(flat(critic.params) - flat(after.params), 0.005, rtol=1e-3)


def test_the_length_of_the_gradient_does_not_matter():
    """Also where its square would be too small for float32."""
    args = make_args(trpo, norm_adv=False)
    state = make_state(trpo, args)
    samples = trpo.make_samples(state, jax.tree.map(jnp.asarray, make_rollout(trpo, args)), args)
    steps = [
        trpo.natural_step(state, samples.replace(advantage=scale * samples.advantage), args)[0]
        for scale in (1, 1e-12)
    ]
    assert np.allclose(*steps, rtol=1e-2, atol=1e-4) and np.abs(steps[0]).max() > 0.01

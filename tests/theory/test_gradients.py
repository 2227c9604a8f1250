"""Policy gradients: of the maximum-entropy objective, natural, reparameterised; entropy as a bonus only."""

import itertools
import math
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import tabular
from cleanrl_maxent.environments import finite
from tests.support.mdps import ALPHA, GAMMA, SEEDS, assert_close, average, make_mdp


def objective(P, R, gamma, alpha, start, logits):
    pi = tabular.boltzmann(logits, 1)
    return start @ tabular.soft_evaluate(P, R, gamma, alpha, pi)[1]


def softmax_gradient(P, gamma, start, pi, weight):
    """Σ_s d(s) Σ_a π(a|s) ∇log π(a|s) weight(s, a), for softmax logits."""
    advantage = weight - average(pi, weight)[:, None]
    return tabular.visits(P, gamma, start, pi)[:, None] * pi * advantage


@pytest.mark.parametrize("alpha", [0, ALPHA])
def test_maxent_gradient_is_the_derivative_of_the_objective(alpha):
    for seed in range(10):
        P, R, start, _ = make_mdp(seed)
        logits = np.random.default_rng(seed).normal(size=R.shape)
        value = partial(objective, P, R, GAMMA, alpha, start)
        step, numeric = 1e-5, np.zeros_like(R)
        for index in np.ndindex(R.shape):
            shift = np.zeros_like(R)
            shift[index] = step
            numeric[index] = (value(logits + shift) - value(logits - shift)) / (2 * step)
        exact = tabular.maxent_gradient(P, R, GAMMA, alpha, start, tabular.boltzmann(logits, 1))
        assert_close(exact, numeric, atol=1e-7)


def test_minus_one_is_a_baseline_and_the_bonus_lacks_future_entropy():
    for seed in SEEDS:
        P, R, start, pi = make_mdp(seed)
        Q, _ = tabular.soft_evaluate(P, R, GAMMA, ALPHA, pi)
        exact = tabular.maxent_gradient(P, R, GAMMA, ALPHA, start, pi)
        bracket = Q - ALPHA * np.log(pi)
        for weight in (bracket, bracket - ALPHA, bracket - Q.max(axis=-1, keepdims=True)):
            assert_close(softmax_gradient(P, GAMMA, start, pi, weight), exact, atol=1e-10)
        future_entropy = (
            GAMMA
            * P
            @ tabular.evaluate(P, np.broadcast_to(tabular.entropy(pi)[:, None], R.shape), GAMMA, pi)[1]
        )
        missing = softmax_gradient(P, GAMMA, start, pi, ALPHA * future_entropy)
        bonus = tabular.bonus_gradient(P, R, GAMMA, ALPHA, start, pi)
        assert_close(exact - bonus, missing, atol=1e-10)
        assert np.abs(missing).max() > 1e-4


def test_soft_advantage_vanishes_at_the_optimum():
    for seed in SEEDS:
        P, R, start, _ = make_mdp(seed)
        pi, Q, V = tabular.soft_optimum(P, R, GAMMA, ALPHA)
        assert_close(Q - ALPHA * np.log(pi) - V[:, None], 0, atol=1e-10)
        assert_close(tabular.maxent_gradient(P, R, GAMMA, ALPHA, start, pi), 0, atol=1e-10)
        assert np.abs(tabular.maxent_gradient(P, R, GAMMA, 0, start, pi)).max() > 1e-4


def test_visits_add_up_to_the_discounted_length():
    P, _, start, pi = make_mdp(0)
    d, state = np.zeros(6), start
    for step in range(400):
        d, state = d + GAMMA**step * state, state @ np.einsum("sa,sat->st", pi, P)
    assert_close(tabular.visits(P, GAMMA, start, pi), d, atol=1e-10)
    assert d.sum() == pytest.approx(1 / (1 - GAMMA), abs=1e-10)  # no step of seed 0 ends the episode


def test_natural_gradient_is_the_inverse_fisher_times_the_gradient():
    for seed in SEEDS:
        P, R, start, pi = make_mdp(seed)
        d = (1 - GAMMA) * tabular.visits(P, GAMMA, start, pi)
        natural = tabular.natural_gradient(P, R, GAMMA, ALPHA, pi)
        fisher_times_natural = d[:, None] * pi * (natural - average(pi, natural)[:, None])
        gradient = tabular.maxent_gradient(P, R, GAMMA, ALPHA, start, pi)
        assert_close(fisher_times_natural, gradient, atol=1e-10)


def test_backed_up_entropy_prefers_the_room_with_more_ways():
    """P(right room) for 2 … 16 actions, α = 0.5, γ = 0.99: closed form, and the table of the analysis."""
    table = {2: (0.4202, 0.2852), 4: (0.5816, 0.3135), 8: (0.7210, 0.3682), 16: (0.8197, 0.4659)}
    gamma, alpha, r_left, r_right, penalty = 0.99, 0.5, 1, 0.5, 1
    for n, (backed_up, bonus_only) in table.items():
        P, R, _ = finite.two_rooms(n, r_left, r_right, penalty)
        w = math.exp(r_left / alpha) + (n - 1) * math.exp(-penalty / alpha)
        plain_left = (r_left * math.exp(r_left / alpha) - penalty * (n - 1) * math.exp(-penalty / alpha)) / w
        gaps = {
            backed_up: gamma * (r_right + alpha * math.log(n)) - gamma * alpha * math.log(w),
            bonus_only: gamma * r_right - gamma * plain_left,
        }
        policies = tabular.soft_optimum(P, R, gamma, alpha)[0], tabular.bonus_policy(P, R, gamma, alpha)
        for (stated, gap), pi in zip(gaps.items(), policies, strict=True):
            assert pi[0, n // 2 :].sum() == pytest.approx(1 / (1 + math.exp(-gap / alpha)), abs=1e-12)
            assert pi[0, n // 2 :].sum() == pytest.approx(stated, abs=1e-4)


def test_corridor_doubles_the_preference_with_depth():
    """Log-odds γ G (r_R + α log n - r_L)/α against γ G (r_R - r_L)/α, G the discounted depth."""
    gamma, alpha, n = 0.99, 0.1, 8
    table = {1: (0.640, 0.185), 2: (0.758, 0.050), 5: (0.943, 0.0007), 10: (0.996, 0)}
    for depth, stated in table.items():
        P, R, _ = finite.corridor(depth, n, left_reward=1, right_reward=0.85, penalty=1000)
        sum_of_gamma = (1 - gamma**depth) / (1 - gamma)
        gaps = (0.85 + alpha * math.log(n) - 1, 0.85 - 1)
        policies = tabular.soft_optimum(P, R, gamma, alpha)[0], tabular.bonus_policy(P, R, gamma, alpha)
        for pi, gap, rounded in zip(policies, gaps, stated, strict=True):
            probability = pi[0, n // 2 :].sum()
            log_odds = gamma * sum_of_gamma * gap / alpha
            assert probability == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-10)
            assert probability == pytest.approx(rounded, abs=1e-3 if rounded > 0.01 else 1e-4)
        with_penalty_one = tabular.soft_optimum(*finite.corridor(depth)[:2], gamma, alpha)[0]
        assert_close(with_penalty_one[0], policies[0][0], atol=1e-6)


@pytest.mark.parametrize(
    "gradient, optimum, stated",
    [
        (tabular.maxent_gradient, tabular.optimal_policy, 0.72096),
        (tabular.bonus_gradient, tabular.bonus_policy, 0.36819),
    ],
)
def test_gradient_ascent_finds_either_optimum_of_the_two_rooms(gradient, optimum, stated):
    P, R, start = finite.two_rooms(8)
    policies = tabular.ascend(lambda pi: gradient(P, R, 0.99, 0.5, start, pi), np.zeros_like(R), step_size=4)
    pi = next(islice(policies, 2_500, None))
    assert pi[0, 4:].sum() == pytest.approx(stated, abs=1e-5)
    assert_close(pi, optimum(P, R, 0.99, 0.5), atol=1e-10)


def test_bonus_policy_says_when_it_does_not_settle(monkeypatch):
    P, R, _ = finite.random_mdp(0, 3, 2)
    values = itertools.cycle([R, -R])
    monkeypatch.setattr(tabular, "evaluate", lambda *given: (next(values), None))
    with pytest.raises(ValueError, match="does not converge"):
        tabular.bonus_policy(P, R, 0.99, 0.01)


def test_soft_q_gradient_is_policy_gradient_plus_value_regression():
    """Schulman, Chen & Abbeel 2017, on a network of two layers and five actions; and that
    the lecture's form needs ∇Q - ∇V."""
    alpha, rng = 0.7, np.random.default_rng(0)
    prior, y, x = rng.dirichlet(np.ones(5)), rng.normal(size=5), rng.normal(size=3)
    with jax.enable_x64(True):
        theta = {"first": jnp.array(rng.normal(size=(3, 8))), "second": jnp.array(rng.normal(size=(8, 5)))}

        def q(theta):
            return jnp.tanh(x @ theta["first"]) @ theta["second"]

        def v(theta):
            return alpha * jax.nn.logsumexp(q(theta) / alpha, b=prior)

        def log_pi(theta):
            return jnp.log(prior) + (q(theta) - v(theta)) / alpha

        def gain(theta):
            return jnp.exp(log_pi(theta)) @ (y - alpha * (log_pi(theta) - jnp.log(prior)))

        @jax.jit
        def gradients(fixed):
            pi, residual = jnp.exp(log_pi(fixed)), y - q(fixed)
            v_hat = pi @ (y - alpha * (log_pi(fixed) - jnp.log(prior)))
            functions = (
                lambda theta: pi @ (q(theta) - y) ** 2 / 2,
                gain,
                lambda theta: (v(theta) - v_hat) ** 2 / 2,
                lambda theta: pi @ (residual * (q(theta) - v(theta))),
                lambda theta: pi @ (residual * q(theta)),
            )
            return [jax.grad(function)(fixed) for function in functions]

        left, policy, value, lecture, lost_v = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
            for gradient in gradients(theta)
        )
    assert_close(left, -alpha * policy + value, atol=1e-10)
    assert_close(lecture, alpha * policy, atol=1e-10)
    assert np.abs(lost_v - alpha * policy).max() > 1e-2


def test_reparameterised_gradient_is_the_score_function_gradient():
    """Of SAC's actor loss E[α log π - Q] for a tanh-Gaussian, by the trapezoidal rule over the noise."""
    alpha, noise = 0.3, np.linspace(-12, 12, 40_001)
    weight = np.exp(-(noise**2) / 2) / math.sqrt(2 * math.pi) * (noise[1] - noise[0])
    with jax.enable_x64(True):
        noise, weight = jnp.array(noise), jnp.array(weight)

        def q(action):
            return jnp.sin(3 * action) - action**2

        def log_density(theta, u):
            mean, log_std = theta
            gaussian = -(((u - mean) / jnp.exp(log_std)) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2
            return gaussian - 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))

        def cost(theta, u):
            return alpha * log_density(theta, u) - q(jnp.tanh(u))

        def sample(theta):
            return theta[0] + jnp.exp(theta[1]) * noise

        @jax.jit
        def gradients(theta):
            reparameterised = jax.grad(lambda theta: weight @ cost(theta, sample(theta)))(theta)
            fixed, baseline = sample(theta), cost(theta, sample(theta))
            score = jax.grad(lambda theta: weight @ (baseline * log_density(theta, fixed)))(theta)
            return reparameterised, score

        reparameterised, score = gradients(jnp.array([0.4, -0.5]))
    assert_close(np.array(reparameterised), np.array(score), atol=1e-8)


@pytest.mark.parametrize("form", ["α (H - H̄)", "log α (H - H̄)"])
def test_dual_of_the_temperature_has_its_closed_form(form):
    """Q = -k/2 ‖u‖²: π is N(0, α/k I), H = D/2 log(2πe α/k), so α* = k exp(2 H̄/D)/(2πe)."""
    k, dims, target = 3, 2, -2
    log_alpha = 0.0
    for _ in range(20_000):
        excess = dims / 2 * math.log(2 * math.pi * math.e * math.exp(log_alpha) / k) - target
        log_alpha -= 0.1 * excess * (math.exp(log_alpha) if form.startswith("α") else 1)
    exact = k * math.exp(2 * target / dims) / (2 * math.pi * math.e)
    assert exact == pytest.approx(0.023772, abs=1e-6)
    assert math.exp(log_alpha) == pytest.approx(exact, rel=1e-4)

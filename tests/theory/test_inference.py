"""Control as inference: messages, evidence, robust rewards, and samplers of exp(Q)/Z."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from cleanrl_maxent import tabular
from cleanrl_maxent.environments import finite
from tests.support.mdps import ALPHA, GAMMA, SEEDS, assert_close, average

HORIZON = 5


@pytest.mark.parametrize("epsilon", [0, 0.5, 2])
def test_the_worst_reward_pays_the_maxent_objective_minus_epsilon(epsilon):
    """Eysenbach & Levine, Theorem 4.1: closed form, optimiser, and 3,000 rewards of the robust set."""
    P, R, start = finite.random_mdp(4, 3, 2)
    rng = np.random.default_rng(0)
    pi = rng.dirichlet(np.ones(2), size=3)
    problem = P, R, GAMMA, ALPHA, start, pi
    paid = tabular.visits(P, GAMMA, start, pi)[:, None] * pi
    J = start @ tabular.soft_evaluate(P, R, GAMMA, ALPHA, pi)[1]
    worst = tabular.worst_reward(*problem, epsilon)
    assert tabular.reward_distance(*problem, worst) == pytest.approx(epsilon, abs=1e-10)
    assert np.sum(paid * worst) == pytest.approx(J - epsilon, abs=1e-10)

    def slack(flat):
        return epsilon - tabular.reward_distance(*problem, flat.reshape(3, 2))

    def slack_gradient(flat):
        weight = tabular.visits(P, GAMMA, start, pi)[:, None]
        return (weight * tabular.boltzmann(R - flat.reshape(3, 2), ALPHA)).ravel()

    found = minimize(
        lambda flat: paid.ravel() @ flat,
        R.ravel() + 1,
        jac=lambda flat: paid.ravel(),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
        constraints={"type": "ineq", "fun": slack, "jac": slack_gradient},
    )
    assert found.fun == pytest.approx(J - epsilon, abs=1e-8)
    for noise in rng.normal(size=(3_000, 3, 2)):
        reward = R + rng.exponential() * noise
        excess = tabular.reward_distance(*problem, reward) - epsilon
        on_the_boundary = reward + excess * (1 - GAMMA)
        assert np.sum(paid * on_the_boundary) >= J - epsilon - 1e-8


def test_inference_is_maxent_where_dynamics_are_deterministic():
    """Messages, evidence, and the posterior over all 3⁵ action sequences, by enumeration."""
    rng = np.random.default_rng(0)
    next_state = rng.integers(4, size=(4, 3))
    P, R = np.eye(4)[next_state], -rng.exponential(size=(4, 3))
    log_beta, log_beta_state = tabular.messages(P, R, HORIZON)
    Q, V = tabular.soft_values_to_go(P, R, HORIZON)
    steps_left = np.arange(HORIZON, 0, -1)
    assert_close(V, log_beta_state + steps_left[:, None] * math.log(3), atol=1e-10)
    joint, maxent = [], []
    for actions in itertools.product(range(3), repeat=HORIZON):
        state, total, log_pi = 0, 0.0, 0.0
        for t, action in enumerate(actions):
            total += R[state, action]
            log_pi += Q[t, state, action] - V[t, state]
            state = next_state[state, action]
        joint.append(3.0**-HORIZON * math.exp(total))
        maxent.append(math.exp(log_pi))
    evidence = math.fsum(joint)
    assert math.log(evidence) == pytest.approx(log_beta_state[0, 0], abs=1e-10)
    assert_close(np.array(joint) / evidence, maxent, atol=1e-10)
    assert log_beta.shape == (HORIZON, 4, 3)


def test_messages_neither_underflow_nor_miss_the_end():
    """A state that is 3,000 nats worse than another, and episodes that end in a corridor of two steps."""
    P, R = np.eye(2)[:, None, :], np.array([[0.0], [-1000]])
    assert_close(tabular.messages(P, R, 3)[1], tabular.soft_values_to_go(P, R, 3)[1], atol=1e-10)
    P, R, _ = finite.corridor(2, 2, left_reward=-1, right_reward=-2, penalty=3)
    evidence = (math.exp(-1) + math.exp(-3)) ** 2 / 4, math.exp(-2) ** 2  # on the left, on the right
    assert tabular.messages(P, R, 3)[1][0, 0] == pytest.approx(math.log(np.mean(evidence)), abs=1e-10)


def lower_bound(P, R, start, policies):
    """ELBO of policies `(horizon, S, A)` with the dynamics clamped: E Σ (r - log π + log prior)."""
    state, bound = start, 0.0
    for pi in policies:
        bound += state @ (average(pi, R - tabular.log_prob(pi)) - math.log(R.shape[1]))
        state = state @ tabular.state_transitions(P, pi)
    return bound


def test_exact_inference_is_optimistic_where_dynamics_are_not():
    """The posterior backs up log E exp V, above E V; the MaxEnt objective is the best clamped bound."""
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        P, R, start = finite.random_mdp(seed, 4, 3)
        _, log_beta_state = tabular.messages(P, R, HORIZON)
        Q, V = tabular.soft_values_to_go(P, R, HORIZON)
        optimism = log_beta_state[0] + HORIZON * math.log(3) - V[0]
        assert np.all(optimism > 1e-3)
        maxent = np.exp(Q - V[..., None])
        best = lower_bound(P, R, start, maxent)
        assert best == pytest.approx(start @ V[0] - HORIZON * math.log(3), abs=1e-10)
        assert best < math.log(start @ np.exp(log_beta_state[0]))
        assert lower_bound(P, R, start, rng.dirichlet(np.ones(3), size=(HORIZON, 4))) < best


def stein_residual(log_density, score_of, position):
    """E_p[κ(x, y) g(x) + ∂κ/∂x] by the trapezoidal rule, for a Gaussian kernel of width 0.5 at y = 0.3."""
    kernel = np.exp(-((position - 0.3) ** 2) / 0.5)
    slope = -2 * (position - 0.3) / 0.5 * kernel
    density = np.exp(log_density)
    density = density / np.trapezoid(density, position)
    return np.trapezoid(density * (kernel * score_of + slope), position)


def test_stein_identity_of_the_sampler_in_either_space():
    """Score and kernel before tanh leave exp(Q) in place; those of the code of Haarnoja et al. 2017 leave
    exp(Q)·(1 - a²); without the correction nothing is left in place, by the term at the border."""
    u = np.linspace(-15, 15, 300_001)
    a = np.tanh(u)
    q, slope_q = 5 * a, 5.0
    squash = -2 * (np.logaddexp(u, -u) - math.log(2))  # log(1 - a²)
    raw_score = slope_q * np.exp(squash) - 2 * a
    assert abs(stein_residual(q + squash, raw_score, u)) <= 1e-6
    published_score = slope_q - 2 * a / np.exp(squash)
    assert abs(stein_residual(q + squash, published_score, a)) <= 1e-6
    assert abs(stein_residual(q, published_score, a)) > 1
    border = np.array([-1, 1])
    weight = np.exp(5 * border) * np.exp(-((border - 0.3) ** 2) / 0.5) / (2 * math.sinh(5) / 5)
    assert stein_residual(q, np.full_like(a, slope_q), a) == pytest.approx(weight[1] - weight[0], abs=1e-3)
    assert weight[1] - weight[0] > 1

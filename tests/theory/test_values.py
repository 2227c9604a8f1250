"""Soft values and soft policies: their equations, where entropy is counted, and the limit without it.

Numbers without a derivation beside them were computed by an independent program.
"""

import itertools
import math
from functools import partial
from itertools import islice

import gymnasium as gym
import numpy as np
import pytest

from cleanrl_maxent import tabular
from cleanrl_maxent.environments.finite import random_mdp
from tests.support.mdps import ALPHA, GAMMA, SEEDS, assert_close, average, make_mdp


def soft_value_of(pi, Q):
    """E_π[Q - α log π], `(S,)`."""
    return average(pi, Q - ALPHA * np.log(pi))


@pytest.mark.parametrize("scale", [1e-2, 1, 1e2])
def test_soft_backups_contract(scale):
    """Haarnoja et al. 2017, eq. 25: by γ at worst, which a constant shift attains."""
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        P, R, _, pi = make_mdp(seed)
        first, second = scale * rng.normal(size=(2, 6, 4))
        for value in (partial(tabular.soft_value, alpha=ALPHA), partial(soft_value_of, pi)):
            images = [R + GAMMA * P @ value(Q) for Q in (first, second, first + scale)]
            change = np.abs(images[0] - images[1]).max() / np.abs(first - second).max()
            assert change <= GAMMA + 1e-12
            shift = np.abs(images[2] - images[0]).max() / scale
            assert shift <= GAMMA + 1e-12
            if seed % 2 == 0:  # without ends the shift is carried whole
                assert shift == pytest.approx(GAMMA, abs=1e-12)


def test_identities_of_the_optimum():
    for seed in SEEDS:
        P, R, _, random_pi = make_mdp(seed)
        Q = tabular.soft_value_iteration(P, R, GAMMA, ALPHA, epsilon=1e-11)
        V = ALPHA * np.log(np.exp(Q / ALPHA).sum(axis=-1))
        pi = np.exp((Q - V[:, None]) / ALPHA)
        assert_close(Q, R + GAMMA * P @ V, atol=1e-10)
        assert_close(pi, tabular.boltzmann(Q, ALPHA), atol=1e-10)
        assert_close(pi.sum(axis=-1), 1, atol=1e-10)
        assert_close(V, average(pi, Q - ALPHA * np.log(pi)), atol=1e-10)
        assert_close(tabular.soft_evaluate(P, R, GAMMA, ALPHA, pi)[1], V, atol=1e-10)
        exact_pi, exact_Q, exact_V = tabular.soft_optimum(P, R, GAMMA, ALPHA)
        for exact, iterated in ((exact_pi, pi), (exact_Q, Q), (exact_V, V)):
            assert_close(exact, iterated, atol=1e-10)
        assert np.all(tabular.soft_evaluate(P, R, GAMMA, ALPHA, random_pi)[1] <= V + 1e-10)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-6])
def test_value_iteration_stops_within_epsilon(epsilon):
    for seed in SEEDS:
        P, R, _, _ = make_mdp(seed)
        exact = tabular.soft_optimum(P, R, GAMMA, ALPHA)[1]
        error = np.abs(tabular.soft_value_iteration(P, R, GAMMA, ALPHA, epsilon) - exact).max()
        assert error <= epsilon


def test_soft_evaluation_is_the_sum_along_time():
    """V^π by adding up γ^t P_π^t (R_π + α H), two thousand terms; without γ^t before H it is another."""
    P, R, _, pi = make_mdp(0)
    step, V, stated = np.einsum("sa,sat->st", pi, P), np.zeros(6), np.zeros(6)
    reach = np.eye(6)
    for t in range(2_000):
        reward, entropy = reach @ average(pi, R), reach @ -average(pi, np.log(pi))
        V += GAMMA**t * (reward + ALPHA * entropy)
        stated += GAMMA**t * reward + ALPHA * entropy
        reach = reach @ step
    Q, exact = tabular.soft_evaluate(P, R, GAMMA, ALPHA, pi)
    assert_close(exact, V, atol=1e-10)
    assert_close(soft_value_of(pi, Q), V, atol=1e-10)
    assert np.abs(stated - exact).max() > 100


def test_soft_policy_iteration_improves_everywhere_and_reaches_the_fixed_point():
    for seed in SEEDS:
        P, R, _, _ = make_mdp(seed)
        iterates = list(islice(tabular.soft_policy_iteration(P, R, GAMMA, ALPHA), 9))
        for (_, before, _), (_, after, _) in itertools.pairwise(iterates):
            assert np.all(after >= before - 1e-10)
        optimum = tabular.soft_value_iteration(P, R, GAMMA, ALPHA, epsilon=1e-12)
        assert_close(iterates[8][2], tabular.soft_value(optimum, ALPHA), atol=1e-10)


def test_temperature_is_a_scale_of_reward():
    """And a constant per step, as the measure of actions contributes, is harmless unless episodes end."""
    constant = 0.7
    for seed in SEEDS:
        P, R, _, _ = make_mdp(seed)
        pi, Q, V = tabular.soft_optimum(P, R, GAMMA, ALPHA)
        assert_close(ALPHA * tabular.soft_optimum(P, R / ALPHA, GAMMA, 1)[1], Q, atol=1e-10)
        dropped = tabular.soft_optimum(P, R, GAMMA, 1)[1]
        assert np.abs(dropped - Q).max() > 1e-2
        shifted_pi, _, shifted_V = tabular.soft_optimum(P, R + ALPHA * constant, GAMMA, ALPHA)
        if seed % 2:
            assert np.abs(shifted_pi - pi).max() > 1e-3
        else:
            assert_close(shifted_V, V + ALPHA * constant / (1 - GAMMA), atol=1e-10)
            assert_close(shifted_pi, pi, atol=1e-10)


def test_entropy_placements_share_one_value():
    """At s', at s, and at the action; the slide's effective reward and its softmax are wrong."""
    for seed in SEEDS:
        P, R, _, pi = make_mdp(seed)
        Q, V = tabular.soft_evaluate(P, R, GAMMA, ALPHA, pi)
        at_next_state, at_state, at_action = tabular.entropy_placements(P, R, GAMMA, ALPHA, pi)
        assert_close(at_next_state, Q, atol=1e-10)
        assert_close(at_state, Q + ALPHA * tabular.entropy(pi)[:, None], atol=1e-10)
        assert_close(at_action, Q - ALPHA * np.log(pi), atol=1e-10)
        for values in (at_state, at_action):
            assert_close(average(pi, values), V, atol=1e-10)
        improved = tabular.boltzmann(Q, ALPHA)
        assert_close(tabular.boltzmann(at_state, ALPHA), improved, atol=1e-10)
        reweighted = pi * np.exp(at_action / ALPHA)
        assert_close(reweighted / reweighted.sum(axis=-1, keepdims=True), improved, atol=1e-10)
        assert np.abs(tabular.boltzmann(at_action, ALPHA) - improved).max() > 1e-2
        without_gamma, _ = tabular.evaluate(P, R + ALPHA * P @ tabular.entropy(pi), GAMMA, pi)
        assert np.abs(without_gamma - Q).max() > 1e-2


def test_the_value_needs_the_entropy_of_this_state():
    """The post's recursion V = Σ π Σ P (R + γ V) lacks α H(π(·|s))."""
    P, R, _, pi = make_mdp(0)
    V = tabular.soft_evaluate(P, R, GAMMA, ALPHA, pi)[1]
    stated = average(pi, R + GAMMA * P @ V)
    assert np.abs(stated - V).max() > 1e-2
    assert_close(stated + ALPHA * tabular.entropy(pi), V, atol=1e-10)


def test_improvement_is_the_minimum_of_the_divergence():
    """π' ∝ exp(Q/α) maximises E[Q - α log π] = α log Z - α KL(π ‖ π'), with minus log Z in the bracket."""
    Q, rng = np.random.default_rng(0).normal(size=4), np.random.default_rng(1)
    best, log_z = tabular.boltzmann(Q, ALPHA), np.log(np.exp(Q / ALPHA).sum())
    for pi in rng.dirichlet(np.ones(4), size=1000):
        value = pi @ (Q - ALPHA * np.log(pi))
        assert value <= tabular.soft_value(Q, ALPHA) + 1e-12
        divergence = pi @ (np.log(pi) - (Q / ALPHA - log_z))
        assert value == pytest.approx(ALPHA * log_z - ALPHA * divergence, abs=1e-10)
        assert divergence == pytest.approx(tabular.kl(pi, best), abs=1e-10)
    stated, log_z = tabular.boltzmann(Q, 1), np.log(np.exp(Q).sum())  # exp(Q)/Z, and + log Z
    assert tabular.kl(stated, best) > 1e-2
    bracket = stated @ (np.log(stated) - (Q - log_z) + log_z)
    assert bracket == pytest.approx(log_z, abs=1e-10) and log_z > 1e-2


def test_soft_maximum_is_between_the_hard_one_and_alpha_log_actions_above():
    rng = np.random.default_rng(0)
    for alpha in (1e-4, 0.1, 1, 100):
        Q = rng.normal(size=(1000, 4))
        excess = tabular.soft_value(Q, alpha) - Q.max(axis=-1)
        assert np.all(excess >= -1e-12) and np.all(excess <= alpha * math.log(4) + 1e-12)


def test_without_entropy_it_is_value_and_policy_iteration():
    """Against value iteration written out, a linear program's certificate, and small α."""
    for seed in SEEDS:
        P, R, _, _ = make_mdp(seed)
        V = np.zeros(6)
        for _ in range(400):
            V = np.max(R + GAMMA * np.einsum("sat,t->sa", P, V), axis=-1)
        pi, Q, hard = tabular.soft_optimum(P, R, GAMMA, 0)
        assert_close(hard, V, atol=1e-10)
        slack = hard[:, None] - (R + GAMMA * P @ hard)
        assert slack.min() >= -1e-10
        assert_close(slack.min(axis=-1), 0, atol=1e-10)
        assert_close(tabular.soft_value_iteration(P, R, GAMMA, 0), Q, atol=1e-10)
        assert set(np.unique(pi)) == {0, 1}
        for alpha in (1, 0.1, 0.01):
            soft = tabular.soft_optimum(P, R, GAMMA, alpha)[2]
            assert np.all(soft >= hard - 1e-10)
            assert np.all(soft <= hard + alpha * math.log(4) / (1 - GAMMA) + 1e-10)
        assert_close(tabular.soft_optimum(P, R, GAMMA, 1e-6)[0], pi, atol=1e-10)


def test_ties_are_shared():
    np.testing.assert_array_equal(tabular.boltzmann(np.array([[1.0, 1, 0]]), 0), [[0.5, 0.5, 0]])


@pytest.mark.parametrize("alpha", [0, ALPHA])
def test_fitted_q_iteration_solves_the_sampled_problem(alpha):
    """One-hot features on samples that an environment gave: value iteration on the frequencies."""
    env = gym.make("cleanrl_maxent/RandomMDP-v0", seed=3, end_probability=0.05).unwrapped
    rng, rows = np.random.default_rng(0), []
    obs, _ = env.reset(seed=0)
    for _ in range(1_000):
        action = rng.integers(3)
        next_obs, reward, terminated, _, _ = env.step(action)
        rows.append((obs.argmax(), action, reward, next_obs.argmax(), terminated))
        obs = env.reset()[0] if terminated else next_obs
    state, action, reward, next_state, terminated = (np.array(column) for column in zip(*rows, strict=True))
    P, visits = np.zeros((5, 3, 5)), np.zeros((5, 3))
    np.add.at(visits, (state, action), 1)
    np.add.at(P, (state, action, next_state), 1.0 - terminated)
    features = np.eye(15).reshape(5, 3, 15)
    batch = state, action, reward, next_state, terminated
    Q = tabular.fitted_q_iteration(features, batch, GAMMA, alpha, iterations=250)
    exact = tabular.soft_optimum(P / visits[..., None], env.mdp.R, GAMMA, alpha)[1]
    assert_close(Q, exact, atol=1e-8)


@pytest.mark.parametrize("slope", [0, 0.5])
def test_the_normaliser_is_the_integral_of_the_exponential(slope):
    """Of Q = 2a on [-1, 1], by samples of the density q = (1 + slope a)/2: the mean of exp(Q)/q is Z, that of
    Q/q is 0 and normalises nothing."""
    uniform = np.random.default_rng(0).uniform(size=200_000)
    a = 2 * uniform - 1 if slope == 0 else (np.sqrt((1 - slope) ** 2 + 4 * slope * uniform) - 1) / slope
    q = (1 + slope * a) / 2
    for estimate, exact in ((np.exp(2 * a) / q, math.sinh(2)), (2 * a / q, 0)):
        assert estimate.mean() == pytest.approx(exact, abs=4 * estimate.std() / math.sqrt(len(a)))


def test_entropy_is_a_living_bonus():
    """Ten states in a row, one action of three leads on, a step costs 1: expected steps to the end."""
    P, R = np.zeros((10, 3, 10)), np.full((10, 3), -1.0)
    P[:, 1:] = np.eye(10)[:, None]
    P[np.arange(9), 0, np.arange(1, 10)] = 1
    for find, stated in (
        (tabular.optimal_policy, {0.05: 10.0, 0.2: 10.2, 0.5: 14.2, 0.9: 29.4, 1.2: 58.0}),
        (tabular.bonus_policy, {0.5: 12.1, 0.9: 14.5, 1.2: 15.9}),
    ):
        for alpha, steps in stated.items():
            assert np.sum(1 / find(P, R, 0.99, alpha)[:, 0]) == pytest.approx(steps, abs=0.06)


def test_whole_numbers_are_rewards_too():
    """Costs of 1 a step on a chain: the shortest way is best."""
    P = np.zeros((5, 2, 5))
    P[range(5), 0, [0, 0, 1, 2, 3]] = 1
    P[range(4), 1, [1, 2, 3, 4]] = 1  # the last state ends
    R = -np.ones((5, 2), int)
    pi, Q, V = tabular.soft_optimum(P, R, 0.99, 0)
    assert (pi == [0, 1]).all()
    assert_close(V, -np.cumsum(0.99 ** np.arange(5))[::-1])
    assert_close(tabular.soft_value_iteration(P, R, 0.99, 0), Q)
    start = np.eye(5)[0]
    *_, last = itertools.islice(tabular.trpo_penalty_iteration(P, R, 0.9, start), 3)
    assert tabular.expected_return(P, R, 0.9, start, last) > tabular.expected_return(
        P, R, 0.9, start, np.full((5, 2), 0.5)
    )


@pytest.mark.parametrize(
    ("P", "R", "gamma", "alpha", "words"),
    [
        (np.ones((2, 3, 2)) / 2, np.ones((3, 2)), 0.9, 0, r"got \(2, 3, 2\) and \(3, 2\)"),
        (np.ones((2, 3, 2)) / 2, np.ones(2), 0.9, 0, r"R \(S, A\); got \(2, 3, 2\) and \(2,\)"),
        (np.ones((2, 3, 2)) * 0.6, np.ones((2, 3)), 0.9, 0, "a sum above 1"),
        (np.full((2, 3, 2), np.nan), np.ones((2, 3)), 0.9, 0, "P must be probabilities"),
        (-np.ones((2, 3, 2)), np.ones((2, 3)), 0.9, 0, "a negative number"),
        (np.ones((2, 3, 2)) / 2, np.full((2, 3), np.inf), 0.9, 0, "R must be finite"),
        (np.ones((2, 3, 2)) / 2, np.ones((2, 3)), 1.0, 0, "gamma must be in"),
        (np.ones((2, 3, 2)) / 2, np.ones((2, 3)), 0.9, -0.1, "alpha >= 0; got 0.9 and -0.1"),
    ],
)
def test_what_is_no_mdp_is_refused(P, R, gamma, alpha, words):
    for function in (tabular.soft_value_iteration, tabular.soft_optimum, tabular.bonus_policy):
        with pytest.raises(ValueError, match=words):
            function(P, R, gamma, alpha)


def test_fixed_point_of_alternating_steps_is_the_soft_optimum():
    """Q = c R + γ P V̄, π = exp Q/Z, V = E_π [Q - log π], V̄ by Polyak: α/c times these are optimal at α/c."""
    c, gamma = 2.0, 0.9
    for seed in range(3):
        P, R, _ = random_mdp(seed, 6, 4)
        target = np.zeros(6)
        for _ in range(4000):
            Q = c * R + gamma * P @ target
            pi = tabular.boltzmann(Q, 1)
            V = np.sum(pi * (Q - tabular.log_prob(pi)), axis=-1)
            target = 0.1 * V + 0.9 * target
        exact_pi, exact_Q, exact_V = tabular.soft_optimum(P, R, gamma, 1 / c)
        assert_close(Q / c, exact_Q, atol=1e-10)
        assert_close(V / c, exact_V, atol=1e-10)
        assert_close(pi, exact_pi, atol=1e-10)

"""The theorems and lecture claims behind the algorithms, in float64, against closed forms, enumeration or
optimisers.

Numbers without a derivation beside them were computed by an independent program. What algorithms with
networks rest on (Fisher matrix, soft Q-gradient, Stein identity, dual of the temperature) is checked as
mathematics; their own tests check that they follow it.
"""

import itertools
import math
import os
import re
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.optimize import minimize

from cleanrl_maxent import tabular
from cleanrl_maxent.environments import finite

GAMMA, ALPHA = 0.9, 0.5
SEEDS = range(50)
assert_close = partial(np.testing.assert_allclose, rtol=0)


def make_mdp(seed):
    """Six states, four actions, and a policy that is positive everywhere; in every second one a step ends
    the episode with a probability of its own."""
    P, R, start = finite.random_mdp(seed, 6, 4)
    rng = np.random.default_rng([1, seed])
    if seed % 2:
        P = P * rng.uniform(0.7, 1, size=(6, 4, 1))
    return P, R, start, rng.dirichlet(np.ones(4), size=6)


def average(pi, values):
    """E_π of values `(S, A)`, `(S,)`."""
    return np.sum(pi * values, axis=-1)


def soft_value_of(pi, Q):
    """E_π[Q - α log π], `(S,)`."""
    return average(pi, Q - ALPHA * np.log(pi))


# soft values


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


# backing up entropy


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
    policies = tabular.ascend(
        lambda pi: gradient(P, R, 0.99, 0.5, start, pi), np.zeros_like(R), step_size=0.5
    )
    pi = next(islice(policies, 20_000, None))
    assert pi[0, 4:].sum() == pytest.approx(stated, abs=1e-5)
    assert_close(pi, optimum(P, R, 0.99, 0.5), atol=1e-10)


def test_bonus_policy_says_when_it_does_not_settle():
    P, R, _ = finite.random_mdp(0, 3, 2)
    with pytest.raises(ValueError, match="does not settle"):
        tabular.bonus_policy(P, R + np.nan, 0.99, 0.01)


# policy gradients


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


# rates of convergence


BANDIT = np.array([1, 0.9, 0.1])


def bandit_policies(alpha, first, count):
    """Ascent on a bandit with η = 0.4; the formula of `maxent_gradient` on one state, which is checked."""

    def gradient(pi):
        advantage = BANDIT - alpha * np.log(pi)
        return pi * (advantage - (pi * advantage).sum())

    first = np.array([first])
    general = tabular.maxent_gradient(np.zeros((1, 3, 1)), BANDIT[None], 0, alpha, np.ones(1), first)
    assert_close(gradient(first), general, atol=1e-15)
    return np.array(list(islice(tabular.ascend(gradient, np.log(first), 0.4), count)))[:, 0]


def test_plain_policy_gradient_on_a_bandit_is_one_over_t():
    """Mei et al. 2020, bandits: δ_t ≤ 5 K²/t from the uniform policy, and no faster than 1/t."""
    delta = 1 - bandit_policies(0, [1 / 3] * 3, 200_000) @ BANDIT
    t = np.arange(1, 200_001)
    assert np.all(delta <= 45 / t)
    assert t[-1] * delta[-1] == pytest.approx(1.67, abs=0.01)
    assert np.polyfit(np.log(t[9_999:]), np.log(delta[9_999:]), 1)[0] == pytest.approx(-1.003, abs=0.01)


def test_a_bad_start_is_a_long_plateau_without_entropy_only():
    plain = 1 - bandit_policies(0, [0.01, 0.05, 0.94], 8_000) @ BANDIT
    assert np.argmax(plain < 0.05) == 7_527
    lucky = 1 - bandit_policies(0, [0.05, 0.01, 0.94], 100) @ BANDIT
    assert np.argmax(lucky < 0.05) == 66
    policies, alpha = bandit_policies(0.5, [0.01, 0.05, 0.94], 450), 0.5
    optimum = alpha * np.log(np.exp(BANDIT / alpha).sum())
    soft = optimum - np.sum(policies * (BANDIT - alpha * np.log(policies)), axis=-1)
    assert np.argmax(soft < 1e-6) == 246
    slope = np.polyfit(np.arange(250, 450), np.log(soft[250:]), 1)[0]
    guaranteed = 2 * alpha * 0.4 * np.exp((BANDIT.min() - optimum) / alpha)
    assert slope == pytest.approx(-0.0463, abs=1e-4)
    assert guaranteed == pytest.approx(0.0333, abs=1e-4)
    assert -slope >= guaranteed


def test_rates_of_policy_gradient_on_an_mdp():
    """Mei et al. 2020, Theorems 4 and 6, with their step sizes."""
    assert tabular.mei_step_size(0.5, 0.5, 3) == pytest.approx(8.684e-3, abs=1e-6)
    assert tabular.mei_step_size(0.5, 0, 3) == 0.015625
    soft, plain = tabular.suboptimality(0.5), tabular.suboptimality(0)
    assert np.all(np.diff(plain) < 0) and soft[-1] < 1e-11
    half = np.arange(10_000, 20_000)
    r_squared = np.corrcoef(half, np.log(soft[half]))[0, 1] ** 2
    slope = np.polyfit(np.log(half + 1), np.log(plain[half]), 1)[0]
    assert r_squared > 0.999 and -1.3 < slope < -0.9


def test_natural_policy_gradient_keeps_its_bound():
    """V_T ≥ V* - log A/(η T) - 1/((1 - γ)² T): the bound that the slide prints beside plain gradients."""
    rng = np.random.default_rng(0)
    for seed in range(60):
        gamma, step_size = rng.choice([0.5, 0.9]), 10 ** rng.uniform(-2, 1.5)
        P, _, start = finite.random_mdp(seed, 4, 3)
        R = rng.uniform(size=(4, 3))
        optimum = start @ tabular.soft_optimum(P, R, gamma, 0)[2]
        policies = tabular.ascend(
            lambda pi, P=P, R=R, gamma=gamma: tabular.natural_gradient(P, R, gamma, 0, pi),
            np.zeros((4, 3)),
            step_size,
        )
        for T, pi in enumerate(islice(policies, 1, 101), start=1):
            bound = optimum - math.log(3) / (step_size * T) - 1 / ((1 - gamma) ** 2 * T)
            assert tabular.expected_return(P, R, gamma, start, pi) >= bound - 1e-10


def test_plain_policy_gradient_does_not_keep_that_bound():
    """Two bandits of which one is rarely met: its plain gradient is as small as its probability."""
    P, R, start = np.zeros((2, 2, 2)), np.array([[1.0, 0], [1, 0]]), np.array([0.999, 0.001])
    gradients = (
        lambda pi: tabular.natural_gradient(P, R, 0.5, 0, pi),
        lambda pi: tabular.maxent_gradient(P, R, 0.5, 0, start, pi),
    )
    bound = 1 - math.log(2) / 100 - 1 / (0.5**2 * 100)
    natural, plain = (
        next(islice(tabular.ascend(gradient, np.zeros((2, 2)), step_size=1), 100, None))
        for gradient in gradients
    )
    assert average(natural, R)[1] >= bound > average(plain, R)[1] + 0.1


# robust rewards


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


# control as inference


HORIZON = 5


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


# trust regions


def test_trpo_bound_and_the_performance_difference():
    """3,000 pairs of policies; the bound with the total variation distance, and Pinsker's with KL."""
    slacks = []
    for seed in SEEDS:
        P, R, start, pi = make_mdp(seed)
        Q, V = tabular.evaluate(P, R, GAMMA, pi)
        advantage = Q - V[:, None]
        rng = np.random.default_rng([3, seed])
        for scale in np.logspace(-4, 1, 60):
            new = tabular.boltzmann(np.log(pi) + scale * rng.normal(size=(6, 4)), 1)
            value = tabular.expected_return(P, R, GAMMA, start, new)
            gain = tabular.visits(P, GAMMA, start, new) @ average(new, advantage)
            assert value == pytest.approx(start @ V + gain, abs=1e-10)
            surrogate = start @ V + tabular.visits(P, GAMMA, start, pi) @ average(new, advantage)
            distance = np.abs(pi - new).sum(axis=-1).max() / 2
            penalty = 4 * np.abs(advantage).max() * GAMMA / (1 - GAMMA) ** 2 * distance**2
            assert value >= surrogate - penalty - 1e-9
            slacks.append(value - tabular.trpo_bound(P, R, GAMMA, start, pi, new))
    assert len(slacks) == 3_000 and min(slacks) >= -1e-9


def test_penalty_iteration_never_lowers_the_return():
    for seed in range(4):
        P, R, start, _ = make_mdp(seed)
        policies = list(islice(tabular.trpo_penalty_iteration(P, R, GAMMA, start), 100))
        returns = [tabular.expected_return(P, R, GAMMA, start, pi) for pi in policies]
        assert np.all(np.diff(returns) >= -1e-10) and returns[-1] > returns[0] + 1e-3
        for pi, new, value in zip(policies, policies[1:], returns, strict=False):
            assert tabular.trpo_bound(P, R, GAMMA, start, pi, new) >= value - 1e-10


def test_divergence_is_infinite_where_support_is_lost():
    pi = np.array([[0.5, 0.5], [1, 0]])
    np.testing.assert_array_equal(tabular.kl(pi, np.array([[1, 0], [1, 0]])), [np.inf, 0])


def test_fisher_matrix_is_the_hessian_of_either_divergence():
    with jax.enable_x64(True):
        logits = jnp.array(np.random.default_rng(0).normal(size=4))
        old = jax.nn.softmax(logits)

        def divergence(new, forward):
            new = jax.nn.softmax(new)
            first, second = (old, new) if forward else (new, old)
            return jnp.sum(first * jnp.log(first / second))

        hessians = [np.array(jax.hessian(divergence)(logits, forward)) for forward in (True, False)]
        fisher = np.diag(old) - np.outer(old, old)
    for hessian in hessians:
        assert_close(hessian, fisher, atol=1e-15)


def test_conjugate_gradient_by_gram_schmidt_is_the_usual_recursion():
    """Both forms of β solve (F + 0.1 I) x = g in as many steps as dimensions."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    H, g = root @ root.T + 0.1 * np.eye(6), rng.normal(size=6)
    for gram_schmidt in (True, False):
        x, r = np.zeros(6), g
        p = r
        for _ in range(6):
            step = r @ r / (p @ H @ p)
            x, next_r = x + step * p, r - step * H @ p
            beta = -(p @ H @ next_r) / (p @ H @ p) if gram_schmidt else next_r @ next_r / (r @ r)
            r, p = next_r, next_r + beta * p
        assert_close(x, np.linalg.solve(H, g), atol=1e-8)


# policy gradient and soft Q-learning


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

        pi = np.array(jnp.exp(log_pi(theta)))
        divergence = pi @ np.array(log_pi(theta) - jnp.log(prior))
        v_hat = pi @ y - alpha * divergence

        def gain(theta):
            return jnp.exp(log_pi(theta)) @ (y - alpha * (log_pi(theta) - jnp.log(prior)))

        def flat(gradient):
            return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

        left = flat(jax.grad(lambda theta: pi @ (q(theta) - y) ** 2 / 2)(theta))
        policy = flat(jax.grad(gain)(theta))
        value = flat(jax.grad(lambda theta: (v(theta) - v_hat) ** 2 / 2)(theta))
        residual = y - np.array(q(theta))
        lecture = flat(jax.grad(lambda theta: pi @ (residual * (q(theta) - v(theta))))(theta))
        lost_v = flat(jax.grad(lambda theta: pi @ (residual * q(theta)))(theta))
    assert_close(left, -alpha * policy + value, atol=1e-10)
    assert_close(lecture, alpha * policy, atol=1e-10)
    assert np.abs(lost_v - alpha * policy).max() > 1e-2


# continuous actions, one dimension, by quadrature


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

        theta = jnp.array([0.4, -0.5])
        reparameterised = jax.grad(lambda theta: weight @ cost(theta, sample(theta)))(theta)
        fixed = sample(theta)
        baseline = cost(theta, fixed)
        score = jax.grad(lambda theta: weight @ (baseline * log_density(theta, fixed)))(theta)
    assert_close(np.array(reparameterised), np.array(score), atol=1e-8)


@pytest.mark.parametrize("slope", [0, 0.5])
def test_the_normaliser_is_the_integral_of_the_exponential(slope):
    """Of Q = 2a on [-1, 1], by samples of the density q = (1 + slope a)/2: the mean of exp(Q)/q is Z, that of
    Q/q is 0 and normalises nothing."""
    uniform = np.random.default_rng(0).uniform(size=200_000)
    a = 2 * uniform - 1 if slope == 0 else (np.sqrt((1 - slope) ** 2 + 4 * slope * uniform) - 1) / slope
    q = (1 + slope * a) / 2
    for estimate, exact in ((np.exp(2 * a) / q, math.sinh(2)), (2 * a / q, 0)):
        assert estimate.mean() == pytest.approx(exact, abs=4 * estimate.std() / math.sqrt(len(a)))


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


# environments and the script


def run_script(name, *flags, **environment):
    """A finished process of `python cleanrl_maxent/{name}`."""
    root = Path(__file__).parent.parent
    command = [sys.executable, root / "cleanrl_maxent" / name, *flags]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("name", ["TwoRooms", "Corridor", "RandomMDP"])
def test_gymnasiums_checker_accepts(name):
    check_env(gym.make(f"cleanrl_maxent/{name}-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", ["TwoRooms", "Corridor", "RandomMDP"])
def test_same_seed_same_episodes(name):
    records = []
    for _ in range(2):
        copy = gym.make(f"cleanrl_maxent/{name}-v0")
        record, (obs, _) = [], copy.reset(seed=7)
        rng = np.random.default_rng(0)
        for _ in range(200):
            record.append(obs)
            obs, reward, terminated, truncated, _ = copy.step(int(rng.integers(copy.action_space.n)))
            record.append(reward)
            if terminated or truncated:
                obs, _ = copy.reset()
        records.append(record)
    for left, right in zip(*records, strict=True):
        np.testing.assert_array_equal(left, right)


def test_environment_follows_its_mdp():
    """Frequencies of 20,000 steps within four standard errors, ends included."""
    env = gym.make(
        "cleanrl_maxent/RandomMDP-v0", seed=1, num_states=3, num_actions=2, end_probability=0.2
    ).unwrapped
    assert env.observation_space.shape == (3,) and env.action_space.n == 2
    obs, _ = env.reset(seed=0)
    counts, rng = np.zeros((3, 2, 4)), np.random.default_rng(0)
    for _ in range(20_000):
        state, action = obs.argmax(), rng.integers(2)
        obs, reward, terminated, truncated, _ = env.step(action)
        assert reward == env.mdp.R[state, action] and not truncated and obs.sum() == 1
        counts[state, action, 3 if terminated else obs.argmax()] += 1
        if terminated:
            obs, _ = env.reset()
    visits = counts.sum(axis=-1, keepdims=True)
    p = np.concatenate([env.mdp.P, np.full((3, 2, 1), 0.2)], axis=-1)
    assert np.all(np.abs(counts / visits - p) <= 4 * np.sqrt(p * (1 - p) / visits))


def test_first_half_of_the_actions_leads_left():
    env = gym.make("cleanrl_maxent/TwoRooms-v0", num_actions=6)
    for action, room in [(0, 1), (2, 1), (3, 2), (5, 2)]:
        env.reset(seed=0)
        obs, reward, terminated, _, _ = env.step(action)
        assert obs[room] == 1 and reward == 0 and not terminated
        assert env.step(1)[1:3] == (-1.0 if room == 1 else 0.5, True)
    with pytest.raises(ValueError, match="an even number of actions"):
        finite.two_rooms(5)


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "sac", "sql"])
def test_continuous_algorithms_refuse_discrete_actions(algorithm):
    done = run_script(f"{algorithm}.py", "--env-id", "cleanrl_maxent/TwoRooms-v0")
    assert done.returncode == 2 and "Discrete(8); a continuous one (Box) is needed" in done.stderr


def test_script_prints_the_claims_and_draws(tmp_path, capsys):
    tabular.main(tabular.Args(figure="none"))
    printed = capsys.readouterr().out
    assert "wrong    off by 5.1e-01; r - γ α" in printed and "P(8 ways) is 0.996" in printed
    for name in tabular.FIGURES:
        tabular.main(tabular.Args(figure=name, out_dir=tmp_path / "figures"))
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
    assert printed not in capsys.readouterr().out


def test_script_says_that_it_cannot_write(tmp_path):
    (tmp_path / "taken").write_text("")
    done = run_script("tabular.py", "--figure", "corridor", "--out-dir", tmp_path / "taken")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "taken" in done.stderr


def test_script_says_how_to_install_matplotlib(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module named matplotlib')")
    done = run_script("tabular.py", "--figure", "corridor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "'.[plots]'" in done.stderr


def test_every_test_that_the_document_names_exists():
    text = (Path(__file__).parent.parent / "docs" / "tabular.md").read_text()
    table = text[text.index("| lecture | claim") : text.index("## Figures")]
    named = {
        f"test_{name}" for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[-1])
    }
    assert len(named) > 20 and named <= set(globals())

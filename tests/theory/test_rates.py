"""Rates at which policy gradient converges, with entropy and without (Mei et al. 2020).

Numbers without a derivation beside them were computed by an independent program.
"""

import math
from itertools import islice

import jax
import numpy as np
import pytest

from cleanrl_maxent import tabular
from cleanrl_maxent.environments import finite
from tests.support.mdps import assert_close, average

BANDIT = np.array([1, 0.9, 0.1])


def bandit_policies(alpha, first, count):
    """Policies of gradient ascent on a bandit with η = 0.4, `(count, 3)`, in float64.

    The formula is that of `maxent_gradient` on one state; the first policies are compared with `ascend`'s.
    """

    def step(logits, _):
        pi = jax.nn.softmax(logits)
        advantage = BANDIT - alpha * jax.nn.log_softmax(logits)
        return logits + 0.4 * pi * (advantage - pi @ advantage), pi

    with jax.enable_x64(True):
        policies = np.asarray(
            jax.jit(lambda first: jax.lax.scan(step, first, length=count)[1])(np.log(first))
        )
    mdp = np.zeros((1, 3, 1)), BANDIT[None]
    ascent = tabular.ascend(
        lambda pi: tabular.maxent_gradient(*mdp, 0, alpha, np.ones(1), pi), np.log([first]), 0.4
    )
    assert_close(policies[:100], np.array(list(islice(ascent, 100)))[:, 0], atol=1e-12)
    return policies


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


@pytest.mark.slow
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

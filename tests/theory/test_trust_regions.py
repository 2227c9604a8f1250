"""Trust regions: the bound of TRPO, its divergences and its linear algebra."""

from functools import partial
from itertools import islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import tabular, trpo
from tests.support.mdps import GAMMA, SEEDS, assert_close, average, make_mdp


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
            bound = tabular.trpo_bound(P, R, GAMMA, start, pi, new)
            C = 2 * np.abs(advantage).max() * GAMMA / (1 - GAMMA) ** 2  # theorem 1, with eq. 8
            assert surrogate - bound == pytest.approx(C * tabular.kl(pi, new).max(), rel=1e-9, abs=1e-9)
            slacks.append(value - bound)
    assert len(slacks) == 3_000 and min(slacks) >= -1e-9


def test_penalty_iteration_never_lowers_the_return():
    for seed in range(4):
        P, R, start, _ = make_mdp(seed)
        policies = list(islice(tabular.trpo_penalty_iteration(P, R, GAMMA, start), 100))
        returns = [tabular.expected_return(P, R, GAMMA, start, pi) for pi in policies]
        assert np.all(np.diff(returns) >= -1e-10) and returns[-1] > returns[0] + 1e-3
        for pi, new, value in zip(policies, policies[1:], returns, strict=False):
            assert tabular.trpo_bound(P, R, GAMMA, start, pi, new) >= value - 1e-10


def test_penalty_iteration_takes_nearly_the_best_step():
    """At least 4/5 of the gain that the bound allows, since its gain is nearly a parabola in β."""
    P, R, start, _ = make_mdp(0)
    policies = islice(tabular.trpo_penalty_iteration(P, R, GAMMA, start), 4)
    for pi, new in pairwise(policies):
        Q, V = tabular.evaluate(P, R, GAMMA, pi)
        bound = partial(tabular.trpo_bound, P, R, GAMMA, start, pi)
        steps = (tabular.boltzmann(np.log(pi) + beta * Q, 1) for beta in np.logspace(-9, 1, 500))
        best = max(map(bound, steps)) - start @ V
        assert best > 0 and 0.8 * best < bound(new) - start @ V <= best * (1 + 1e-3)


def test_divergence_is_infinite_where_support_is_lost():
    pi = np.array([[0.5, 0.5], [1, 0]])
    np.testing.assert_array_equal(tabular.kl(pi, np.array([[1, 0], [1, 0]])), [np.inf, 0])


def test_fisher_matrix_is_the_hessian_of_either_divergence():
    with jax.enable_x64(True):
        logits = jnp.array(np.random.default_rng(0).normal(size=4))

        def divergence(new, forward):
            old, new = jax.nn.softmax(logits), jax.nn.softmax(new)
            first, second = (old, new) if forward else (new, old)
            return jnp.sum(first * jnp.log(first / second))

        hessian = jax.jit(jax.hessian(divergence), static_argnums=1)
        hessians = [np.array(hessian(logits, forward)) for forward in (True, False)]
        old = np.array(jax.nn.softmax(logits))
        fisher = np.diag(old) - np.outer(old, old)
    for hessian in hessians:
        assert_close(hessian, fisher, atol=1e-15)


def test_conjugate_gradient_by_gram_schmidt_is_the_usual_recursion():
    """With the lectures' β, from Gram-Schmidt, (F + 0.1 I) x = g is solved as by `trpo.py`, step by step."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    H, g = root @ root.T + 0.1 * np.eye(6), rng.normal(size=6)
    x, r = np.zeros(6), g
    p = r
    for steps in range(1, 7):
        step = r @ r / (p @ H @ p)
        x, r = x + step * p, r - step * H @ p
        p = r - (p @ H @ r) / (p @ H @ p) * p
        with jax.enable_x64(True):
            usual, _ = trpo.conjugate_gradient(partial(jnp.matmul, jnp.array(H)), jnp.array(g), steps)
        assert_close(x, np.array(usual), atol=1e-8)
    assert_close(x, np.linalg.solve(H, g), atol=1e-8)

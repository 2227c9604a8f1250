"""Maximum-entropy reinforcement learning on finite MDPs, computed exactly.

Soft values: Haarnoja et al. 2017, https://arxiv.org/abs/1702.08165, and 2018, https://arxiv.org/abs/1801.01290;
convergence: Mei et al. 2020, https://arxiv.org/abs/2005.06392; control as inference: Levine 2018,
https://arxiv.org/abs/1805.00909; robust rewards: Eysenbach & Levine 2022, https://arxiv.org/abs/2103.06257;
trust regions: Schulman et al. 2015, https://arxiv.org/abs/1502.05477.
NumPy and float64, so that other programs can be checked against it.

Everywhere `P` is `(S, A, S)`, probabilities of the next state; the rest of a row, up to 1, ends the episode;
`R` is `(S, A)`, rewards; `gamma` is the discount per step, below 1; `pi` is `(S, A)`, probabilities of
actions; `start` is `(S,)`, probabilities of the first state; `alpha` = 0 is the limit without entropy.
Arrays are float64, entropies and divergences in nats. `soft_value_iteration`, `soft_policy_iteration`,
`soft_optimum`, `bonus_policy` and `trpo_penalty_iteration` raise ValueError for other shapes and ranges;
the generators among them do so at the first `next`.

    python cleanrl_maxent/tabular.py
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.finite import corridor, random_mdp

Figure = Literal["all", "none", "corridor", "rates", "temperature", "robust-reward"]


@dataclass(frozen=True)
class Args:
    """Prints what the lectures claim beside what is computed here, and draws the figures."""

    figure: Figure = "all"  # a single figure; none: only the claims
    out_dir: Path = Path("figures")  # folder that the figures are written to


def check_mdp(P, R, gamma, alpha=0.0):
    """Raises ValueError unless the arguments have the shapes and ranges stated above."""
    shape_P, shape_R = np.shape(P), np.shape(R)
    if len(shape_R) != 2 or shape_P != (*shape_R, shape_R[0]):
        raise ValueError(f"P must be (S, A, S) and R (S, A); got {shape_P} and {shape_R}")
    if not (np.all(np.greater_equal(P, 0)) and np.all(np.sum(P, axis=-1, dtype=float) <= 1 + 1e-6)):
        raise ValueError("P must be probabilities: no row with a negative number, or a sum above 1")
    if not np.all(np.isfinite(R)):
        raise ValueError("R must be finite")
    if not (0 <= gamma < 1 and alpha >= 0):
        raise ValueError(f"gamma must be in [0, 1), and alpha >= 0; got {gamma} and {alpha}")


def uniform_policy(R):
    """The policy of equal probabilities, `(S, A)`."""
    return np.full(np.shape(R), 1 / np.shape(R)[1])


# soft values: section 1 of docs/explain/tabular.md


def soft_value(Q, alpha):
    """V(s) = α log Σ_a exp(Q(s, a)/α), `(...)`, for Q `(..., A)` (Haarnoja et al. 2017)."""
    return alpha * np.logaddexp.reduce(Q / alpha, axis=-1) if alpha else Q.max(axis=-1)


def boltzmann(Q, alpha):
    """π(a|s) = exp(Q(s, a)/α)/Z(s), `(..., A)`; without entropy, uniform over the best actions."""
    if not alpha:
        best = Q == Q.max(axis=-1, keepdims=True)
        return best / best.sum(axis=-1, keepdims=True)
    weight = np.exp((Q - Q.max(axis=-1, keepdims=True)) / alpha)
    return weight / weight.sum(axis=-1, keepdims=True)


def log_prob(pi):
    """log π(a|s), `(S, A)`; 0 instead of -∞ where π is 0: for products with π, whose limit is 0."""
    return np.log(np.where(pi > 0, pi, 1))


def entropy(pi):
    """H(π(·|s)), `(S,)`."""
    return -np.sum(pi * log_prob(pi), axis=-1)


def soft_value_iteration(P, R, gamma, alpha, epsilon=1e-10):
    """Q*, `(S, A)`, to `epsilon`, or to rounding/(1 - γ) if that is larger: Q ← R + γ P V(Q).

    Without entropy this is value iteration.
    """
    check_mdp(P, R, gamma, alpha)
    Q = np.zeros(np.shape(R))
    while True:
        next_Q = R + gamma * P @ soft_value(Q, alpha)
        change = np.abs(next_Q - Q).max()
        rounding = 4 * np.spacing(np.abs(next_Q).max())  # iterates may keep differing by this much
        if not gamma * change > max((1 - gamma) * epsilon, rounding):
            return next_Q
        Q = next_Q


def state_transitions(P, pi):
    """Probability of the next state under a policy, `(S, S)`."""
    return np.einsum("sa,sat->st", pi, P)


def evaluate(P, R, gamma, pi):
    """Q^π `(S, A)` and V^π `(S,)` without entropy: V = (I - γ P_π)⁻¹ R_π, Q = R + γ P V."""
    V = np.linalg.solve(np.eye(len(R)) - gamma * state_transitions(P, pi), np.sum(pi * R, axis=-1))
    return R + gamma * P @ V, V


def soft_evaluate(P, R, gamma, alpha, pi):
    """Soft Q^π and V^π: entropy counts from the next state on in Q, from this state on in V."""
    _, V = evaluate(P, R + alpha * entropy(pi)[:, None], gamma, pi)
    return R + gamma * P @ V, V


def soft_policy_iteration(P, R, gamma, alpha) -> Iterator[tuple]:
    """Yields π, Q^π and V^π endlessly, starting from the uniform policy; the next π is exp(Q/α)/Z.

    Without entropy this is policy iteration.
    """
    check_mdp(P, R, gamma, alpha)
    pi = uniform_policy(R)
    while True:
        Q, V = soft_evaluate(P, R, gamma, alpha, pi)
        yield pi, Q, V
        pi = boltzmann(Q, alpha)


def soft_optimum(P, R, gamma, alpha):
    """π*, Q*, V*, exact to rounding: soft policy iteration until the values stop growing."""
    total = -np.inf
    for pi, Q, V in soft_policy_iteration(P, R, gamma, alpha):
        if not V.sum() > total:
            return pi, Q, V
        total = V.sum()


def optimal_policy(P, R, gamma, alpha):
    """π* of `soft_optimum`, `(S, A)`."""
    return soft_optimum(P, R, gamma, alpha)[0]


def entropy_placements(P, R, gamma, alpha, pi):
    """Three action values with one V^π, by where the entropy of π is counted; each `(S, A)`.

    At s': Q, whose effective reward is R + γ α E H(π(·|s')). At s: Q + α H(π(·|s)). At (s, a):
    Q - α log π(a|s).
    """
    at_next_state, _ = evaluate(P, R + gamma * alpha * P @ entropy(pi), gamma, pi)
    at_state, _ = evaluate(P, R + alpha * entropy(pi)[:, None], gamma, pi)
    at_action, _ = evaluate(P, R - alpha * log_prob(pi), gamma, pi)
    return at_next_state, at_state, at_action


def fitted_q_iteration(features, batch, gamma, alpha, iterations):
    """Q, `(S, A)`, by regression on samples: y = r + γ (1 - terminated) V(s'), w = argmin Σ (φᵀw - y)².

    `features`: φ, `(S, A, K)`. `batch`: arrays `(N,)` of state, action, reward, next state, terminated.
    """
    state, action, reward, next_state, terminated = batch
    regress = np.linalg.pinv(features[state, action])
    weights = np.zeros(features.shape[-1])
    for _ in range(iterations):
        V = soft_value(features @ weights, alpha)
        target = reward + gamma * (1 - terminated) * V[next_state]
        weights = regress @ target
    return features @ weights


# policy gradients, of logits θ `(S, A)` with π = softmax(θ): section 2 of docs/explain/tabular.md


def visits(P, gamma, start, pi):
    """d(s) = Σ_t γ^t Pr(s_t = s), `(S,)`."""
    return np.linalg.solve(np.eye(len(start)) - gamma * state_transitions(P, pi).T, start)


def maxent_gradient(P, R, gamma, alpha, start, pi):
    """∂/∂θ of E Σ γ^t (r - α log π): d(s) π(a|s) (Q - α log π - V); without entropy the plain gradient."""
    Q, V = soft_evaluate(P, R, gamma, alpha, pi)
    advantage = Q - alpha * log_prob(pi) - V[:, None]
    return visits(P, gamma, start, pi)[:, None] * pi * advantage


def bonus_gradient(P, R, gamma, alpha, start, pi):
    """Plain policy gradient plus α ∂H(π(·|s))/∂θ in every state visited: entropy is not backed up."""
    Q, V = evaluate(P, R, gamma, pi)
    advantage = Q - V[:, None] - alpha * (log_prob(pi) + entropy(pi)[:, None])
    return visits(P, gamma, start, pi)[:, None] * pi * advantage


def natural_gradient(P, R, gamma, alpha, pi):
    """The soft advantage divided by 1 - γ. It solves F x = `maxent_gradient` with the Fisher matrix F of a
    positive policy, states weighted by (1 - γ) d (Agarwal et al. 2021, https://arxiv.org/abs/1908.00261)."""
    Q, V = soft_evaluate(P, R, gamma, alpha, pi)
    return (Q - alpha * log_prob(pi) - V[:, None]) / (1 - gamma)


def ascend(gradient: Callable, logits, step_size) -> Iterator[np.ndarray]:
    """Yields the policies of θ ← θ + step_size · gradient(π), endlessly."""
    while True:
        pi = boltzmann(logits, 1)
        yield pi
        logits = logits + step_size * gradient(pi)


def mei_step_size(gamma, alpha, num_actions):
    """η = (1 - γ)³/(8 + α (4 + 8 log A)) (Mei et al., Theorem 6; without entropy Theorem 4)."""
    return (1 - gamma) ** 3 / (8 + alpha * (4 + 8 * math.log(num_actions)))


def bonus_policy(P, R, gamma, alpha):
    """The policy at which `bonus_gradient` vanishes: π = softmax(Q^π/α) with the plain Q of π itself.

    Raises ValueError if the iteration does not converge.
    """
    check_mdp(P, R, gamma, alpha)
    pi = uniform_policy(R)
    for _ in range(10_000):
        next_pi = boltzmann(evaluate(P, R, gamma, pi)[0], alpha)
        if np.abs(next_pi - pi).max() < 1e-14:
            return next_pi
        pi = next_pi
    raise ValueError("π ← softmax(Q^π/α) does not converge on this MDP")


def expected_return(P, R, gamma, start, pi):
    """E_π Σ γ^t r from the start."""
    return start @ evaluate(P, R, gamma, pi)[1]


def kl(pi, other):
    """KL(π(·|s) ‖ other(·|s)), `(S,)`; infinite where `other` excludes an action that π takes."""
    with np.errstate(divide="ignore"):
        log_other = np.log(np.where(pi > 0, other, 1))
    return np.sum(pi * (log_prob(pi) - log_other), axis=-1)


def trpo_bound(P, R, gamma, start, pi, new_pi):
    """L_π(π') - C max_s KL(π ‖ π'), at most the return of π' = `new_pi`, with C = 2 max |A_π| γ/(1 - γ)²."""
    Q, V = evaluate(P, R, gamma, pi)
    advantage = Q - V[:, None]
    surrogate = start @ V + visits(P, gamma, start, pi) @ np.sum(new_pi * advantage, axis=-1)
    C = 2 * np.abs(advantage).max() * gamma / (1 - gamma) ** 2
    return surrogate - (C * kl(pi, new_pi).max() if C else 0)


def trpo_penalty_iteration(P, R, gamma, start) -> Iterator[np.ndarray]:
    """Yields policies endlessly; their return never falls. Each is the best by `trpo_bound` along the natural
    gradient, π exp(β A)/Z with β from 2⁻⁴⁰ to 1, or π itself."""
    check_mdp(P, R, gamma)
    pi = uniform_policy(R)
    while True:
        yield pi
        Q, _ = evaluate(P, R, gamma, pi)
        with np.errstate(divide="ignore"):
            log_pi = np.log(pi)  # -∞ where π is 0, and so it stays
        candidates = [pi] + [boltzmann(log_pi + 2.0**-k * Q, 1) for k in range(41)]
        pi = max(candidates, key=lambda new_pi: trpo_bound(P, R, gamma, start, pi, new_pi))


# control as inference, and the robust reward: section 3 of docs/explain/tabular.md


def messages(P, R, horizon):
    """log β_t(s, a) `(horizon, S, A)` and log β_t(s) `(horizon, S)`, t = 1 … horizon: log-probability that
    every step from t on is optimal, with p(O_t|s, a) = exp R and the prior 1/A.

    After an episode has ended, no step is left to be optimal; at t = `horizon` the last action is taken.
    """
    end = 1 - P.sum(axis=-1)
    log_beta, log_beta_state = [], [np.zeros(len(R))]
    for _ in range(horizon):
        outcomes = np.append(log_beta_state[0], 0)  # the last one: the episode has ended
        log_beta.insert(0, R + logsumexp(outcomes, b=np.append(P, end[..., None], axis=-1), axis=-1))
        log_beta_state.insert(0, soft_value(log_beta[0], 1) - math.log(R.shape[1]))
    return np.array(log_beta), np.array(log_beta_state[:-1])


def soft_values_to_go(P, R, horizon):
    """Soft Q_t `(horizon, S, A)` and V_t `(horizon, S)` with γ = α = 1 and `horizon` steps in all."""
    Q, V = [], [np.zeros(len(R))]
    for _ in range(horizon):
        Q.insert(0, R + P @ V[0])
        V.insert(0, soft_value(Q[0], 1))
    return np.array(Q), np.array(V[:-1])


def worst_reward(P, R, gamma, alpha, start, pi, epsilon):
    """r̃ = R - α log π - c, `(S, A)`: the reward under which `pi` earns least, in the robust set of size
    `epsilon` (Theorem 4.1 of Eysenbach & Levine). `pi` is positive; c is `epsilon` / E Σ γ^t."""
    return R - alpha * log_prob(pi) - epsilon / visits(P, gamma, start, pi).sum()


def reward_distance(P, R, gamma, alpha, start, pi, reward):
    """E_π Σ γ^t α log Σ_a exp((R - r̃)/α), r̃ = `reward`; r̃ is in the robust set if this is at most ε."""
    return visits(P, gamma, start, pi) @ soft_value(R - reward, alpha)


def error(left, right):
    """Largest difference, as text."""
    return f"{np.abs(left - right).max():.1e}"


def claims() -> Iterator[tuple[str, str, str, str]]:
    """Yields rows: lecture, what it claims, whether that is right (open: the lecture asks), and what is
    computed. The MDP has 6 states and 4 actions; the policy is random."""
    P, R, start = random_mdp(seed=0, num_states=6, num_actions=4)
    pi = np.random.default_rng(0).dirichlet(np.ones(4), size=6)
    yield from claims_of_values(P, R, 0.9, 0.5, pi)
    yield from claims_of_gradients(P, R, 0.9, start, pi)
    yield from claims_of_inference(P, R, 0.9, 0.5, start, pi)


def claims_of_values(P, R, gamma, alpha, pi):
    """Soft values, and where the entropy is counted."""
    best_pi, best_Q, best_V = soft_optimum(P, R, gamma, alpha)
    ratio = np.abs(R + gamma * P @ soft_value(R, alpha) - best_Q).max() / np.abs(R - best_Q).max()
    yield "CMU, NJU", "soft Bellman backups contract", "right", f"to {ratio:.2f} of the distance; γ = {gamma}"
    stated = np.exp((best_Q - best_V[:, None]) / alpha)
    yield "Diwan, NJU", "π* = exp((Q* - V*)/α)", "right", f"error {error(best_pi, stated)}"
    Q, V = soft_evaluate(P, R, gamma, alpha, pi)
    next_pi = boltzmann(Q, alpha)
    gain = (soft_evaluate(P, R, gamma, alpha, next_pi)[0] - Q).min()
    yield "CMU, NJU", "soft improvement never lowers Q", "right", f"smallest gain {gain:.2f}"

    at_next_state, at_state, at_action = entropy_placements(P, R, gamma, alpha, pi)
    stated, _ = evaluate(P, R + alpha * P @ entropy(pi), gamma, pi)
    computed = f"off by {error(stated, Q)}; r - γ α E log π(a'|s'): {error(at_next_state, Q)}"
    yield "CMU", "effective reward r - α E log π(a'|s')", "wrong", computed
    values = [np.sum(pi * values, axis=-1) for values in (at_state, at_action)]
    computed = f"E_π of the Q at s is V to {error(values[0], V)}, at the action to {error(values[1], V)}"
    yield "CMU", "entropy can go to s or to s'", "right", computed
    at_s, at_a = boltzmann(at_state, alpha), boltzmann(log_prob(pi) + at_action / alpha, 1)
    computed = f"exp(Q/α)/Z at s: {error(at_s, next_pi)}; π exp(Q/α)/Z at the action: {error(at_a, next_pi)}"
    yield "CMU", "… what improvement looks like then", "open", computed
    stated = np.sum(pi * (R + gamma * P @ V), axis=-1)
    computed = f"off by {error(stated, V)}; + α H(π(·|s)): {error(stated + alpha * entropy(pi), V)}"
    yield "Diwan", "V = Σ π Σ P (R + γ V(s'))", "wrong", computed
    dropped, divided = (soft_optimum(P, reward, gamma, 1)[1] for reward in (R, R / alpha))
    computed = f"off by {error(dropped, best_Q)}; with R/α it is Q/α: {error(alpha * divided, best_Q)}"
    yield "Diwan", "α can be dropped", "wrong", computed
    hard_Q = soft_optimum(P, R, gamma, 0)[1]
    errors = [error(soft_optimum(P, R, gamma, small)[1], hard_Q) for small in (0.1, 0.01)]
    computed = f"error {errors[0]} at α = 0.1, {errors[1]} at 0.01"
    yield "PGM", "hard optimality as rewards grow (α falls)", "right", computed


def claims_of_gradients(P, R, gamma, start, pi):
    """Backing up entropy, rates of convergence, trust regions."""
    deep_P, deep_R, _ = corridor(depth=10)
    backed_up, bonus_only = (find(deep_P, deep_R, 0.99, 0.1) for find in (optimal_policy, bonus_policy))
    computed = f"P(8 ways) is {backed_up[0, 4:].sum():.3f}, as a bonus only {bonus_only[0, 4:].sum():.0e}"
    yield "CMU", "more ways to succeed if it is backed up", "right", computed
    soft, plain = suboptimality(0.5), suboptimality(0)
    half = np.arange(len(soft) // 2, len(soft))
    fall = -np.polyfit(half, np.log(soft[half]), 1)[0]
    yield "CMU", "O(e^-Ct) with entropy", "right", f"log δ falls by {fall:.1e} a step, δ to {soft[-1]:.0e}"
    power = np.polyfit(np.log(half + 1), np.log(plain[half]), 1)[0]
    yield (
        "CMU",
        '"linear at best" without',
        "wrong",
        f"sublinear: δ falls as t^{power:.2f}, to {plain[-1]:.0e}",
    )
    direction = np.random.default_rng(1).normal(size=pi.shape)
    near = [boltzmann(log_prob(pi) + step * direction, 1) for step in np.logspace(-5, 0, 50)]
    slack = min(
        expected_return(P, R, gamma, start, new_pi) - trpo_bound(P, R, gamma, start, pi, new_pi)
        for new_pi in near
    )
    computed = f"the return exceeds it by {slack:.0e} or more, 50 policies"
    yield "Boulder", "TRPO's bound, 2εγ/(1 - γ)² max KL", "right", computed


def claims_of_inference(P, R, gamma, alpha, start, pi):
    """Robust rewards, and messages."""
    J = start @ soft_evaluate(P, R, gamma, alpha, pi)[1]
    least = expected_return(P, worst_reward(P, R, gamma, alpha, start, pi, 0.5), gamma, start, pi)
    computed = f"J_MaxEnt - {J - least:.3f} at ε = 0.5: equal at ε = 0 only"
    yield "CMU", "worst reward pays J_MaxEnt, some ε > 0", "wrong", computed
    most_likely = np.eye(len(R))[P.argmax(axis=-1)]
    certain, random = (optimism(dynamics, R - R.max(), horizon=5) for dynamics in (most_likely, P))
    yield "PGM", "messages are soft values, dynamics certain", "right", f"error {error(certain, 0)}"
    computed = f"messages are too high by {random.min():.2f} to {random.max():.2f} nats"
    yield "PGM", "… random: only by the ELBO", "right", computed


def optimism(P, R, horizon):
    """By how much exact inference exceeds the soft value at the first step, `(S,)`."""
    log_beta_state, soft_V = messages(P, R, horizon)[1], soft_values_to_go(P, R, horizon)[1]
    return log_beta_state[0] + horizon * math.log(R.shape[1]) - soft_V[0]


@cache
def suboptimality(alpha, steps=20_000):
    """δ_t = V*(μ) - V^π_t(μ), `(steps,)`, of gradient ascent with Mei et al.'s step size, on random
    transitions and rewards of 3 states and 3 actions, γ = 0.5."""
    gamma, rng = 0.5, np.random.default_rng(0)
    P, R, start = rng.dirichlet(np.ones(3), size=(3, 3)), rng.uniform(size=(3, 3)), np.full(3, 1 / 3)
    optimum = start @ soft_optimum(P, R, gamma, alpha)[2]
    policies = ascend(
        lambda pi: maxent_gradient(P, R, gamma, alpha, start, pi),
        np.zeros_like(R),
        mei_step_size(gamma, alpha, R.shape[1]),
    )
    values = [start @ soft_evaluate(P, R, gamma, alpha, next(policies))[1] for _ in range(steps)]
    return optimum - np.array(values)


def draw_corridor(axes):
    """Probability of the branch with more ways to succeed, against its depth."""
    gamma, alpha, depths = 0.99, 0.1, range(1, 11)
    for find, label in ((optimal_policy, "entropy backed up"), (bonus_policy, "entropy as a bonus only")):
        policies = [find(*corridor(depth)[:2], gamma, alpha) for depth in depths]
        axes.plot(depths, [pi[0, 4:].sum() for pi in policies], "o-", label=label)
    axes.set_title(f"The branch that the optimum prefers, α = {alpha}, γ = {gamma}")
    axes.set(xlabel="depth of both branches (steps)", ylabel="P(branch where all 8 actions succeed)")
    axes.legend(frameon=False)


def draw_rates(axes):
    """Suboptimality of policy gradient, with entropy and without, against steps."""
    for alpha, label in ((0.5, "with entropy, α = 0.5: $O(e^{-Ct})$"), (0, "without: $O(1/t)$")):
        delta = suboptimality(alpha)
        axes.loglog(np.arange(1, len(delta) + 1), delta, label=label)
    axes.set_title("Exact policy gradient, 3 states, 3 actions, γ = 0.5")
    axes.set(xlabel="gradient step t", ylabel=r"optimum $-$ value of $\pi_t$")
    axes.legend(frameon=False)


def draw_temperature(axes):
    """Soft optimum to hard optimum, as the temperature falls."""
    gamma, alphas = 0.9, np.logspace(-3, 1, 40)
    P, R, _ = random_mdp(seed=0, num_states=6, num_actions=4)
    hard_pi, _, hard_V = soft_optimum(P, R, gamma, 0)
    optima = [soft_optimum(P, R, gamma, alpha) for alpha in alphas]
    axes.loglog(alphas, alphas * math.log(4) / (1 - gamma), "k:", label="bound: α log A/(1 − γ)")
    axes.loglog(alphas, [np.max(V - hard_V) for _, _, V in optima], label="largest V*(α) − V*(0)")
    distance = [np.abs(pi - hard_pi).sum(axis=-1).max() / 2 for pi, _, _ in optima]
    axes.loglog(alphas, distance, label="total variation of π*(α) and π*(0)")
    axes.set_title(f"A random MDP of 6 states and 4 actions, γ = {gamma}")
    axes.set(xlabel="temperature α", ylabel="distance to the optimum without entropy", ylim=(1e-6, 1e3))
    axes.legend(frameon=False)


def draw_robust_reward(axes):
    """The robust set of a policy on one state with two actions, and the worst reward in it."""
    alpha, R, pi = 1.0, np.array([[1.0, 0.0]]), np.array([[0.7, 0.3]])
    bandit = np.zeros((1, 2, 1)), R, 0, alpha, np.ones(1), pi
    first, second = np.meshgrid(np.linspace(-1, 4, 300), np.linspace(-1, 4, 300))
    distance = soft_value(R[0] - np.stack([first, second], axis=-1), alpha)
    for epsilon, color in ((0, "C0"), (0.5, "C1")):
        worst = worst_reward(*bandit, epsilon)[0]
        axes.contour(first, second, distance, [epsilon], colors=color)
        axes.plot(*worst, "o", color=color, label=f"worst, ε = {epsilon}: π earns {worst @ pi[0]:.2f}")
        axes.axline(worst, slope=-pi[0, 0] / pi[0, 1], color=color, linestyle=":", linewidth=1)
    J = R[0] @ pi[0] + alpha * entropy(pi)[0]
    axes.plot(*R[0], "k*", label=f"r: π earns {R[0] @ pi[0]:.2f}, $J_{{MaxEnt}}$ = {J:.2f}")
    axes.set_title("Robust sets of a policy in one state with two actions")
    axes.set(xlabel="reward of action 1", ylabel="reward of action 2", xlim=(-1, 4), ylim=(-1, 4))
    axes.legend(frameon=False, loc="upper right")


NEEDS_MATPLOTLIB = "the figures need matplotlib: pip install 'cleanrl_maxent[plots]'"
FIGURES = {
    "corridor": draw_corridor,
    "rates": draw_rates,
    "temperature": draw_temperature,
    "robust-reward": draw_robust_reward,
}


def main(args):
    """Prints the claims, unless a single figure is asked for, and writes `{out_dir}/{figure}.png`.

    Raises UsageError if a single figure is asked for without matplotlib, and OSError if the folder cannot be
    written.
    """
    if args.figure in ("all", "none"):
        for row in (("lecture", "claim", "verdict", "computed"), *claims()):
            print("{:<10}  {:<42}  {:<7}  {}".format(*row))
    if args.figure == "all" and find_spec("matplotlib") is None:
        print(NEEDS_MATPLOTLIB)
        return
    for name, draw in FIGURES.items():
        if args.figure in ("all", name):
            print(save(draw, args.out_dir / f"{name}.png"))


def save(draw, path):
    """Draws on new axes and writes the figure; returns its path. Raises like `main`."""
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as missing:
        raise UsageError(NEEDS_MATPLOTLIB) from missing
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    draw(axes)
    figure.savefig(path, dpi=200)
    plt.close(figure)
    return path


if __name__ == "__main__":
    run_script(Args, main)

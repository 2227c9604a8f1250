"""Maximum-entropy reinforcement learning on finite MDPs, exactly: the oracle of the other files.

Soft values: Haarnoja et al. 2017, https://arxiv.org/abs/1702.08165, and 2018, https://arxiv.org/abs/1801.01290;
convergence: Mei et al. 2020, https://arxiv.org/abs/2005.06392; control as inference: Levine 2018,
https://arxiv.org/abs/1805.00909; robust rewards: Eysenbach & Levine 2022, https://arxiv.org/abs/2103.06257;
trust regions: Schulman et al. 2015, https://arxiv.org/abs/1502.05477.
NumPy and float64, because what is computed here is what the others are measured against.

Everywhere `P` is `(S, A, S)`, probabilities of the next state, and what a row lacks to 1 ends the episode;
`R` is `(S, A)`, rewards; `pi` is `(S, A)`, probabilities of actions; `start` is `(S,)`; `alpha` = 0 is the
limit without entropy. Entropies are in nats.

    python cleanrl_maxent/tabular.py
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from cleanrl_maxent.environments.finite import corridor, random_mdp


@dataclass(frozen=True)
class Args:
    """Prints what the lectures claim beside what is computed here, and draws the figures."""

    figure: Literal["all", "none", "corridor", "rates", "temperature", "robust-reward"] = "all"
    out_dir: Path = Path("figures")  # folder that the figures are written to


# soft values: docs/tabular.md 1


def soft_max(Q, alpha):
    """α log Σ_a exp(Q(s, a)/α), `(S,)`: the soft value of the best policy for Q."""
    return alpha * np.logaddexp.reduce(Q / alpha, axis=-1) if alpha else Q.max(axis=-1)


def boltzmann(Q, alpha):
    """π(a|s) = exp((Q(s, a) - V(s))/α), `(S, A)`; without entropy, uniform over the best actions."""
    if alpha:
        return np.exp((Q - soft_max(Q, alpha)[..., None]) / alpha)
    best = Q == Q.max(axis=-1, keepdims=True)
    return best / best.sum(axis=-1, keepdims=True)


def log_prob(pi):
    """log π(a|s), `(S, A)`; 0 where π is 0, as π log π is there."""
    return np.log(np.where(pi > 0, pi, 1))


def entropy(pi):
    """H(π(·|s)), `(S,)`."""
    return -np.sum(pi * log_prob(pi), axis=-1)


def soft_value_iteration(P, R, gamma, alpha, epsilon=1e-10):
    """Q*, `(S, A)`, to `epsilon` in every entry: Q ← R + γ P V, V = α log Σ exp(Q/α).

    `gamma` is below 1. Without entropy this is value iteration.
    """
    Q = np.zeros_like(R)
    while True:
        next_Q = R + gamma * P @ soft_max(Q, alpha)
        change, rounding = np.abs(next_Q - Q).max(), 4 * np.spacing(np.abs(next_Q).max())
        if gamma * change <= max((1 - gamma) * epsilon, rounding):
            return next_Q
        Q = next_Q


def follow(P, pi):
    """Probability of the next state under a policy, `(S, S)`."""
    return np.einsum("sa,sat->st", pi, P)


def evaluate(P, R, gamma, pi):
    """Q^π `(S, A)` and V^π `(S,)` without entropy: V = (I - γ P_π)⁻¹ R_π, Q = R + γ P V."""
    V = np.linalg.solve(np.eye(len(R)) - gamma * follow(P, pi), np.sum(pi * R, axis=-1))
    return R + gamma * P @ V, V


def soft_evaluate(P, R, gamma, alpha, pi):
    """Soft Q^π and V^π: entropy counts from the next state on in Q, from this state on in V."""
    _, V = evaluate(P, R + alpha * entropy(pi)[:, None], gamma, pi)
    return R + gamma * P @ V, V


def soft_policy_iteration(P, R, gamma, alpha) -> Iterator[tuple]:
    """π, Q^π and V^π from the uniform policy on, without end; each π is exp(Q/α)/Z of the Q before.

    Without entropy this is policy iteration.
    """
    pi = np.full_like(R, 1 / R.shape[1])
    while True:
        Q, V = soft_evaluate(P, R, gamma, alpha, pi)
        yield pi, Q, V
        pi = boltzmann(Q, alpha)


def soft_optimum(P, R, gamma, alpha):
    """π*, Q*, V*, exact to rounding: soft policy iteration until no value grows."""
    total = -np.inf
    for pi, Q, V in soft_policy_iteration(P, R, gamma, alpha):
        if V.sum() <= total:
            return pi, Q, V
        total = V.sum()


def placements(P, R, gamma, alpha, pi):
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
        V = soft_max(features @ weights, alpha)
        target = reward + gamma * (1 - terminated) * V[next_state]
        weights = regress @ target
    return features @ weights


# policy gradients, of logits θ `(S, A)` with π = softmax(θ): docs/tabular.md 2


def visits(P, gamma, start, pi):
    """d(s) = Σ_t γ^t Pr(s_t = s), `(S,)`."""
    return np.linalg.solve(np.eye(len(start)) - gamma * follow(P, pi).T, start)


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
    """Inverse Fisher matrix times `maxent_gradient`: the soft advantage over 1 - γ."""
    Q, V = soft_evaluate(P, R, gamma, alpha, pi)
    return (Q - alpha * log_prob(pi) - V[:, None]) / (1 - gamma)


def ascend(gradient: Callable, logits, step_size) -> Iterator[np.ndarray]:
    """The policies of θ ← θ + step_size · gradient(π), without end."""
    while True:
        pi = boltzmann(logits, 1)
        yield pi
        logits = logits + step_size * gradient(pi)


def mei_step_size(gamma, alpha, num_actions):
    """η = (1 - γ)³/(8 + α (4 + 8 log A)) (Mei et al., Theorem 6; without entropy Theorem 4)."""
    return (1 - gamma) ** 3 / (8 + alpha * (4 + 8 * math.log(num_actions)))


def bonus_policy(P, R, gamma, alpha):
    """Where `bonus_gradient` vanishes: π = softmax(Q^π/α) with the plain Q of π itself.

    Raises ValueError where repeating this does not settle.
    """
    pi = np.full_like(R, 1 / R.shape[1])
    for _ in range(10_000):
        next_pi = boltzmann(evaluate(P, R, gamma, pi)[0], alpha)
        if np.abs(next_pi - pi).max() < 1e-14:
            return next_pi
        pi = next_pi
    raise ValueError("π ← softmax(Q^π/α) does not settle on this MDP")


def expected_return(P, R, gamma, start, pi):
    """η(π): discounted return from the start."""
    return start @ evaluate(P, R, gamma, pi)[1]


def kl(pi, other):
    """KL(π(·|s) ‖ other(·|s)), `(S,)`."""
    return np.sum(pi * (log_prob(pi) - log_prob(other)), axis=-1)


def trpo_bound(P, R, gamma, start, pi, new):
    """L_π(new) - C max_s KL(π ‖ new), at most η(new), with C = 2 ε γ/(1 - γ)² and ε = max |A_π|."""
    Q, V = evaluate(P, R, gamma, pi)
    advantage = Q - V[:, None]
    surrogate = start @ V + visits(P, gamma, start, pi) @ np.sum(new * advantage, axis=-1)
    return surrogate - 2 * np.abs(advantage).max() * gamma / (1 - gamma) ** 2 * kl(pi, new).max()


def trpo_penalty_iteration(P, R, gamma, start) -> Iterator[np.ndarray]:
    """Policies whose return never falls, without end: each is the best by `trpo_bound` along the
    natural gradient, π exp(β A)/Z with β from 2⁻⁴⁰ to 1, or π itself."""
    pi = np.full_like(R, 1 / R.shape[1])
    while True:
        yield pi
        Q, _ = evaluate(P, R, gamma, pi)
        candidates = [pi] + [boltzmann(log_prob(pi) + 2.0**-k * Q, 1) for k in range(41)]
        pi = max(candidates, key=lambda new: trpo_bound(P, R, gamma, start, pi, new))


# control as inference, and the robust reward: docs/tabular.md 3


def messages(P, R, horizon):
    """log β_t(s, a) `(horizon, S, A)` and log β_t(s) `(horizon, S)`, t = 1 … horizon: log-probability that
    every step from t on is optimal, with p(O_t|s, a) = exp R and the prior 1/A.

    Rows of `P` add up to 1; at t = `horizon` the last action is taken.
    """
    log_beta, log_beta_state = [], [np.zeros(len(R))]
    for _ in range(horizon):
        highest = log_beta_state[0].max()
        future = highest + np.log(P @ np.exp(log_beta_state[0] - highest))
        log_beta.insert(0, R + future)
        log_beta_state.insert(0, soft_max(log_beta[0], 1) - math.log(R.shape[1]))
    return np.array(log_beta), np.array(log_beta_state[:-1])


def soft_values_to_go(P, R, horizon):
    """Soft Q_t `(horizon, S, A)` and V_t `(horizon, S)` with γ = α = 1 and `horizon` steps in all."""
    Q, V = [], [np.zeros(len(R))]
    for _ in range(horizon):
        Q.insert(0, R + P @ V[0])
        V.insert(0, soft_max(Q[0], 1))
    return np.array(Q), np.array(V[:-1])


def worst_reward(P, R, gamma, alpha, start, pi, epsilon):
    """r̃ = R - α log π - c, `(S, A)`: of all rewards within `epsilon` the one that pays `pi` least (Theorem
    4.1 of Eysenbach & Levine); c is `epsilon` over the discounted number of steps."""
    return R - alpha * log_prob(pi) - epsilon / visits(P, gamma, start, pi).sum()


def reward_distance(P, R, gamma, alpha, start, pi, other_reward):
    """E_π Σ γ^t α log Σ_a exp((R - r̃)/α): r̃ belongs to the robust set where this is at most ε."""
    return visits(P, gamma, start, pi) @ soft_max(R - other_reward, alpha)


# what the lectures claim


def claims() -> Iterator[tuple[str, str, str]]:
    """Lecture, what it says, and what is computed, a row each; MDPs of 6 states and 4 actions, γ = 0.9."""
    gamma, alpha, rng = 0.9, 0.5, np.random.default_rng(0)
    P, R, start = random_mdp(seed=0, num_states=6, num_actions=4)
    pi, some = rng.dirichlet(np.ones(4), size=6), rng.normal(size=(6, 4))
    best_pi, best_Q, best_V = soft_optimum(P, R, gamma, alpha)
    Q, V = soft_evaluate(P, R, gamma, alpha, pi)

    def error(left, right):
        return f"{np.abs(left - right).max():.1e}"

    backup = [R + gamma * P @ soft_max(values, alpha) for values in (some, some + 1, best_Q)]
    ratio = np.abs(backup[0] - backup[2]).max() / np.abs(some - best_Q).max()
    yield "CMU, NJU", "the soft Bellman backup contracts", f"by {ratio:.2f}; by γ = 0.9 at worst"
    exact = np.exp((best_Q - best_V[:, None]) / alpha)
    yield "Diwan, NJU", "π* = exp((Q* - V*)/α), V* = α log Σ exp(Q*/α)", f"error {error(best_pi, exact)}"
    improved, _ = soft_evaluate(P, R, gamma, alpha, boltzmann(Q, alpha))
    yield "CMU, NJU", "improvement never lowers a soft Q", f"smallest gain {(improved - Q).min():.1e}"
    without_gamma, _ = evaluate(P, R + alpha * P @ entropy(pi), gamma, pi)
    at_next_state, at_state, at_action = placements(P, R, gamma, alpha, pi)
    yield (
        "CMU",
        "effective reward r - α E log π(a'|s')",
        f"off by {error(without_gamma, Q)}; with γ in front of α: {error(at_next_state, Q)}",
    )
    yield (
        "CMU",
        "entropy can go to s or to s'",
        f"one V: {error(np.sum(pi * at_state, axis=-1), V)}, {error(np.sum(pi * at_action, axis=-1), V)}",
    )
    old = boltzmann((at_action + alpha * log_prob(pi)) / alpha, 1)
    yield (
        "CMU",
        "… then π' = softmax of that Q",
        f"off by {error(boltzmann(at_action, alpha), old)} for Q - α log π: π' ∝ π exp(Q/α) is right",
    )
    no_entropy = np.sum(pi * (R + gamma * P @ V), axis=-1)
    with_entropy = no_entropy + alpha * entropy(pi)
    yield (
        "Diwan",
        "V = Σ π Σ P (R + γ V(s'))",
        f"off by {error(no_entropy, V)}; with + α H(π(·|s)): {error(with_entropy, V)}",
    )
    scaled = alpha * soft_optimum(P, R / alpha, gamma, 1)[1]
    dropped = soft_optimum(P, R, gamma, 1)[1]
    yield (
        "Diwan",
        "drop α without loss of generality",
        f"off by {error(dropped, best_Q)}; with R/α and α Q: {error(scaled, best_Q)}",
    )
    depth = corridor(depth=10)
    right = [
        boltzmann(soft_optimum(depth.P, depth.R, 0.99, 0.1)[1], 0.1)[0, 4:].sum(),
        bonus_policy(depth.P, depth.R, 0.99, 0.1)[0, 4:].sum(),
    ]
    yield "CMU", "more ways to succeed when entropy is backed up", f"{right[0]:.3f}; otherwise {right[1]:.0e}"
    yield from claims_of_rates()
    minimum = start @ evaluate(P, worst_reward(P, R, gamma, alpha, start, pi, 0.5), gamma, pi)[1]
    yield (
        "CMU",
        "some ε > 0: the worst reward's return is J_MaxEnt",
        f"J - {start @ V - minimum:.3f} for ε = 0.5: equal up to ε, so only at ε = 0",
    )
    log_beta, log_beta_state = messages(P, R - R.max(), 5)
    _, soft_V = soft_values_to_go(P, R - R.max(), 5)
    gap = log_beta_state[0] + 5 * math.log(4) - soft_V[0]
    yield "PGM", "messages are soft values", f"optimistic by {gap.min():.3f} to {gap.max():.3f}: P is random"
    certain = np.eye(6)[P.argmax(axis=-1)]
    gap = messages(certain, R, 5)[1][0] + 5 * math.log(4) - soft_values_to_go(certain, R, 5)[1][0]
    yield "PGM", "… for deterministic dynamics", f"error {np.abs(gap).max():.1e}"
    near = [boltzmann(log_prob(pi) + step * some, 1) for step in np.logspace(-5, 0, 50)]
    slack = [
        expected_return(P, R, gamma, start, new) - trpo_bound(P, R, gamma, start, pi, new) for new in near
    ]
    yield "Boulder", "η ≥ L - 2εγ/(1 - γ)² max KL", f"smallest slack of 50 steps {min(slack):.1e}"
    hard_Q = soft_optimum(P, R, gamma, 0)[1]
    errors = [error(soft_optimum(P, R, gamma, lower)[1], hard_Q) for lower in (0.1, 0.01)]
    yield (
        "PGM",
        "hard optimality as rewards grow (α falls)",
        f"error {errors[0]} at α = 0.1, {errors[1]} at 0.01",
    )


def claims_of_rates() -> Iterator[tuple[str, str, str]]:
    """The slopes that Theorems 4 and 6 of Mei et al. speak of, from the runs of `suboptimality`."""
    soft, plain = suboptimality(0.5), suboptimality(0)
    half = np.arange(len(soft) // 2, len(soft))
    fall = np.polyfit(half, np.log(soft[half]), 1)[0]
    power = np.polyfit(np.log(half + 1), np.log(plain[half]), 1)[0]
    yield "CMU", "O(e^-t) with entropy", f"log δ falls by {-fall:.2e} a step, to {soft[-1]:.0e}"
    yield "CMU", "linear at best without (1/t is meant)", f"δ falls as t^{power:.2f}, to {plain[-1]:.0e}"


@cache
def suboptimality(alpha, steps=20_000):
    """δ_t = V*(μ) - V^π_t(μ), `(steps,)`, of gradient ascent with Mei et al.'s step; S = A = 3, γ = 0.5."""
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


# figures


def draw_corridor(axes):
    """Probability of the branch with more ways to succeed, against its depth."""
    gamma, alpha, depths = 0.99, 0.1, range(1, 11)
    right = {"entropy backed up": [], "entropy as a bonus only": []}
    for depth in depths:
        P, R, _ = corridor(depth)
        right["entropy backed up"].append(soft_optimum(P, R, gamma, alpha)[0][0, 4:].sum())
        right["entropy as a bonus only"].append(bonus_policy(P, R, gamma, alpha)[0, 4:].sum())
    for label, probability in right.items():
        axes.plot(depths, probability, "o-", label=label)
    axes.set(xlabel="depth of both branches (steps)", ylabel="P(branch where all 8 actions succeed)")
    axes.legend(frameon=False)


def draw_rates(axes):
    """Suboptimality of policy gradient, with entropy and without, against steps."""
    for alpha, label in ((0.5, "with entropy, α = 0.5: $O(e^{-t})$"), (0, "without: $O(1/t)$")):
        axes.loglog(np.arange(1, 20_001), np.maximum(suboptimality(alpha), 1e-12), label=label)
    axes.set(xlabel="gradient step t", ylabel="optimum - value of π_t")
    axes.legend(frameon=False)


def draw_temperature(axes):
    """Soft optimum to hard optimum, as the temperature falls."""
    gamma, alphas = 0.9, np.logspace(-3, 1, 40)
    P, R, _ = random_mdp(seed=0, num_states=6, num_actions=4)
    hard_pi, _, hard_V = soft_optimum(P, R, gamma, 0)
    optima = [soft_optimum(P, R, gamma, alpha) for alpha in alphas]
    axes.loglog(alphas, alphas * math.log(4) / (1 - gamma), "k:", label="bound: α log A/(1 - γ)")
    axes.loglog(alphas, [np.max(V - hard_V) for _, _, V in optima], label="largest V*(α) - V*(0)")
    distance = [np.abs(pi - hard_pi).sum(axis=-1).max() / 2 for pi, _, _ in optima]
    axes.loglog(alphas, np.maximum(distance, 1e-12), label="total variation of π*(α) and π*(0)")
    axes.set(xlabel="temperature α", ylim=(1e-6, 1e3))
    axes.legend(frameon=False)


def draw_robust_reward(axes):
    """The robust set of a policy on one state with two actions, and the worst reward in it."""
    alpha, R, pi = 1.0, np.array([[1.0, 0.0]]), np.array([[0.7, 0.3]])
    bandit = np.zeros((1, 2, 1)), R, 0, alpha, np.ones(1), pi
    first, second = np.meshgrid(np.linspace(-1, 4, 300), np.linspace(-1, 4, 300))
    distance = soft_max(R[0] - np.stack([first, second], axis=-1), alpha)
    for epsilon, color in ((0, "C0"), (0.5, "C1")):
        worst = worst_reward(*bandit, epsilon)[0]
        axes.contour(first, second, distance, [epsilon], colors=color)
        axes.plot(*worst, "o", color=color, label=f"worst of ε = {epsilon}: pays π {worst @ pi[0]:.2f}")
        axes.axline(worst, slope=-pi[0, 0] / pi[0, 1], color=color, linestyle=":", linewidth=1)
    J = R[0] @ pi[0] + alpha * entropy(pi)[0]
    axes.plot(*R[0], "k*", label=f"r: pays π {R[0] @ pi[0]:.2f}, J_MaxEnt = {J:.2f}")
    axes.set(xlabel="reward of action 1", ylabel="reward of action 2", xlim=(-1, 4), ylim=(-1, 4))
    axes.legend(frameon=False, loc="upper right")


FIGURES = {
    "corridor": draw_corridor,
    "rates": draw_rates,
    "temperature": draw_temperature,
    "robust-reward": draw_robust_reward,
}


def main(args):
    """Prints the claims, unless a single figure is asked for, and writes `{out_dir}/{figure}.png`.

    Raises ImportError without matplotlib, OSError where the folder cannot be written.
    """
    if args.figure in ("all", "none"):
        for lecture, claim, computed in claims():
            print(f"{lecture:<10}  {claim:<49}  {computed}")
    names = {"all": list(FIGURES), "none": []}.get(args.figure, [args.figure])
    if names:
        import matplotlib.pyplot as plt

        args.out_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        FIGURES[name](axes)
        figure.savefig(args.out_dir / f"{name}.png", dpi=120)
        plt.close(figure)
        print(args.out_dir / f"{name}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ModuleNotFoundError, OSError) as problem:
        hint = "; pip install -e '.[plots]' -c constraints.txt" if isinstance(problem, ImportError) else ""
        print(f"error: {problem}{hint}", file=sys.stderr)
        sys.exit(2)

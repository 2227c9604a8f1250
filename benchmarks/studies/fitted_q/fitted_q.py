"""How near fitted Q-iteration comes to Q*, what limits it, and when it diverges: exact, in float64.

    python benchmarks/studies/fitted_q/fitted_q.py    # half a minute; then the tables and the figure

On a random MDP of five states and three actions, one-hot features make the regression exact, so that only
iterations and data limit accuracy. On two states that share one weight the data are complete, and yet the
iteration diverges for large γ. Writes docs/figures/fitted-q.png and its rows, both in the folder it is run
from. Needs matplotlib (the extra `plots`).
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import pyplot, save_figure
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.environments.finite import random_mdp
from cleanrl_maxent.tabular import boltzmann, fitted_q_iteration, soft_value, soft_value_iteration

GAMMA, ITERATIONS = 0.9, 200
ALPHAS = {0.5: "soft, α = 0.5", 0.0: "hard, α = 0"}
SIZES = (300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)  # of a batch, in samples
SHOWN = (300, 3_000, 30_000, None)  # whose curves are drawn; None: the model
DISCOUNTS = (0.8, 0.82, 5 / 6, 0.85, 0.9)  # of the two states
COLUMNS: tuple[str, ...] = (
    "part",
    "alpha",
    "gamma",
    "samples",
    "batch",
    "iteration",
    "q_error",
    "policy_tv",
    "value",
)


@dataclass(frozen=True)
class Args:
    """Errors of fitted Q-iteration by iterations and data, and its divergence."""

    batches: int = 10  # of each size
    out_dir: Path = Path("docs/figures")  # of the figure
    rows: Path = Path("benchmarks/studies/fitted_q/rows.csv")  # what was computed


def sample(P: np.ndarray, R: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, ...]:
    """State, action, reward, next state, terminated, `(size,)` each; states and actions are uniform."""
    rng = np.random.default_rng(seed)
    state, action = rng.integers(R.shape[0], size=size), rng.integers(R.shape[1], size=size)
    draw = rng.random(size)[:, None]
    next_state = np.minimum(np.sum(P[state, action].cumsum(axis=-1) < draw, axis=-1), R.shape[0] - 1)
    return state, action, R[state, action], next_state, np.zeros(size)


def sampled_mdp(shape: tuple[int, int], batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """P and R of the frequencies in a batch; a pair without samples ends the episode without reward."""
    state, action, reward, next_state, _ = batch
    counts, rewards = np.zeros((*shape, shape[0])), np.zeros(shape)
    np.add.at(counts, (state, action, next_state), 1)
    np.add.at(rewards, (state, action), reward)
    visits = np.maximum(counts.sum(axis=-1), 1)
    return counts / visits[..., None], rewards / visits


def iterates(P: np.ndarray, R: np.ndarray, alpha: float) -> list[np.ndarray]:
    """Q_0 = 0 to Q_200 of Q ← R + γ P V(Q); with P and R of a batch, the regression on one-hot features."""
    Q = [np.zeros_like(R)]
    for _ in range(ITERATIONS):
        Q.append(R + GAMMA * P @ soft_value(Q[-1], alpha))
    return Q


def error_rows(batches: int) -> Iterator[dict[str, Any]]:
    """Sup error of Q and largest total variation of the policy, by iterations, batch by batch.

    Raises AssertionError if regression and frequencies do not agree.
    """
    P, R, _ = random_mdp(seed=0, num_states=5, num_actions=3)
    one_hot = np.eye(R.size).reshape(*R.shape, R.size)
    for alpha in ALPHAS:
        best_Q = soft_value_iteration(P, R, GAMMA, alpha, epsilon=1e-13)
        cases = [(None, 0), *((size, batch) for size in SIZES for batch in range(batches))]
        for size, batch in cases:
            data = sample(P, R, size, batch) if size else None
            Q = iterates(*(sampled_mdp(R.shape, data) if data else (P, R)), alpha)
            if data and size == SIZES[0]:
                fitted = fitted_q_iteration(one_hot, data, GAMMA, alpha, ITERATIONS)
                assert np.abs(Q[-1] - fitted).max() < 1e-8, (alpha, batch)
            for k in range(0, ITERATIONS + 1, 10) if size in SHOWN else (ITERATIONS,):
                tv = np.abs(boltzmann(Q[k], alpha) - boltzmann(best_Q, alpha)).sum(axis=-1).max() / 2
                number = {"samples": size or "model", "batch": batch, "iteration": k}
                yield row("error", alpha, GAMMA, **number, q_error=np.abs(Q[k] - best_Q).max(), policy_tv=tv)


def divergence_rows() -> Iterator[dict[str, Any]]:
    """Q, after k iterations, of the second of two states with features 1 and 2; both lead to the second.

    There is one action, which pays 0 in the first state and 0.001 in the second; the batch has both.
    """
    features = np.array([[[1.0]], [[2.0]]])
    batch = (np.arange(2), np.zeros(2, int), np.array([0, 0.001]), np.ones(2, int), np.zeros(2))
    for gamma in DISCOUNTS:
        for k in range(0, ITERATIONS + 1, 10):
            Q = fitted_q_iteration(features, batch, gamma, 0, k)
            yield row("divergence", 0, gamma, samples=2, iteration=k, value=Q[1, 0])


def row(part: str, alpha: float, gamma: float, **numbers: Any) -> dict[str, Any]:
    """A row of the file; floats have six digits."""
    texts = {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in numbers.items()}
    return dict.fromkeys(COLUMNS, "") | {"part": part, "alpha": alpha, "gamma": f"{gamma:.6g}"} | texts


def mean(rows: list[dict[str, Any]], column: str, **where: Any) -> float:
    """Mean of a column over the rows with these values."""
    found = [float(r[column]) for r in rows if all(r[name] == value for name, value in where.items())]
    return float(np.mean(found))


def draw(rows: list[dict[str, Any]], args: Args) -> Path:
    """Error by iteration, policy by data, and divergence; returns the figure's path."""
    figure, (errors, policies, values) = pyplot().subplots(1, 3, figsize=(14, 4), layout="constrained")
    ks = range(0, ITERATIONS + 1, 10)
    for alpha, style in zip(ALPHAS, ("-", "--"), strict=True):
        for number, size in enumerate(SHOWN):
            name = size or "model"
            curve = [mean(rows, "q_error", alpha=alpha, samples=name, iteration=k) for k in ks]
            label = (f"{size:,} samples" if size else "the model") if alpha else None
            errors.semilogy(ks, np.array(curve), style, color=f"C{number}", label=label)
    first = mean(rows, "q_error", alpha=0.5, samples="model", iteration=0)
    errors.semilogy(ks, first * GAMMA ** np.array(ks), "k:", label=r"$\gamma^k \|Q^*\|$")
    errors.set(xlabel="iteration k", ylabel=r"$\|Q_k - Q^*\|_\infty$", ylim=(1e-8, 30))
    errors.set_title("solid: soft, α = 0.5; dashed: hard", fontsize=10)
    errors.legend(frameon=False, fontsize=8)
    looks = {"color": "black", "ls": "-"}, {"color": "0.5", "ls": "--", "mfc": "none"}
    for (alpha, label), look in zip(ALPHAS.items(), looks, strict=True):
        last = [r for r in rows if (r["part"], r["alpha"], r["iteration"]) == ("error", alpha, ITERATIONS)]
        of_data = [r for r in last if r["samples"] != "model"]
        batches = np.array([r["batch"] for r in of_data])
        beside = 1 + 0.3 * ((batches + 0.5) / args.batches - 0.5)  # equal distances side by side
        x, distances = beside * [r["samples"] for r in of_data], [float(r["policy_tv"]) for r in of_data]
        policies.semilogx(x, distances, marker="o", ms=4, label=label, **look | {"ls": ""})
        policies.semilogx(SIZES, [mean(last, "policy_tv", samples=size) for size in SIZES], lw=1, **look)
    policies.set(xlabel="samples", ylabel="distance to the optimal policy")
    policies.set_title("total variation in the worst state; a dot: a batch; lines: means", fontsize=10)
    policies.legend(frameon=False, fontsize=8, loc="center right")
    for gamma in DISCOUNTS:
        curve = [mean(rows, "value", part="divergence", gamma=f"{gamma:.6g}", iteration=k) for k in ks[1:]]
        name = "5/6" if gamma == 5 / 6 else f"{gamma:g}"
        values.semilogy(ks[1:], curve, label=f"γ = {name}")
    values.set(xlabel="iteration k", ylabel="Q of the second state")
    values.set_title("two states, one weight: w ← 1.2 γ w + 0.0004", fontsize=10)
    values.legend(frameon=False, fontsize=8)
    return save_figure(figure, args.out_dir / "fitted-q.png")


def main(args: Args) -> None:
    """Prints the tables, and writes rows and figure. Raises UsageError without matplotlib, OSError."""
    pyplot()
    rows = [*error_rows(args.batches), *divergence_rows()]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    with args.rows.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| samples | soft: error of Q | soft: policy | hard: error of Q | hard: policy |\n|" + " --- |" * 5)
    for size in (*SIZES, "model"):
        names = [(alpha, column) for alpha in ALPHAS for column in ("q_error", "policy_tv")]
        means = [mean(rows, c, alpha=a, samples=size, iteration=ITERATIONS) for a, c in names]
        print(f"| {size if size == 'model' else f'{size:,}'} | {' | '.join(f'{x:.2g}' for x in means)} |")
    print("\n| γ | Q after 50 iterations | after 200 |\n| --- | --- | --- |")
    for gamma in DISCOUNTS:
        text = f"{gamma:.6g}"
        last = [mean(rows, "value", part="divergence", gamma=text, iteration=k) for k in (50, ITERATIONS)]
        print(f"| {text} | {' | '.join(f'{x:.4g}' for x in last)} |")
    print(draw(rows, args))


if __name__ == "__main__":
    run_script(Args, main)

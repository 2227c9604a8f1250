"""Steps and CPU minutes to a score: the tables and the figure of docs/explain/efficiency.md.

Returns come from the collected runs of 100,000 steps and from peers.csv, the time per step from cost.csv;
both files are in benchmarks/studies/efficiency/. A program without runs is left out.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.curves import digest, name_whole_ticks, place_legend, shade, unframe
from benchmarks.figures import COLORS, plural, pyplot, save_figure
from benchmarks.records import Curve, main_curves, read_csv
from benchmarks.tables import markdown_table
from cleanrl_maxent import algorithms

HERE = Path(__file__).parent / "studies" / "efficiency"
COSTS, PEERS = HERE / "cost.csv", HERE / "peers.csv"
BUDGET = 100_000  # steps
SCORES = {"Hopper-v4": (1_000, 2_500), "HalfCheetah-v4": (4_000, 6_000)}
PROGRAMS = {  # name of the curve -> label, line style, tint of the algorithm's colour
    "sac": ("SAC", "-", 0.0),
    "sac_layer_norm": ("SAC, LayerNorm critics", "--", -0.55),
    "sac_two_updates": ("SAC, two updates per step", ":", -0.8),
    "SBX SAC": ("SAC of SBX", "-.", 0.5),
    "td3": ("TD3", "-", 0.0),
    "crossq": ("CrossQ", "-", 0.0),
    "SBX CrossQ": ("CrossQ of SBX", "-.", 0.5),
}
EVERY = 5_000  # steps between two evaluations
WINDOW = 3  # evaluations in a row whose mean must reach a score


def step_costs() -> dict[str, float]:
    """Milliseconds of a step of each program: medians over rounds."""
    times = defaultdict(list)
    for row in read_csv(COSTS):
        times[row["program"]].append(float(row["milliseconds"]))
    return {program: float(np.median(values)) for program, values in times.items()}


def peer_curves() -> list[Curve]:
    """The runs of peers.csv."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_csv(PEERS):
        group = groups[row["program"], row["env_id"]]
        group[row["seed"]][int(row["step"])] = float(row["return_deterministic"])
    curves = []
    for (program, env_id), seeds in groups.items():
        steps = sorted(set.intersection(*map(set, seeds.values())))
        returns = np.array([[values[step] for step in steps] for values in seeds.values()])
        kind = program.removeprefix("SBX ").lower(), program, "", env_id, BUDGET, "deterministic"
        curves.append(Curve(*kind, list(seeds), np.array(steps), returns))
    return curves


def select_curves(curves: list[Curve], env_id: str) -> dict[str, Curve]:
    """The curves of a task by program, in the order of `PROGRAMS`; only those evaluated every 5,000 steps."""
    steps = range(EVERY, BUDGET + 1, EVERY)
    chosen = {
        curve.name: curve
        for curve in [*main_curves(curves), *peer_curves()]
        if (curve.env_id, curve.budget, curve.protocol) == (env_id, BUDGET, "deterministic")
        if curve.is_variant or not curve.flags
        if set(steps) <= set(curve.steps.tolist())
    }
    return {program: chosen[program] for program in PROGRAMS if program in chosen}


def steps_to(curve: Curve, score: float) -> np.ndarray:
    """First step at which three evaluations in a row average `score`, `(seeds,)`; inf if there is none."""
    chosen = curve.steps % EVERY == 0
    steps, returns = curve.steps[chosen], curve.returns[:, chosen]
    reached = np.lib.stride_tricks.sliding_window_view(returns, WINDOW, axis=1).mean(axis=-1) >= score
    return np.where(reached.any(axis=1), steps[WINDOW - 1 :][reached.argmax(axis=1)], np.inf)


def minutes_to(curve: Curve, steps: np.ndarray, milliseconds: float) -> np.ndarray:
    """CPU minutes of the first `steps`, without the random ones before learning, which cost little."""
    learning = np.maximum(steps - algorithms()[curve.algorithm].Args().learning_starts, 0)
    return learning * milliseconds / 6e4


def spread(values: np.ndarray, digits: int = 0) -> str:
    """`45,000 (35,000–60,000)`: median and range; with infinite values, `(from 35,000; 2 of 3 seeds)`."""
    reached = values[np.isfinite(values)]
    middle, low = (f"{value:,.{digits}f}" for value in (np.median(values), values.min()))
    if len(reached) == len(values):
        return f"{middle} ({low}–{values.max():,.{digits}f})"
    share = f"{len(reached)} of {plural(len(values), 'seed')}"
    middle = middle if np.isfinite(np.median(values)) else "–"
    return f"{middle} (from {low}; {share})" if len(reached) else f"– ({share})"


def score_table(curves: list[Curve], env_id: str) -> list[str]:
    """Steps and CPU minutes to the scores of a task, a row for each program."""
    titles = ["", "seeds", "ms per step"]
    for score in SCORES[env_id]:
        titles += [f"steps to {score:,}", f"CPU minutes to {score:,}"]
    costs, rows = step_costs(), []
    for program, curve in select_curves(curves, env_id).items():
        cost = costs.get(program)
        cells = [PROGRAMS[program][0], str(len(curve.seeds)), f"{cost:.1f}" if cost else ""]
        for score in SCORES[env_id]:
            steps = steps_to(curve, score)
            cells.append(spread(steps))
            reached = np.isfinite(np.median(steps))
            cells.append(spread(minutes_to(curve, steps, cost), 1) if cost and reached else "")
        rows.append(cells)
    return markdown_table(titles, rows)


def efficiency_block(curves: list[Curve]) -> list[str]:
    """What docs/explain/efficiency.md has between its marks."""
    lines = []
    for env_id in SCORES:
        lines += [f"### {env_id}", "", *score_table(curves, env_id), ""]
    source = "../../benchmarks/results/efficiency.png"
    lines += [f'<img src="{source}" alt="Returns by steps and by CPU minutes of learning">', ""]
    return [*lines, "Thick lines are means; on the left, thin ones are seeds of SAC, TD3 and CrossQ."]


def draw_efficiency(curves: list[Curve], path: Path) -> Path:
    """Mean returns by steps and by CPU minutes of learning; by steps also, thin, the seeds of programs with
    solid lines.

    Raises UsageError without matplotlib.
    """
    figure, panels = pyplot().subplots(2, 2, figsize=(11, 6.2), sharey="row", layout="constrained")
    costs, shown = step_costs(), []
    for (left, right), env_id in zip(panels, SCORES, strict=True):
        for program, curve in select_curves(curves, env_id).items():
            name, style, tint = PROGRAMS[program]
            label = f"{name}, {plural(len(curve.seeds), 'seed')}"
            kind = {"ls": style, "color": shade(COLORS[curve.algorithm], tint)}
            minutes = minutes_to(curve, curve.steps, costs.get(program, np.nan))
            if style == "-":  # those of every program would hide the means
                left.plot(curve.steps, curve.returns.T, lw=0.6, alpha=0.4, **kind)
            for axes, x in ((left, curve.steps), (right, minutes)):
                axes.plot(x, curve.returns.mean(axis=0), lw=2.2, label=label, **kind)
            shown.append((env_id, label, style, tint, costs.get(program), curve.steps, curve.returns))
        left.set(title=f"{env_id}, {BUDGET:,} steps", ylabel="return, deterministic policy", xlim=(0, BUDGET))
        left.set(xlabel="environment steps")
        right.set(xlabel="CPU minutes of learning", xlim=0)
        name_whole_ticks(left)
        place_legend(right)
        unframe(left)
        unframe(right)
    return save_figure(figure, path, description=digest(*shown))

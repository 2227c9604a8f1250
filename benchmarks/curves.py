"""Figures: learning curves of one task and number of steps, any recorded metric, performance profiles.

Seeds are thin lines, their mean is a thick one. An algorithm has one colour everywhere; its variants have
lighter and darker ones, and dashes unless each has a panel.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from benchmarks.figures import COLORS, OTHER_COLOR, plural, pyplot, save_figure
from benchmarks.intervals import performance_profile
from benchmarks.records import Curve, in_last_twentieth, published_at_end
from benchmarks.tables import means_of, score

Color = tuple[float, float, float]  # red, green and blue, from 0 to 1
COLUMNS = 4  # of panels
DASHES = ["-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 3))]  # of variants, in turn
TINTS = [0.0, 0.45, -0.55, 0.65, -0.8, 0.25, -0.3]  # of variants, in turn, for `shade`
NAMED = 10  # lines of a figure that the legend names
EARLY = 0.3  # of the steps, in which values may lie far below all later ones
LOWER = 0.4  # of a figure's height, to which the highest lines may press the others
YOUNG = 0.95  # of the steps, before which runs without published means end their axis
TOGETHER, MOST = 4, 12  # variants of an algorithm that share a panel, and most that have a panel each
DARK = -0.5  # tint of a variant with a panel of its own
SEEDS_SHOWN = 10  # with more seeds of variants, only their means are drawn
ROW, GAP, PANEL = 0.16, 0.07, 2.2  # inches of a line of the legend, between two entries, of a second panel
MARK = {"marker": "<", "mfc": "none", "ms": 5, "lw": 0}  # a published mean
MARKS = "means published elsewhere"
STYLE = (COLORS, DASHES, TINTS, NAMED, SEEDS_SHOWN, TOGETHER, YOUNG, MARKS)
WORDS = {
    "deterministic": "return, deterministic policy",
    "sampled": "return, sampled actions",
    "training": "return in training",
    "mixed": "return, deterministic unless marked",
}


@dataclass(frozen=True)
class Lines:
    """Several seeds of one kind in a figure."""

    algorithm: str
    label: str
    is_variant: bool
    steps: np.ndarray  # (points,)
    values: np.ndarray  # (seeds, points)
    marks: tuple[float, ...] = ()  # published means, beside the ends of the curves
    number: int = 0  # of a variant, which its look depends on; 0: by its place in the figure

    def mean(self) -> np.ndarray:
        """Mean over the seeds that ever have a value, `(points,)`; NaN where one of these has none, so that
        the mean never jumps."""
        seeds = self.values[np.isfinite(self.values).any(axis=1)]
        mean = np.full(self.steps.shape, np.nan)
        if len(seeds):
            complete = np.isfinite(seeds).all(axis=0)
            mean[complete] = seeds[:, complete].mean(axis=0)
        return mean

    def end(self) -> float:
        """Average of the mean over the last 5% of the steps that have one; -inf if none has."""
        mean = self.mean()
        finite = np.isfinite(mean)
        if not finite.any():
            return -np.inf
        late = in_last_twentieth(self.steps[finite], self.steps[finite][-1])
        return float(mean[finite][late].mean())


def lines_of(curve: Curve, beside: list[Curve], known: Sequence[tuple[str, str]] = ()) -> Lines:
    """What a figure shows of a curve `beside` others, with the published means of its algorithm.

    The label names the protocol, unless deterministic, if the curves differ in it. `known`: of `draw_curves`.
    """
    label = label_of(curve.name, curve.flags, curve.is_variant, [other.name for other in beside])
    if len({other.protocol for other in beside}) > 1 and curve.protocol != "deterministic":
        label += f" ({curve.protocol})"
    marks = means_of(published_at_end(curve))
    label += f", {plural(len(curve.seeds), 'seed')}"
    kind = curve.name, curve.flags
    number = 1 + known.index(kind) if kind in known else 0
    return Lines(curve.algorithm, label, curve.is_variant, curve.steps, curve.returns, tuple(marks), number)


def label_of(name: str, flags: str, is_variant: bool, names: list[str]) -> str:
    """A name with its changed flags; a variant's are left out unless `names` has its name more than once."""
    return f"{name} {flags}".strip() if not is_variant or names.count(name) > 1 else name


def draw_curves(curves: list[Curve], path: Path, known: Sequence[tuple[str, str]] = ()) -> Path:
    """Draws curves of one task and number of steps, with published means at the right edge.

    `known`: names and flags of variants in all figures, so that each looks the same in all that it shares
    with others. Returns the figure's path. Raises UsageError without matplotlib.
    """
    curves = sorted(curves, key=lambda curve: (curve.algorithm, curve.is_variant, curve.name, curve.flags))
    protocols = {curve.protocol for curve in curves}
    ylabel = WORDS[curves[0].protocol if len(protocols) == 1 else "mixed"]
    lines = [lines_of(curve, curves, known) for curve in curves]
    drawing = draw_grid if has_grid(curves) else draw_lines
    return drawing(lines, curves[0].budget, title_of(curves), ylabel, path)


def title_of(curves: list[Curve]) -> str:
    """The task and the number of steps of curves that share them; and their protocol, if it is `sampled`."""
    sampled = ", sampled actions" if {curve.protocol for curve in curves} == {"sampled"} else ""
    return f"{curves[0].task}, {curves[0].budget:,} steps{sampled}"


def has_grid(curves: list[Curve]) -> bool:
    """Whether these are variants of one algorithm, at most one curve of its own, and enough of them that each
    has a panel."""
    algorithms = {curve.algorithm for curve in curves}
    variants = sum(curve.is_variant for curve in curves)
    return len(algorithms) == 1 and len(curves) - variants <= 1 and TOGETHER < variants <= MOST


def draw_grid(lines: list[Lines], budget: int, title: str, ylabel: str, path: Path) -> Path:
    """Draws a panel for each variant, in one shade, beside its algorithm's own lines and published means.

    Seeds and the x axis are as in `draw_lines`. Returns the figure's path; the file's description is the
    `digest`.
    """
    own = [entry for entry in lines if not entry.is_variant]
    variants = [entry for entry in lines if entry.is_variant]
    rows = math.ceil(len(variants) / COLUMNS)
    look = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, panels = pyplot().subplots(rows, COLUMNS, figsize=(10, 1.2 + 2 * rows), **look)
    color, dark = (shade(COLORS.get(lines[0].algorithm, OTHER_COLOR), tint) for tint in (0, DARK))
    end = axis_end(lines, budget)
    for axes, variant in zip(panels.flat, variants, strict=False):
        for entry in own:
            plot_entry(axes, entry, "-", color)
        crowded = len(variant.values) > SEEDS_SHOWN
        line = plot_entry(axes, mean_of(variant) if crowded else variant, "-", dark)
        line.set_label("the variant")
        if variant.marks:
            axes.plot([1.05 * budget] * len(variant.marks), variant.marks, **MARK, color=color, label=MARKS)
        axes.set_title(wrapped(variant.label, 28), fontsize=9)
        axes.set_xlim(0, 1.1 * end)
        unframe(axes)
        name_whole_ticks(axes, 3)
    name_lowest(panels, len(variants))
    figure.suptitle(escape_dollars(title))
    figure.supylabel(escape_dollars(ylabel), size="medium")
    handles, _ = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return save_figure(figure, path, description=digest(title, ylabel, COLUMNS, DARK, *lines))


def name_lowest(panels: np.ndarray, shown: int) -> None:
    """Hides the panels after the first `shown`; names the x axis of the lowest one in each column."""
    for place in range(panels.size - COLUMNS, panels.size):
        panels.flat[place].set_visible(place < shown)
        lowest = panels.flat[place if place < shown else place - COLUMNS]
        lowest.set_xlabel("environment steps", fontsize=9)
        lowest.tick_params(labelbottom=True)


def draw_lines(lines: list[Lines], budget: int, title: str, ylabel: str, path: Path) -> Path:
    """Draws thin seeds and a thick mean for each of `lines`; the legend starts with the highest final mean.

    At most `NAMED` lines are named, an algorithm's own before its variants, and the highest at the end first;
    the others are grey and without seeds. An algorithm's published means are drawn once, in its colour. If
    variants have more than `SEEDS_SHOWN` seeds together, only their means are drawn. Without published means
    the x axis ends where the longest run does, if that is young. The figure is as high as its legend needs.
    An inset enlarges the later steps if they lie in its top fifth (`settled_range`), a second panel the lines
    that end in the lower half (`lower_range`). The file's description is the `digest`.
    """
    shown = [title, ylabel, *lines]
    order = sorted(range(len(lines)), key=lambda place: (lines[place].is_variant, -lines[place].end()))
    best = order[:NAMED]
    others = [mean_of(entry) for place, entry in enumerate(lines) if place not in best]
    lines = [lines[place] for place in sorted(best)]
    if sum(len(entry.values) for entry in lines if entry.is_variant) > SEEDS_SHOWN:
        lines = [mean_of(entry) if entry.is_variant else entry for entry in lines]
    settled, lower = settled_range([*lines, *others]), lower_range([*lines, *others])
    look = {"sharex": True, "squeeze": False, "figsize": (7.2, 3.4), "layout": "constrained"}
    figure, panels = pyplot().subplots(2 if lower else 1, 1, **look)
    axes, bottom = panels[0, 0], panels[-1, 0]
    marks = marks_of(lines)
    end = axis_end([*lines, *others], budget)
    handles = plot_lines(axes, lines, others, budget)
    legend = sorted(handles, key=lambda line: -handles[line])
    if marks:
        legend += axes.plot([], [], **MARK, color="0.4", label=MARKS)
    if others:
        legend += axes.plot([], [], color="0.8", lw=0.7, label=f"{len(others)} more")
    place_legend(axes, handles=legend)
    rows = sum(1 + line.get_label().count("\n") for line in legend)
    height = max(3.4, 0.5 + ROW * rows + GAP * len(legend))
    figure.set_figheight(height + PANEL * len(panels[1:]))
    title = "\n".join(wrap(title, 50, break_on_hyphens=False))
    axes.set_title(escape_dollars(title))
    figure.supylabel(escape_dollars(ylabel), size="medium")
    bottom.set_xlabel("environment steps")
    axes.set_xlim(0, end * (1.03 + 0.022 * len(marks)))
    if lower:
        plot_enlarged(bottom, lines, others, budget, lower)
    for panel in panels.flat:
        unframe(panel)
        panel.spines["bottom"].set_bounds(0, end)
        name_whole_ticks(panel)
    if settled:
        plot_enlarged(add_inset(axes, [*lines, *others]), lines, others, budget, settled)
    return save_figure(figure, path, description=digest(*shown, *filter(None, (settled, lower))))


def mean_of(entry: Lines) -> Lines:
    """The same with the mean alone."""
    return replace(entry, values=entry.mean()[None])


def axis_end(lines: list[Lines], budget: int) -> float:
    """Where the x axis ends: after `budget` steps, or with the longest run if that is young and nothing is
    published."""
    longest = max(entry.steps[-1] for entry in lines)
    return longest if longest < YOUNG * budget and not marks_of(lines) else budget


def add_inset(axes: Any, lines: list[Lines]) -> Any:
    """Adds axes below all late returns of `lines`, with each step below itself."""
    _, place = axes.transLimits.transform((0, returns_from(EARLY, lines).min()))  # 0 to 1 of the axes
    inset = axes.inset_axes((0.4, 0.1, 0.6, min(0.6, place - 0.18)))
    inset.set_xlim(0.4 * axes.get_xlim()[1], axes.get_xlim()[1])
    inset.set_xticks([])
    inset.tick_params(labelsize=9)
    return inset


def plot_enlarged(
    axes: Any, lines: list[Lines], others: list[Lines], budget: int, limits: tuple[float, float]
) -> None:
    """Plots what `draw_lines` shows, between two limits of the y axis and with a margin."""
    plot_lines(axes, lines, others, budget)
    low, high = limits
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_title("enlarged", fontsize=9)


def marks_of(lines: Iterable[Lines]) -> dict[str, tuple[float, ...]]:
    """The published means of each algorithm that has any."""
    return {entry.algorithm: entry.marks for entry in lines if entry.marks}


def plot_lines(axes: Any, lines: list[Lines], others: list[Lines], budget: int) -> dict[Any, float]:
    """Plots what `draw_lines` shows; returns the thick lines, with what each ends at."""
    for entry in others:
        axes.plot(entry.steps, entry.mean(), color="0.8", lw=0.7, zorder=1, **dots(entry))
    marks = marks_of(lines)
    handles = {}
    for entry, look in zip(lines, line_styles(lines), strict=True):
        handles[plot_entry(axes, entry, *look)] = entry.end()
    for lane, (algorithm, means) in enumerate(marks.items()):
        place = [(1.025 + 0.022 * lane) * budget] * len(means)
        axes.plot(place, means, **MARK, color=COLORS.get(algorithm, OTHER_COLOR))
    return handles


def plot_entry(axes: Any, entry: Lines, style: Any, color: Color) -> Any:
    """Plots thin seeds, if there are several, and their thick mean, whose line is returned."""
    if len(entry.values) > 1:
        light = 0.25 + 0.5 * np.mean(color)  # light colours show less on white
        alpha = light if max(color) > 0.2 else 0.65  # black must not turn into the grey of another
        thin = {"ls": style, "color": color, "lw": 0.7, "alpha": alpha, "zorder": 2.1, **dots(entry)}
        axes.plot(entry.steps, entry.values.T, **thin)  # above other algorithms' means
    look = {"ls": style, "color": color, "lw": 2.2, **dots(entry)}
    (line,) = axes.plot(entry.steps, entry.mean(), label=wrapped(entry.label, 30), **look)
    return line


def settled_range(lines: list[Lines]) -> tuple[float, float] | None:
    """The lowest and the highest return or mark after the first `EARLY` share of the steps.

    None unless there are two that differ, and all lie in the top fifth of the figure. The line that ends
    lowest may be left out, if there are three or more and it stays in the upper half.
    """
    drawn, settled = returns_from(0, lines), returns_from(EARLY, lines)
    if not settled.size:
        return None
    chosen = [lines]
    if len(lines) > 2 and settled.min() > drawn.min() + np.ptp(drawn) / 2:
        chosen.append(sorted(lines, key=Lines.end)[1:])
    for group in chosen:
        late = returns_from(EARLY, group)
        if late.size and late.min() >= drawn.max() - np.ptp(drawn) / 5 and np.ptp(late) > np.ptp(drawn) / 50:
            return float(late.min()), float(late.max())
    return None


def lower_range(lines: list[Lines]) -> tuple[float, float] | None:
    """The lowest and the highest return of the lines that end in the lower half of the figure.

    None unless there are three or more, beside others, whose returns differ and fill at most `LOWER` of it.
    """
    drawn = returns_from(0, lines)
    if not drawn.size:
        return None
    below = [entry for entry in lines if -np.inf < entry.end() < drawn.min() + np.ptp(drawn) / 2]
    if not 3 <= len(below) < len(lines):
        return None
    values = np.hstack([entry.values[np.isfinite(entry.values)] for entry in below])
    low, high = values.min(), values.max()
    return (float(low), float(high)) if low < high <= drawn.min() + LOWER * np.ptp(drawn) else None


def returns_from(share: float, lines: list[Lines]) -> np.ndarray:
    """All finite returns after a share of the steps, and the marks."""
    start = share * max(entry.steps[-1] for entry in lines)
    marks = [mark for entry in lines for mark in entry.marks]
    found = np.hstack([marks, *(entry.values[:, entry.steps >= start].ravel() for entry in lines)])
    return found[np.isfinite(found)]


def wrapped(label: str, width: int) -> str:
    """A label in lines of at most `width` characters, with the number of seeds in one of them."""
    words = label.replace(" seed", "\N{NO-BREAK SPACE}seed")
    return escape_dollars("\n".join(wrap(words, width, break_on_hyphens=False)))


def escape_dollars(text: str) -> str:
    """Text for matplotlib, which would take what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def dots(entry: Lines) -> dict[str, Any]:
    """Markers where there are few points, of which a single one would not show."""
    return {"marker": "o", "markersize": 3} if len(entry.steps) <= 10 else {}


def line_styles(lines: Iterable[Lines]) -> list[tuple[Any, Color]]:
    """Dashes and colour of each of `lines`, no two alike: an algorithm's own line is solid and has its
    colour, those of its variants differ in both. There are 36 looks of variants, more than `NAMED`."""
    styles = []
    for entry in lines:
        number = entry.number or int(entry.is_variant)
        while (style := line_style(entry.algorithm, number)) in styles:
            number += 1
        styles.append(style)
    return styles


def line_style(algorithm: str, number: int) -> tuple[Any, Color]:
    """Dashes and colour of an algorithm's own line, with number 0, and of its variants."""
    turn, place = divmod(number - 1, len(DASHES) - 1) if number else (0, -1)
    tint = 1 + (place + turn) % (len(TINTS) - 1) if number else 0
    return DASHES[1 + place], shade(COLORS.get(algorithm, OTHER_COLOR), TINTS[tint])


def shade(color: str, share: float) -> Color:
    """A colour `#rrggbb`, mixed with a share of white, or of black if the share is below 0.

    A colour near black is always mixed with white, since darker shades look alike, and a light one with
    black, since lighter shades hardly show on white.
    """
    channels = pyplot().matplotlib.colors.to_rgb(color)
    if max(channels) < 0.2:
        share = abs(share)
    elif np.mean(channels) > 0.5:
        share = -abs(share)
    red, green, blue = (channel + abs(share) * ((share > 0) - channel) for channel in channels)
    return red, green, blue


def digest(*shown: Any) -> str:
    """A short hash of what a figure shows, and in which style."""

    def plain(value: Any) -> Any:
        return np.round(value, 4).tolist() if isinstance(value, np.ndarray) else asdict(value)

    return hashlib.sha256(json.dumps((STYLE, shown), default=plain).encode()).hexdigest()[:16]


def name_whole_ticks(axes: Any, intervals: int = 6) -> None:
    """Puts ticks at whole steps on the x axis; writes numbers on both axes with commas."""
    axes.locator_params(axis="x", nbins=intervals, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    low, high = axes.get_ylim()
    if high - low >= 20:
        axes.yaxis.set_major_formatter("{x:,.0f}")


def place_legend(axes: Any, **legend: Any) -> None:
    """The legend at the right of the axes."""
    look = {"frameon": False, "fontsize": 9, "handlelength": 2.8}  # long enough for a dash and a gap
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **look, **legend)


def unframe(axes: Any) -> None:
    """A faint grid in place of the frame."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_profiles(algorithms: dict[str, list[Curve]], path: Path) -> Path:
    """Share of runs above each score, for algorithms with the same tasks and number of steps."""
    figure, axes = pyplot().subplots(figsize=(7.2, 3.4), layout="constrained")
    scores = {name: [score(curve) for curve in group] for name, group in algorithms.items()}
    drawn = np.hstack([values for tasks in scores.values() for values in tasks])
    thresholds = np.linspace(min(0, drawn.min() - 0.05), max(1.2, drawn.max() + 0.05), 600)
    for name, tasks in scores.items():
        profile = performance_profile(tasks, thresholds)
        look = {"lw": 2.2, "drawstyle": "steps-post", "color": COLORS.get(name, OTHER_COLOR)}
        axes.plot(thresholds, profile, label=name, **look)
    tasks = next(iter(algorithms.values()))
    title = ", ".join(curve.family for curve in tasks)
    title += f"\n{tasks[0].budget:,} steps, {tasks[0].protocol} evaluation"
    axes.set(ylim=(0, 1.02))
    axes.set_title(title, fontsize=9)
    axes.set(xlabel="score τ (0: random, 1: TD3 after 1,000,000 steps)", ylabel="share of runs above τ")
    place_legend(axes)
    unframe(axes)
    return save_figure(figure, path, description=digest(*algorithms.values()))

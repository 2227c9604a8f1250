"""Tables of the rounds of `compare.py`."""

import statistics

from benchmarks.figures import plural

Figures = dict[str, float]
TITLES = {
    "steps_per_second": "steps per second, all seeds",
    "agent_steps_per_second": "outside the environments",
}


def spread(values: list[float], digits: int = 0) -> str:
    """Median (lowest–highest)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def ratios(upper: list[float], lower: list[float]) -> list[float]:
    return [a / b for a, b in zip(upper, lower, strict=True)]


def table(rounds: list[dict[str, Figures]]) -> str:
    """Markdown: programs with rates and ratios within rounds, then the parts of a step."""

    def column(program: str, figure: str) -> list[float]:
        return [figures[program][figure] for figures in rounds]

    names = list(rounds[0])
    first, parts = names[0], [name for name in names if name.startswith("parts")]
    rates = [rate for rate in TITLES if rate in rounds[0][first]]
    titles = [cell for rate in rates for cell in (TITLES[rate], f"{first} ÷ this")]
    lines = [f"| program | {' | '.join(titles)} | host MB |", "|---" * (len(titles) + 2) + "|"]
    for name in (name for name in names if name not in parts):
        cells = []
        for rate in rates:
            if rate in rounds[0][name]:
                times = ratios(column(first, rate), column(name, rate))
                cells += [spread(column(name, rate)), spread(times, 2)]
            else:
                cells += ["", ""]
        memory = ""
        if "host_megabytes" in rounds[0][name]:
            memory = f"{statistics.median(column(name, 'host_megabytes')):,.0f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {memory} |")
    for name in parts:
        bare = column(name, "updates_per_second")
        shares = {"bare update ÷ its bound": ratios(bare, column(name, "floor_updates_per_second"))}
        whole = plural(int(name.removeprefix("parts, ")), "seed")
        shares["whole run ÷ bare update"] = ratios(column(whole, "steps_per_second"), bare)
        lines += ["", f"| {name} | median (lowest–highest) |", "|---|---|"]
        for figure in rounds[0][name]:
            values = column(name, figure)
            digits = 3 if max(values) < 10 else 0
            lines.append(f"| {figure.replace('_', ' ')} | {spread(values, digits)} |")
        lines += [f"| {share} | {spread(values, 2)} |" for share, values in shares.items()]
    return "\n".join(lines)

"""What figures and tables have in common: matplotlib without a screen, colours, files, plurals."""

import importlib
import re
from pathlib import Path
from typing import Any

from cleanrl_maxent.common.errors import UsageError

COLORS = {  # of an algorithm, in every figure
    "ddpg": "#8c564b",
    "td3": "#ff7f0e",
    "sac": "#1f77b4",
    "sac_v1": "#17becf",
    "crossq": "#e377c2",
    "sql": "#2ca02c",
    "sac_discrete": "#1b4f9c",
    "sql_discrete": "#2e8b57",
    "fitted_q": "#c49c00",
    "reinforce": "#7f7f7f",
    "a2c": "#bcbd22",
    "a3c": "#00798c",
    "trpo": "#9467bd",
    "ppo": "#d62728",
    "maxent_pg": "#111111",
}
OTHER_COLOR = "#e6007e"  # of an algorithm that is not among them


def pyplot() -> Any:
    """matplotlib.pyplot, which draws into files; raises UsageError if it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as missing:
        raise UsageError(f"{missing}; pip install -e '.[plots]' -c constraints.txt") from missing
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def save_figure(figure: Any, path: Path, dpi: int = 120, description: str | None = None) -> Path:
    """Writes a figure, makes its folder if needed, and closes it; returns its path.

    The `description` is stored in the PNG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Description": description} if description else None)
    pyplot().close(figure)
    return path


def figure_name(words: str) -> str:
    """A task or a metric as part of a file name: `_` replaces what is no letter, digit, dot or dash."""
    return re.sub(r"[^\w.-]+", "_", words)


def plural(count: int, noun: str) -> str:
    """`1 seed`, `4 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

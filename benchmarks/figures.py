"""What figures and tables have in common: matplotlib without a screen, colours, files, plurals."""

import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

from cleanrl_maxent.common.errors import UsageError

COLORS = {  # of an algorithm, in every figure; those that share one differ to colour-blind eyes too
    "ddpg": "#8a5132",
    "td3": "#e07f0f",
    "sac": "#1f77b4",
    "sac_v1": "#5ac8e8",
    "crossq": "#b9277f",
    "sql": "#5ca37b",
    "sac_discrete": "#0e4b95",
    "sql_discrete": "#008058",
    "fitted_q": "#d1a70a",
    "reinforce": "#83827f",
    "a2c": "#ccbf0f",
    "a3c": "#176c85",
    "trpo": "#aa88f6",
    "ppo": "#d62728",
    "maxent_pg": "#111111",
}
LONGEST_NAME = 100  # characters of a task in a figure's file name
OTHER_COLOR = "#e6007e"  # of an algorithm that is not among them


def pyplot() -> Any:
    """matplotlib.pyplot, which draws into files; raises UsageError if it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as missing:
        raise UsageError(f"{missing}; pip install -e '.[plots]' -c constraints.txt") from missing
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def save_figure(figure: Any, path: Path, description: str | None = None) -> Path:
    """Writes a figure at 200 dots per inch, makes its folder if needed, and closes it; returns its path.

    The `description` is stored in the PNG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Description": description} if description else None)
    pyplot().close(figure)
    return path


def figure_name(words: str) -> str:
    """A task or a metric as part of a file name, with `_` for other characters than letters, digits, dots and
    dashes.

    A hash is added if the name is long, or if anything but spaces and slashes was replaced.
    """
    name = re.sub(r"[^\w.-]+", "_", words, flags=re.ASCII)
    if len(name) <= LONGEST_NAME and re.fullmatch(r"[\w./ -]*", words, flags=re.ASCII):
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `4 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

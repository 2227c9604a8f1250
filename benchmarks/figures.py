"""What figures and tables have in common: matplotlib without a screen, files, plurals."""

import importlib
from pathlib import Path
from typing import Any

from cleanrl_maxent.common.errors import UsageError


def pyplot() -> Any:
    """matplotlib.pyplot, which draws into files; raises UsageError if it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as missing:
        raise UsageError(f"{missing}; pip install -e '.[plots]' -c constraints.txt") from missing
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def save_figure(figure: Any, path: Path, dpi: int = 120) -> Path:
    """Writes a figure, in a folder that is made if need be, and closes it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)
    return path


def plural(count: int, noun: str) -> str:
    """`1 seed`, `4 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

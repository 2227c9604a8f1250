"""`config.json`: what a run is, written when it starts."""

import json
from pathlib import Path
from typing import Any

from cleanrl_maxent.common.errors import UsageError, require

FORMAT = 1  # of run folders; raised when code that is older could misread one. CHANGELOG.md says what changed


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a run's `config.json`; raises UsageError if there is none, or newer code wrote it."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        is_a_runs = isinstance(config["algorithm"], str) and isinstance(config["args"], dict)
        written = int(config.get("format", 0))  # the first runs have no number
    except FileNotFoundError as problem:
        raise UsageError(f"{folder} is not a run: there is no {path}") from problem
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise UsageError(f"{folder} is not a run: cannot read {path}") from problem
    require(is_a_runs, f"{path} is not a run's")
    newer = f"{folder} was written by newer code: format {written}, and this version reads up to {FORMAT}"
    require(written <= FORMAT, newer)
    return config

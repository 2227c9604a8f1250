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
    except FileNotFoundError as problem:
        raise UsageError(f"{folder} is not a run: there is no {path}") from problem
    except OSError as problem:
        raise UsageError(f"cannot read {path}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path} is damaged: {problem}") from problem
    except (KeyError, TypeError):
        is_a_runs = False
    require(is_a_runs, f"{path} is not a run's")
    check_format(folder, config)
    return config


def check_format(folder: Path, config: dict[str, Any]) -> None:
    """Raises UsageError if newer code wrote the run in `folder`, whose `config.json` is given."""
    written = config.get("format", 0)  # the first runs have no number
    require(type(written) is int, f"{folder}/config.json is damaged: format must be an integer")
    newer = f"{folder} was written by newer code: format {written}, and this version reads up to {FORMAT}"
    require(written <= FORMAT, newer)

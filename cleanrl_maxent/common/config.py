"""`config.json`: what a run is, written when it starts."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from cleanrl_maxent.common.errors import UsageError, require

FORMAT = 1  # of run folders; raised when older code could misread one. CHANGELOG.md says what changed

EVALUATION = "eval_frequency", "eval_episodes"  # may differ on resume, for the evaluations still to come


def describe_run(args: Any, task: NamedTuple) -> dict[str, Any]:
    """What `config.json` says of a run with these `RunArgs` and `Task`, apart from its machine."""
    return {
        "format": FORMAT,
        "algorithm": args.algorithm(),
        "algorithm_sha256": digest_of(args.file()),
        "args": asdict(args),
        "changed": changed_arguments(args),
        "task": task._asdict(),
    }


def carry_over(begun: dict[str, Any], args: Any, steps: int) -> dict[str, Any]:
    """What `config.json` keeps of the one that the run began with, when it is resumed after `steps` steps.

    Evaluations may be asked for differently from then on; `evaluated_before` lists the earlier arguments.
    """
    kept = {name: begun.get(name) for name in ("init_from", "algorithm_sha256")}
    before = {name: begun["args"].get(name) for name in EVALUATION}
    earlier = begun.get("evaluated_before", [])  # the run may have fallen back to an older checkpoint
    changes = [entry | {"until_step": min(entry["until_step"], steps)} for entry in earlier]
    if before != {name: getattr(args, name) for name in EVALUATION}:
        changes = [*changes, before | {"until_step": steps}]
    return kept | ({"evaluated_before": changes} if changes else {})


def changed_arguments(args: Any) -> list[str]:
    """Names of the `RunArgs` that differ from their defaults."""
    return [field.name for field in fields(args) if getattr(args, field.name) != field.default]


def digest_of(file: Path) -> str | None:
    """The SHA-256 of a file's content with Unix line ends; None if there is no such file."""
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest() if file.is_file() else None


def has_changed(args: Any, recorded: dict[str, Any]) -> bool:
    """True if the algorithm's file differs from the one recorded; False for older runs, which record none."""
    return recorded.get("algorithm_sha256") not in (None, digest_of(args.file()))


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a run's `config.json`; raises UsageError if it is missing, damaged or too new."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        is_a_runs = isinstance(config["algorithm"], str) and isinstance(config["args"], dict)
    except FileNotFoundError as problem:
        run = f"; its parent {folder.parent} is" if (folder.parent / "config.json").exists() else ""
        raise UsageError(f"{folder} is not a run: there is no {path}{run}") from problem
    except NotADirectoryError as problem:
        raise UsageError(f"{folder} is a file; name the folder of a run") from problem
    except OSError as problem:
        raise UsageError(f"cannot read {path}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path} is damaged: {problem}") from problem
    except (KeyError, TypeError):
        is_a_runs = False
    require(is_a_runs, f"{path} does not belong to a run")
    check_format(folder, config)
    return config


def check_known(folder: Path, recorded: dict[str, Any], args_class: Any, advice: str = "") -> None:
    """Raises UsageError if a run in `folder` has `recorded` an argument that its algorithm has no longer."""
    unknown = recorded.keys() - {field.name for field in fields(args_class)}
    other = f"{folder} was written by other code: {args_class.file().name} has no {min(unknown, default='')}"
    require(not unknown, other + advice)


def check_format(folder: Path, config: dict[str, Any]) -> None:
    """Raises UsageError if newer code wrote the run in `folder`; `config`: the content of `config.json`."""
    written = config.get("format", 0)  # the first runs have no number
    require(type(written) is int, f"{folder}/config.json is damaged: format must be an integer")
    newer = f"{folder} was written by newer code: format {written}, and this version reads up to {FORMAT}"
    require(written <= FORMAT, newer)

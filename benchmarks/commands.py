"""Command lines of the algorithms, from tables of flags.

An algorithm is given by name, `sac`, or by the path of a user's file, `my/sac_mine.py`.
"""

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from cleanrl_maxent import algorithm_names, module_from_file
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.errors import UsageError, require

ROOT = Path(__file__).parent.parent


def script(algorithm: str, tree: Path = ROOT) -> str:
    """The file that trains an algorithm."""
    return algorithm if is_file(algorithm) else str(tree / "cleanrl_maxent" / f"{algorithm}.py")


def is_file(algorithm: str) -> bool:
    """True for the path of a file, False for the name of an algorithm of this package."""
    return algorithm.endswith(".py")


@cache
def algorithm_module(algorithm: str) -> ModuleType:
    """The module of an algorithm. Raises UsageError for a file that is not one, or has the name of ours."""
    if not is_file(algorithm):
        return import_module(f"cleanrl_maxent.{algorithm}")
    path = Path(algorithm)
    require(
        path.stem not in algorithm_names(), f"{path} has the name of an algorithm of this package; rename it"
    )
    module = module_from_file(path)
    args = getattr(module, "Args", None)
    its_own = isinstance(args, type) and issubclass(args, RunArgs) and args.file().resolve() == path.resolve()
    require(its_own, f"{path} is not an algorithm: it defines no Args(RunArgs) of its own")
    return module


def words(flags: dict[str, Any]) -> Iterator[str]:
    """`--learning-rate 0.001`, `--no-autotune`, `--hidden-dims 32 32`, from a table of flags."""
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            value = json.dumps(value) if isinstance(value, dict) else value  # --env-kwargs
            yield from map(str, value if isinstance(value, list) else [value])


def split_flags(flags: str) -> list[str]:
    """The words of a `--flags`, as a shell would split it; raises UsageError if a quote is left open."""
    try:
        return shlex.split(flags)
    except ValueError as problem:
        raise UsageError(f"--flags {flags!r}: {problem}") from problem


def applicable_flags(algorithm: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that an algorithm has, without the others."""
    known = {field.name for field in fields(algorithm_module(algorithm).Args)}
    return {name: value for name, value in flags.items() if name in known}


def check_algorithms(names: Iterable[str], prefix: str = "") -> None:
    """Raises UsageError, with a message that begins with `prefix`, for a name that is no algorithm's."""
    if unknown := set(names).difference(algorithm_names()):
        known = ", ".join(algorithm_names())
        raise UsageError(f"{prefix}unknown algorithm {min(unknown)!r}; there are {known}")

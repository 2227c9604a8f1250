"""What an algorithm's file lacks of the contract, in a line for each function, `Args` and flag."""

import inspect
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import get_type_hints

import pytest

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.ranges import unmet_requirement

SIGNATURES = {
    "init": ["key", "task", "args"],
    "policy": ["state"],
    "act": ["policy", "obs", "key", "deterministic"],
    "update": ["state", "data", "key", "index", "args"],
    "train": ["args"],
    "sample_action": ["policy", "obs", "key"],
}
OPTIONAL = {"sample_action"}


def demand(holds: object, line: str) -> None:
    """Fails a test with one line and no traceback."""
    __tracebackhide__ = True  # the line is the test's
    if not holds:
        pytest.fail(line, pytrace=False)


def stem(module: ModuleType) -> str:
    """The name of a file."""
    return module.__name__.rpartition(".")[2]


def signature_breach(module: ModuleType, function: str) -> str | None:
    """What is wrong with a function's signature; None if nothing is."""
    wanted = SIGNATURES[function]
    signature = f"({', '.join(wanted)})"
    if not hasattr(module, function):
        missing = f"{stem(module)}.{function} is missing: the contract has {function}{signature}"
        return None if function in OPTIONAL else missing
    found = list(inspect.signature(getattr(module, function)).parameters)
    named = ["data" if function == "update" and place == 1 else name for place, name in enumerate(found)]
    if named == wanted:  # update's data may be called after what they are, a batch or a rollout
        return None
    return f"{stem(module)}.{function}({', '.join(found)}): the contract has {signature}"


def arguments_breach(module: ModuleType) -> str | None:
    """Why `Args` are not a dataclass of arguments; None if they are one."""
    if not issubclass(module.Args, RunArgs):
        return f"{stem(module)}.Args does not extend RunArgs: the contract has class Args(RunArgs)"
    if "__dataclass_fields__" not in vars(module.Args):
        return f"{stem(module)}.Args is no dataclass: the contract has @dataclass(frozen=True) above it"
    return None


def flag_breach(module: ModuleType, flag: str) -> str | None:
    """That a flag is a number without a range; None if it has one or needs none."""
    kind = get_type_hints(module.Args, include_extras=True)[flag]
    try:
        unmet_requirement(None, kind)
    except TypeError:
        words = kind.__name__ if isinstance(kind, type) else kind
        types = "a type of common/ranges.py that states its range, such as Count or Rate"
        return f"{stem(module)}.Args.{flag} has the type {words}: the contract has {types}"
    return None


def breaches(module: ModuleType) -> Iterator[str]:
    """Every line on a file; none if it keeps the contract."""
    lines = [arguments_breach(module), *(signature_breach(module, function) for function in SIGNATURES)]
    if issubclass(module.Args, RunArgs):
        lines += [flag_breach(module, field.name) for field in fields(module.Args)]
    return (line for line in lines if line)


def skip_if_breached(module: ModuleType) -> None:
    """Skips what could only fail for a reason that tests/contract/test_interface.py states."""
    if line := next(breaches(module), None):
        pytest.skip(line)

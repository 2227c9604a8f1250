"""Arguments: a flag takes the range that its type states, and refuses everything else in one line."""

import inspect
import math
import re
import sys
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import cleanrl_maxent
from cleanrl_maxent.common.cli import RunArgs, validate
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.ranges import JsonObject, Range, unmet_requirement
from cleanrl_maxent.common.usage import help_text
from tests.support.breaches import skip_if_breached

NAN, INF = math.nan, math.inf
FLAGS = [
    pytest.param(module, field.name, id=f"{name} {field.name}")
    for name, module in cleanrl_maxent.algorithms().items()
    if issubclass(module.Args, RunArgs)
    for field in fields(module.Args)
]
INTERVAL = re.compile(r"(?:an integer )?in ([\[(])([-\d.]+), ([-\d.]+)([\])])")
BOUND = re.compile(r"a finite number(?: (>=|>) ([-\d.]+))?")


def ends(words):
    """Lowest and highest value of a range, and whether each is in it, as its words say: "in [0, 1)"."""
    if found := INTERVAL.fullmatch(words):
        left, low, high, right = found.groups()
        return float(low), float(high), left == "[", right == "]"
    found = BOUND.fullmatch(words)
    assert found, f'a range whose words no test understands: "{words}"'
    sign, low = found.groups()
    return (float(low), INF, sign == ">=", False) if sign else (-INF, INF, False, False)


def of_numbers(integer, words):
    """Values within a range of numbers, and values out of it or of the wrong kind."""
    low, high, with_low, with_high = ends(words)
    kind = int if integer else float
    wrong = [NAN, INF, -INF, True, "1", None, (1,)] + ([1.0, 0.5] if integer else [])
    step, right = (1 if integer else 1e-6), []
    for end, is_in, beyond in ((low, with_low, low - step), (high, with_high, high + step)):
        if math.isfinite(end):
            (right if is_in else wrong).append(kind(end))
            wrong.append(kind(beyond))
    inside = low + step if math.isfinite(low) else high - step if math.isfinite(high) else 0.5
    return [*right, kind(inside)], wrong


def examples(kind):
    """Values that a type admits, and values that it does not."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if kind is JsonObject:
            return ["{}", '{"gravity": -3.7}'], ["", "[1]", "{", "3", None, 1]
        stated = next(part for part in parts[1:] if isinstance(part, Range))
        return of_numbers(parts[0] is int, stated.words)
    if origin in (Union, UnionType):
        (other,) = (part for part in parts if part is not NoneType)
        right, wrong = examples(other)
        return [*right, None], [value for value in wrong if value is not None]
    if origin is Literal:
        return list(parts), ["nonsense", parts[0].capitalize(), None, 1]
    if origin is tuple:
        right, wrong = examples(parts[0])
        return [(value,) for value in right], [(), right[0], *((value,) for value in wrong)]
    return {bool: ([True, False], [1, 0, "True", None]), str: (["x"], [1, True, None])}[kind]


@pytest.mark.parametrize(("module", "flag"), FLAGS)
def test_a_flag_takes_its_range_and_nothing_else(module, flag):
    """Ends that belong to the range, and what is beyond, not finite, or of another kind."""
    skip_if_breached(module)
    kind = get_type_hints(module.Args, include_extras=True)[flag]
    right, wrong = examples(kind)
    for value in right:
        assert unmet_requirement(value, kind) is None, f"{flag}={value!r} should be taken"
    for value in wrong:
        with pytest.raises(UsageError, match=rf"^{flag} must be [^\n]+; got [^\n]*\Z"):
            validate(module.Args(**{flag: value}))


def test_defaults_are_valid_and_frozen(name, module):
    args = module.Args()
    validate(args)
    with pytest.raises(AttributeError):
        args.seed = 2
    assert args.algorithm() == args.exp_name == name
    assert set(args.action_spaces) <= {"Box", "Discrete"} and args.action_spaces


def comments(classes):
    """The comment before or behind each field, by name."""
    found = {}
    for source in map(inspect.getsource, classes):
        for before, name, behind in re.findall(
            r"(?:^    # (.+)\n)?^    (\w+): [^#\n]*(?:  # (.+))?$", source, re.MULTILINE
        ):
            found[name] = behind or before
    return {name: words for name, words in found.items() if words}


def test_help_fits_a_screen_and_explains_every_flag(module, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [f"cleanrl_maxent/{module.Args.algorithm()}.py", "--help"])
    text, flags = help_text(module.Args, RunArgs), {field.name for field in fields(module.Args)}
    assert len(text.splitlines()) <= 70 and max(map(len, text.splitlines())) <= 80
    words = re.sub(r"\s+", " ", text)
    explained = comments([RunArgs, module.Args])
    for flag in flags:
        assert flag in explained, f"{flag} has no comment that says what it means, and in which unit"
        meaning = re.sub(r"\s+", " ", explained[flag])
        assert re.search(rf" --(\[no-\])?{flag.replace('_', '-')} ", words), flag
        assert meaning in words, f"--help does not say what {flag} means: {meaning}"
    assert f"{module.Args.algorithm()}.py --env-id {module.Args.env_id} --seed 2\n" in text
    assert "environment steps" in text and ("gamma" not in flags or "discount per step" in text)
    assert "alpha" not in flags or "nat" in text

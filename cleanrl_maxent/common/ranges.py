"""Types that state the range of an argument, read by the command line and by `validate`.

    decay: Discount = 0.99
    scale: Rate | None = None

A number without a range is a programming error, which `unmet_requirement` reports as TypeError.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from cleanrl_maxent.common.errors import UsageError

LARGEST = 2**31 - 1  # counts that reach the device have 32 bits
MAX = sys.float_info.max  # exceeded by infinity and by integers that no float holds


def plain(value: Any) -> Any:
    """Converts arrays and scalars of NumPy and JAX to Python's numbers, paths to text, lists to tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


class Range(NamedTuple):
    """The values that a type admits, as a predicate and in words: "decay must be {words}"."""

    holds: Callable[[Any], bool]
    words: str


def parse_integer(text: str) -> int:
    """An integer written as `1000`, `1_000` or `1e3`; raises ValueError for `2.5` or `abc`."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        if (number := float(text)).is_integer():
            return int(number)
    raise ValueError(f"{text} is not a whole number")


INTEGER = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="INT",
    instance_from_str=lambda words: parse_integer(words[0]),
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)


READERS = tyro.constructors.ConstructorRegistry()


@READERS.primitive_rule
def expanded_path(kind: Any) -> Any:
    """Reads a path on the command line: `~` is the user's home."""
    if kind.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(os.path.expanduser(words[0])),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


@READERS.primitive_rule
def optional_number(kind: Any) -> Any:
    """Reads a number or None; tyro's own error would list the members of the union."""
    if get_origin(kind.type) not in (Union, UnionType):
        return None
    member, *others = (part for part in get_args(kind.type) if part is not type(None))
    number = get_args(member)[0] if get_origin(member) is Annotated else None
    if others or number not in (int, float):
        return None
    parse = parse_integer if number is int else float
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=number.__name__.upper(),
        instance_from_str=lambda words: None if words[0] == "None" else parse(words[0]),
        is_instance=lambda value: value is None or isinstance(value, number),
        str_from_instance=lambda value: [str(value)],
    )


def integers(low: int) -> Range:
    """Integers from `low` to LARGEST."""
    return Range(lambda x: type(x) is int and low <= x <= LARGEST, f"an integer in [{low}, {LARGEST}]")


def numbers(holds: Callable[[float], bool], words: str) -> Range:
    """Finite numbers for which `holds` is true."""
    return Range(
        lambda x: isinstance(x, int | float) and type(x) is not bool and abs(x) <= MAX and holds(x), words
    )


Count = Annotated[int, INTEGER, integers(1)]
Natural = Annotated[int, INTEGER, integers(0)]
Discount = Annotated[float, numbers(lambda x: 0 <= x < 1, "in [0, 1)")]
Share = Annotated[float, numbers(lambda x: 0 < x <= 1, "in (0, 1]")]
Fraction = Annotated[float, numbers(lambda x: 0 < x < 1, "in (0, 1)")]
Decay = Annotated[float, numbers(lambda x: 0 <= x <= 1, "in [0, 1]")]
Rate = Annotated[float, numbers(lambda x: x > 0, "a finite number > 0")]
Magnitude = Annotated[float, numbers(lambda x: x >= 0, "a finite number >= 0")]
Number = Annotated[float, numbers(lambda x: True, "a finite number")]
Widths = tuple[Count, ...]  # of the hidden layers, at least one


def json_text(value: Any) -> Any:
    """A dictionary, or JSON, as canonical JSON text; other values unchanged."""
    try:
        content = value if isinstance(value, dict) else json.loads(value)
        return json.dumps(content, sort_keys=True, default=plain)
    except (ValueError, TypeError, RecursionError):
        return value


def is_json_object(value: Any) -> bool:
    """True for a text like '{"gravity": -3.7}'."""
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


JsonObject = Annotated[str, Range(is_json_object, """a JSON object, such as '{"gravity": -3.7}'""")]


def unmet_requirement(value: Any, kind: Any) -> str | None:
    """What `value` should have been, in words; None if it has the type `kind` and is in its range.

    Raises TypeError for a number without a range.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        ranges = [part for part in parts[1:] if isinstance(part, Range)]
        if not ranges:
            return unmet_requirement(value, parts[0])
        return next((stated.words for stated in ranges if not stated.holds(value)), None)
    if origin in (Union, UnionType):
        words = [unmet_requirement(value, part) for part in parts]
        return None if None in words else words[0]
    if origin is Literal:
        return None if value in parts else " or ".join(map(str, parts))
    if origin is tuple and parts[1:] == (...,):
        of_each = unmet_requirement(None, parts[0])
        good = isinstance(value, tuple) and value and not any(unmet_requirement(x, parts[0]) for x in value)
        return None if good else f"a tuple of one value or more, each {of_each}"
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(parts)
        good = fits and not any(map(unmet_requirement, value, parts))
        of_each = (unmet_requirement(object(), part) for part in parts)
        return None if good else f"a tuple of {len(parts)} values: {'; '.join(map(str, of_each))}"
    if kind is Path:
        raise TypeError("a path is kept as text: use str")
    if {kind, origin} & {list, dict}:
        raise TypeError("lists and dictionaries can be changed: use a tuple, or JsonObject")
    if kind in (int, float) or origin:
        raise TypeError(f"{getattr(kind, '__name__', kind)} states no range: use a type of {__name__}")
    return None if isinstance(value, kind) else f"of type {kind.__name__}"


def check_ranges(args: Any) -> None:
    """Raises UsageError, naming value and range, unless every field has its type and is in range.

    Also if a class attribute has no type: dataclasses ignore it, even if a base class has that field.
    """
    kinds = get_type_hints(type(args), include_extras=True)
    for base in type(args).__mro__:
        for name, value in vars(base).items():
            typed = name in get_annotations(base) or get_origin(kinds.get(name)) is ClassVar
            if not (typed or name.startswith("_")) and isinstance(value, bool | int | float | str | tuple):
                kind = "Number" if type(value) in (int, float) else type(value).__name__
                advice = f"write {name}: {kind} = {value!r}, say"
                raise UsageError(f"{name} of {base.__name__} has no type, so it is no flag; {advice}")
    for name in (field.name for field in fields(args)):
        value = getattr(args, name)
        try:
            words = unmet_requirement(value, kinds[name])
        except TypeError as problem:
            raise UsageError(f"{name}: {problem}") from problem
        if words is not None:
            got = repr(value) if isinstance(value, str) else value
            raise UsageError(f"{name} must be {words}; got {got}")

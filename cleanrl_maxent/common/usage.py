"""The `--help` of an algorithm: its own flags first, then those of every run, in groups."""

import inspect
import re
import shlex
import shutil
import sys
import textwrap
from contextlib import suppress
from dataclasses import Field, fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cleanrl_maxent.common.errors import UsageError

MEANING = 29  # column at which the meaning of a flag begins
# groups of the flags of every run, by the prefixes of their names; the other flags are about the run itself
GROUPS = {
    "evaluation and films": r"eval_|capture_|video_",
    "tracking and sharing": r"track|wandb_|upload_|hf_",
}


def help_text(args_class: Any, of_every_run: type) -> str:
    """The help text, as wide as the terminal. The meaning of a flag is the comment on its field.

    `of_every_run`: the class of the arguments that all algorithms share.
    """
    width, program = shutil.get_terminal_size().columns, program_name()
    shared = {field.name for field in fields(of_every_run)}
    groups: dict[str, list[Field]] = {name: [] for name in ("algorithm", "run", *GROUPS)}
    for field in fields(args_class):
        others = (name for name, beginnings in GROUPS.items() if re.match(beginnings, field.name))
        groups[next(others, "run") if field.name in shared else "algorithm"].append(field)
    meanings, kinds = comments(args_class), get_type_hints(args_class)
    lines = [f"usage: {program} [FLAGS]", "", *textwrap.wrap(args_class.__doc__ or "", width)]
    for name, of_group in groups.items():
        lines += ["", f"{name} [default]:" if name == "algorithm" else f"{name}:"]
        for field in of_group:
            lines += describe_flag(field, kinds[field.name], meanings.get(field.name, ""), width)
    examples = f"--env-id {args_class.env_id} --seed 2", "--resume runs/mine"
    return "\n".join([*lines, "", "examples:", *(f"  {program} {example}" for example in examples)])


def program_name() -> str:
    """What to type to start the program that is running."""
    script = sys.argv[0]
    return f"python {shlex.quote(script)}" if script.endswith(".py") else script


def comments(args_class: type) -> dict[str, str]:
    """The comment after each field, or on the line before it, by name."""
    found = {}
    for base in reversed(args_class.__mro__):
        with suppress(OSError, TypeError):  # no source: a built-in class, or one of an interactive session
            pattern = r"(?:^ +# (.+)\n)?^ +(\w+): [^#\n]*(?:  # (.+))?$"
            for before, name, behind in re.findall(pattern, inspect.getsource(base), re.MULTILINE):
                found[name] = behind or before
    return found


def describe_flag(field: Field, kind: type, meaning: str, width: int) -> list[str]:
    """The lines of a flag: name, meaning, choices, default."""
    default = field.default
    name = f"--{'[no-]' if default is True else ''}{field.name.replace('_', '-')}"
    if get_origin(kind) is Literal:
        meaning += f" ({', '.join(map(str, get_args(kind)))})"
    if isinstance(default, bool):
        meaning += " [on]" if default else " [off]"
    elif default is not None:
        meaning += f" [{' '.join(map(str, default)) if isinstance(default, tuple) else default}]"
    lines = textwrap.wrap(meaning, max(width - MEANING, 20)) or [""]
    names = [f"  {name}", *[""] * (len(lines) - 1)]
    if len(name) > MEANING - 3:
        names, lines = [f"  {name}", *[""] * len(lines)], ["", *lines]
    return [f"{name:<{MEANING}}{line}".rstrip() for name, line in zip(names, lines, strict=True)]


def join_values(words: list[str], args_class: type) -> list[str]:
    """Joins a text flag and a value that begins with dashes into one word: `--sbatch "--gres=gpu:1"`.

    Raises UsageError for `--flag True` and for numbers joined by commas, which other programs take.
    """
    kinds = get_type_hints(args_class) if hasattr(args_class, "__dataclass_fields__") else {}
    flags = {f"--{name.replace('_', '-')}": kind for name, kind in kinds.items()}
    joined: list[str] = []
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in pairwise(parts):
        flag = name.replace("_", "-")
        if flags.get(flag) is bool and value.lower() in ("true", "false"):
            raise UsageError(f"{flag} takes no value: write {flag} or --no-{flag[2:]}")
        if get_origin(flags.get(flag)) is tuple and re.fullmatch(r"[\[(]?\d+,[\d,]*[\])]?", value):
            numbers = " ".join(re.findall(r"\d+", value))
            raise UsageError(f"separate the numbers of {flag} by spaces: {flag} {numbers}")
    for word in words:
        name, equals, _ = word.partition("=")
        is_value = word.startswith("--") and (" " in word or equals) and name.replace("_", "-") not in flags
        if is_value and joined and flags.get(joined[-1]) in (str, str | None):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined

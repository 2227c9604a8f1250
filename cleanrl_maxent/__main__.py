"""Starts an algorithm or a tool by its name: `cleanrl-maxent sac --env-id Hopper-v4`."""

import ast
import difflib
import re
import shutil
import signal
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import cleanrl_maxent
from cleanrl_maxent.common.cli import run_from_command_line, run_script
from cleanrl_maxent.common.errors import BAD_INPUT, FINISHED
from cleanrl_maxent.common.output import make_output_lossy

PROGRAM = "cleanrl-maxent"
EXAMPLES = ("sac --env-id Hopper-v4 --seed 2", "sac --resume runs/mine", "enjoy runs/mine", "runs")


def programs() -> dict[str, str]:
    """The source text of the algorithms and the tools, by name; none is imported."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {path.stem: path.read_text("utf-8") for path in files}


def first_line(text: str) -> str:
    """The first line of a source text's docstring; says so if there is none."""
    try:
        return (ast.get_docstring(ast.parse(text)) or "(no docstring)").splitlines()[0]
    except SyntaxError as problem:
        return f"(cannot be read: {problem.msg}, line {problem.lineno})"


def help_text() -> str:
    """The algorithms and the tools, each with the first line of its docstring; fits the terminal."""
    width, algorithms = shutil.get_terminal_size().columns, cleanrl_maxent.algorithm_names()
    lines = {"algorithms": "", "tools": ""}
    for name, text in programs().items():
        line = first_line(text)
        kind = "algorithms" if name in algorithms else "tools"
        lines[kind] += textwrap.shorten(line, width, initial_indent=f"  {name:<14}", placeholder=" …") + "\n"
    what = textwrap.fill(cleanrl_maxent.__doc__ or "", width)
    examples = "".join(f"  {PROGRAM} {example}\n" for example in EXAMPLES)
    return (
        f"{what}\n\nusage: {PROGRAM} NAME [FLAGS]\n       {PROGRAM} NAME --help\n\n"
        f"algorithms:\n{lines['algorithms']}\ntools:\n{lines['tools']}\nexamples:\n{examples}"
    )


def main() -> NoReturn:
    """Runs the program that the first word names, with the other words as flags; exits with its status."""
    make_output_lossy()
    name, words = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(help_text(), end="")
        sys.exit(FINISHED)
    texts = programs()
    if name not in texts:
        close = difflib.get_close_matches(name, texts, 1)
        advice = (
            f"Did you mean {close[0]}?" if close else f"{PROGRAM} --help lists the algorithms and the tools"
        )
        own = f"{name.removesuffix('.py')}.py"
        if Path(own).is_file():
            advice = f"python {own} runs that file"
        print(f"error: the first word is an algorithm or a tool; got {name!r}. {advice}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    if sys.stderr.isatty() and re.search(r"^import jax$", texts[name], re.MULTILINE):
        print(f"starting {name}: importing JAX …", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an import at once; else JAX may swallow it
    module = import_module(f"cleanrl_maxent.{name}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [f"{PROGRAM} {name}", *words]
    if name in cleanrl_maxent.algorithm_names():
        run_from_command_line(module.Args, module.train)
    run_script(module.Args, module.main)


if __name__ == "__main__":
    main()

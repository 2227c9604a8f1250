"""`cleanrl-maxent NAME …`: the same as the file of that name."""

import ast
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from importlib.metadata import entry_points

import pytest
import tyro

from cleanrl_maxent import __main__ as console
from cleanrl_maxent import runs, sac
from cleanrl_maxent.__main__ import first_line
from cleanrl_maxent.common import activity, signals
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.usage import help_text
from tests.support.runs import SMALL, flags
from tests.support.tree import PACKAGE

DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef)
PROGRAMS = [path.stem for path in PACKAGE.glob("[!_]*.py") if "__main__" in path.read_text()]


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs the program in this process; its status, what it prints, what it prints on stderr."""

    def program(*words):
        monkeypatch.setattr(sys, "argv", ["cleanrl-maxent", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            console.main()
        return ended.value.code, *capsys.readouterr()

    handlers = {number: signal.getsignal(number) for number in (*signals.SIGNALS, signal.SIGPIPE)}
    monkeypatch.setattr(activity, "listeners", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield program
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_entry_point_is_installed():
    (point,) = entry_points(group="console_scripts", name="cleanrl-maxent")
    assert point.load() is console.main


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_algorithm_and_tool(words, start, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = start(*words)
    assert status == 0 and not err and {"sac", "enjoy", "runs", "tabular"} <= set(PROGRAMS)
    for name in PROGRAMS:
        first = (PACKAGE / f"{name}.py").read_text().splitlines()[0].strip('"')
        assert f"  {name:<14}{first}\n" in out
    algorithms, _, tools = out.partition("tools:")
    assert "  sac " in algorithms and "  runs " in tools


@pytest.mark.parametrize("width", [60, 80])
def test_help_fits_a_terminal(width, start, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = start()[1].splitlines()
    assert len(lines) < 50 and all(len(line) <= width for line in lines)


def test_its_examples_parse():
    for name, *words in map(str.split, console.EXAMPLES):
        tyro.cli(__import__(f"cleanrl_maxent.{name}", fromlist=["Args"]).Args, args=words)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = (", "(cannot be read: '(' was never closed, line 1)"),
        ("", "(no docstring)"),
        ('"""Ab.\n\nC."""', "Ab."),
    ],
)
def test_help_survives_an_unfinished_file(text, line):
    assert first_line(text) == line


def test_help_imports_no_algorithm():
    program = (
        "import sys\n"
        "from cleanrl_maxent.__main__ import main\n"
        "sys.argv = ['x']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'jax', 'cleanrl_maxent.sac'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("word", "advice"), [("sacc", "Did you mean sac?"), ("--seed", "--help lists"), ("", "--help")]
)
def test_an_unknown_word(word, advice, start):
    status, out, err = start(word, "--seed", 1)
    assert status == 2 and not out and err.startswith("error: ") and advice in err and err.count("\n") == 1


def test_a_file_of_the_users_own_is_not_mistaken(start, tmp_path, monkeypatch):
    (tmp_path / "my_sac.py").touch()
    monkeypatch.chdir(tmp_path)
    for word in ("my_sac", "my_sac.py"):
        assert start(word)[2].endswith(f"got {word!r}. python my_sac.py runs that file\n")


def test_a_tool_gets_its_flags_and_gives_its_status(start, tmp_path):
    assert start("runs", tmp_path) == (0, f"no runs in {tmp_path}\n", "")
    missing = f"error: there is no folder {tmp_path}/x\n"
    assert start("runs", tmp_path / "x") == (2, "", missing)
    status, out, _ = start("runs", "--help")
    assert status == 0 and out.startswith("usage: cleanrl-maxent runs ") and runs.Args.__doc__[:40] in out


def test_an_algorithm_gets_its_flags_and_gives_its_status(start, monkeypatch):
    """The first line, on a terminal alone, comes before the import, which takes a while."""
    status, out, err = start("sac", "--gamma", 2)
    assert status == 2 and err == "error: gamma must be in [0, 1); got 2.0\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert start("sac", "--gamma", 2)[2] == f"starting sac: importing JAX …\n{err}"
    assert not start("runs", "--help")[2]
    status, out, _ = start("sac", "--help")
    assert status == 0 and out.startswith("usage: cleanrl-maxent sac ")
    status, _, err = start("sac", "--bath-size", 3)
    assert status == 2 and "--batch-size" in err


def test_help_of_an_algorithm_is_grouped(start, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = start("sac", "-h")
    titles = re.findall(r"^(\w.*):$", out, re.MULTILINE)
    assert status == 0
    assert titles == [
        "algorithm [default]",
        "run",
        "evaluation and films",
        "tracking and sharing",
        "examples",
    ]
    own, run, evaluation, tracking, examples = re.split(r"^\w.*:$", out, flags=re.MULTILINE)[1:]
    for part, name in (
        (own, "--gamma                    discount per step [0.99]"),
        (own, "--[no-]autotune            learn the temperature [on]"),
        (own, "--hidden-dims              widths of the hidden layers [256 256]"),
        (run, "--env-id "),
        (run, "--run-dir                  run folder; None: a new one in runs/"),
        (run, "(auto, cpu, cuda, tpu)"),
        (evaluation, "--eval-episodes "),
        (tracking, "--track                    log to Weights & Biases [off]"),
        (examples, "  cleanrl-maxent sac --resume runs/mine"),
    ):
        assert name in part
    listed = re.findall(r"^  --(?:\[no-\])?([\w-]+)", out, re.MULTILINE)
    assert sorted(listed) == sorted(field.name.replace("_", "-") for field in fields(sac.Args))


@pytest.mark.parametrize("width", ["1", "40"])
def test_help_of_flags_without_comments_on_a_narrow_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)

    @dataclass(frozen=True)
    class Args(RunArgs):
        path: str | None = None
        number: int = 3

    text = help_text(Args, RunArgs)
    assert re.search(r"^  --path$", text, re.MULTILINE) and re.search(
        r"^  --number +\[3\]$", text, re.MULTILINE
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_what_the_console_calls(name):
    """A tool has `Args` and `main`, which its last line gives to `run_script`."""
    defined = {
        node.name for node in ast.parse((PACKAGE / f"{name}.py").read_text()).body if hasattr(node, "name")
    }
    assert "Args" in defined and {"train", "main"} & defined


def test_nothing_on_the_screen_refers_to_documents(capsys):
    """An installed package has none: neither a help text, nor a message, nor a comment of a flag."""
    for name in PROGRAMS:
        module = __import__(f"cleanrl_maxent.{name}", fromlist=["Args"])
        with pytest.raises(SystemExit):
            tyro.cli(module.Args, args=["--help"])
        out = capsys.readouterr().out
        assert "--" in out and "docs/" not in out and ".md" not in out
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = [ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, DESCRIBED)]
        texts = [
            node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if "docs/" in text and text not in docstrings], path


@pytest.mark.slow
def test_it_trains_as_the_file_does(tmp_path):
    """With an environment from a module of the user's folder; `--resume` knows its run."""
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('MyEnv-v0', entry_point=PendulumEnv, max_episode_steps=200)\n"
    )
    given = flags(SMALL | dict(env_id="my_module:MyEnv-v0", total_timesteps=310, learning_starts=300))
    script = os.path.join(os.path.dirname(sys.executable), "cleanrl-maxent")

    def run(*command):
        return subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)

    by_name = run(script, "sac", *given, "--run-dir", "by-name")
    by_file = run(sys.executable, sac.__file__, *given, "--run-dir", "by-file")
    assert by_name.returncode == by_file.returncode == 0, by_name.stderr + by_file.stderr
    names, files = tmp_path / "by-name", tmp_path / "by-file"
    for name in ("seed-1/metrics.jsonl", "policy-1.npz"):
        assert (names / name).read_bytes() == (files / name).read_bytes()
    configs = [(folder / "config.json").read_text() for folder in (names, files)]
    assert configs[0].replace("by-name", "by-file") == configs[1] and '"algorithm": "sac"' in configs[0]
    again = run(script, "sac", "--resume", "by-name")
    assert again.returncode == 0 and "by-name is finished (310 steps); nothing to do" in again.stdout

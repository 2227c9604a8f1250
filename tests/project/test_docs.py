"""The documents speak of what exists: commands parse, code runs, and links, files and tests are there.

That every algorithm has a page and a row in the README is a part of its contract, in tests/contract.
"""

import ast
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest
import tyro

import cleanrl_maxent
from tests.support.tree import BLOCK, DOCUMENTS, ROOT


def text_of(path):
    """A page, or the text between the cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


TEXTS = {str(path.relative_to(ROOT)): text_of(path) for path in DOCUMENTS}
OURS = ("cleanrl_maxent", "benchmarks")


def blocks(text, language):
    """The fenced blocks of a language."""
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def commands(text):
    """The commands of a document, in blocks and in sentences, in words; comments and variables left out."""
    in_blocks = "\n".join(blocks(text, "bash")).splitlines()
    in_sentences = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
    for line in in_blocks + in_sentences:
        if match := re.match(r"(?:[A-Z_]+=\S+ )*((?:python|make|cleanrl-maxent)\b.*)", line):
            yield shlex.split(match[1].removesuffix("&"), comments=True)


def scripts(text):
    """Module and flags of the commands that run a script of the project, by file, module or name."""
    for program, *words in commands(text):
        if program == "python" and words[:1] == ["-m"] and words[1].partition(".")[0] in OURS:
            yield words[1], tuple(words[2:])
        elif program == "python" and words and words[0].partition("/")[0] in OURS:
            assert (ROOT / words[0]).is_file(), words[0]
            yield words[0].removesuffix(".py").replace("/", "."), tuple(words[1:])
        elif program == "cleanrl-maxent" and words and not words[0].startswith("-"):
            yield f"cleanrl_maxent.{words[0]}", tuple(words[1:])


def parsed_class(module):
    """The class, or the union of classes, into which a script parses its command line."""
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        parsers = ("run_script", "run_from_command_line", "tyro.cli")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in parsers:
            return eval(ast.unparse(node.args[0]), vars(module))
    raise AssertionError(f"{module.__name__} parses no command line")


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_parses(name):
    """`…` may stand for a value."""
    for module, flags in scripts(TEXTS[name]):
        tyro.cli(parsed_class(importlib.import_module(module)), args=flags)


def test_every_algorithm_has_a_command():
    found = [module for text in TEXTS.values() for module, _ in scripts(text)]
    algorithms = [f"cleanrl_maxent.{name}" for name in (*cleanrl_maxent.algorithms(), "tabular")]
    assert set(algorithms) <= set(found) and sum(module in algorithms for module in found) >= 9


@pytest.mark.parametrize("name", TEXTS)
def test_targets_and_extras_exist(name):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *words in commands(TEXTS[name]):
        if program == "make":
            assert {word for word in words if "=" not in word} <= set(targets)
            for flags in (word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")):
                tyro.cli(cleanrl_maxent.algorithms()["sac"].Args, args=flags.split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra for found in re.findall(r"\.\[([\w,]+)\]", TEXTS[name]) for extra in found.split(",")}
    assert extras <= set(project["optional-dependencies"])


@pytest.mark.parametrize("name", TEXTS)
def test_code_runs(name):
    """That which trains is only compiled. Blocks of a document share their variables."""
    variables, registered = {}, dict(gym.registry)
    try:
        for block in blocks(TEXTS[name], "python"):
            code = compile(block, name, "exec")
            if ".train(" not in block:
                exec(code, variables)
    finally:
        gym.registry.clear()
        gym.registry.update(registered)


def anchors(text):
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    """Images too."""
    pages, images = re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]), re.findall(r'src="([^"]*)"', TEXTS[name])
    for target in pages + images:
        if not re.match(r"https?://", target):
            file, _, anchor = target.partition("#")
            found = ((ROOT / name).parent / file).resolve() if file else ROOT / name
            assert found.exists() and found.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(found.read_text()), target


@pytest.mark.parametrize("name", TEXTS)
def test_no_line_of_a_paragraph_begins_like_a_list(name):
    """As a formula may that is broken before its minus: the page would show an item."""
    lines = BLOCK.sub("", TEXTS[name]).split("\n")
    for before, line in zip(lines, lines[1:], strict=False):
        if re.match(r"[-+*=] ", line):
            assert not before or re.match(r"[-+*] | ", before), line


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_named_exists(name):
    """`NAME` stands for that of any algorithm to come."""
    roots = "cleanrl_maxent|common|environments|benchmarks|docs|tests"
    endings = "py|md|toml|csv|json|png|gif|ipynb"
    for path in re.findall(rf"(?<![\w/.-])((?:{roots})/[\w/.-]*\w\.(?:{endings}))\b", TEXTS[name]):
        inside = ROOT / "cleanrl_maxent" if path.startswith(("common/", "environments/")) else ROOT
        assert (inside / path).exists() or "NAME" in path, path


@pytest.mark.parametrize("name", TEXTS)
def test_every_test_named_exists(name):
    """A name that ends in … stands for the tests that begin so."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for test, more in re.findall(r"`(test_\w+)(…?)`", TEXTS[name]):
        assert re.search(rf"def {test}{'' if more else '[(]'}", tests), test


@pytest.mark.parametrize("name", TEXTS)
def test_no_path_of_one_machine(name):
    assert not re.findall(r"(?<![\w.~/:-])/(?:home|mnt|opt|root|tmp|Users|var|work)\b", TEXTS[name])

"""Documents: an algorithm has a page, a row in the README, formula tests, and a place in a suite."""

import re
import tomllib
from pathlib import Path

import pytest
import tyro

from tests.support.breaches import demand
from tests.support.tree import BLOCK, ROOT

PAGES = ROOT / "docs" / "algorithms"
TEMPLATE = ["Equation → function", "Defaults and where they come from", "Deviations, and why"]
AT_THE_END = ["What is recorded", "Published results", "Results"]


def page_of(name):
    """The text of an algorithm's page; without one, a test is skipped."""
    page = PAGES / f"{name}.md"
    if not page.exists():
        pytest.skip(f"docs/algorithms/{name}.md is missing")
    return page.read_text()


def test_there_is_a_page(name):
    demand((PAGES / f"{name}.md").exists(), f"docs/algorithms/{name}.md is missing")


def test_marks_of_the_page(name):
    for mark in (
        f"<!-- results of {name}, written by benchmarks/report.py draw -->",
        f"<!-- end of results of {name} -->",
    ):
        demand(mark in page_of(name), f"docs/algorithms/{name}.md lacks the line {mark}")


def test_title_of_the_page(name):
    title = page_of(name).splitlines()[0]
    titled = re.fullmatch(rf"# .+ \(`cleanrl_maxent/{name}\.py`\)", title)
    wanted = f"# Its name (`cleanrl_maxent/{name}.py`)"
    demand(titled, f"docs/algorithms/{name}.md has the title {title!r}, not {wanted}")


def test_headings_of_the_page(name):
    """Sections of its own follow the deviations; that on published results may be missing."""
    page = f"docs/algorithms/{name}.md"
    lines = BLOCK.sub("", page_of(name)).splitlines()
    sections = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    own = [section for section in sections if section not in TEMPLATE + AT_THE_END]
    end = [section for section in AT_THE_END if section in sections or section != "Published results"]
    wanted = TEMPLATE + own + end
    demand(sections == wanted, f"{page} has the headings {sections}; the template has them so: {wanted}")


def stated_defaults(text):
    """Flags and values, as text, of the rows of a page's table of defaults that give plain numbers.

    A page without a table names the one whose defaults it has.
    """
    table = text.partition("## Defaults and where they come from")[2].partition("\n## ")[0]
    if "\n|" not in table:
        return stated_defaults(page_of(re.findall(r"\[(\w+)\.md\]", table)[0]))
    found = []
    rows = re.findall(r"^\| ([^|\n]*`--[^|\n]*) \| ([^|\n]*) \|", table, re.MULTILINE)
    for flags, values in rows:
        names, stated = re.findall(r"`--([\w-]+)`", flags), values.split(", ")
        for name, value in zip(names, stated * len(names) if len(stated) == 1 else stated, strict=False):
            if number := re.match(r"\s*(-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?: \d+)*)(?![\w,.])", value):
                found.append((name, number[1].replace(",", "")))
    return found


def test_defaults_are_those_that_the_page_states(name, module):
    """Plain numbers; a flag whose default is None depends on the environment, and is skipped."""
    stated, args = dict(stated_defaults(page_of(name))), module.Args()
    for flag, value in stated.items():
        given = getattr(args, flag.replace("-", "_"))
        given = given if isinstance(given, tuple) or given is None else (given,)
        said = f"docs/algorithms/{name}.md says {value} of --{flag}; its default is {given}"
        demand(given is None or given == tuple(map(float, value.split())), said)
    demand(len(stated) > 4, f"docs/algorithms/{name}.md states {len(stated)} defaults as plain numbers")


def empty_sections(text):
    """The headings under which a page says nothing: no text, and no deeper heading; comments are not text."""
    text = re.sub(r"<!--.*?-->", "", BLOCK.sub("code", text), flags=re.DOTALL)
    _, *parts = re.split(r"^(#+) (.*)$", text, flags=re.MULTILINE)
    depths, headings, bodies = [len(marks) for marks in parts[::3]], parts[1::3], parts[2::3]
    below = [*depths[1:], 0]
    return [
        heading
        for heading, body, depth, next_depth in zip(headings, bodies, depths, below, strict=True)
        if not body.strip() and next_depth <= depth
    ]


def test_an_empty_section_is_found():
    """A deeper heading or a block of code is enough, a comment is not."""
    page = "# Page\n## A\ntext\n## B\n\n## C\n### C1\ntext\n## D\n<!-- a\nb -->\n## E\n```\n# 1\n```\n## F\n"
    assert empty_sections(page) == ["B", "D", "F"]


def test_every_section_of_the_page_says_something(name):
    empty = ", ".join(empty_sections(page_of(name)))
    demand(not empty, f"docs/algorithms/{name}.md has no text under: {empty}")


def test_commands_of_the_page_parse(name, module):
    text = page_of(name)
    commands = re.findall(rf"^python cleanrl_maxent/{name}\.py(.*?)(?:#.*)?$", text, re.MULTILINE)
    demand(commands, f"docs/algorithms/{name}.md has no command: python cleanrl_maxent/{name}.py ...")
    for flags in commands:
        tyro.cli(module.Args, args=flags.split())


def test_row_of_the_readme(name):
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and f"(cleanrl_maxent/{name}.py)" in line]
    demand(rows, f"README.md has no row with a link to cleanrl_maxent/{name}.py")
    linked = f"(docs/algorithms/{name}.md)" in rows[0]
    demand(linked, f"the row of {name} in README.md lacks a link to docs/algorithms/{name}.md")


def test_row_of_a_suite(name):
    suites = {path.stem: tomllib.loads(path.read_text()) for path in (ROOT / "benchmarks").rglob("*.toml")}
    trained = {
        suite: {algorithm for grid in content.get("grid", []) for algorithm in grid["algorithms"]}
        for suite, content in suites.items()
    }
    suites_with_it = {suite for suite, names in trained.items() if name in names}
    demand("smoke" in suites_with_it, f"benchmarks/suites/smoke.toml does not train {name}")
    demand(suites_with_it - {"smoke"}, f"no suite besides smoke trains {name}")


def test_formulas_are_tested(name, module):
    tests = [path.read_text() for path in (ROOT / "tests" / "formulas").glob("test_*.py")]
    imported = rf"^from cleanrl_maxent import .*\b{name}\b"
    tests = [text for text in tests if re.search(imported, text, re.MULTILINE)]
    demand(tests, f"no test in tests/formulas imports {name}: write tests/formulas/test_{name}.py")
    losses = re.findall(r"^def (\w+_loss)\(", Path(module.__file__).read_text(), re.MULTILINE)
    called = rf"\b(?:{name}|algorithm)\."
    untested = [loss for loss in losses if not any(re.search(rf"{called}{loss}\b", text) for text in tests)]
    demand(not untested, f"no test in tests/formulas that imports {name} calls {', '.join(untested)}")

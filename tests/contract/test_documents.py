"""Documents: an algorithm has a page, a row in the README, formula tests, and a place in a suite."""

import re
import tomllib
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "algorithms"


def test_page(name):
    page = PAGES / f"{name}.md"
    assert page.exists(), f"{page.relative_to(ROOT)} is missing"


def test_commands_of_the_page_parse(name, module):
    text = (PAGES / f"{name}.md").read_text()
    commands = re.findall(rf"^python cleanrl_maxent/{name}\.py(.*?)(?:#.*)?$", text, re.MULTILINE)
    assert commands, f"docs/algorithms/{name}.md has no command: python cleanrl_maxent/{name}.py ..."
    for flags in commands:
        tyro.cli(module.Args, args=flags.split())


def test_row_of_the_readme(name):
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and f"(cleanrl_maxent/{name}.py)" in line]
    assert rows, f"README.md has no row with a link to cleanrl_maxent/{name}.py"
    assert f"(docs/algorithms/{name}.md)" in rows[0], (
        f"the row of {name} in README.md lacks a link to its page"
    )


def test_row_of_a_suite(name):
    suites = (ROOT / "benchmarks").rglob("*.toml")
    grids = [grid for suite in suites for grid in tomllib.loads(suite.read_text()).get("grid", [])]
    assert any(name in grid["algorithms"] for grid in grids), f"no suite in benchmarks/ trains {name}"


def test_formulas_are_tested(name):
    tests = [path.read_text() for path in (ROOT / "tests" / "formulas").glob("test_*.py")]
    imported = rf"^from cleanrl_maxent import .*\b{name}\b"
    assert any(re.search(imported, text, re.MULTILINE) for text in tests), (
        f"no test in tests/formulas of {name}"
    )

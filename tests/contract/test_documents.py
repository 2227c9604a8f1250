"""Documents: an algorithm has a page, a row in the README, formula tests, and a place in a suite."""

import re
import tomllib
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "algorithms"


def page_of(name):
    """The text of an algorithm's page."""
    page = PAGES / f"{name}.md"
    assert page.exists(), f"{page.relative_to(ROOT)} is missing"
    return page.read_text()


def test_an_algorithm_defines_its_arguments_and_its_loop():
    """A file with one of the two is no algorithm, which nothing else would say."""
    for path in sorted((ROOT / "cleanrl_maxent").glob("*.py")):
        text = path.read_text()
        parts = {part: part in text for part in ("class Args(RunArgs)", "\ndef train(args)")}
        assert len(set(parts.values())) == 1, f"{path.name} has one of Args(RunArgs) and train(args) alone"


def test_page(name):
    for mark in (
        f"<!-- results of {name}, written by benchmarks/report.py draw -->",
        f"<!-- end of results of {name} -->",
    ):
        assert mark in page_of(name), f"docs/algorithms/{name}.md lacks the line {mark}"


def test_commands_of_the_page_parse(name, module):
    text = page_of(name)
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
    suites = {path.stem: tomllib.loads(path.read_text()) for path in (ROOT / "benchmarks").rglob("*.toml")}
    trained = {
        suite: {algorithm for grid in content.get("grid", []) for algorithm in grid["algorithms"]}
        for suite, content in suites.items()
    }
    assert name in trained.pop("smoke"), f"benchmarks/suites/smoke.toml does not train {name}"
    assert any(name in names for names in trained.values()), f"no suite besides smoke trains {name}"


def test_formulas_are_tested(name):
    tests = [path.read_text() for path in (ROOT / "tests" / "formulas").glob("test_*.py")]
    imported = rf"^from cleanrl_maxent import .*\b{name}\b"
    assert any(re.search(imported, text, re.MULTILINE) for text in tests), (
        f"no test in tests/formulas imports {name}"
    )

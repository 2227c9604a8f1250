"""What the README shows of the first run is what it prints."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.tree import ROOT

SHOWN = re.search(r"\n\n```\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)[1].splitlines()
TIMES = ("imports: ", "compiling ")  # lines that a fast machine leaves out


def shape(line):
    """A line with every number, and every name that has one, replaced."""
    return re.sub(r"\d[\d,.:]*", "#", line)


@pytest.mark.slow
def test_the_first_run_prints_what_the_readme_shows(tmp_path):
    """The same command, shortened: two evaluations, the first when the speed is known."""
    (place,) = (place for place, line in enumerate(SHOWN) if line.startswith(".venv/bin/python "))
    _, script, *flags = shlex.split(SHOWN[place])
    short = dict(total_timesteps=2000, learning_starts=1700, eval_frequency=1000)
    flags += [word for name, value in short.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(ROOT / script), *flags]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = [shape(line) for line in SHOWN[place + 1 :] if not line.startswith(TIMES)]
    assert [shape(line) for line in printed.splitlines() if not line.startswith(TIMES)] == expected


def test_make_prints_the_other_lines():
    makefile = (ROOT / "Makefile").read_text()
    before = SHOWN[: next(place for place, line in enumerate(SHOWN) if line.startswith(".venv/"))]
    assert before and all(f'@echo "{line}"' in makefile for line in before)
    command = SHOWN[len(before)]
    first = re.search(r"^FIRST = (.*)$", makefile, re.MULTILINE)[1]
    assert command == f".venv/bin/python cleanrl_maxent/sac.py {first}"


def test_the_multi_goal_captions_are_the_table_of_soft_q_learning():
    """Returns of soft Q-learning, and the seeds of SAC that leave a goal out."""
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "algorithms" / "sql.md").read_text()
    rows = re.findall(r"^\| (\w+), seed \d \| (-\d+) ± .*\| ([^|]*) \|$", page, re.MULTILINE)
    returns = [int(value) for name, value, _ in rows if name == "sql"]
    stated = re.search(r"five seeds average −(\d+) to −(\d+)", readme)
    assert len(returns) == 5 and [-int(number) for number in stated.groups()] == [max(returns), min(returns)]
    shares = {name: [goals.split() for n, _, goals in rows if n == name] for name in ("sql", "sac")}
    assert not any("0%" in goals for goals in shares["sql"])
    assert len(shares["sac"]) == 5 and sum("0%" in goals for goals in shares["sac"]) == 2
    assert re.search(r"leaves one\s+out\]\(docs/algorithms/sql.md#multi-goal\) in two of five", readme)

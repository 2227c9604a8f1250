"""`common` knows no algorithm and none of their hyperparameters, not even in its prose."""

import re
from dataclasses import fields

import pytest

import cleanrl_maxent
from cleanrl_maxent.common.cli import RunArgs
from tests.support.tree import COMMON

TEXTS = {path.relative_to(COMMON): path.read_text() for path in COMMON.rglob("*.py")}
OF_EVERY_RUN = {field.name for field in fields(RunArgs)}


def places(word):
    """Where `common` has a word, as it is in Python and as a flag."""
    pattern = re.compile(rf"\b({re.escape(word)}|{re.escape(word.replace('_', '-'))})\b")
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("algorithm", cleanrl_maxent.algorithms())
def test_common_names_no_hyperparameter(algorithm):
    names = {field.name for field in fields(cleanrl_maxent.algorithms()[algorithm].Args)} - OF_EVERY_RUN
    names -= {"dataset"}  # also a key of model cards
    assert names and not {name: places(name) for name in sorted(names) if places(name)}


@pytest.mark.parametrize("algorithm", cleanrl_maxent.algorithms())
def test_common_names_no_algorithm(algorithm):
    assert not places(algorithm)


def test_a_word_is_found():
    assert places("eval_episodes") and places("checkpoint_frequency") and not places("eval_episode")

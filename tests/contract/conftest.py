"""Every algorithm, and every algorithm with every kind of action that it takes."""

import pytest

import cleanrl_maxent
from tests.support.contract import CASES


@pytest.fixture(scope="session", params=cleanrl_maxent.algorithms())
def name(request):
    """The algorithm's name."""
    return request.param


@pytest.fixture(scope="session")
def module(name):
    """The algorithm's file."""
    return cleanrl_maxent.algorithms()[name]


@pytest.fixture(scope="session", params=CASES, ids=str)
def case(request):
    """An algorithm with a kind of actions."""
    return request.param

"""Every algorithm, and every algorithm with every kind of action that it takes."""

import pytest

import cleanrl_maxent
from tests.support.breaches import skip_if_breached
from tests.support.contract import CASES


@pytest.fixture(scope="session", params=cleanrl_maxent.algorithms())
def name(request):
    """The algorithm's name."""
    return request.param


@pytest.fixture(scope="session")
def algorithm(name):
    """The algorithm's file, whatever it lacks."""
    return cleanrl_maxent.algorithms()[name]


@pytest.fixture(scope="session")
def module(algorithm):
    """The algorithm's file, which keeps the contract; else its tests are skipped."""
    skip_if_breached(algorithm)
    return algorithm


@pytest.fixture(scope="session", params=CASES, ids=str)
def case(request):
    """An algorithm that keeps the contract, with a kind of actions."""
    skip_if_breached(request.param.module)
    return request.param

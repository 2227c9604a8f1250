"""A run that nobody touched, and one that was stopped, to be copied."""

import shutil

import pytest

from tests.support.runs import SMALL, digests, interrupted, train


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """What that run ends with."""
    path = tmp_path_factory.mktemp("reference") / "run"
    train(SMALL, path)
    return digests(path)


@pytest.fixture(scope="session")
def stopped_at_300(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(SMALL, path, patch)
    return path


@pytest.fixture
def stopped(stopped_at_300, tmp_path):
    """A copy of a run with two checkpoints, at 270 and 300 steps."""
    return shutil.copytree(stopped_at_300, tmp_path / "run")

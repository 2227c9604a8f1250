"""A run of two seeds that nobody touched."""

import pytest

from cleanrl_maxent import sac
from tests.support.runs import SMALL


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Its folder, and what `train` returned."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    result = sac.train(sac.Args(**SMALL, seed=3, num_seeds=2, run_dir=str(folder)))
    return folder, result

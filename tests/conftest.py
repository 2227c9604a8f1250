"""Set before anything computes: the CPU, with two threads where the tests run in one process, and with one
thread and a compilation cache of its own in each of several (pytest-xdist); XLA as the programs have it."""

import os
import sys
from pathlib import Path

worker = os.environ.get("PYTEST_XDIST_WORKER")
os.environ["NPROC"] = "1" if worker else "2"
os.environ["JAX_PLATFORMS"] = "cpu"
if worker:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ["XDG_CACHE_HOME"] = str(cache / "cleanrl_maxent_tests" / worker)
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from cleanrl_maxent.common.devices import set_up_device  # noqa: E402  (JAX reads its platforms then)

set_up_device("auto")

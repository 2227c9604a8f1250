"""Set before anything computes: the CPU, with two threads if the tests run in one process, and with one
in each of several (pytest-xdist); XLA as the programs have it; a cache of all that is compiled."""

import os
import time
from contextlib import suppress
from pathlib import Path

CACHES = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cleanrl_maxent_tests"
worker = os.environ.get("PYTEST_XDIST_WORKER")


def share_compilations():
    """Gives every worker, as links, what the others compiled in earlier sessions.

    They do not share one folder: JAX writes its files in place, so another worker could read half of one.
    """
    files = [path for path in CACHES.glob("gw*/*") if path.stat().st_mtime < time.time() - 60]
    for folder in CACHES.glob("gw*"):
        for path in files:
            with suppress(FileExistsError):
                os.link(path, folder / path.name)


if not worker:
    share_compilations()
os.environ["NPROC"] = "1" if worker else "2"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHES / (worker or "one"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"  # else the folder is a part of every key

from cleanrl_maxent.common.devices import set_up_device  # noqa: E402  (JAX reads its platforms then)

set_up_device("auto")

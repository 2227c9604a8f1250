"""Where the arrays live: device, threads, compilation cache, memory, and the axis of the seeds."""

import itertools
import json
import math
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.xla_bridge import backends_are_initialized  # there is no public way to ask
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.errors import UsageError

EIGEN = "--xla_cpu_experimental_ynn_fusion_type="  # what YNNPACK takes from Eigen on a CPU: nothing


def cpu_count() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recorded_settings(run_dir: str | None) -> dict:
    """`config.json` of the run in a folder, which has XLA's threads and flags; empty if there is none."""
    try:
        return dict(json.loads(Path(run_dir or ".", "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def set_up_xla(run_dir: str | None) -> None:
    """XLA's threads on a CPU, `NPROC`, and its `XLA_FLAGS`: those given, or of the run in `run_dir`.

    A process that has computed before has its own already, unknown here, and gets a line of warning.
    """
    if "NPROC" not in os.environ and backends_are_initialized():
        print("warning: JAX has computed before; this run cannot be resumed to the bit", file=sys.stderr)
        return
    recorded, flags = recorded_settings(run_dir), os.environ.get("XLA_FLAGS")
    threads = os.environ.setdefault("NPROC", str(recorded.get("cpu_threads") or cpu_count()))
    if not threads.isdigit() or int(threads) < 1:
        raise UsageError(f"NPROC must be a number of threads >= 1; got {threads!r}")
    if flags is None and "xla_flags" in recorded:
        flags = recorded["xla_flags"]
    # YNNPACK gets some sums of products of more than 32,000 rows wrong, crashes on others before 0.12, and is
    # slower: https://github.com/jax-ml/jax/issues/39103 and 39257, docs/develop/speed.md
    elif (0, 10, 2) <= jax.__version_info__ < (0, 12) and EIGEN not in (flags or ""):
        flags = f"{EIGEN} {flags or ''}".strip()
    os.environ["XLA_FLAGS"] = flags or ""


def set_up_device(device: str, run_dir: str | None = None) -> None:
    """Chooses the platform and sets JAX up; to be called before the first computation.

    XLA's threads and flags are those of the run to be resumed in `run_dir`, if there is one, matmuls are
    float32 (no TF32), compiled programs are kept in the user's cache folder.
    Raises UsageError if `device` does not exist or NPROC is not a number.
    """
    set_up_xla(run_dir)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "cleanrl_maxent"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        chosen = None if device == "auto" else jax.devices(device)[0]
        jax.config.update("jax_default_device", chosen)
    except RuntimeError as problem:
        found = ", ".join(sorted({found.platform for found in jax.devices()}))
        raise UsageError(f"no {device.upper()} device found; available: {found}") from problem


def chosen_device() -> Any:
    """Where arrays are made: the device that `set_up_device` chose, or JAX's first."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return chosen or jax.devices()[0]


def seed_sharding(num_seeds: int) -> NamedSharding:
    """Splits the leading axis `(seed,)` over as many devices as divide it evenly."""
    devices = jax.devices(chosen_device().platform)
    used = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return NamedSharding(Mesh(np.array(devices[:used]), ("seed",)), PartitionSpec("seed"))


def per_seed(function: Callable, shared: int = 0, **options) -> Callable:
    """`function` of one seed, compiled for all of them at once.

    Arguments and results lead with the axis `(seed,)`, except for the last `shared` arguments, which the
    seeds have in common. `options` are those of `jax.jit`. The first call, which compiles, says so.
    """

    def of_all(*inputs):
        axes = [0] * (len(inputs) - shared) + [None] * shared
        return jax.vmap(function, axes)(*inputs)

    return say_compiling(jax.jit(of_all, **options), function.__name__)


def say_compiling(compiled: Callable, name: str) -> Callable:
    """`compiled`, whose first call is an activity, "compiling {name}"."""
    calls = itertools.count()

    @wraps(compiled)
    def call(*inputs):
        if next(calls):
            return compiled(*inputs)
        with doing(f"compiling {name}"):
            return compiled(*inputs)

    return call


def available_memory() -> float | None:
    """Bytes free for arrays on the device, or None if it cannot be told."""
    device = chosen_device()
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if sys.platform == "linux":
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        return min(free, container_memory())
    return None


def container_memory() -> float:
    """Bytes left under the limit of this container (cgroup v2); infinite if there is none."""
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return math.inf
    return int(limit.read_text()) - int(used.read_text())


def check_memory(needed: int, what: str, flags: str) -> None:
    """Raises UsageError, with the advice to lower `flags`, unless `what` has the `needed` bytes."""
    available = available_memory()
    if available is not None and needed > 0.9 * available:
        raise UsageError(
            f"{what} needs {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB available; lower {flags}"
        )

"""Where the arrays live: device, threads, compilation cache, memory, and the axis of the seeds."""

import itertools
import json
import math
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.xla_bridge import backends_are_initialized  # there is no public way to ask
from jax.extend.backend import clear_backends
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.container import container_cores, container_memory, read_numbers
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.output import warn

EIGEN = "--xla_cpu_experimental_ynn_fusion_type="  # what YNNPACK takes over from Eigen: nothing
# no sums in order of arrival, and no kernels chosen by timing them
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"

TOO_LATE = "deterministic comes too late: JAX has already computed in this process; start a new one"

# JAX options that this package sets, whatever the environment says: types, precision, random numbers
OURS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_matmul_precision": "float32",  # no TF32
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}


def cpu_count() -> int:
    """CPU cores this process may use: those it is bound to, or its container's share; at least one."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, container_cores())))


def recorded_settings(run_dir: str | None) -> dict:
    """`config.json` of the run in `run_dir`; empty if there is none."""
    if run_dir is None:
        return {}
    try:
        return dict(json.loads(Path(run_dir, "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def set_up_xla(run_dir: str | None, deterministic: bool = False) -> None:
    """Sets XLA's threads on a CPU, `NPROC`, and `XLA_FLAGS`: those given, or those of the run in `run_dir`.

    If JAX has already computed in this process, it is too late: warns, or raises UsageError if the run is to
    be `deterministic`. Also raises UsageError if NPROC is not a number of threads.
    """
    if "NPROC" not in os.environ and backends_are_initialized():
        require(not deterministic, TOO_LATE)
        warn("JAX has already computed in this process; this run cannot be resumed bit for bit")
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
    if deterministic and DETERMINISTIC not in (flags or ""):
        flags = f"{flags or ''} {DETERMINISTIC}".strip()
    if backends_are_initialized() and (flags or "") != os.environ.get("XLA_FLAGS", ""):
        require(not deterministic, TOO_LATE)
        warn("JAX has already computed in this process; this run cannot be resumed bit for bit")
        return
    os.environ["XLA_FLAGS"] = flags or ""


def set_up_device(device: str, run_dir: str | None = None, deterministic: bool = False) -> None:
    """Chooses the platform and sets JAX up for this process; call it before the first computation.

    XLA's threads and flags are those of the run to resume in `run_dir`, if there is one. JAX's options
    are `OURS`. Compiled programs are cached in the user's cache folder. `deterministic`: the flag, for a GPU.
    Raises UsageError if `device` does not exist, NPROC is not a number, `deterministic` comes too late, or a
    context around the call sets one of JAX's options.
    """
    set_up_xla(run_dir, deterministic)
    for name, value in OURS.items():
        jax.config.update(name, value)
        if jax.config.values[name] != value:
            raise UsageError(f"a context around this call sets {name}={jax.config.values[name]}: leave it")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and (cache := make_cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    check_platforms()
    try:
        chosen = None if device == "auto" else jax.devices(device)[0]
        jax.config.update("jax_default_device", chosen)
    except RuntimeError as problem:
        hint = "" if device == "cpu" else "; add --device cpu"
        raise UsageError(
            f"no {device.upper()} device found; available: {list_platforms()}{hint}"
        ) from problem


def list_platforms() -> str:
    return ", ".join(sorted({found.platform for found in jax.devices()}))


def check_platforms() -> None:
    """Raises UsageError if JAX finds no device of the platforms that it was told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as problem:  # JAX may raise a bare AssertionError
        names = ("jax_platforms", "jax_platform_name")
        told = {name: value for name in names if (value := jax.config.values[name])}
        if not told:
            raise
        for name in told:
            jax.config.update(name, "")
        found = list_platforms()
        for name, value in told.items():
            jax.config.update(name, value)
        clear_backends()
        name, wanted = next(iter(told.items()))
        excluded = f"{found}, which {name.upper()}={wanted} excludes"
        raise UsageError(f"no {wanted.upper()} device found; available: {excluded}") from problem


def make_cache_folder() -> Path | None:
    """The user's folder of compiled programs; None, with a warning, if it cannot be made."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (home if home.is_absolute() else Path.home() / ".cache") / "cleanrl_maxent"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as problem:  # RuntimeError: there is no home
        warn(f"compiled programs are not cached: {problem}")
        return None
    if os.access(folder, os.W_OK):
        return folder
    warn(f"compiled programs are not cached: cannot write to {folder}")
    return None


def chosen_device() -> Any:
    """The device of new arrays: the one that `set_up_device` chose, or JAX's first."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return chosen or jax.devices()[0]


def seed_sharding(num_seeds: int) -> NamedSharding:
    """Splits the leading axis `(seed,)` over as many devices as divide it evenly."""
    devices = jax.devices(chosen_device().platform)
    used = max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)
    return NamedSharding(Mesh(np.array(devices[:used]), ("seed",)), PartitionSpec("seed"))


def per_seed(function: Callable, shared: int = 0, **options) -> Callable:
    """`function`, written for one seed, compiled for all seeds at once.

    Arguments and results lead with the axis `(seed,)`, except for the last `shared` arguments, which all
    seeds share. `options` are those of `jax.jit`. The first call, which compiles, says so.
    """

    def of_all(*inputs):
        axes = [0] * (len(inputs) - shared) + [None] * shared
        return jax.vmap(function, axes)(*inputs)

    return say_compiling(jax.jit(of_all, **options), function.__name__)


def say_compiling(compiled: Callable, name: str) -> Callable:
    """`compiled`, whose first call is marked as the activity "compiling {name}"."""
    calls = itertools.count()

    @wraps(compiled)
    def call(*inputs):
        if next(calls):
            return compiled(*inputs)
        with doing(f"compiling {name}"):
            return compiled(*inputs)

    return call


def available_memory() -> float | None:
    """Bytes free for arrays on the device; None if unknown."""
    device = chosen_device()
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    free = 1024 * read_numbers(Path("/proc/meminfo")).get("MemAvailable:", math.inf)
    left = min(free, container_memory())
    return left if left < math.inf else None


def check_memory(needed: int, what: str, flags: str = "--num-seeds", num_seeds: int = 1) -> None:
    """Raises UsageError, advising to lower `flags`, if `what` needs more than 90% of the available memory.

    `needed`: bytes for `num_seeds` seeds, which GPUs and TPUs divide among themselves.
    """
    available = available_memory()
    if chosen_device().platform != "cpu":
        needed = math.ceil(needed / seed_sharding(num_seeds).num_devices)
    if available is not None and needed > 0.9 * available:
        raise UsageError(
            f"{what} needs {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB available; lower {flags}"
        )

"""What bit-identical results depend on besides the arguments: versions, device, threads."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from cleanrl_maxent.common.devices import chosen_device, seed_sharding
from cleanrl_maxent.common.errors import UsageError

# JAX options that affect results and that a user may change, for example to debug, with their defaults
OPTIONS = {
    "eager_constant_folding": False,
    "jax_compiler_enable_remat_pass": True,
    "jax_custom_vjp3": False,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_embedded_constants_max_bytes": 32,
    "jax_enable_pgle": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_memory_fitting_effort": 0.0,
    "jax_memory_fitting_level": "O2",
    "jax_num_cpu_devices": -1,
    "jax_optimization_level": "UNKNOWN",
    "jax_remat3": False,
    "jax_scan3": False,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_gpu_kernel_lowering": False,
    "jax_use_direct_linearize": True,
    "jax_use_shardy_partitioner": True,
    "jax_use_simplified_jaxpr_constants": False,
}
PACKAGES = ("cleanrl_maxent", "jax", "jaxlib", "flax", "optax", "gymnasium", "mujoco", "numpy")


def describe_machine(num_seeds: int = 1) -> dict[str, Any]:
    """Versions of Python and the packages, the device, XLA's threads and flags, the git commit.

    `num_seeds`: those of the run, which are split over `count` devices.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    device = chosen_device()
    devices = seed_sharding(num_seeds).num_devices
    described = {"platform": device.platform, "kind": device.device_kind, "processor": processor()}
    return {
        "versions": versions,
        "device": described | {"count": devices},
        "cpu_threads": int(os.environ.get("NPROC", 0)) or None,
        "xla_flags": os.environ.get("XLA_FLAGS") or None,
        "jax_options": changed_options(),
        "git_commit": git_commit(),
    }


def changed_options() -> dict[str, Any]:
    """The OPTIONS that differ from their defaults, for example through the variable JAX_DISABLE_JIT."""
    values = {name: jax.config.values.get(name, default) for name, default in OPTIONS.items()}
    return {name: value for name, value in values.items() if value != OPTIONS[name]}


def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if files differ from it; None outside git, and where git
    does not track this file, as in a virtual environment inside another repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_same_machine(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UsageError, naming what changed, if a resumed run would not be bit-identical."""
    changes = [
        f"{name} {was}, now {now['versions'].get(name)}"
        for name, was in recorded["versions"].items()
        if now["versions"].get(name) != was
    ]
    for name in ("device", "cpu_threads", "xla_flags", "jax_options"):
        was = recorded.get(name, {})  # earlier runs have no options, and no number of devices
        if name == "device":
            was = was | {"count": was.get("count", now[name]["count"])}
        if now[name] != was:
            changes.append(f"{name} {was}, now {now[name]}")
    if changes:
        threads = recorded.get("cpu_threads") and now["cpu_threads"]  # both are known
        alone = len(changes) == 1 and changes[0].startswith("cpu_threads ") and threads
        exact = "unset NPROC, or " if alone else ""  # then the run gets its own number of threads again
        raise UsageError(
            f"the run was made with {'; '.join(changes)}: not bit-exact; "
            f"{exact}add --allow-version-change to resume"
        )

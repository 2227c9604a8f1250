"""What a run's bits depend on besides its arguments: versions, device, threads."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cleanrl_maxent.common.devices import chosen_device
from cleanrl_maxent.common.errors import UsageError

PACKAGES = ("cleanrl_maxent", "jax", "jaxlib", "flax", "optax", "gymnasium", "mujoco", "numpy")


def describe_machine() -> dict[str, Any]:
    """Versions of Python and the packages, the device, XLA's threads and flags, the git commit."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    device = chosen_device()
    return {
        "versions": versions,
        "device": {"platform": device.platform, "kind": device.device_kind, "processor": processor()},
        "cpu_threads": int(os.environ.get("NPROC", 0)) or None,
        "xla_flags": os.environ.get("XLA_FLAGS") or None,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if files differ from it; None outside git."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_same_machine(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UsageError, naming what changed, if a resumed run would not have the same bits."""
    changes = [
        f"{name} {was}, now {now['versions'].get(name)}"
        for name, was in recorded["versions"].items()
        if now["versions"].get(name) != was
    ]
    for name in ("device", "cpu_threads", "xla_flags"):
        if now[name] != recorded[name]:
            changes.append(f"{name} {recorded[name]}, now {now[name]}")
    if changes:
        raise UsageError(
            f"the run was made with {'; '.join(changes)}: not bit-exact; add --allow-version-change to resume"
        )

"""The memory and the cores that a container's control groups leave to this process (Linux)."""

import math
from contextlib import suppress
from pathlib import Path


def container_folders(controller: str) -> list[Path]:
    """The folders of this process's control group and of all its parents, whose limits apply too."""
    top = Path("/sys/fs/cgroup")
    folders = [top]
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            # version 2 has one tree, version 1 one for each controller
            if number == "0" or controller in controllers.split(","):
                root = top if number == "0" else top / controller
                inner = root / path.lstrip("/")
                folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return folders


def read_numbers(path: Path) -> dict[str, float]:
    """The lines of a system file, each a name and a number; a number alone gets the name ""."""
    numbers = {}
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            *name, number = line.removesuffix(" kB").split()
            if number != "max":  # no limit
                numbers[" ".join(name)] = float(number)
    return numbers


def container_memory() -> float:
    """Bytes left under the limits of this container; infinite without limits.

    Memory of the file cache counts as left, because the system can reclaim it.
    """
    left = [math.inf]
    for folder in container_folders("memory"):
        # version 2, version 1
        for limit, used, given_back in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, taken = (read_numbers(folder / name).get("") for name in (limit, used))
            if most is not None and taken is not None:
                left.append(most - taken + read_numbers(folder / "memory.stat").get(given_back, 0))
    return min(left)


def container_cores() -> float:
    """The number of cores that this container may use, such as 1.5; infinite without a limit."""
    cores = [math.inf]
    for folder in container_folders("cpu"):
        limits = read_numbers(folder / "cpu.max")  # version 2, one line: a quota, or "max", and a period
        cores += [float(quota) / period for quota, period in limits.items() if quota.isdecimal()]
        quota, period = (read_numbers(folder / f"cpu.cfs_{name}_us").get("") for name in ("quota", "period"))
        if quota and period and quota > 0:  # version 1; -1: no quota
            cores.append(quota / period)
    return min(cores)

"""What a program is doing, such as compiling, so that the terminal can show it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WORTH_A_LINE = 1.0  # seconds; an activity at least this long is reported with its time

current: list[tuple[str, float]] = []  # activities, innermost last, each with its start (perf_counter)
listeners: list[Callable[[str], None]] = []  # the last one is called with the line


@contextmanager
def doing(what: str, say_time: bool = True) -> Iterator[None]:
    """Marks an activity; with `say_time`, one that took a second or more is reported: "compiling: 3.2 s"."""
    began = time.perf_counter()
    current.append((what, began))
    try:
        yield
    finally:
        current.pop()
    seconds = time.perf_counter() - began
    if say_time and seconds >= WORTH_A_LINE and listeners:
        listeners[-1](f"{what}: {seconds:.1f} s")


def describe_activity() -> str:
    """The innermost activity and how long it has lasted, "compiling 0:12"; empty if there is none."""
    if not current:
        return ""
    what, began = current[-1]
    seconds = int(time.perf_counter() - began)
    return f"{what} {seconds // 60}:{seconds % 60:02}"


def seconds_since_start() -> float:
    """Seconds since this process started (on Linux), else its CPU time."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.process_time()

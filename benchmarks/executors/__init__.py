"""Where the cells of a suite run: `local`, as processes of this machine, or `slurm`, as a cluster's jobs."""

from collections.abc import Iterator
from typing import Protocol

from benchmarks.cells import Cell

# statuses of a cell that are neither an exit status nor a signal
LOST = -256  # ended, cause unknown
CANCELLED = 256  # taken from the queue by a person


def describe(status: int) -> str:
    """How a cell ended, in words."""
    if status == LOST:
        return "ended, cause unknown"
    return f"killed by signal {-status}" if status < 0 else f"status {status}"


class Executor(Protocol):
    """What a sweep needs to run cells. `ended` looks at the cells; the others report what it last saw."""

    pause: float  # seconds between two looks

    @property
    def room(self) -> int:
        """How many more cells can start."""
        ...

    @property
    def running(self) -> set[Cell]:
        """The cells that run or are queued, also those that another sweep started."""
        ...

    def start(self, cell: Cell) -> str:
        """Starts a cell and returns a word such as "queued"; "" if it could not and must be tried again."""
        ...

    def ended(self) -> Iterator[tuple[Cell, int]]:
        """Cells that ended since the last look: those started here and, with Slurm, by another sweep.

        Each with its exit status, minus the number of the signal that killed it, LOST or CANCELLED.
        """
        ...

    def stop(self) -> None:
        """Called when the sweep ends, for whatever reason; says what becomes of the cells that still run."""
        ...

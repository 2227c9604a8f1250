"""Cells as processes of this machine, packed on its cores or GPUs."""

import os
import signal
import subprocess
from collections.abc import Iterator

from benchmarks.cells import Cell
from cleanrl_maxent.common.devices import cpu_count
from cleanrl_maxent.common.errors import STOPPED, require
from cleanrl_maxent.common.output import say

GPU_SHARE = 0.9  # share of a GPU's memory given to runs


def gpu_bytes() -> dict[str, float]:
    """Bytes of memory of each GPU that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows, by its name there.

    Raises UsageError if CUDA_VISIBLE_DEVICES names a part of a GPU, or if nvidia-smi tells no memory size.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    lines = [line.split(", ") for line in done.stdout.splitlines()]
    listed = [words for words in lines if len(words) == 3]
    if not listed:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(index for index, _, _ in listed))
    found = {}
    for name in (word.strip() for word in visible.split(",")):
        advice = "give --device cpu, or another CUDA_VISIBLE_DEVICES"
        require(not name.startswith("MIG"), f"CUDA_VISIBLE_DEVICES names a part of a GPU, {name}; {advice}")
        # CUDA takes the beginning of a UUID too, and ignores what follows a name that it does not know
        memory = [size for index, uuid, size in listed if name and (name == index or uuid.startswith(name))]
        if not memory:
            break
        require(memory[0].isdecimal(), f"nvidia-smi does not tell the memory of GPU {name}; {advice}")
        found[name] = float(memory[0]) * 2**20
    return found


def make_slots(gpus: dict[str, float], workers: int, largest: float) -> list[dict[str, str]]:
    """Environment variables of runs side by side, which share the cores and need up to `largest` bytes each.

    There are `workers` runs, or that many on each GPU. With 0 there is one per core, or as many as the GPUs'
    memory holds, but no more than cores. A run uses at most GPU_SHARE of the memory it is given.
    """
    if not gpus:
        workers = workers or cpu_count()
        return [{"NPROC": threads_each(workers)}] * workers
    fitting = int(GPU_SHARE**2 * min(gpus.values()) / largest)
    each = workers or max(1, min(fitting, cpu_count() // len(gpus)))
    shares = {
        "XLA_CLIENT_MEM_FRACTION": f"{GPU_SHARE / each:.3f}",
        "NPROC": threads_each(each * len(gpus)),
    }
    return [{"CUDA_VISIBLE_DEVICES": gpu, **shares} for _ in range(each) for gpu in gpus]


def threads_each(runs: int) -> str:
    """Cores for each of `runs` runs, as a value of NPROC."""
    return str(max(1, cpu_count() // runs))


class LocalExecutor:
    """Runs cells as processes, one per slot. Cells that other sweeps run on this machine take slots too."""

    pause = 0.2

    def __init__(self, cells: list[Cell], slots: list[dict[str, str]]):
        self.cells = cells
        self.slots = list(slots)  # environment variables of the slots without a process
        self.processes: dict[Cell, tuple[subprocess.Popen, dict[str, str]]] = {}
        self.others: set[Cell] = set()  # run by another sweep, or by one that was killed

    @property
    def room(self) -> int:
        return max(0, len(self.slots) - len(self.others))

    @property
    def running(self) -> set[Cell]:
        return self.others | self.processes.keys()

    def start(self, cell: Cell) -> str:
        """Starts a process in a free slot; its output is added to the cell's log."""
        slot = self.slots.pop()
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **cell.variables(slot)}
        environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the older name of the same variable
        with open(cell.log(), "ab") as log:
            process = subprocess.Popen(
                cell.command(), stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.processes[cell] = process, slot
        return "started"

    def ended(self) -> Iterator[tuple[Cell, int]]:
        ended = {cell for cell, (process, _) in self.processes.items() if process.poll() is not None}
        self.others = {
            cell for cell in self.cells if (cell in ended or cell not in self.processes) and cell.in_use()
        }
        for cell in ended:
            process, slot = self.processes.pop(cell)
            self.slots.append(slot)
            # if another process has the folder, this one came second
            yield cell, STOPPED if cell in self.others else process.returncode

    def stop(self) -> None:
        """Asks every process to save and stop, and waits for them."""
        if self.processes:
            say("stopping: every run saves first; the same command resumes them")
        for process, _ in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self.processes.values():
            process.wait()

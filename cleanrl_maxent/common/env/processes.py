"""Starts, asks and ends worker processes; reports one that ends by itself."""

import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle

from cleanrl_maxent.common.devices import OURS
from cleanrl_maxent.common.env.batch import round_up
from cleanrl_maxent.common.env.worker import MESSAGE, STEPPED
from cleanrl_maxent.common.errors import UsageError, WorkerDied
from cleanrl_maxent.common.signals import SIGNALS

WORKER = Path(__file__).with_name("worker.py")
NAMES = {-number: number.name for number in signal.Signals}  # by the exit status that a signal gives
PATIENCE = 5.0  # seconds that workers have to close their environments
# environment variables of a worker: one thread, and no GPU if an environment uses JAX
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
    **{name.upper(): str(value) for name, value in OURS.items()},
}


class Processes:
    """Workers, each with a pipe, and an unnamed file that all of them share.

    A request is one byte, the number of a batch to step, or MESSAGE and a message; an answer is STEPPED, or
    MESSAGE and a message.
    """

    def __init__(self, count: int, setup: tuple):
        """Starts the workers. `setup`: what each receives after `sys.path`, followed by its number from 0.

        Raises UsageError if the system cannot start so many.
        """
        self.count, self.memory, self.size, self.batches = count, shared_file(), 0, 0
        self.pipes: list[Connection] = []
        self.polls: list[select.poll] = []  # tell whether a pipe has something to read
        self.running: list[subprocess.Popen] = []
        self.close = weakref.finalize(self, end, self.pipes, self.running, self.memory)
        for index in range(count):
            try:
                pipe, process = start_worker(self.memory)
            except OSError as problem:
                self.close()
                few = f"only {index} of {count} environment workers started: {problem.strerror}"
                raise UsageError(f"{few}; lower --env-workers") from problem
            self.pipes.append(pipe)
            self.polls.append(select.poll())
            self.polls[index].register(pipe, select.POLLIN)
            self.running.append(process)
            self.send(index, sys.path)
            self.send(index, cloudpickle.dumps((*setup, index)))

    def ask(self, requests: dict[int, tuple]) -> dict[int, tuple]:
        """Sends each worker its request, `(method, *arguments)`; returns all answers, see `worker.serve`.

        Raises WorkerDied.
        """
        for index, request in requests.items():
            self.send(index, request)
        return {index: self.receive(index) for index in requests}

    def send(self, index: int, request: Any) -> None:
        """Sends a request."""
        try:
            os.write(self.pipes[index].fileno(), MESSAGE)
            self.pipes[index].send(request)
        except OSError as problem:
            raise self.died(index) from problem

    def wake(self, index: int, number: int) -> None:
        """Asks worker `index` to step batch `number`, below 255, in one byte."""
        try:
            os.write(self.pipes[index].fileno(), bytes([number]))
        except OSError as problem:
            raise self.died(index) from problem

    def receive(self, index: int) -> Any:
        """The next answer."""
        try:
            pipe = self.pipes[index]
            # a process that an environment started may hold the pipe of a worker that is gone
            while not self.polls[index].poll(1000):
                if self.running[index].poll() is not None and not self.polls[index].poll(0):
                    raise EOFError
            return (True, None, None) if os.read(pipe.fileno(), 1) == STEPPED else pipe.recv()
        except (EOFError, OSError) as problem:
            raise self.died(index) from problem

    def died(self, index: int) -> WorkerDied:
        """The exception for a worker that is gone. Ends the others, since nobody waits for their answers."""
        name, process = f"environment worker {index + 1} of {self.count}", self.running[index]
        self.pipes[index].close()
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
        self.close()
        if status in NAMES:
            return WorkerDied(f"{name} was killed by {NAMES[status]}")
        return WorkerDied(f"{name} ended" + (f" with status {status}" if status is not None else ""))

    def allocate(self, size: int) -> int:
        """Adds `size` bytes to the shared file; returns where they begin."""
        start = self.size
        self.size += round_up(size, mmap.ALLOCATIONGRANULARITY)
        os.ftruncate(self.memory, self.size)
        return start


def start_worker(memory: int) -> tuple[Connection, subprocess.Popen]:
    """A worker, and the pipe to it. Its signals are blocked until it handles them."""
    ours, theirs = Pipe()
    warnings = [f"-W{option}" for option in sys.warnoptions]
    command = [sys.executable, *warnings, "-P", str(WORKER)]
    command += map(str, (theirs.fileno(), memory, os.getpid()))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **VARIABLES},
            pass_fds=(theirs.fileno(), memory),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return ours, process


def end(pipes: list[Connection], processes: list[subprocess.Popen], memory: int) -> None:
    """Closes the pipes, which ends the workers, and kills those that do not end in time."""
    for pipe in pipes:
        pipe.close()
    limit = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    os.close(memory)


def shared_file() -> int:
    """The descriptor of an empty, unnamed file, so that nothing is left behind."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("environments")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

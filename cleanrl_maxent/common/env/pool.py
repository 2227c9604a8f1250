"""Where the environments of a run live: in this process, or in workers that share memory with it."""

import importlib
import mmap
import signal
from collections.abc import Iterable
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.env.batch import (
    Batch,
    EnvBatch,
    RowFailed,
    Rows,
    Spaces,
    bytes_of,
    check_same_spaces,
    rows_in,
)
from cleanrl_maxent.common.env.checks import check_name
from cleanrl_maxent.common.env.make import EnvChoice, make_env
from cleanrl_maxent.common.env.processes import Processes
from cleanrl_maxent.common.env.restore import RestorableEnv
from cleanrl_maxent.common.errors import UsageError, one_line, require


class Pool:
    """Makes batches of environments, in this process or divided among `workers` other processes.

    Workers start with the first batch, and end when the pool is closed or freed, or when this process ends,
    however it ends.
    """

    def __init__(self, choice: EnvChoice | str, env_reset: str, workers: int = 0):
        """`choice`: see `make_env`; `env_reset` is the flag. Raises UsageError if there can be no workers."""
        self.choice = EnvChoice(choice) if isinstance(choice, str) else choice
        self.env_reset, self.workers = env_reset, workers
        self.processes: Processes | None = None
        self.here: list[EnvBatch] = []  # batches of this process
        require(not workers or hasattr(signal, "pthread_sigmask"), "env_workers needs Linux or macOS; give 0")

    def batch(self, count: int, autoreset: bool) -> Batch:
        """At most `count` environments; see `EnvBatch`.

        Raises UsageError if the environment cannot be sent to a worker.
        """
        if not self.workers:
            self.here.append(EnvBatch(self.build, count, autoreset))
            return self.here[-1]
        if self.processes is None:
            check_name(self.choice.env_id)
            setup = self.choice, self.env_reset, pickled_specs(self.choice.env_id)
            self.processes = Processes(self.workers, setup)
        return SharedBatch(self.processes, self.choice.env_id, count, autoreset)

    def build(self) -> RestorableEnv:
        """An environment in this process."""
        return RestorableEnv(lambda: make_env(self.choice), self.env_reset)

    def close(self) -> None:
        """Closes the environments, and ends the processes."""
        for batch in self.here:
            batch.close()
        if self.processes:
            self.processes.close()


def pickled_specs(env_id: str) -> dict[str, bytes]:
    """Gymnasium's registry, pickled, by name, including classes and functions of a script.

    Specs that cannot be pickled are left out. Raises UsageError if the environment asked for is one of them.
    """
    module, _, chosen = env_id.rpartition(":")
    if module and chosen not in gym.registry:
        try:
            importlib.import_module(module)
        except Exception:
            return {}  # the worker that makes it reports this
    specs = {}
    for name, spec in gym.registry.items():
        try:
            specs[name] = cloudpickle.dumps(spec)
        except Exception as problem:
            if name == chosen:
                said = f"{env_id} cannot be sent to a process of its own: {one_line(problem)}"
                raise UsageError(f"{said}; add --env-workers 0") from problem
    return specs


class SharedBatch:
    """Environments of all workers as one batch; see `EnvBatch`.

    Row i belongs to worker i modulo the number of workers, which spreads one seed's evaluation episodes, long
    and short, over the workers. `rows` is shared memory.
    """

    spaces: Spaces
    rows: Rows

    def __init__(self, processes: Processes, env_id: str, count: int, autoreset: bool):
        self.processes, self.env_id, self.count, self.autoreset = processes, env_id, count, autoreset
        self.workers = range(min(count, len(processes.pipes)))
        self.number, processes.batches = processes.batches, processes.batches + 1
        sizes = {worker: len(range(count)[self.part(worker)]) for worker in self.workers}
        processes.ask({worker: ("add", self.number, size, autoreset) for worker, size in sizes.items()})

    def part(self, worker: int) -> slice:
        """The rows of a worker."""
        return slice(worker, None, len(self.workers))

    def ask(self, method: str, arguments: dict[int, tuple]) -> dict[int, Any]:
        """Workers' answers to a request about this batch; raises RowFailed for the first row that failed."""
        requests = {worker: (method, self.number, *given) for worker, given in arguments.items()}
        return self.values(self.processes.ask(requests))

    def values(self, answers: dict[int, tuple]) -> dict[int, Any]:
        """What workers returned; raises RowFailed for the first row that failed."""
        problems = {
            row * len(self.workers) + worker: problem
            for worker, (done, row, problem) in answers.items()
            if not done
        }
        if problems:
            first = min(problems)
            raise RowFailed(first, problems[first])
        return {worker: value for worker, (_, value, _) in answers.items()}

    def make(self, which: Iterable[int]) -> None:
        """Like `EnvBatch.make`."""
        rows: dict[int, list[int]] = {}
        for row in which:
            rows.setdefault(row % len(self.workers), []).append(row // len(self.workers))
        try:
            pickled = self.ask("make", {worker: (of_worker,) for worker, of_worker in rows.items()})
        except RowFailed as failed:
            raise failed.problem from None
        first, *others = map(cloudpickle.loads, pickled.values())
        for spaces in others:
            check_same_spaces(self.env_id, spaces, first)
        self.spaces = first
        size = bytes_of(self.count, self.spaces)
        start = self.processes.allocate(size)
        buffer = mmap.mmap(self.processes.memory, size, offset=start)
        self.rows = rows_in(buffer, self.count, self.spaces)
        spaces = cloudpickle.dumps(first)
        parts = {w: (start, self.count, self.part(w), spaces) for w in self.workers}
        self.ask("share", parts)

    def reset(self) -> None:
        """Like `EnvBatch.reset`."""
        self.ask("reset", self.busy())

    def step_async(self) -> None:
        """Wakes each worker that has running rows, to step them."""
        self.stepping = list(self.busy())
        for worker in self.stepping:
            self.processes.wake(worker, self.number)

    def step_wait(self) -> None:
        """Returns when all workers have stepped. Raises RowFailed like `EnvBatch.step_wait`."""
        self.values({worker: self.processes.receive(worker) for worker in self.stepping})

    def busy(self) -> dict[int, tuple]:
        """The workers with a running row."""
        running = np.flatnonzero(self.rows.running)
        return dict.fromkeys(np.unique(running % len(self.workers)).tolist(), ())

    def snapshot(self) -> list[tuple[dict, np.ndarray]]:
        """Like `EnvBatch.snapshot`."""
        return self.in_order(self.ask("snapshot", dict.fromkeys(self.workers, ())))

    def restore(self, states: list[tuple[dict, np.ndarray]]) -> list[bool]:
        """Like `EnvBatch.restore`."""
        return self.in_order(self.ask("restore", {w: (states[self.part(w)],) for w in self.workers}))

    def in_order(self, answers: dict[int, list]) -> list:
        """The workers' answers, in the order of the batch's rows."""
        together: list[Any] = [None] * self.count
        for worker, answer in answers.items():
            together[self.part(worker)] = answer
        return together

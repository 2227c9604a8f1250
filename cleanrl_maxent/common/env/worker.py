"""A process that steps some of a run's environments; `processes.py` starts it, and closes a pipe to end it.

It does not import JAX, and imports this package only once it has its parent's `sys.path`.
"""

import importlib
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cleanrl_maxent.common.env.batch import EnvBatch

STEPPED, MESSAGE = b"\0", b"\xff"  # the first byte of an answer; MESSAGE also of a request


class Worker:
    """The environments of worker number `index`, in numbered batches; every method is a request."""

    def __init__(self, choice: Any, env_reset: str, index: int, memory: int):
        """`choice`, `env_reset`: as in `Pool`. `memory`: descriptor of the shared file."""
        from cleanrl_maxent.common.env.make import made, make_env
        from cleanrl_maxent.common.env.restore import RestorableEnv

        if index:  # other workers have made this environment too
            made.add(choice)
        self.memory = memory
        self.build = lambda: RestorableEnv(lambda: make_env(choice), env_reset)
        self.batches: dict[int, EnvBatch] = {}

    def add(self, number: int, count: int, autoreset: bool) -> None:
        """Adds a batch of at most `count` environments."""
        from cleanrl_maxent.common.env.batch import EnvBatch

        self.batches[number] = EnvBatch(self.build, count, autoreset)

    def make(self, number: int, which: list[int]) -> bytes:
        """Makes the environments of some rows of this worker; returns their spaces, pickled."""
        import cloudpickle  # for spaces whose classes are in the user's script

        from cleanrl_maxent.common.env.batch import RowFailed

        try:
            self.batches[number].make(which)
        except Exception as problem:
            raise RowFailed(which[0], problem) from problem
        return cloudpickle.dumps(self.batches[number].spaces)

    def share(self, number: int, start: int, count: int, which: slice, spaces: bytes) -> None:
        """Moves a batch's rows, `which` of `count`, into the shared file, from byte `start`."""
        import cloudpickle

        from cleanrl_maxent.common.env.batch import bytes_of, rows_in

        batch = self.batches[number]
        batch.spaces = cloudpickle.loads(spaces)
        buffer = mmap.mmap(self.memory, bytes_of(count, batch.spaces), offset=start)
        batch.rows = rows_in(buffer, count, batch.spaces).part(which)

    def reset(self, number: int) -> None:
        self.batches[number].reset()

    def step(self, number: int) -> None:
        self.batches[number].step_wait()

    def snapshot(self, number: int) -> list:
        return self.batches[number].snapshot()

    def restore(self, number: int, states: list) -> list[bool]:
        return self.batches[number].restore(states)

    def close(self) -> None:
        """Closes every environment."""
        for batch in self.batches.values():
            batch.close()


def register(choice: Any, specs: dict[str, bytes]) -> None:
    """Registers what the parent has registered, even at run time or with classes of its script.

    `specs`: pickled, by name. Those that cannot be loaded are left out, except the environment asked for.
    """
    import cloudpickle
    import gymnasium as gym

    module, _, chosen = choice.env_id.rpartition(":")
    spec = cloudpickle.loads(specs.pop(chosen)) if chosen in specs else None
    entry_point = getattr(spec, "entry_point", None)
    # modules that register environments come first, since registering one twice gives a warning
    modules = [module, entry_point.partition(":")[0] if isinstance(entry_point, str) else ""]
    for name in filter(None, modules):
        with suppress(Exception):  # reported when the environment is made
            importlib.import_module(name)
    for name, pickled in specs.items():
        if name not in gym.registry:
            with suppress(Exception):
                gym.registry[name] = cloudpickle.loads(pickled)
    if spec is not None:
        gym.registry[chosen] = spec


def prepare() -> None:
    """Leaves stop signals to the parent; output that nobody reads is not an error."""
    from cleanrl_maxent.common.output import make_output_lossy
    from cleanrl_maxent.common.signals import SIGNALS

    for number in SIGNALS:
        # unlike SIG_IGN, a function is not inherited by programs that an environment starts
        signal.signal(number, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent has blocked them until here
    make_output_lossy()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]


class Requests:
    """The parent's requests. Each starts with one byte; a request for a step has no more."""

    def __init__(self, connection: Connection):
        self.connection, self.file = connection, connection.fileno()

    def receive(self) -> Any:
        """The next request: the number of a batch to step, or a message; None at the end."""
        with suppress(EOFError, OSError):
            if byte := os.read(self.file, 1):
                return self.connection.recv() if byte == MESSAGE else byte[0]
        return None

    def answer(self, message: Any = None) -> None:
        """Answers with a message, or that a step is done; does nothing if the parent is gone."""
        with suppress(OSError):
            os.write(self.file, STEPPED if message is None else MESSAGE)
            if message is not None:
                self.connection.send(message)


def serve(requests: Requests, memory: int) -> None:
    """Answers requests until the parent closes the pipe or is gone.

    The first two are the parent's `sys.path` and what `Worker` needs. After that, a number asks for a step of
    that batch, and `(method, *arguments)` for anything else. An answer is `(True, value, None)`, or, if an
    environment raised an exception, `(False, row, problem)`.
    """
    paths, setup = requests.receive(), requests.receive()
    if setup is None:
        return
    sys.path[:] = paths
    prepare()
    import cloudpickle

    from cleanrl_maxent.common.env.batch import RowFailed

    choice, env_reset, specs, index = cloudpickle.loads(setup)
    register(choice, specs)
    worker = Worker(choice, env_reset, index, memory)
    while (request := requests.receive()) is not None:
        try:
            if isinstance(request, int):
                worker.step(request)
                requests.answer()
            else:
                method, *arguments = request
                requests.answer((True, getattr(worker, method)(*arguments), None))
        except RowFailed as failed:
            requests.answer((False, failed.row, portable(failed.problem)))
    worker.close()


def portable(problem: BaseException) -> Exception:
    """An exception of any class, in a form that can be sent to another process."""
    from cleanrl_maxent.common.env.wrapper import RemoteError, describe_exception
    from cleanrl_maxent.common.errors import NonFiniteError, UsageError

    if isinstance(problem, UsageError | NonFiniteError):
        return problem
    return RemoteError(describe_exception(problem), "".join(traceback.format_exception(problem)))


def end_with(parent: int) -> None:
    """Ends this process when its parent has ended, even if an environment never returns."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(pipe: int, memory: int, parent: int) -> None:
    """Serves the process `parent`; `pipe`, `memory`: descriptors of the pipe to it and of the shared file."""
    for descriptor in (pipe, memory):  # programs that an environment starts must not keep the pipe open
        os.set_inheritable(descriptor, False)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    serve(Requests(Connection(pipe)), memory)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""What ends a program early, and the exit status that it then has."""

FINISHED = 0  # done, or already done
BAD_INPUT = 2  # UsageError, NonFiniteError, OSError: one line on stderr
INTERRUPTED = 130  # Ctrl-C, in a program that has nothing to save: 128 + SIGINT
WORKER_DIED = 71  # WorkerDied: one line on stderr; the run can be resumed: EX_OSERR of sysexits.h
STOPPED = 75  # stopped on request; the run can be resumed: EX_TEMPFAIL of sysexits.h


class UsageError(ValueError):
    """Bad input: one line that names the value and says what to do."""


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity: one line that names the step, the seed and the tensor."""


class EnvironmentFailed(Exception):
    """An environment raised an exception, the cause of this one; the message says where."""


class WorkerDied(Exception):
    """A process that steps environments ended before it was asked to: one line that names it and how."""


class Finished(Exception):
    """The run asked for is already complete."""


class Stopped(Exception):
    """The run was asked to stop."""


class Damaged(Exception):
    """A file whose content is not what was written; the message names it."""


def one_line(problem: BaseException) -> str:
    """What an exception says, in one line; its type if it says nothing."""
    return " ".join(str(problem).split()) or type(problem).__name__


def can_resume(status: int) -> bool:
    """True if a run that ended with this exit status was stopped, was killed, or lost a worker."""
    return status < 0 or status in (STOPPED, WORKER_DIED)


def require(holds: bool, message: str) -> None:
    """Raises UsageError with `message` unless `holds`."""
    if not holds:
        raise UsageError(message)


def is_out_of_memory(problem: BaseException) -> bool:
    """True if the memory of the host or of the device did not suffice."""
    of_device = type(problem).__name__ == "JaxRuntimeError"  # by name: the tools without JAX use this module
    words = "RESOURCE_EXHAUSTED", "Out of memory"
    return isinstance(problem, MemoryError) or of_device and any(word in str(problem) for word in words)

"""File locks, where they exist: Windows and some network file systems have none."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def acquire(file: IO, shared: bool = False, wait: bool = False) -> str | None:
    """Locks an open file until it is closed; if that is not possible, returns the reason.

    Raises BlockingIOError if another process holds the lock, unless told to `wait`.
    """
    if fcntl is None:
        return "this system has no flock"
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as problem:
        return problem.strerror or str(problem)
    return None

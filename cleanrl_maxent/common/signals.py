"""Signals that ask a program to stop: a run saves at the next step boundary and exits with STOPPED."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from cleanrl_maxent.common.errors import Stopped
from cleanrl_maxent.common.output import say

# SIGHUP: the terminal is gone; SIGXCPU: a scheduler's limit; systems lack some of these
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

received: list[signal.Signals] = []
postponed: dict[int, Any] = {}  # the handlers that `postpone` has replaced, by signal
due: list[int] = []  # postponed signals that have arrived


def listen() -> None:
    """From now on, the signals in SIGNALS are noted; a second SIGINT ends the process.

    If SIGHUP is ignored, as under `nohup`, it stays ignored.
    """
    for number in SIGNALS:
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, note)


def note(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number))
    if number in postponed:
        due.append(number)
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, postponed.get(signal.SIGINT, signal.SIG_DFL))
        with suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), b"\nstopping and saving; Ctrl-C again stops at once\n")


def stop_if_asked() -> None:
    """Raises Stopped after a signal."""
    if received:
        raise Stopped(f"stopped by {received[0].name}")


def postpone() -> None:
    """From now on, signals that would end a Python program or a notebook's cell are noted, until `deliver`.

    Does nothing in other threads, which get no signals, to signals with other handlers, as after `listen`, or
    if one has arrived since.
    """
    if threading.current_thread() is threading.main_thread() and not received:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                postponed[number] = handler
                signal.signal(number, note)


def deliver(problem: BaseException | None) -> None:
    """Restores the signals' handlers; the first signal that arrived then has its usual effect.

    `problem`: the exception that ended the run, if any. After SIGINT, raises KeyboardInterrupt with the
    message of `problem`, unless that is an error. Does nothing in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in postponed.items():
        signal.signal(number, handler)
    came = due[:]
    if came:
        received.clear()
    postponed.clear()
    due.clear()
    if came and came[0] != signal.SIGINT:
        say(problem or "the run is finished")
        signal.raise_signal(came[0])
    elif came and (problem is None or isinstance(problem, Stopped)):
        raise KeyboardInterrupt(str(problem or "the run is finished")) from None

"""Signals that ask a program to stop: a run saves at the next step boundary and exits with STOPPED."""

import os
import signal
import sys
from types import FrameType

from cleanrl_maxent.common.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

received: list[signal.Signals] = []


def listen() -> None:
    """From now on SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are noted; a second SIGINT ends the process."""
    for number in SIGNALS:
        signal.signal(number, note)


def note(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number))
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(sys.stderr.fileno(), b"\nstopping and saving; Ctrl-C again stops at once\n")


def stop_if_asked() -> None:
    """Raises Stopped after a signal."""
    if received:
        raise Stopped(f"stopped by {received[0].name}")

"""Printing: a screen, pipe or log that fails never stops the program."""

import io
import os
import sys
from collections.abc import Hashable
from contextlib import suppress
from typing import Any


class Lossy(io.FileIO):
    """An output file; what cannot be written, because the reader is gone or the disk is full, is dropped."""

    def write(self, content) -> int:
        with suppress(OSError):
            written = super().write(content)
            if written is not None:  # None: a non-blocking pipe is full
                return written
        return memoryview(content).nbytes


def make_output_lossy() -> None:
    """Lets standard output and error fail silently; call it first in a program.

    Characters that cannot be encoded become `?`. Streams that a test or a notebook has replaced stay.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: `>&-`
            setattr(sys, name, open(os.devnull, "w"))
        elif stream is getattr(sys, f"__{name}__"):
            with suppress(OSError):
                stream.flush()
            errors = "replace" if name == "stdout" else stream.errors
            if os.name == "nt":  # a Windows console is not a file
                stream.reconfigure(errors=errors)
                continue
            file = Lossy(stream.fileno(), "w", closefd=False)
            new = io.TextIOWrapper(
                file if stream.write_through else io.BufferedWriter(file),  # pyright: ignore[reportArgumentType]
                encoding=stream.encoding,
                errors=errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, new)


class Screen:
    """Standard output or error, whichever stream Python uses for it at the moment; never raises."""

    def __init__(self, name: str):
        self.name = name

    @property
    def stream(self) -> Any:
        return getattr(sys, self.name)

    @property
    def rich_proxied_file(self) -> "Screen":
        """What rich writes to: the original stream, even while rich's own replaces it for a live line."""
        return ScreenBelow(self.name)

    def write(self, text: str) -> int:
        stream = self.stream
        with suppress(OSError, ValueError, AttributeError):  # ValueError: closed; AttributeError: None
            try:
                stream.write(text)
            except UnicodeEncodeError:
                stream.write(text.encode(stream.encoding, "replace").decode(stream.encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(getattr(sys, self.name), name)


class ScreenBelow(Screen):
    """The stream beneath the proxy with which rich keeps a live line at the bottom."""

    @property
    def stream(self) -> Any:
        above = getattr(sys, self.name)
        return getattr(above, "rich_proxied_file", above)


SCREEN, ERRORS = Screen("stdout"), Screen("stderr")


def say(text: object) -> None:
    """Prints a line, if it can be printed."""
    print(text, file=SCREEN, flush=True)


def warn(text: object) -> None:
    """Prints a line of warning on standard error, if it can be printed."""
    print(f"warning: {text}", file=ERRORS, flush=True)


warned = set()  # keys of the warnings that this process has given once


def warn_once(text: str, key: Hashable = None) -> None:
    """Warns, unless a warning with the same key, by default its text, was given before."""
    key = key or text
    if key not in warned:
        warned.add(key)
        warn(text)

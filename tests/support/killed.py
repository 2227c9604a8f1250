"""Runs an algorithm, and kills this very process at the n-th call of a function of the program.

python tests/support/killed.py sac cleanrl_maxent.common.files:os.fsync:3 --run-dir ...
"""

import importlib
import os
import signal
import sys
from pathlib import Path

import cleanrl_maxent
from cleanrl_maxent.common.cli import run_from_command_line


def callers(frame):
    """The functions of this program that led to `frame`, the innermost last."""
    names, root = [], str(Path(cleanrl_maxent.__file__).parent)
    while frame:
        in_program = frame.f_code.co_filename.startswith(root)
        if in_program and not frame.f_code.co_name.startswith("<"):  # no lambda or comprehension
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return reversed(names)


def kill_at(point):
    """Replaces a function, `module:name:n`, by one whose n-th call is the end of this process."""
    module, name, count = point.split(":")
    owner, calls = importlib.import_module(module), 0
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    called = getattr(owner, name)

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == int(count):
            print("killed in", *callers(sys._getframe(1)), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*args, **kwargs)

    setattr(owner, name, call)


if __name__ == "__main__":
    algorithm, point = sys.argv.pop(1), sys.argv.pop(1)
    if point != "none":
        kill_at(point)
    module = cleanrl_maxent.algorithms()[algorithm]
    run_from_command_line(module.Args, module.train)

"""W&B beside a run, in a separate process, so that nothing it does affects training."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cleanrl_maxent.common import signals
from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.cli import RunArgs

PATIENCE = 18.0  # seconds that a run waits at its end, at most
LOG = "wandb/tracker.log"  # in the run's folder: W&B's own output


def track_command(folder: Path) -> str:
    """The command that sends a run's record to W&B later."""
    return f"python -m cleanrl_maxent.track {shlex.quote(str(folder))}"


def incomplete_warning(folder: Path) -> str:
    """The warning about a run whose record W&B does not fully have."""
    return f"warning: W&B lacks some of the record; send the rest: {track_command(folder)}"


class Tracker:
    """The process that follows a run's record, `python -m cleanrl_maxent.track --follow`.

    It ends when the run does, even if the run is killed.
    """

    def __init__(self, args: RunArgs, folder: Path, say: Callable[[str], None]):
        """Starts the process if `--track` is given and W&B is not disabled; raises nothing.

        `say` shows a line: the address of the W&B run, or a warning.
        """
        self.folder, self.say = folder, say
        self.process: subprocess.Popen[str] | None = None
        mode = os.environ.get("WANDB_MODE") if args.wandb_mode == "auto" else args.wandb_mode
        if not args.track or mode == "disabled":
            return
        if mode and mode not in ("online", "offline", "shared", "run", "dryrun"):
            say(f"warning: W&B is off: WANDB_MODE is {mode!r}; send the record: {track_command(folder)}")
            return
        command = [sys.executable, "-m", "cleanrl_maxent.track", str(folder), "--follow", args.wandb_mode]
        command += ["--wandb-project-name", args.wandb_project_name]
        command += ["--wandb-entity", args.wandb_entity] if args.wandb_entity else []
        # this variable would connect the process to the W&B service of this one, if it has one
        variables = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        try:
            (folder / "wandb").mkdir(exist_ok=True)
            with open(folder / LOG, "wb") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=variables,
                    start_new_session=True,  # Ctrl-C is for the run
                )
        except OSError as problem:
            say(f"warning: W&B is off: {problem}")
            return
        self.reader = threading.Thread(target=self.show_lines, daemon=True)
        self.reader.start()

    def show_lines(self) -> None:
        """Shows each line of the process until it ends."""
        process = self.process
        assert process and process.stdout
        with process.stdout as lines:
            for line in lines:
                self.say(line.rstrip("\n"))

    def finish(self, exit_code: int) -> None:
        """Reports how the run ended; waits until the record is sent, PATIENCE passes or a signal comes.

        If some of it is not sent by then, a line says how to send it later. A second call does nothing.
        """
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(f"{exit_code}\n")
        end, received = time.perf_counter() + PATIENCE, len(signals.received)
        with doing("waiting for W&B"):
            while process.poll() is None and time.perf_counter() < end and len(signals.received) == received:
                time.sleep(0.02)
        if process.poll() is None:
            with suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:  # Windows
                    process.kill()
        if process.wait() != 0:  # killed, here or by the system; it has reported everything else itself
            self.say(incomplete_warning(self.folder))
        self.reader.join(1.0)

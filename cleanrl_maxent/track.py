"""Sends a run's record to Weights & Biases: now or later, finished or not, tracked from the start or not.

python -m cleanrl_maxent.track RUN_DIR
"""

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from tyro.conf import Positional

from cleanrl_maxent.common.cli import RunArgs, run_script
from cleanrl_maxent.common.config import read_config
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.run.locking import acquire
from cleanrl_maxent.common.run.mirror import Mirror, in_a_line
from cleanrl_maxent.common.run.tracker import LOG, incomplete_warning, track_command

POLL = 2.0  # seconds between two reads of a record that is followed
# seconds for W&B to connect, and to upload the rest at the end; LATER: if no run is waiting
CONNECT, CONNECT_LATER = 8.0, 20.0
UPLOAD, UPLOAD_LATER = 8.0, 300.0
END = 16.0  # seconds from the end of the followed run to the end of this process

# W&B would add facts about this process and machine, which need not be the run's; and if its server does not
# answer, its query for the account would take 10 s more, and its error reports 12 s
OMITTED = ("META", "STATS", "MACHINE_INFO", "VIEWER")
VARIABLES = {f"WANDB__DISABLE_{name}": "true" for name in OMITTED}
VARIABLES |= {"WANDB_DISABLE_GIT": "true", "WANDB_DISABLE_CODE": "true"}
VARIABLES |= {"WANDB__SAVE_REQUIREMENTS": "false", "WANDB_ERROR_REPORTING": "false"}


@dataclass(frozen=True)
class Args:
    """Sends a run's record, or the part that W&B lacks, to Weights & Biases."""

    run_dir: Positional[Path]  # the run's folder
    wandb_project_name: str | None = None  # W&B project; by default the run's
    wandb_entity: str | None = None  # W&B team; by default the run's
    follow: Literal["auto", "online", "offline"] | None = None  # used by --track: mode, as in --wandb-mode


Say = Callable[[str], None]  # shows a line


@contextmanager
def quiet(log: Path, fresh: bool) -> Iterator[Say]:
    """Redirects output to `log`, emptied first if `fresh`; yields a function that still shows a line."""
    sys.stdout.flush()
    screens = os.dup(1), os.dup(2)
    with open(log, "wb" if fresh else "ab") as file:
        for stream in (1, 2):  # file descriptors, because W&B has a process that prints too
            os.dup2(file.fileno(), stream)

    def say(line: str) -> None:
        with suppress(BrokenPipeError):  # the run that would show it has ended
            os.write(screens[0], f"{line}\n".encode())

    try:
        yield say
    finally:
        sys.stdout.flush()
        for stream, screen in enumerate(screens, start=1):
            os.dup2(screen, stream)


@contextmanager
def only_one(folder: Path, wait: bool) -> Iterator[None]:
    """Locks `wandb/.lock`; if another process holds it, waits if `wait`, else raises UsageError."""
    with open(folder / "wandb" / ".lock", "w") as lock:
        try:
            acquire(lock, wait=wait)
        except BlockingIOError as problem:
            raise UsageError(f"{folder} is being sent to W&B by another process") from problem
        yield


def make_mirrors(args: Args, say: Say) -> list[Mirror]:
    """A mirror for every seed with a record; none if W&B is disabled."""
    import wandb

    mode = wandb.setup().settings.mode if args.follow == "auto" else args.follow or "online"
    if mode == "disabled":
        return []
    recorded = read_config(args.run_dir)["args"]
    options = {
        "project": args.wandb_project_name or recorded.get("wandb_project_name", RunArgs.wandb_project_name),
        "entity": args.wandb_entity or recorded.get("wandb_entity"),
        "mode": "offline" if mode in ("offline", "dryrun") else "online",
        "settings": wandb.Settings(
            init_timeout=CONNECT if args.follow else CONNECT_LATER,
            finish_timeout=UPLOAD if args.follow else UPLOAD_LATER,
            finish_timeout_raises=True,
            console="off",
            stop_fn=lambda: None,  # the stop button of W&B's page would interrupt this process
        ),
    }
    seeds = sorted(int(path.parent.name[5:]) for path in args.run_dir.glob("seed-*/metrics.jsonl"))
    return [Mirror(args.run_dir, seed, dict(options), say) for seed in seeds]


def address(mirrors: list[Mirror]) -> str:
    """The URL of the W&B run, or of its group if there are several."""
    run = mirrors[0].run
    return run.url if len(mirrors) == 1 else f"{run.project_url}/groups/{quote(run.group)}"


def why(problem: Exception) -> str:
    """Why W&B does not work, in one line."""
    late = re.search("deadline exceeded|Timed out", str(problem))  # W&B's words for it
    return "its server cannot be reached" if late else in_a_line(problem)


def open_all(mirrors: list[Mirror], say: Say) -> None:
    """Starts every W&B run, all of them offline if one cannot be online, and says where they are."""
    import wandb

    later = f"send it later: {track_command(mirrors[0].folder)}"
    try:
        for mirror in mirrors:
            mirror.open()
    except Exception as problem:
        if mirrors[0].offline:
            raise
        traceback.print_exc()
        say(f"warning: W&B is offline: {why(problem)}; {later}")
        wandb.teardown()  # else the failed W&B run would keep its id occupied
        for mirror in mirrors:
            mirror.options["mode"] = "offline"
            mirror.open()
    else:
        say(f"W&B is offline; {later}" if mirrors[0].offline else f"W&B: {address(mirrors)}")


def finish_all(mirrors: list[Mirror], exit_code: int) -> bool:
    """Ends all W&B runs in parallel; False if W&B lacks part of a record."""

    def finish(mirror: Mirror) -> bool:
        try:
            mirror.finish(exit_code)
        except Exception:
            traceback.print_exc()
            return False
        return True

    with ThreadPoolExecutor(len(mirrors)) as threads:
        complete = list(threads.map(finish, mirrors))
    sys.stderr.flush()
    # W&B prints this and raises nothing if its server refuses an upload
    return all(complete) and "Fatal error while uploading" not in (mirrors[0].folder / LOG).read_text()


class Ending:
    """The end of the followed run: its exit code arrives on standard input, or nothing if it is killed.

    This process then has END seconds left.
    """

    def __init__(self, folder: Path, say: Say):
        self.folder, self.say, self.exit_code, self.came = folder, say, 1, threading.Event()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        self.exit_code = int(sys.stdin.readline().strip() or 1)
        self.came.set()
        time.sleep(END)
        self.say(incomplete_warning(self.folder))
        os._exit(0)  # whatever W&B is waiting for


def follow(args: Args, say: Say) -> None:
    """Sends a record while its run writes it, to the end; reports a failure in one line."""
    ending = Ending(args.run_dir, say)
    try:
        with only_one(args.run_dir, wait=True):  # the process of a run killed a moment ago may still be alive
            mirrors = make_mirrors(args, say)
            if not mirrors:
                return
            open_all(mirrors, say)
            over = False
            while not over:
                ending.came.wait(POLL)
                over = ending.came.is_set()  # before the last read, so that the record is complete
                for mirror in mirrors:
                    mirror.send()
            if not finish_all(mirrors, ending.exit_code):
                say(incomplete_warning(args.run_dir))
    except ImportError:
        say("warning: W&B is off: it is not installed (pip install wandb)")
    except Exception as problem:
        traceback.print_exc()
        say(f"warning: W&B is off: {why(problem)}; send the record: {track_command(args.run_dir)}")


def send(args: Args, say: Say) -> None:
    """Sends the rows that W&B lacks; raises UsageError if W&B cannot be reached or refuses them."""
    try:
        with only_one(args.run_dir, wait=False):
            mirrors = make_mirrors(args, say)
            require(bool(mirrors), f"{args.run_dir} has no record to send")
            for mirror in mirrors:
                mirror.open()
                mirror.send()
            complete = finish_all(mirrors, exit_code=0 if (args.run_dir / "result.json").exists() else 1)
    except ImportError as problem:
        raise UsageError("W&B is not installed: pip install wandb") from problem
    except UsageError:
        raise
    except Exception as problem:
        traceback.print_exc()
        raise UsageError(f"W&B: {why(problem)}; nothing was lost, try again later") from problem
    log = args.run_dir / LOG
    require(complete, f"W&B did not accept everything; see {log}; the same command sends the rest")
    say(f"sent to {address(mirrors)}")


def main(args: Args) -> None:
    """Sends a record. W&B's own output goes to `wandb/tracker.log`."""
    read_config(args.run_dir)
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if args.follow != "auto":
        os.environ["WANDB_MODE"] = args.follow or "online"
    log = args.run_dir / LOG
    log.parent.mkdir(exist_ok=True)
    if not args.follow:
        sys.stdin = open(os.devnull)  # so that W&B asks for no key
    with quiet(log, fresh=not args.follow) as say:
        try:
            follow(args, say) if args.follow else send(args, say)
        except KeyboardInterrupt:
            say("stopped; the same command sends the rest")
            os._exit(130)  # a normal exit would wait for W&B to send everything
        finally:
            if wandb := sys.modules.get("wandb"):
                wandb.teardown()  # else it runs at exit, and prints


if __name__ == "__main__":
    run_script(Args, main)

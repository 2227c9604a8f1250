"""Opens a run's folder: a new one, or that of a run to resume."""

import itertools
import json
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from cleanrl_maxent.common.cli import FOLDERS, RunArgs
from cleanrl_maxent.common.config import EVALUATION, check_known, has_changed, read_config
from cleanrl_maxent.common.env.task import parse_task
from cleanrl_maxent.common.errors import Damaged, Finished, UsageError
from cleanrl_maxent.common.evaluation import with_frequency
from cleanrl_maxent.common.output import say, warn
from cleanrl_maxent.common.policy import check_same_task
from cleanrl_maxent.common.run.checkpoint import Checkpoint, Checkpoints
from cleanrl_maxent.common.run.locking import acquire
from cleanrl_maxent.common.run.machine import check_same_machine
from cleanrl_maxent.common.run.record import is_intact

# arguments that may differ on resume, because they change nothing that is learned or recorded
MAY_DIFFER = {
    "run_dir",
    "resume",
    "total_timesteps",
    "checkpoint_frequency",
    "device",
    "env_workers",
    "allow_version_change",
    "capture_video",
    "video_count",
    "video_frames",
    "track",
    "wandb_project_name",
    "wandb_entity",
    "wandb_mode",
    "upload_model",
    "hf_entity",
}


def file_name(env_id: str) -> str:
    """An environment's id as part of a file's name: `/` and `:` become `_`."""
    return env_id.replace("/", "_").replace(":", "_")


def make_run_dir(args: RunArgs) -> Path:
    """Makes a folder for a run without one: `runs/{env_id}__{exp_name}__{seed}__{unix time}`.

    If that exists, `-2`, `-3` and so on are appended. Raises UsageError if it cannot be made.
    """
    name = f"{file_name(args.env_id)}__{args.exp_name}__{args.seed}__{int(time.time())}"
    folder = Path("runs", name)
    try:
        folder.parent.mkdir(exist_ok=True)
        for number in itertools.count(2):
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # another run, perhaps started in the same second
                folder = Path("runs", f"{name}-{number}")
    except OSError as problem:  # FileExistsError: a file, or a link to a folder that is gone
        reason = "runs is not a folder" if isinstance(problem, FileExistsError) else problem.strerror
        raise UsageError(f"cannot write to {folder}: {reason}") from problem
    raise AssertionError("unreachable")


def is_under_way(folder: Path) -> bool:
    """True if a run in `folder` has a checkpoint or a result."""
    return (folder / "result.json").exists() or any(folder.glob("checkpoint/checkpoint-*.json"))


def lock(folder: Path) -> TextIO:
    """Creates `folder` and locks its `.lock`; the system releases the lock when the process ends.

    Raises UsageError if it cannot be written, is not a run, or is locked by another process.
    """
    try:
        check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")
    except OSError as problem:
        raise UsageError(f"cannot write to {folder}: {problem.strerror}") from problem
    for left in reversed(range(10)):  # whoever asks whether a run is locked holds it for a moment
        try:
            no_lock = acquire(file)
            break
        except BlockingIOError as problem:
            if not left:
                with file:
                    file.seek(0)
                    holder = file.read().strip()
                    raise UsageError(f"{folder} is being written by process {holder}") from problem
        time.sleep(0.05)
    if no_lock:
        warn(f"{folder} cannot be locked ({no_lock}): nothing keeps a second process from writing to it")
    file.truncate(0)
    print(f"{os.getpid()} on {platform.node()}", file=file, flush=True)
    return file


def check_free(folder: Path) -> None:
    """Raises UsageError if a folder holds anything other than a run; and OSError."""
    names = set(os.listdir(folder)) if folder.exists() else set()
    # a run that ended at once leaves these names, and systems and editors hidden ones
    begun = ".lock" in names and all(name.startswith(".") or name == "config.json.tmp" for name in names)
    if "config.json" in names:
        try:
            read_config(folder)
        except UsageError as problem:
            raise UsageError(f"{problem}; name another --run-dir") from problem
    elif names and not begun and not any(folder.glob("checkpoint/c*-*.json")):
        holds = "holds runs" if any(folder.glob("*/config.json")) else "exists and is not a run"
        raise UsageError(f"{folder} {holds}; name a new folder, such as --run-dir {folder}/mine")


def find_checkpoint(
    folder: Path, checkpoints: Checkpoints, args: RunArgs, config: dict[str, Any]
) -> Checkpoint | None:
    """The newest good checkpoint of the run in `folder`; None if it has none yet.

    Raises UsageError if the folder holds another run or no good checkpoint is left, and Finished if
    it holds all that `args` ask for.
    """
    if not (folder / "config.json").exists():
        checkpoints.check_version()
        if checkpoints.paths():
            raise UsageError(f"{folder}/config.json is missing; put it back, or name another --run-dir")
        return None
    recorded = read_config(folder)
    if recorded["algorithm"] != config["algorithm"]:
        raise UsageError(f"{folder} is a run of {recorded['algorithm']}; name another --run-dir")
    check_same_args(folder, recorded["args"], args, may_differ=EVALUATION)
    if isinstance(recorded.get("task"), dict):  # not in runs of earlier versions
        advice = "; undo the change of the environment, or name another --run-dir"
        check_same_task(folder, args.env_id, parse_task(config["task"]), advice)
    has_begun = (folder / "result.json").exists() or checkpoints.paths()
    if has_begun and has_changed(args, recorded):
        warn(f"{args.file().name} has changed since {folder} was started; another --run-dir starts it anew")
    if (folder / "result.json").exists():
        done = read_json(folder / "result.json")["total_timesteps"]
        lost = not all((folder / f"policy-{seed}.npz").exists() for seed in args.seeds)
        if done >= args.total_timesteps and not (lost and checkpoints.paths()):
            check_same_args(folder, recorded["args"], args)
            more = (
                f"; python -m cleanrl_maxent.track {quote(str(folder))} sends it to W&B" if args.track else ""
            )
            steps = replace(args, total_timesteps=done).last_step
            raise Finished(f"{folder} is finished ({steps} steps); nothing to do{more}")
    checkpoints.check_version()
    for path in checkpoints.paths():
        try:
            checkpoint = checkpoints.read(path)
            for seed, synced in zip(args.seeds, checkpoint.meta["records"], strict=True):
                record = folder / f"seed-{seed}" / "metrics.jsonl"
                if not is_intact(record, synced):
                    raise Damaged(f"{record} is not what was written")
        except Damaged as problem:
            say(f"warning: {problem}; trying the previous checkpoint")
            continue
        check_same_args(folder, checkpoint.meta["args"], args, may_differ=EVALUATION)
        if not args.allow_version_change:
            check_same_machine(checkpoint.meta["machine"], config)
        if checkpoint.steps > args.total_timesteps:
            raise UsageError(
                f"{folder} has {checkpoint.steps} steps already, more than {args.total_timesteps}"
            )
        return checkpoint
    if checkpoints.paths():
        raise UsageError(f"no good checkpoint left in {checkpoints.folder}; name another --run-dir")
    if (folder / "result.json").exists():
        raise UsageError(
            f"{folder} is finished and has no checkpoint to extend it from; name another --run-dir"
        )
    return None


def check_same_args(
    folder: Path,
    recorded: dict[str, Any],
    args: RunArgs,
    advice: str | None = None,
    may_differ: Iterable[str] = (),
) -> None:
    """Raises UsageError, naming the arguments that differ between a run and `args`, with advice.

    `may_differ`: names of arguments that may, besides those of MAY_DIFFER.
    """
    given = json.loads(json.dumps(asdict(with_frequency(args))))
    # flags newer than the run have their defaults
    recorded = json.loads(json.dumps(asdict(type(args)()))) | recorded
    check_known(folder, recorded, type(args), f"; {advice or 'name another --run-dir'}")
    before = replace(args, total_timesteps=recorded["total_timesteps"])
    fixed = args.length_is_fixed or before.length_is_fixed
    free = (MAY_DIFFER - {"total_timesteps"} if fixed else MAY_DIFFER).union(may_differ)
    different = [
        name
        for name in given
        if name not in free and given[name] != recorded[name]
        if name not in FOLDERS or not same_path(given[name], recorded[name])
    ]
    if different:
        longer = different == ["total_timesteps"]
        annealed = "its steps so far depend on its length, so it cannot be extended: name another --run-dir"
        other = "keep the run's, or start a new run in another --run-dir"
        advice = advice or (annealed if longer else other)
        was = ", ".join(f"{name}={recorded[name]}" for name in different)
        now = ", ".join(str(given[name]) for name in different)
        raise UsageError(f"{folder} was started with {was}; you gave {now}: {advice}")


def same_path(first: str | None, second: str | None) -> bool:
    """True for two spellings of one path, such as `runs/a` and `runs/a/`."""
    return first is not None and second is not None and os.path.abspath(first) == os.path.abspath(second)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a run's `config.json` or `result.json`; raises UsageError if it is neither."""
    try:
        content = json.loads(path.read_text())
    except ValueError as problem:
        raise UsageError(f"{path} is damaged: {problem}") from problem
    if not isinstance(content, dict) or not {"algorithm", "total_timesteps"} & content.keys():
        raise UsageError(f"{path} does not belong to a run; name another --run-dir")
    return content

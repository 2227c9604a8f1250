"""Opening a run's folder: a new one, or one whose run goes on."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from cleanrl_maxent.common.arguments import Finished, RunArgs, UsageError
from cleanrl_maxent.common.checkpoint import Checkpoints, Commit, Damaged
from cleanrl_maxent.common.machine import check_same_machine
from cleanrl_maxent.common.record import unchanged

# arguments that change nothing of what is learned or recorded, and so may differ on resume; an annealed
# learning rate depends on total_timesteps
FREE = {
    *("run_dir", "resume", "total_timesteps", "checkpoint_frequency", "device", "allow_version_change"),
    *("track", "wandb_project_name", "wandb_entity", "wandb_mode"),
}


def file_name(env_id: str) -> str:
    """An environment's id as part of a file's name: `/` and `:` become `_`."""
    return env_id.replace("/", "_").replace(":", "_")


def default_run_dir(args: RunArgs) -> Path:
    """`runs/{env_id}__{exp_name}__{seed}__{unix time}`, CleanRL's name for it."""
    return Path("runs") / f"{file_name(args.env_id)}__{args.exp_name}__{args.seed}__{int(time.time())}"


def lock(folder: Path) -> TextIO:
    """Makes `folder` and takes its `.lock`, which the system gives back when the process ends.

    Raises UsageError where it cannot be written, is not a run's, or another process has it.
    """
    try:
        names = os.listdir(folder) if folder.exists() else []
        if names and not {".lock", "config.json"}.intersection(names):
            raise UsageError(f"{folder} exists and is not a run; name another --run-dir, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")
    except OSError as problem:
        raise UsageError(f"cannot write to {folder}: {problem.strerror}") from problem
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        with file:
            file.seek(0)
            raise UsageError(f"{folder} is being written by process {file.read().strip()}") from problem
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    return file


def find_commit(
    folder: Path, checkpoints: Checkpoints, args: RunArgs, config: dict[str, Any]
) -> Commit | None:
    """The newest good commit of the run in `folder`; None before its first.

    Raises UsageError where the folder holds another run or no good commit is left, and Finished where
    it holds all that `args` ask for.
    """
    if not (folder / "config.json").exists():
        if checkpoints.commits():
            raise UsageError(f"{folder}/config.json is missing; put it back, or name another --run-dir")
        return None
    recorded = read_json(folder / "config.json")
    if recorded["algorithm"] != config["algorithm"]:
        raise UsageError(f"{folder} is a run of {recorded['algorithm']}; name another --run-dir")
    check_same_args(folder, recorded["args"], config["args"])
    if (folder / "result.json").exists():
        done = read_json(folder / "result.json")["total_timesteps"]
        if done >= args.total_timesteps:
            raise Finished(f"{folder} is finished ({done} steps); nothing to do")
    for path in checkpoints.commits():
        try:
            commit = checkpoints.read(path)
            for seed, synced in zip(args.seeds, commit.meta["records"], strict=True):
                record = folder / f"seed-{seed}" / "metrics.jsonl"
                if not unchanged(record, synced):
                    raise Damaged(f"{record} is not what was written")
        except Damaged as problem:
            print(f"warning: {problem}; trying the commit before")
            continue
        check_same_args(folder, commit.meta["args"], config["args"])
        if not args.allow_version_change:
            check_same_machine(commit.meta["machine"], config)
        if commit.steps > args.total_timesteps:
            raise UsageError(f"{folder} has {commit.steps} steps already, more than {args.total_timesteps}")
        return commit
    if checkpoints.commits():
        raise UsageError(f"no good checkpoint left in {checkpoints.folder}; name another --run-dir")
    return None


def check_same_args(folder: Path, recorded: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises UsageError, naming the arguments in which a run differs from what is asked for."""
    given = json.loads(json.dumps(given))
    free = FREE - {"total_timesteps"} if given.get("anneal_lr") else FREE
    different = [name for name in given if name not in free and given[name] != recorded.get(name)]
    if different:
        was = ", ".join(f"{name}={recorded.get(name)}" for name in different)
        now = ", ".join(str(given[name]) for name in different)
        raise UsageError(f"{folder} was started with {was}; you gave {now}: name another --run-dir")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a run's `config.json` or `result.json`; raises UsageError where it is none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as problem:
        raise UsageError(f"{path} is damaged: {problem}") from problem
    if not isinstance(content, dict) or not {"algorithm", "total_timesteps"} & content.keys():
        raise UsageError(f"{path} is not a run's; name another --run-dir")
    return content

"""The transitions recorded by an earlier run."""

from pathlib import Path

import jax
import numpy as np

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.config import read_config
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import Damaged, UsageError, require
from cleanrl_maxent.common.output import warn
from cleanrl_maxent.common.policy import check_same_task
from cleanrl_maxent.common.run.folder import is_under_way
from cleanrl_maxent.common.run.initial import match_seeds, newest_checkpoint, split_seed


def recorded_length(args: RunArgs) -> int | None:
    """`total_timesteps` of the run that is already in `--run-dir`; None if there is none."""
    if args.run_dir is None or not is_under_way(Path(args.run_dir)):
        return None
    return read_config(Path(args.run_dir))["args"]["total_timesteps"]


def read_transitions(source: str, args: RunArgs, task: Task) -> Transition:
    """All transitions kept by the run in the folder `source`, oldest first, `(seed, transition, ...)`.

    Each seed takes those of the same seed, of the one that is named, such as `runs/x/seed-2`, or of the only
    one. Raises UsageError if the run has other spaces, keeps none (its checkpoints were removed, or it
    learned from rollouts), or is damaged.
    """
    folder, seed = split_seed(Path(source).expanduser())
    given = read_config(folder)["args"]
    check_same_task(folder, args.env_id, task)
    theirs, ours = (given["env_id"], given.get("env_kwargs", "{}")), (args.env_id, args.env_kwargs)
    if theirs != ours:
        warn(f"{folder} was recorded on {' '.join(theirs)}, this run evaluates on {' '.join(ours)}")
    first = given["seed"]
    seeds = match_seeds(folder, seed, range(first, first + given["num_seeds"]), args.seeds)
    segments = newest_checkpoint(folder, "transitions").segments
    require(
        bool(segments),
        f"{folder} keeps no transitions: it learned from rollouts, or from those of another run",
    )
    ends = [*(segment.start for segment in segments[1:]), segments[-1].stop]  # they may overlap by one
    try:
        loaded = [
            jax.tree.map(lambda leaf, count=end - segment.start: leaf[:, :count], segment.load())
            for segment, end in zip(segments, ends, strict=True)
        ]
    except Damaged as problem:
        raise UsageError(str(problem)) from problem
    rows = [s - first for s in seeds]
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[rows], *loaded)

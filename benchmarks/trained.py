"""What a run learned: its state at the newest checkpoint, and its policies."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from cleanrl_maxent.common.cli import recorded_args
from cleanrl_maxent.common.env.seeds import Task
from cleanrl_maxent.common.errors import Damaged, UsageError, require
from cleanrl_maxent.common.files import restore_tree, subtree
from cleanrl_maxent.common.policy import policy_arrays
from cleanrl_maxent.common.run.checkpoint import Checkpoint, Checkpoints


def recorded_task(folder: Path) -> Task:
    """The task of a run; raises UsageError if an earlier version wrote it."""
    config = json.loads((folder / "config.json").read_text())
    require("task" in config, f"{folder} was written by an earlier version: its task is not recorded")
    task = Task(**config["task"])
    return task._replace(low=tuple(task.low), high=tuple(task.high))


def newest_checkpoint(folder: Path) -> Checkpoint:
    """The last checkpoint of a run; raises UsageError if there is none that is whole."""
    checkpoints = Checkpoints(folder / "checkpoint")
    checkpoints.check_version()
    if not checkpoints.paths():
        raise UsageError(f"{folder} has no checkpoint yet")
    try:
        return checkpoints.read(checkpoints.paths()[0])
    except Damaged as problem:
        raise UsageError(str(problem)) from problem


def trained_state(algorithm: ModuleType, folder: Path) -> tuple[Any, Checkpoint]:
    """What the first seed of a run had learned at its last checkpoint, and that checkpoint.

    Raises UsageError if the folder holds no such run.
    """
    args, task = recorded_args(algorithm.Args, str(folder)), recorded_task(folder)
    checkpoint = newest_checkpoint(folder)
    init = jax.vmap(lambda key: algorithm.init(key, task, args))
    states = init(jax.random.split(jax.random.key(0), args.num_seeds))
    states = restore_tree(states, subtree("state/", checkpoint.arrays))
    return jax.tree.map(lambda leaf: leaf[0], states), checkpoint


def saved_policy(algorithm: ModuleType, folder: Path, seed: int) -> Any:
    """The policy of a seed of a finished run, for `algorithm.act`. Raises UsageError, OSError."""
    args, task = recorded_args(algorithm.Args, str(folder)), recorded_task(folder)
    policy = algorithm.policy(algorithm.init(jax.random.key(0), task, args))
    with np.load(folder / f"policy-{seed}.npz") as saved:
        leaves = [saved[name] for name in policy_arrays(policy)]
    return jax.tree.unflatten(jax.tree.structure(policy), leaves)

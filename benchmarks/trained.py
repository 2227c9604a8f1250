"""What a run learned: its state at the newest checkpoint."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from cleanrl_maxent.common.cli import recorded_args
from cleanrl_maxent.common.files import restore_tree, subtree
from cleanrl_maxent.common.policy import recorded_task
from cleanrl_maxent.common.run.checkpoint import Checkpoint
from cleanrl_maxent.common.run.initial import newest_checkpoint


def trained_state(algorithm: ModuleType, folder: Path) -> tuple[Any, Checkpoint]:
    """What the first seed of a run had learned at its last checkpoint, and that checkpoint.

    Raises UsageError if the folder holds no such run.
    """
    args, task = recorded_args(algorithm.Args, str(folder)), recorded_task(folder)
    checkpoint = newest_checkpoint(folder, "networks")
    init = jax.vmap(lambda key: algorithm.init(key, task, args))
    states = init(jax.random.split(jax.random.key(0), args.num_seeds))
    states = restore_tree(states, subtree("state/", checkpoint.arrays))
    return jax.tree.map(lambda leaf: leaf[0], states), checkpoint

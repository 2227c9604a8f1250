"""`--init-from`: a new run that starts from the networks of another."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.training.train_state import TrainState

from cleanrl_maxent.common.cli import RunArgs, recorded_args
from cleanrl_maxent.common.data import Statistics
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import Damaged, UsageError, require
from cleanrl_maxent.common.files import digest, leaf_name, named_arrays, replace_leaf, subtree
from cleanrl_maxent.common.output import say
from cleanrl_maxent.common.policy import check_same_task
from cleanrl_maxent.common.run.checkpoint import Checkpoint, Checkpoints
from cleanrl_maxent.common.run.result import module_of


class Initial(NamedTuple):
    """What a run starts from."""

    arrays: dict[str, np.ndarray]  # state of the other run; its axis (seed,) holds the new run's seeds
    source: dict[str, Any]  # where it is from: folder, seeds, steps, SHA-256


def split_seed(folder: Path) -> tuple[Path, int | None]:
    """A run's folder, and the seed if `folder` is one seed's folder, such as `runs/x/seed-2`."""
    name, _, seed = folder.name.partition("-")
    one_seed = name == "seed" and seed.isdigit() and (folder.parent / "config.json").exists()
    return (folder.parent, int(seed)) if one_seed else (folder, None)


def newest_checkpoint(folder: Path, holds: str) -> Checkpoint:
    """The newest good checkpoint of a run. Raises UsageError if it has none; `holds`: what it would hold."""
    checkpoints = Checkpoints(folder / "checkpoint")
    checkpoints.check_version()
    for path in checkpoints.paths():
        try:
            return checkpoints.read(path)
        except Damaged as problem:
            say(f"warning: {problem}; trying the previous checkpoint")
    good = "good " if checkpoints.paths() else ""
    raise UsageError(f"{folder} has no {good}checkpoint, which would hold its {holds}")


def match_seeds(folder: Path, seed: int | None, recorded: range, wanted: list[int]) -> list[int]:
    """For each seed in `wanted`, the recorded seed to use.

    That is the same seed; or `seed`, if given, or the only one recorded. Raises UsageError if one is missing.
    """
    only = seed if seed is not None else recorded[0] if len(recorded) == 1 else None
    seeds = wanted if only is None else [only] * len(wanted)
    which = f"seeds {recorded[0]} to {recorded[-1]}" if len(recorded) > 1 else f"seed {recorded[0]}"
    has, one = f"{folder} has {which}", f"{folder}/seed-{recorded[0]}"
    require(set(seeds) <= set(recorded), f"{has}: name one, such as {one}")
    return seeds


def read_initial(args: RunArgs, task: Task) -> Initial:
    """The state that `--init-from` names. Each seed takes the networks of the same seed, or of the one named.

    Raises UsageError if it is not a run of this algorithm, has other spaces, seeds or networks, or has no
    checkpoint.
    """
    assert args.init_from is not None
    folder, seed = split_seed(Path(args.init_from))
    recorded = recorded_args(type(args), str(folder))
    check_same_task(folder, args.env_id, task)
    first = recorded.seed
    seeds = match_seeds(folder, seed, range(first, first + recorded.num_seeds), args.seeds)
    found = newest_checkpoint(folder, "networks")
    rows = [s - first for s in seeds]
    arrays = {name: array[rows] for name, array in subtree("state/", found.arrays).items()}
    sha256 = digest(b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    source = {"run_dir": str(folder), "seeds": seeds, "steps": found.steps, "sha256": sha256}
    initial = Initial(arrays, source)
    init = jax.vmap(lambda key: module_of(args).init(key, task, args))
    check_networks(jax.eval_shape(init, jax.random.split(jax.random.key(0), len(seeds))), initial)
    return initial


def is_learned(node: Any) -> bool:
    """True for what a run takes from another: networks, dictionaries of parameters, running statistics."""
    return isinstance(node, TrainState | Statistics | dict)


def learned_prefixes(state: Any) -> tuple[str, ...]:
    """Prefixes of the names of the leaves that a run takes from another: not those of optimisers, nor of the
    fields in the state's `not_transferred`.

    From a `TrainState`, a run takes only the dictionaries: parameters, and statistics if there are any.
    """
    nodes = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_learned)[0]
    left_out = getattr(state, "not_transferred", ())
    prefixes = []
    for path, node in nodes:
        if leaf_name(path).partition("/")[0] in left_out:
            continue
        if isinstance(node, TrainState):
            fields = [field for field, value in vars(node).items() if isinstance(value, dict)]
            prefixes += [f"{leaf_name(path)}/{field}/" for field in fields]
        elif is_learned(node):
            prefixes.append(f"{leaf_name(path)}/")
    return tuple(prefixes)


def check_networks(state: Any, initial: Initial) -> None:
    """Raises UsageError unless the networks of `initial` fit `state`, which holds arrays or shapes."""
    prefixes, leaves = learned_prefixes(state), jax.tree_util.tree_flatten_with_path(state)[0]
    named = [(leaf_name(path), leaf.shape) for path, leaf in leaves]
    ours = {(name, shape) for name, shape in named if name.startswith(prefixes)}
    theirs = {(name, array.shape) for name, array in initial.arrays.items() if name.startswith(prefixes)}
    if other := ours ^ theirs:
        name, _ = min(other)
        here, there = (dict(shapes).get(name, "missing") for shapes in (ours, theirs))
        both = f"{name} is {there} in {initial.source['run_dir']} and {here} here, seeds first"
        raise UsageError(f"networks differ: {both}; give the flags of that run's networks")


def transfer(state: Any, initial: Initial) -> Any:
    """`state` with the networks and statistics of `initial`; optimisers and the rest stay fresh.

    Leaves lead with the axis `(seed,)`.
    """
    prefixes, names = learned_prefixes(state), named_arrays(state)
    leaves, structure = jax.tree.flatten(state)
    values = [
        replace_leaf(leaf, initial.arrays[name]) if name.startswith(prefixes) else leaf
        for leaf, name in zip(leaves, names, strict=True)
    ]
    return jax.tree.unflatten(structure, values)

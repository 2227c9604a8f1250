"""A trained policy: saved as one npz file per seed, without pickle, and loaded to act."""

import io
import operator
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey

from cleanrl_maxent.common.cli import RunArgs, recorded_args, validate
from cleanrl_maxent.common.config import has_changed, read_config
from cleanrl_maxent.common.env.make import scale_action
from cleanrl_maxent.common.env.task import Task, parse_task
from cleanrl_maxent.common.errors import UsageError, require
from cleanrl_maxent.common.files import dtype_in_npz, leaf_name, pack, write_file
from cleanrl_maxent.common.output import warn_once

EXTRA_BYTES = 100_000  # of an npz file besides its arrays: names, headers, the index


def policy_arrays(policy: Any) -> dict[str, Any]:
    """The leaves of a policy, named by their keys in dictionaries and dataclasses: `params/Dense_0/kernel`.

    Positions, such as those of the arguments of a `Partial`, are left out unless leaves would share a name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(policy)[0]
    arrays = {}
    for path, leaf in leaves:
        named = tuple(key for key in path if isinstance(key, DictKey | GetAttrKey))
        arrays[leaf_name(named)] = leaf
    if len(arrays) == len(leaves):
        return arrays
    return {leaf_name(path): leaf for path, leaf in leaves}


def save_policies(folder: Path, seeds: list[int], policies: Any) -> None:
    """Writes `policy-{seed}.npz` of every seed; leaves lead with the axis `(seed,)`. Raises OSError."""
    arrays = {name: np.asarray(leaf) for name, leaf in policy_arrays(policies).items()}
    for index, seed in enumerate(seeds):
        of_seed = {name: leaf[index] for name, leaf in arrays.items()}
        write_file(folder / f"policy-{seed}.npz", pack(of_seed))


class LoadedPolicy:
    """The trained policy of one seed, a function from observations to actions in the environment's units.

    `algorithm`: its module. `args`, `task`: those of its run. `parameters`: the pytree that the algorithm's
    `act` takes.
    """

    def __init__(self, algorithm: ModuleType, args: RunArgs, task: Task, seed: int, parameters: Any):
        self.algorithm, self.args, self.task = algorithm, args, task
        self.seed, self.parameters = seed, parameters
        self.space = task.action_space
        self.calls = 0  # without a key; each gets a key of its own

        def choose(parameters, obs, count, deterministic):
            key = jax.random.fold_in(jax.random.key(seed), count)
            return algorithm.act(parameters, obs, key, deterministic)

        self.choose = jax.jit(choose, static_argnums=3)
        self.choose_with_key = jax.jit(algorithm.act, static_argnums=3)

    def __call__(self, obs, deterministic: bool = True, key: jax.Array | None = None) -> np.ndarray:
        """The action at `obs`, `(obs_dim,)`, or the actions at a batch, `(..., obs_dim)`.

        Returns `(action_dim,)` or `(..., action_dim)` within the environment's bounds and of its dtype;
        discrete actions are integers, `()` or `(...)`. With `deterministic` it is the policy's mode, if there
        is one, else a sample, drawn with `key`, by default one from the seed and the number of earlier calls
        without a key. Pass observations as the environment returns them. The first call with a new shape of
        `obs` compiles. Raises UsageError for a shape that does not fit, and for NaN and infinity.
        """
        obs = np.asarray(obs, np.float32)
        if not obs.ndim or obs.shape[-1] != self.task.obs_dim:
            raise UsageError(f"observations must have shape (..., {self.task.obs_dim}); got {obs.shape}")
        require(bool(np.isfinite(obs).all()), "observations must be finite")
        if key is None:
            action = self.choose(self.parameters, obs, self.calls, deterministic)
            self.calls += 1
        else:
            action = self.choose_with_key(self.parameters, obs, key, deterministic)
        # [()]: one discrete action as a scalar, as in training
        return np.asarray(scale_action(np.asarray(action), self.space))[()]


def recorded_task(folder: Path) -> Task:
    """The task of the run in `folder`; raises UsageError if it is damaged or not recorded."""
    config = read_config(folder)
    if "task" not in config:
        raise UsageError(f"{folder} was written by an earlier version: its task is not recorded")
    try:
        return parse_task(config["task"])
    except (TypeError, ValueError, OverflowError) as problem:
        raise UsageError(f"{folder}/config.json is damaged: {problem}") from problem


def check_same_task(folder: Path, env_id: str, task: Task, advice: str = "") -> None:
    """Raises UsageError, with `advice`, unless the run in `folder` had the spaces of `task`."""
    other = recorded_task(folder)
    for name, ours in task._asdict().items():
        theirs = getattr(other, name)
        both = f"{name} is {theirs} in {folder} and {ours} in {env_id}"
        require(ours == theirs, f"spaces differ: {both}{advice}")


def load_policy(algorithm: ModuleType, folder: Path, seed: int | None = None) -> LoadedPolicy:
    """The policy of a seed, by default the first, of the finished run in `folder`.

    Reads `config.json` and `policy-{seed}.npz` and executes nothing in them. Warns if the algorithm's file
    has changed since. Raises UsageError, in one line, if they are missing or damaged, do not fit each
    other, or were written by newer code, and OSError if the policy cannot be read.
    """
    for name in ("Args", "init", "policy", "act"):
        file = getattr(algorithm, "__file__", None) or algorithm.__name__
        require(hasattr(algorithm, name), f"{file} is not an algorithm: it defines no {name}")
    args = recorded_args(algorithm.Args, str(folder))
    try:
        validate(replace(args, resume=None))
    except (UsageError, TypeError) as problem:
        misfit = f"{folder}/config.json is damaged, or does not fit {args.file().name}"
        raise UsageError(f"{misfit}: {problem}") from problem
    if has_changed(args, read_config(folder)):
        changed = f"{args.file().name} has changed since {folder} was started"
        warn_once(f"{changed}; its policies may act differently now")
    task = recorded_task(folder)
    last = args.seed + args.num_seeds - 1
    try:
        seed = args.seed if seed is None else operator.index(seed)
    except TypeError as problem:
        raise UsageError(f"seed must be an integer; got {seed!r}") from problem
    if not args.seed <= seed <= last:
        has = f"seed {last}" if args.num_seeds == 1 else f"seeds {args.seed} to {last}"
        raise UsageError(f"{folder} has {has}, not {seed}")
    path = folder / f"policy-{seed}.npz"
    if not path.exists():
        refuse_missing(path)
    expected = jax.eval_shape(
        lambda key: algorithm.policy(algorithm.init(key, task, args)), jax.random.key(0)
    )
    return LoadedPolicy(algorithm, args, task, seed, read_parameters(path, expected))


def refuse_missing(path: Path) -> NoReturn:
    """Raises UsageError, which says why a run has no policy at `path`, and what to do."""
    folder = path.parent
    resume = f"--resume {quote(str(folder))}"
    can_resume = any(folder.glob("checkpoint/checkpoint-*.json"))
    others = [other.name for other in sorted(folder.glob("policy-*.npz"))]
    if (folder / "result.json").exists():
        again = f"{resume} writes it again" if can_resume else "there is no checkpoint to write it from"
        raise UsageError(f"{folder} has lost its {path.name}; {again}")
    if others and not can_resume:  # somebody has copied them here
        raise UsageError(f"{folder} has no {path.name}, but {', '.join(others)}; name a seed that it has")
    raise UsageError(f"{folder} is not finished: it has no {path.name} yet; {resume} continues it")


def read_parameters(path: Path, expected: Any) -> Any:
    """The policy in an npz file, a pytree like `expected`.

    Raises UsageError if the file holds another, and OSError if it cannot be read.
    """
    shapes = policy_arrays(expected)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    if path.stat().st_size > size + EXTRA_BYTES:
        raise UsageError(f"{path} is not this run's policy: it is larger than one")
    content = path.read_bytes()
    try:
        arrays = read_arrays(content, shapes)
    except Exception as problem:  # a damaged header may raise anything
        reason = repr(str(problem) or type(problem).__name__)  # which may have characters of the file
        other = "damaged, or not this run's policy, or the algorithm's file has changed since"
        raise UsageError(f"{path} is {other}: {reason}") from problem
    leaves = [jnp.asarray(arrays[name]) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def read_arrays(content: bytes, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """The arrays of an npz file; raises ValueError unless they are those of `shapes`, and finite.

    An array's header is checked before its data is read, so a bad file cannot make this allocate more memory.
    """
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        names = {name.removesuffix(".npy") for name in file.namelist()}
        if names != shapes.keys():
            raise ValueError(f"{min(names ^ shapes.keys())} does not fit")
        if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
            raise ValueError("it is compressed")
        for name, expected in shapes.items():
            with file.open(f"{name}.npy") as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError(f"{name} has an unknown format")
                header = np.lib.format.read_array_header_1_0(member)
            if header[0] != expected.shape or header[2] != dtype_in_npz(expected.dtype):
                raise ValueError(f"{name} is {header[2]} {header[0]}, not {expected.dtype} {expected.shape}")
            with file.open(f"{name}.npy") as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False).view(expected.dtype)
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is not finite")
    return arrays

"""A trained policy on disk: one npz file for each seed, without pickle."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, GetAttrKey

from cleanrl_maxent.common.files import named_arrays, pack, write_file


def policy_arrays(policy: Any) -> dict[str, np.ndarray]:
    """The arrays of a policy under their names in dictionaries and dataclasses, `params/Dense_0/kernel`.

    Positions, such as those of the arguments of a `Partial`, are left out unless arrays would share a name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(policy)[0]
    arrays = {}
    for path, leaf in leaves:
        named = tuple(key for key in path if isinstance(key, DictKey | GetAttrKey))
        arrays[jax.tree_util.keystr(named, simple=True, separator="/")] = np.asarray(leaf)
    return arrays if len(arrays) == len(leaves) else named_arrays(policy)


def save_policies(folder: Path, seeds: list[int], policies: Any) -> None:
    """Writes `policy-{seed}.npz` of every seed; leaves lead with the axis `(seed,)`. Raises OSError."""
    arrays = policy_arrays(policies)
    for index, seed in enumerate(seeds):
        of_seed = {name: leaf[index] for name, leaf in arrays.items()}
        write_file(folder / f"policy-{seed}.npz", pack(of_seed))

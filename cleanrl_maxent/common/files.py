"""Named arrays, in npz files without pickle, and files that are written whole or not at all."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.output import warn_once

# errors of systems that cannot flush: some network file systems, and Windows for folders
CANNOT_FLUSH = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EACCES", "EPERM", "EISDIR", "ENOTTY")
}


def leaf_name(path) -> str:
    """The name of a leaf of a pytree, from its path: `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_arrays(tree) -> dict[str, np.ndarray]:
    """The leaves of a pytree under the paths that lead to them, `params/Dense_0/kernel`; keys as bits."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        leaf_name(path): np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for path, leaf in leaves
    }


def is_key(leaf: Any) -> bool:
    """True for an array of JAX's typed random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def dtype_in_npz(dtype: np.dtype) -> np.dtype:
    """The dtype that arrays of `dtype` have in an npz file: bfloat16 and its kin are raw bytes there."""
    return np.dtype(f"V{dtype.itemsize}") if dtype.kind == "V" else dtype


def from_npz(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Views an npz file's raw bytes as `dtype`; other arrays are unchanged."""
    return array.view(dtype) if array.dtype == dtype_in_npz(dtype) else array


def subtree(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def shape_and_dtype(array: np.ndarray) -> tuple:
    return array.shape, dtype_in_npz(array.dtype)


def restore_tree(tree, arrays: Mapping[str, np.ndarray]):
    """A pytree like `tree` (structure, shapes, dtypes, devices) with the values of `arrays`.

    Raises UsageError, naming the leaf, if they do not fit each other.
    """
    expected = named_arrays(tree)
    other = expected.keys() ^ arrays.keys()
    shared = expected.keys() & arrays.keys()
    other |= {name for name in shared if shape_and_dtype(expected[name]) != shape_and_dtype(arrays[name])}
    if other:
        raise UsageError(f"the checkpoint was written by other code: {min(other)} does not fit")
    leaves, structure = jax.tree.flatten(tree)
    values = [replace_leaf(leaf, arrays[name]) for leaf, name in zip(leaves, expected, strict=True)]
    return jax.tree.unflatten(structure, values)


def replace_leaf(leaf: jax.Array, array: np.ndarray) -> jax.Array:
    """The values of `array`, as `named_arrays` gives them, with the dtype and on the devices of `leaf`."""
    if is_key(leaf):
        return leaf.at[...].set(jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf)))
    # .at[...].set keeps what a fresh array would lose: the weak type and the devices
    return leaf.at[...].set(from_npz(array, leaf.dtype))


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an npz file."""
    file = io.BytesIO()
    np.savez(file, **cast(dict[str, Any], arrays))
    return file.getvalue()


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz file; raises ValueError for one that holds pickled objects."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def flushing_if_possible() -> Iterator[None]:
    """For fsync: warns once if it is not supported; a disk that fails or is full raises OSError."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in CANNOT_FLUSH:
            raise
        warn_once(f"this file system does not flush ({problem.strerror}): a power loss may cost a checkpoint")


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Raises OSError, and then leaves the earlier file as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            with flushing_if_possible():
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise OSError(problem.errno, problem.strerror, str(path)) from problem
    with flushing_if_possible():
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

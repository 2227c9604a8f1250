"""Trains a variant of an algorithm: the same loop, with functions or classes of the variant's own."""

from types import ModuleType
from typing import Any


def train_with(algorithm: ModuleType, args: Any, **own: Any) -> Any:
    """`algorithm.train(args)` with `own` in place of what has the same names in the algorithm's file.

    The originals are restored at the end, even if training raises. Returns the run's `Result`.
    """
    replaced = {name: getattr(algorithm, name) for name in own}
    vars(algorithm).update(own)
    try:
        return algorithm.train(args)
    finally:
        vars(algorithm).update(replaced)

"""Pytrees side by side."""

import jax
import numpy as np


def leaves(*trees):
    """The leaves of pytrees of one structure, as tuples."""
    return zip(*map(jax.tree.leaves, trees), strict=True)


def changed(before, after):
    """Whether any number differs."""
    return any(not np.array_equal(a, b) for a, b in leaves(before, after))


def distance(one, other):
    """The largest difference of two numbers."""
    return max(float(np.abs(a - b).max()) for a, b in leaves(one, other))

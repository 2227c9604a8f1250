"""Names of the arrays of a saved policy."""

import numpy as np
from jax.tree_util import Partial

from cleanrl_maxent.common.policy import policy_arrays

KERNEL, BIAS = np.arange(6.0).reshape(2, 3), np.arange(3.0)


def test_names_are_those_of_dictionaries():
    policy = Partial(max, {"params": {"Dense_0": {"kernel": KERNEL, "bias": BIAS}}})
    assert policy_arrays(policy).keys() == {"params/Dense_0/kernel", "params/Dense_0/bias"}


def test_two_networks_of_the_same_names_are_told_apart_by_position():
    policy = Partial(max, {"params": {"kernel": KERNEL}}, {"params": {"kernel": 2 * KERNEL}})
    first, second = policy_arrays(policy).values()
    assert np.array_equal(first, KERNEL) and np.array_equal(second, 2 * KERNEL)

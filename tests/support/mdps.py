"""Random finite MDPs on which the exact formulas are compared."""

from functools import partial

import numpy as np

from cleanrl_maxent.environments import finite

GAMMA, ALPHA = 0.9, 0.5
SEEDS = range(50)
assert_close = partial(np.testing.assert_allclose, rtol=0)


def make_mdp(seed):
    """Six states, four actions, and a policy that is positive everywhere; in every second one a step ends
    the episode with a probability of its own."""
    P, R, start = finite.random_mdp(seed, 6, 4)
    rng = np.random.default_rng([1, seed])
    if seed % 2:
        P = P * rng.uniform(0.7, 1, size=(6, 4, 1))
    return P, R, start, rng.dirichlet(np.ones(4), size=6)


def average(pi, values):
    """E_π of values `(S, A)`, `(S,)`."""
    return np.sum(pi * values, axis=-1)

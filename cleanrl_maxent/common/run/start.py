"""What comes before the loop of every algorithm."""

from typing import NamedTuple

import jax
import numpy as np

from cleanrl_maxent.common.cli import RunArgs, validate
from cleanrl_maxent.common.devices import seed_sharding, set_up_device
from cleanrl_maxent.common.env.make import chosen_env
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.run.hub import check_hub


class Keys(NamedTuple):
    """JAX keys of every seed, `(seed,)` each, split over the devices."""

    init: jax.Array
    act: jax.Array
    update: jax.Array
    evaluate: jax.Array


@jax.jit
def split_keys(seeds: jax.Array) -> Keys:
    """Four independent streams for each seed, `(seed,)`; a seed's do not depend on the others."""
    return Keys(*jax.vmap(lambda seed: tuple(jax.random.split(jax.random.key(seed), 4)))(seeds))


def start(args: RunArgs, copies: int = 1) -> tuple[SeedEnvs, Keys]:
    """Checks the arguments, chooses the device, makes `copies` environments of every seed, and the keys.

    Raises UsageError for bad input, before anything is written, NonFiniteError if an environment does not
    start with finite observations, and EnvironmentFailed.
    """
    validate(args)
    check_hub(args)
    set_up_device(args.device, args.run_dir)
    envs = SeedEnvs(chosen_env(args), args.seeds, args.env_reset, copies)
    return envs, split_keys(jax.device_put(np.array(args.seeds), seed_sharding(args.num_seeds)))

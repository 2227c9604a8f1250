"""The start of every algorithm, before its loop."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cleanrl_maxent.common.cli import RunArgs, check_file, validate
from cleanrl_maxent.common.devices import chosen_device, cpu_count, seed_sharding, set_up_device
from cleanrl_maxent.common.env.make import chosen_env
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.evaluation import MODES
from cleanrl_maxent.common.run.folder import is_under_way
from cleanrl_maxent.common.run.hub import check_hub


class Keys(NamedTuple):
    """JAX keys of every seed, `(seed,)` each, split over the devices."""

    init: jax.Array
    act: jax.Array
    update: jax.Array
    evaluate: jax.Array


@jax.jit
def split_keys(seeds: jax.Array) -> Keys:
    """Four independent streams per seed, `(seed,)`, which do not depend on the other seeds."""
    return Keys(*jax.vmap(lambda seed: tuple(jax.random.split(jax.random.key(seed), 4)))(seeds))


def count_workers(args: RunArgs, copies: int) -> int:
    """Number of workers: as given; by default none on a CPU, else one per core.

    Never more than the environments of training or of an evaluation, whichever are more.
    """
    asked = args.env_workers
    if asked is None:
        cores = min(int(os.environ.get("NPROC", cpu_count())), cpu_count())  # NPROC: a run's share
        asked = 0 if chosen_device().platform == "cpu" else cores
    return min(asked, args.num_seeds * max(copies, len(MODES) * args.eval_episodes))


def start(args: RunArgs, copies: int = 1) -> tuple[SeedEnvs, Keys]:
    """Checks the arguments, chooses the device, makes `copies` environments per seed, and the keys.

    Raises UsageError for bad input, before anything is written, NonFiniteError if an environment does not
    start with finite observations, and EnvironmentFailed.
    """
    validate(args)
    if not (args.run_dir and is_under_way(Path(args.run_dir))):
        check_file(args.file())
    check_hub(args)
    set_up_device(args.device, args.run_dir, args.deterministic)
    envs = SeedEnvs(chosen_env(args), args.seeds, args.env_reset, copies, count_workers(args, copies))
    return envs, split_keys(jax.device_put(np.array(args.seeds), seed_sharding(args.num_seeds)))

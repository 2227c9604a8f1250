"""An algorithm's update on random batches that stay on the device."""

import math
from collections import Counter
from dataclasses import fields
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.schedule import equivalent_index


def learns_from_batches(algorithm: ModuleType) -> bool:
    """False for an algorithm that learns from whole rollouts, or from all data at once."""
    return hasattr(algorithm.Args, "learning_starts")


def random_batches(envs: SeedEnvs, size: int) -> Transition:
    """A batch of made-up transitions for each seed, `(seed, size, ...)`."""
    rng, num_seeds, task = np.random.default_rng(0), len(envs.seeds), envs.task

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(num_seeds, size, *shape)), jnp.float32)

    return Transition(
        obs=normal(task.obs_dim),
        action=jnp.asarray(rng.integers(task.action_dim, size=(num_seeds, size)), jnp.int32)
        if task.discrete
        else jnp.tanh(normal(task.action_dim)),
        reward=normal(),
        next_obs=normal(task.obs_dim),
        terminated=jnp.zeros((num_seeds, size)),
    )


class BatchUpdate:
    """The compiled update of every seed, as a run has it, on the same batches again and again.

    `state`: what is learned, replaced by every update. `turns`: for each program that a run needs, by the
    number of an update, how many updates of a cycle use it; every second one of TD3 moves the actor.
    """

    def __init__(self, algorithm: ModuleType, args: Any, envs: SeedEnvs):
        """Raises UsageError for an algorithm that has no such update."""
        name = algorithm.__name__.rpartition(".")[2]
        require(
            learns_from_batches(algorithm),
            f"{name} has no update of a batch: it learns from rollouts, or from all data at once",
        )
        self.keys = jax.vmap(jax.random.key)(jnp.arange(len(envs.seeds)))
        self.batches = random_batches(envs, args.batch_size)
        self.state = per_seed(algorithm.init, shared=2, static_argnums=(1, 2))(self.keys, envs.task, args)
        own = {field.name for field in fields(args)} - {field.name for field in fields(RunArgs)}
        self.frequencies = [getattr(args, name) for name in own if name.endswith("_frequency")]
        numbers = range(math.lcm(*self.frequencies))
        self.turns = Counter(equivalent_index(index, *self.frequencies) for index in numbers)

        def update(state, batch, key, index):
            return algorithm.update(state, batch, key, index, args)

        self.program = per_seed(update, shared=1, static_argnums=3, donate_argnums=0)

    def __call__(self, index: int) -> None:
        """Dispatches update number `index`."""
        turn = equivalent_index(index, *self.frequencies)
        self.state, _ = self.program(self.state, self.batches, self.keys, turn)

    def compile(self) -> None:
        """Compiles every program, and runs it once."""
        for turn in self.turns:
            self(turn)
        self.wait()

    def wait(self) -> None:
        """Returns when the device has done all that was dispatched."""
        jax.block_until_ready(self.state)

    def flops(self) -> float:
        """Floating-point operations of an update of all seeds as XLA counts them, averaged over a cycle."""
        total = 0.0
        for turn, count in self.turns.items():
            jitted: Any = self.program.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
            lowered = jitted.lower(self.state, self.batches, self.keys, turn)
            total += count * lowered.compile().cost_analysis()["flops"]
        return total / self.turns.total()

"""The algorithms that there are, and what the updates of a small run of each are given."""

from dataclasses import dataclass
from types import ModuleType

import jax
import numpy as np

import cleanrl_maxent
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.env.task import Task
from tests.support.runs import small_args

ENVIRONMENTS = {"Box": "Pendulum-v1", "Discrete": "CartPole-v1"}
TASKS = {"Box": Task(3, 1), "Discrete": Task(4, 2, discrete=True)}  # of these


@dataclass(frozen=True)
class Case:
    """An algorithm, and a kind of actions that it takes."""

    name: str
    kind: str
    module: ModuleType

    def __str__(self):
        return f"{self.name} {self.kind}"

    @property
    def task(self):
        """What the algorithm needs to know of the environment."""
        return TASKS[self.kind]

    def args(self, **given):
        """Arguments of a small run."""
        return small_args(self.module, env_id=ENVIRONMENTS[self.kind], **given)


CASES = [
    Case(name, kind, module)
    for name, module in cleanrl_maxent.algorithms().items()
    for kind in getattr(module.Args, "action_spaces", ())  # none: tests of its arguments say so
]


@dataclass(frozen=True)
class Inputs:
    """What the updates of a run were given besides the state, in turn; leaves lead with `(seed,)`."""

    data: list
    keys: list
    indices: list[int]
    played: list  # of every step of the environments: transition, ended, and the steps of its episode before
    on_host: bool  # the numbers of the updates are Python's, not traced by JAX

    def __len__(self):
        return len(self.indices)


def record_inputs(case, patch, args):
    """The inputs of every update of a run that learns nothing, for all of its seeds.

    Raises JAX's `KeyReuseError` if the run draws from the key of an update, or twice from another.
    """
    notes, kinds, played, step_wait = [], [], [], SeedEnvs.step_wait

    def step(envs):
        elapsed, episodes = np.array(envs.elapsed), step_wait(envs)
        played.append(jax.tree.map(np.array, (envs.transition, envs.ended, elapsed)))
        return episodes

    def note(*arrays):
        notes.append(jax.tree.map(np.asarray, arrays))

    def update(state, data, key, index, args):
        kinds.append(isinstance(index, int))
        jax.debug.callback(note, index, data, jax.random.key_data(key))
        jax.random.bits(key)  # an update consumes its key
        return state, {}

    patch.setattr(SeedEnvs, "step_wait", step)
    patch.setattr(case.module, "update", update)
    with jax.debug_key_reuse(True):
        case.module.train(args)
    jax.effects_barrier()
    seeds = [notes[i : i + args.num_seeds] for i in range(0, len(notes), args.num_seeds)]
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *of_update) for of_update in seeds]
    indices, data, keys = zip(*stacked, strict=True)
    keys = list(map(jax.random.wrap_key_data, keys))
    return Inputs(list(data), keys, [int(index[0]) for index in indices], played, all(kinds))

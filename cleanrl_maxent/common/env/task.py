"""What an algorithm, or a policy on disk, needs to know of an environment."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.data import Transition


class Task(NamedTuple):
    """Dimensions and bounds of an environment."""

    obs_dim: int
    action_dim: int  # entries of an action; of discrete ones, how many there are
    discrete: bool = False
    low: tuple[float, ...] = ()  # bounds of the environment's actions, for -1 and 1; none if discrete
    high: tuple[float, ...] = ()
    first_action: int = 0  # the environment's number of discrete action 0
    action_dtype: str = "float32"  # of the environment's continuous actions

    @property
    def example(self) -> Transition:
        """A transition of zeros, whose shapes and dtypes are those of one environment's transitions."""
        obs, scalar = np.zeros(self.obs_dim, np.float32), np.zeros((), np.float32)
        action = np.zeros((), np.int32) if self.discrete else np.zeros(self.action_dim, np.float32)
        return Transition(obs, action, scalar, obs, scalar)

    @property
    def action_space(self) -> gym.Space:
        """The environment's action space."""
        if self.discrete:
            return gym.spaces.Discrete(self.action_dim, start=self.first_action)
        low, high = (np.array(bound, self.action_dtype) for bound in (self.low, self.high))
        return gym.spaces.Box(low, high, dtype=np.dtype(self.action_dtype).type)


def describe_task(observation_space: gym.Space, action_space: gym.Space) -> Task:
    """The task of spaces that `check_spaces` accepts."""
    assert isinstance(observation_space, gym.spaces.Box)
    obs_dim = observation_space.shape[0]
    if isinstance(action_space, gym.spaces.Discrete):
        return Task(obs_dim, int(action_space.n), discrete=True, first_action=int(action_space.start))
    assert isinstance(action_space, gym.spaces.Box)
    low, high = (tuple(map(float, bound)) for bound in (action_space.low, action_space.high))
    return Task(obs_dim, action_space.shape[0], False, low, high, action_dtype=action_space.dtype.name)


def parse_task(recorded: Mapping[str, Any]) -> Task:
    """The task that JSON recorded; raises TypeError or ValueError for what describes none."""
    task = Task(**recorded)
    task = task._replace(low=tuple(map(float, task.low)), high=tuple(map(float, task.high)))
    sizes = (task.obs_dim, task.action_dim)
    if not all(type(size) is int and size > 0 for size in sizes) or type(task.discrete) is not bool:
        raise ValueError(f"a task of {task.obs_dim} observations and {task.action_dim} actions")
    if not task.discrete:
        bounds = np.array([task.low, task.high])
        if bounds.shape != (2, task.action_dim) or not np.isfinite(bounds).all():
            raise ValueError(f"bounds of actions {task.low} and {task.high}")
        if task.action_dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"actions of dtype {task.action_dtype}")
    return task

"""What an algorithm, or a saved policy, needs to know about an environment."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.data import Transition


class Task(NamedTuple):
    """Dimensions and bounds of an environment."""

    obs_dim: int
    action_dim: int  # length of an action vector, or the number of discrete actions
    discrete: bool = False
    low: tuple[float, ...] = ()  # the environment's actions for -1 and 1; empty if discrete
    high: tuple[float, ...] = ()
    first_action: int = 0  # the environment's number of discrete action 0
    action_dtype: str = "float32"  # of the environment's continuous actions

    @property
    def example(self) -> Transition:
        """A transition of zeros, whose shapes and dtypes are those of one environment's transitions."""
        obs, scalar = np.zeros(self.obs_dim, np.float32), np.zeros((), np.float32)
        action = np.zeros((), np.int32) if self.discrete else np.zeros(self.action_dim, np.float32)
        return Transition(obs, action, scalar, obs, scalar, scalar)

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
    """The task recorded as JSON; raises TypeError or ValueError if it does not describe one."""
    task = Task(**recorded)
    task = task._replace(low=tuple(map(float, task.low)), high=tuple(map(float, task.high)))
    sizes = (task.obs_dim, task.action_dim)
    if not all(type(size) is int and size > 0 for size in sizes) or type(task.discrete) is not bool:
        raise ValueError(f"a task of {task.obs_dim!r} observations and {task.action_dim!r} actions")
    if type(task.first_action) is not int or abs(task.first_action) >= 2**63 - task.action_dim:
        raise ValueError(f"a first action of {task.first_action!r}")
    if not task.discrete:
        bounds = np.array([task.low, task.high])
        finite = bounds.shape == (2, task.action_dim) and np.isfinite(bounds).all()
        if not finite or (bounds[0] >= bounds[1]).any():
            raise ValueError(f"bounds of actions {task.low} and {task.high}")
        if task.action_dtype not in ("float16", "float32", "float64"):
            raise ValueError(f"actions of dtype {task.action_dtype!r}")
    return task

"""Probe environments with known answers, registered when this module is imported.

In a process of its own: `--env-id tests.support.probes:NanReward-v0`, with the repository's root on
PYTHONPATH.
"""

import itertools
from collections.abc import Iterator
from typing import ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Counting(gym.Env):
    """Observes the number of steps since the reset; terminates at 3. Reuses one observation array."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.buffer = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer[0] = 0
        return self.buffer, {}

    def step(self, action):
        self.buffer[0] += 1
        return self.buffer, 1.0, bool(self.buffer[0] == 3), False, {}


class ConstantReward(gym.Env):
    """Reward 1 at every step, observes the share of the time limit, 50 steps, that has passed."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.array([self.count / 50], np.float32), 1.0, False, False, {}


class Echo(gym.Env):
    """Keeps the actions that all its copies are given; bounds are neither 1 nor symmetric.

    A copy's episodes are as long as the next of `lengths` says.
    """

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Box(np.array([-0.4, -1], np.float32), np.array([0.4, 3], np.float32))
    actions: ClassVar[list] = []
    lengths: ClassVar[Iterator] = itertools.repeat(20)

    def __init__(self):
        self.length = next(Echo.lengths)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        Echo.actions.append(action)
        self.count += 1
        return np.zeros(1, np.float32), 0.0, False, self.count == self.length, {}


class Broken(gym.Env):
    """A NaN in the reward or the observation at step number `at`, or spaces that no algorithm here takes."""

    def __init__(self, at=3, tensor="reward", observation_space=None, action_space=None, shape=(2,)):
        self.at, self.tensor, self.shape = at, tensor, shape
        self.observation_space = observation_space or Box(-1, 1, (2,), np.float32)
        self.action_space = action_space or Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(self.shape, np.float32), {}

    def step(self, action):
        self.count += 1
        bad = np.nan if self.count == self.at else 0.0
        reward, noise = (bad, 0.0) if self.tensor == "reward" else (0.0, bad)
        return np.full(self.shape, noise, np.float32), reward, False, False, {}


def register(name, **options):
    """Registers an environment once, under `name`."""
    if name not in gym.registry:
        gym.register(name, **options)


register("Counting-v0", entry_point=Counting, disable_env_checker=True)  # it would warn of the reused array
register("ConstantReward-v0", entry_point=ConstantReward, max_episode_steps=50)
register("Echo-v0", entry_point=Echo)
register("NanReward-v0", entry_point=Broken, max_episode_steps=5)
register("NanObs-v0", entry_point=Broken, kwargs={"tensor": "obs"})
register("WrongShape-v0", entry_point=Broken, kwargs={"shape": (3,)}, disable_env_checker=True)
register("Unbounded-v0", entry_point=Broken, kwargs={"action_space": Box(-np.inf, np.inf, (2,), np.float32)})
register("DictObs-v0", entry_point=Broken, kwargs={"observation_space": Dict(x=Box(-1, 1, (2,)))})
register("ImageObs-v0", entry_point=Broken, kwargs={"observation_space": Box(0, 1, (4, 4), np.float32)})
register("ManyActions-v0", entry_point=Broken, kwargs={"action_space": MultiDiscrete([2, 3])})
register("DiscreteAction-v0", entry_point=Broken, kwargs={"action_space": Discrete(2)})


class Surviving(gym.Env):
    """Counts its steps over all episodes: a state that a reset does not clear."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)  # like Pendulum's: the same programs
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(3, self.steps + self.np_random.normal(), np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(3, self.steps, np.float32), float(action[0]), False, False, {}

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


class ClosesNever(Broken):
    """An environment whose `close` raises."""

    def close(self):
        raise RuntimeError("jammed")


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
register("ClosesNever-v0", entry_point=ClosesNever, kwargs={"at": 0})
register("NoObs-v0", entry_point=Broken, kwargs={"observation_space": Box(-1, 1, (0,))})
register("NoAction-v0", entry_point=Broken, kwargs={"action_space": Box(-1, 1, (0,))})
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


class Point(gym.Env):
    """A point on a line, with episodes of 20 steps; each environment below has one oddity more.

    `returned(values, number)`, if given, changes what step number `number` of an environment's life returns.
    """

    observation_space = Box(-10, 10, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, returned=None, length=20, action_space=None, render_mode=None, push=0.1):
        self.returned, self.length, self.push, self.number = returned, length, push, 0
        self.action_space = action_space or Point.action_space
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.count = self.np_random.uniform(-1, 1), 0
        return np.array([self.place, 0], np.float32), {}

    def step(self, action):
        self.place = float(np.clip(self.place + self.push * float(action[0]), -9, 9))
        self.count, self.number = self.count + 1, self.number + 1
        obs = np.array([self.place, self.count / 100], np.float32)
        values = (obs, -(self.place**2), self.count >= self.length, False, {})
        return self.returned(values, self.number) if self.returned else values


def change(**replaced):
    """A `returned` of Point that puts other values in the places of some of the five."""
    names = ("obs", "reward", "terminated", "truncated", "info")

    def returned(values, number):
        return tuple(replaced.get(name, value) for name, value in zip(names, values, strict=True))

    return returned


def fail_late(values, number):
    """Raises at step 700 of an environment's life, after the test of whether it can be restored."""
    if number == 700:
        raise ZeroDivisionError("division by zero")
    return values


class OldRandom(Point):
    """Has NumPy's RandomState, as environments of old Gym and of dm_control do."""

    def reset(self, *, seed=None, options=None):
        if seed is not None or self._np_random is None:
            self._np_random = np.random.RandomState(seed)  # noqa: NPY002
        return super().reset(options=options)


class Leftover(Point):
    """Counts its resets, which shows in one step of an episode alone."""

    resets = 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, *others = super().step(action)
        shows = self.resets > 2 and self.count == 80
        return obs, reward - shows, *others


class OnlyOne(OldRandom):
    """One that lives at a time in a process, like a simulator behind a port."""

    living = 0

    def __init__(self, **options):
        if OnlyOne.living:
            raise RuntimeError("port 5005 is taken")
        OnlyOne.living = 1
        super().__init__(**options)

    def close(self):
        OnlyOne.living = 0


class Silent(Point):
    """Its constructor fails without a message."""

    def __init__(self):
        assert self is None


class Goal(Point):
    """Has an argument without a default."""

    def __init__(self, goal, **options):
        super().__init__(**options)
        self.goal = goal


class LeftOrRight(Point):
    """Takes whole steps: action 0 to the left, 1 to the right."""

    def __init__(self, **options):
        super().__init__(action_space=Discrete(2), **options)

    def step(self, action):
        return super().step([2 * action - 1])


HUGE = float(np.finfo(np.float32).max)
ODD = {  # what a step returns instead
    "FourValues": lambda values, number: (values[0], values[1], values[2], {}),
    "NoTuple": lambda values, number: values[0],
    "RewardArray": lambda values, number: (values[0], np.array([values[1]]), *values[2:]),
    "RewardPair": change(reward=np.zeros(2)),
    "RewardNone": change(reward=None),
    "RewardHuge": change(reward=1e300),
    "ObsText": change(obs="here"),
    "ObsRagged": change(obs=[1.0, [2.0, 3.0]]),
    "ObsScalar": change(obs=np.float32(1)),
    "FlagText": change(truncated="no"),
    "InfoRagged": lambda values, number: (*values[:4], {"c": np.zeros(1 + number % 3)}),
    "InfoTaken": change(info={"episode": 3, "final_obs": 4, "final_info": 5}),
    "FailsLate": fail_late,
}
for name, returned in ODD.items():
    register(f"{name}-v0", entry_point=Point, kwargs={"returned": returned})
register("Point-v0", entry_point=Point)
register("Near-v0", entry_point=Point, kwargs={"push": 0.25})
register("LeftOrRight-v0", entry_point=LeftOrRight, kwargs={"push": 0.25})
register("NeverEnds-v0", entry_point=Point, kwargs={"length": 10**9})
register("HugeBounds-v0", entry_point=Point, kwargs={"action_space": Box(-HUGE, HUGE, (1,), np.float32)})
register("HalfBounds-v0", entry_point=Point, kwargs={"action_space": Box(0, np.inf, (1,), np.float32)})
register("Leftover-v0", entry_point=Leftover, kwargs={"length": 90})
for odd in (OldRandom, OnlyOne, Silent, Goal):
    register(f"{odd.__name__}-v0", entry_point=odd)

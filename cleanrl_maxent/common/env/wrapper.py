"""The wrapper between an environment and the program checks and copies what `reset` and `step` return."""

import math
import re
import traceback
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.errors import EnvironmentFailed, NonFiniteError, UsageError, WorkerDied
from cleanrl_maxent.common.output import warn_once

LONGEST_EPISODE = 50_000  # steps; beyond, an evaluation without a time limit is refused, and training warns
LARGEST_REWARD = float(np.finfo(np.float32).max)
SCALARS = {float, np.float64, np.float32}  # rewards that need no conversion
RESET_TAKES = "reset must take seed and options: def reset(self, *, seed=None, options=None)"
LIMIT_IT = "register it with max_episode_steps=N, or start anew with --max-episode-steps N"
STEP_RETURNS = "(obs, reward, terminated, truncated, info)"


class CheckedEnv(gym.Wrapper):
    """An environment whose `reset` and `step` return what Gymnasium's interface states, or raise UsageError.

    Observations are float32, of the space's shape, and copies, so that the environment cannot overwrite them;
    the reward is a float, `terminated` and `truncated` are bools. Other types that mean the same, such as
    lists, integers and arrays of one element, are converted. The environment's `info` is dropped: nothing
    needs it, and some cannot be batched. Instead, at the end of an episode, it is
    `{"episode": {"return": …, "length": …}}`.

    `name`: for messages. `time_limit`: steps after which an episode is truncated, if any. `length`: steps of
    the episode so far.
    """

    def __init__(self, env: gym.Env, name: str, time_limit: int | None = None, truncates: bool = True):
        """`truncates`: False if `env` itself ends episodes at the time limit."""
        super().__init__(env)
        assert env.observation_space.shape is not None
        self.name, self.time_limit = name, time_limit
        self.truncated_at = time_limit if truncates else None
        self.shape = env.observation_space.shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.shape, np.float32)
        self.dtype: np.dtype | None = None  # of the array observations checked so far
        self.length = 0  # steps of the episode
        self.episode_return: Any = 0.0  # undiscounted; summed in the type of the environment's rewards

    def reset(self, *, seed=None, options=None):
        self.length, self.episode_return = 0, 0.0
        try:
            returned = self.env.reset(seed=seed, options=options)
        except TypeError as problem:
            if re.search(r"\breset\(\) got an unexpected keyword argument '(seed|options)'", str(problem)):
                raise UsageError(f"{self.name}: {RESET_TAKES}") from problem
            raise
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            self.refuse(count_values(returned), "reset must return (obs, info)")
        return self.copy_obs(returned[0]), {}

    def step(self, action):
        self.length += 1
        returned = self.env.step(action)
        if not isinstance(returned, tuple | list) or len(returned) != 5:
            self.refuse(count_values(returned), f"step must return {STEP_RETURNS}")
        obs, reward, terminated, truncated, _ = returned
        if type(reward) not in SCALARS:
            reward = self.convert_reward(reward)
        value = float(reward)
        if not -LARGEST_REWARD <= value <= LARGEST_REWARD and math.isfinite(value):
            raise NonFiniteError(
                f"non-finite reward in float32, which ends at 3.4e38: {self.name} returned {value} "
                f"{self.describe_step()}"
            )
        if type(terminated) is not bool:
            terminated = self.convert_flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self.convert_flag("truncated", truncated)
        if self.length == self.truncated_at:
            truncated = True
        self.episode_return += reward
        info = {}
        if terminated or truncated:
            info["episode"] = {"return": self.episode_return, "length": self.length}
        return self.copy_obs(obs), value, terminated, truncated, info

    def close(self):
        """Closes the environment; an exception then, which can harm no result, becomes a warning."""
        try:
            self.env.close()
        except (Exception, SystemExit) as problem:
            said = f"{self.name} could not be closed: {describe_exception(problem)}"
            warn_once(said, key=(self.name, type(problem)))

    def copy_obs(self, obs: Any) -> np.ndarray:
        """A float32 copy of an observation; raises UsageError."""
        if type(obs) is not np.ndarray or obs.dtype is not self.dtype:
            self.check_numbers(obs)
            obs = np.asarray(obs)
        if obs.shape != self.shape:
            self.refuse(f"an observation of shape {obs.shape}", f"its space says {self.shape}")
        if self.dtype == np.float32:
            return np.array(obs, dtype=np.float32)
        with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite, which is reported later
            return np.array(obs, dtype=np.float32)

    def check_numbers(self, obs: Any) -> None:
        """Raises UsageError unless an observation consists of numbers; remembers an array's dtype."""
        if not has_numbers(obs):
            self.refuse(f"the observation {shorten(obs)}", "an array of numbers is needed")
        if type(obs) is np.ndarray:
            self.dtype = obs.dtype

    def convert_reward(self, reward: Any) -> Any:
        """A number, or an array of one number, as a scalar; raises UsageError for other rewards."""
        if not has_numbers(reward) or np.size(reward) != 1:
            self.refuse(f"the reward {shorten(reward)}", "a number is needed")
        return reward if np.ndim(reward) == 0 else np.asarray(reward).item()

    def convert_flag(self, name: str, value: Any) -> bool:
        """A number, an array of one element or None as a bool; raises UsageError for other values."""
        if value is None or type(value) is np.bool_:
            return bool(value)
        if not has_numbers(value) or np.size(value) != 1 or math.isnan(np.asarray(value).item()):
            self.refuse(f"{name} = {shorten(value)}", "True or False is needed")
        return bool(np.asarray(value).item())

    def refuse(self, returned: str, needed: str) -> NoReturn:
        raise UsageError(f"{self.name} returned {returned} {self.describe_step()}; {needed}")

    def describe_step(self) -> str:
        """The step of the episode, in words."""
        return f"at step {self.length} of an episode" if self.length else "from reset"

    def check_length(self) -> None:
        """Raises UsageError, with what to do, if an episode that is played to its end seems endless."""
        if self.length >= max(LONGEST_EPISODE, self.time_limit or 0):
            raise UsageError(
                f"an episode of {self.name} has not ended after {self.length:,} steps; {LIMIT_IT}"
            )


def has_numbers(value: Any) -> bool:
    """True for a number, or an array or a list of numbers, also of dtype object."""
    try:
        array = np.asarray(value)
        return array.dtype.kind in "biuf" or (array.dtype.kind == "O" and bool([*map(float, array.flat)]))
    except (TypeError, ValueError, OverflowError):  # also for lists of unequal lengths
        return False


def count_values(returned: Any) -> str:
    """What was returned where a tuple of values was expected."""
    if isinstance(returned, tuple | list):
        return f"{len(returned)} values"
    return shorten(returned)


def shorten(value: Any) -> str:
    """A value in one line, shortened to 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


class RemoteError(Exception):
    """An environment's exception in another process: its description, and its traceback."""

    def __init__(self, description: str, traceback: str):
        super().__init__(description, traceback)
        self.description, self.traceback = description, traceback

    def __str__(self) -> str:
        return f"in a worker:\n{self.traceback}"


def describe_exception(problem: BaseException) -> str:
    """Type and message of an exception in one line; if it has no message, where it was raised."""
    if isinstance(problem, RemoteError):
        return problem.description
    kind, message = type(problem).__name__, " ".join(str(problem).split())
    frames = traceback.extract_tb(problem.__traceback__)
    if not message and frames:
        message = f"{frames[-1].filename}, line {frames[-1].lineno}"
    return f"{kind}: {message}" if message else kind


def locate(problem: BaseException, name: str, where: str) -> Exception:
    """The exception to raise from `problem` of the environment `name`; it says where it happened.

    UsageError, NonFiniteError and WorkerDied keep their type. An environment's own exception becomes the
    cause of EnvironmentFailed, so that its traceback is printed.
    """
    if isinstance(problem, UsageError | NonFiniteError | WorkerDied):
        return type(problem)(f"{problem} ({where})")
    return EnvironmentFailed(f"{name} failed ({where}): {describe_exception(problem)}")

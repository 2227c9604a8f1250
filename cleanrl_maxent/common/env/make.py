"""Makes an environment and checks it; actions are scaled here and nowhere else."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics
from mujoco import get_mju_user_warning, set_mju_user_warning  # pyright: ignore[reportAttributeAccessIssue]

from cleanrl_maxent.common.env.checks import check_name, check_spaces, explain
from cleanrl_maxent.common.errors import UsageError

TRAINING, EVALUATION = 0, 1  # streams of random numbers


def environment_seed(seed: int, stream: int, *indices: int) -> int:
    """Seed of an environment's reset; streams of neighbouring seeds never overlap."""
    return int(np.random.SeedSequence([seed, stream, *indices]).generate_state(1)[0])


class CopyObservation(gym.ObservationWrapper):
    """Observations that the environment cannot overwrite later, as float32 of the space's shape."""

    def observation(self, observation):
        shape = self.env.observation_space.shape
        if np.shape(observation) != shape:
            name = self.env.unwrapped.spec.id if self.env.unwrapped.spec else "the environment"
            got = np.shape(observation)
            raise UsageError(f"{name} returned an observation of shape {got}, its space says {shape}")
        return np.array(observation, dtype=np.float32)


def make_env(env_id: str, action_spaces: tuple[str, ...] = ("Box",)) -> gym.Env:
    """The environment with episode statistics and copied float32 observations.

    `action_spaces`: the kinds that are taken, Box, Discrete or both. Raises UsageError if the id is unknown,
    unversioned or not installable, or a space does not fit.
    """
    check_name(env_id)
    try:
        with no_deprecations():
            env = gym.make(env_id)
    except Exception as problem:
        raise UsageError(f"cannot make {env_id}: {explain(env_id, problem)}") from problem
    check_spaces(env_id, env.observation_space, env.action_space, action_spaces)
    env = CopyObservation(RecordEpisodeStatistics(env))
    space = env.observation_space
    env.observation_space = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return env


@contextmanager
def no_deprecations() -> Iterator[None]:
    """Keeps Gymnasium and MuJoCo from saying, once for each environment, that v4 is old: it is what
    the published curves were measured on."""
    mujoco_handler = get_mju_user_warning()
    set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            yield
    finally:
        set_mju_user_warning(mujoco_handler)


def scale_action(action: np.ndarray, space: gym.Space) -> np.ndarray:
    """Maps [-1, 1] onto a Box's bounds, clipped so that rounding cannot leave them; 0, 1, … onto Discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start + action
    assert isinstance(space, gym.spaces.Box)
    center, half_range = (space.high + space.low) / 2, (space.high - space.low) / 2
    return np.clip(center + half_range * action, space.low, space.high).astype(space.dtype)

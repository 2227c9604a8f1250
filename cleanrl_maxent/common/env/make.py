"""Makes an environment and checks it; actions are scaled here and nowhere else."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics

from cleanrl_maxent.common.env.checks import check_name, check_spaces, explain
from cleanrl_maxent.common.env.render import check_rendering, prepare_rendering
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


def make_env(
    env_id: str, action_spaces: tuple[str, ...] = ("Box",), render_mode: str | None = None
) -> gym.Env:
    """The environment with episode statistics and copied float32 observations.

    `action_spaces`: the kinds that are taken, Box, Discrete or both. `render_mode`: "rgb_array" for pictures,
    "human" for a window. Raises UsageError if the id is unknown, unversioned or not installable, a space does
    not fit, or the environment does not have the render mode.
    """
    check_name(env_id)
    try:
        if render_mode:
            prepare_rendering(env_id, render_mode)
        with no_deprecations():
            env = gym.make(env_id, render_mode=render_mode) if render_mode else gym.make(env_id)
    except UsageError:
        raise
    except Exception as problem:
        raise UsageError(f"cannot make {env_id}: {explain(env_id, problem)}") from problem
    if render_mode:
        check_rendering(env, render_mode)
    check_spaces(env_id, env.observation_space, env.action_space, action_spaces)
    env = CopyObservation(RecordEpisodeStatistics(env))
    space = env.observation_space
    env.observation_space = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return env


@contextmanager
def no_deprecations() -> Iterator[None]:
    """Keeps Gymnasium and MuJoCo from saying, once for each environment, that v4 is old, which is what the
    published curves were measured on, and that a wrapper opens the window."""
    import mujoco  # here, so that what draws it can be chosen before

    mujoco_handler = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]
    set_handler = mujoco.set_mju_user_warning  # pyright: ignore[reportAttributeAccessIssue]
    set_handler(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*trying to use 'human' rendering")
            yield
    finally:
        set_handler(mujoco_handler)


def scale_action(action: np.ndarray, space: gym.Space) -> np.ndarray:
    """Maps [-1, 1] onto a Box's bounds, clipped so that rounding cannot leave them; 0, 1, … onto Discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start + action
    assert isinstance(space, gym.spaces.Box)
    center, half_range = (space.high + space.low) / 2, (space.high - space.low) / 2
    return np.clip(center + half_range * action, space.low, space.high).astype(space.dtype)

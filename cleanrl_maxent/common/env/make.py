"""Makes and checks environments; actions are scaled here and nowhere else."""

import importlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.env.checks import check_kwargs, check_name, check_spaces, explain
from cleanrl_maxent.common.env.render import check_rendering, prepare_rendering
from cleanrl_maxent.common.env.wrapper import CheckedEnv
from cleanrl_maxent.common.errors import UsageError

if TYPE_CHECKING:
    from cleanrl_maxent.common.cli import RunArgs

TRAINING, EVALUATION = 0, 1  # streams of random numbers
ONE_INSTANCE = "train one seed in one environment, with --env-reset restart --eval-episodes 0"


def environment_seed(seed: int, stream: int, *indices: int) -> int:
    """Seed of an environment's reset; streams of neighbouring seeds never overlap."""
    return int(np.random.SeedSequence([seed, stream, *indices]).generate_state(1)[0])


@dataclass(frozen=True)
class EnvChoice:
    """Which environment to make, and how; `chosen_env` gets it from a run's arguments.

    `action_spaces`: the kinds that are allowed, Box, Discrete or both. `env_kwargs`: arguments of its
    constructor, a JSON object. `max_episode_steps`: its time limit; None: that of its registration.
    `algorithm`: the file of the algorithm that asks for it.
    """

    env_id: str
    action_spaces: tuple[str, ...] = ("Box",)
    env_kwargs: str = "{}"
    max_episode_steps: int | None = None
    algorithm: Path | None = None


made: set[EnvChoice] = set()  # what this process has made before


def chosen_env(args: "RunArgs") -> EnvChoice:
    """The environment of a run."""
    how = args.env_kwargs, args.max_episode_steps
    return EnvChoice(args.env_id, args.action_spaces, *how, args.file())


def longest_episode(choice: EnvChoice) -> int | None:
    """The time limit, in steps, of an environment whose module is imported; None if it has none."""
    spec = gym.registry.get(choice.env_id.rpartition(":")[2])
    return choice.max_episode_steps or (spec.max_episode_steps if spec else None)


def make_env(choice: EnvChoice | str, render_mode: str | None = None) -> CheckedEnv:
    """The checked environment; an id alone stands for one with continuous actions.

    `render_mode`: "rgb_array" for frames, "human" for a window. Raises UsageError if the id is unknown or
    unversioned, the environment cannot be made, arguments or spaces do not fit, or it lacks the
    render mode.
    """
    choice = EnvChoice(choice) if isinstance(choice, str) else choice
    env_id, kwargs = choice.env_id, json.loads(choice.env_kwargs)
    check_name(env_id)
    check_kwargs(kwargs)
    try:
        if render_mode:
            prepare_rendering(env_id, render_mode)
            kwargs["render_mode"] = render_mode
        with no_deprecations():
            env, time_limit, truncates = build(env_id, choice.max_episode_steps, kwargs)
    except UsageError:
        raise
    except (Exception, SystemExit) as problem:
        line = f"cannot make {env_id}: {explain(env_id, problem, kwargs)}"
        if choice in made and not isinstance(problem, TypeError):
            line += f"; if only one can exist at a time, {ONE_INSTANCE}"
        raise UsageError(line) from problem
    made.add(choice)
    if render_mode:
        check_rendering(env, render_mode)
    check_spaces(env_id, env, choice.action_spaces, choice.algorithm)
    return CheckedEnv(env, env_id, time_limit, truncates)


def build(env_id: str, time_limit: int | None, kwargs: dict[str, Any]) -> tuple[gym.Env, int | None, bool]:
    """Gymnasium's environment, its time limit, and False if the environment itself enforces it.

    CheckedEnv replaces TimeLimit and the passive checker, so that it sees what `step` returns before such
    wrappers unpack it. TimeLimit stays only if the registration has wrappers, which may look for a time
    limit.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
        check_name(env_id)
    spec = gym.registry.get(name)  # None if Gymnasium will complete a version
    inside = spec is None or bool(spec.additional_wrappers)
    limit_there = time_limit if inside else -1
    env = gym.make(env_id, max_episode_steps=limit_there, disable_env_checker=True, **kwargs)
    if time_limit is None:
        time_limit = env.spec.max_episode_steps if inside and env.spec else spec and spec.max_episode_steps
    if env.unwrapped.spec:  # an environment may look for it here
        env.unwrapped.spec.max_episode_steps = time_limit
    return env, time_limit, not inside


@contextmanager
def no_deprecations() -> Iterator[None]:
    """Keeps Gymnasium and MuJoCo from warning, for every environment, that v4 is old (the published curves
    were measured on it) and that a wrapper opens the window."""
    import mujoco  # here, because its OpenGL backend must be chosen first

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
    """Maps [-1, 1] onto a Box's bounds, clipped to them; 0, 1, … onto Discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start + action
    assert isinstance(space, gym.spaces.Box)
    center, half_range = (space.high + space.low) / 2, (space.high - space.low) / 2
    return np.clip(center + half_range * action, space.low, space.high).astype(space.dtype)

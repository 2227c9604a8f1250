"""Environments: one per seed, checked when made; actions are scaled here and nowhere else."""

import difflib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics

from cleanrl_maxent.common.arguments import NonFiniteError, UsageError
from cleanrl_maxent.common.replay import Transition
from cleanrl_maxent.common.replayable import Replayable, check_replayable

TRAINING, EVALUATION = 0, 1


class Episode(NamedTuple):
    """A finished episode: its seed's index, undiscounted return, and length in steps."""

    index: int
    episodic_return: float
    length: int


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


def make_env(env_id: str) -> gym.Env:
    """The environment with episode statistics and copied float32 observations.

    Raises UsageError where the id is unknown, unversioned or not installable, or a space does not fit.
    """
    check_name(env_id)
    try:
        with no_deprecations():
            env = gym.make(env_id)
    except Exception as problem:
        raise UsageError(f"cannot make {env_id}: {explain(env_id, problem)}") from problem
    check_spaces(env_id, env.observation_space, env.action_space)
    env = CopyObservation(RecordEpisodeStatistics(env))
    space = env.observation_space
    env.observation_space = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return env


@contextmanager
def no_deprecations() -> Iterator[None]:
    """Keeps Gymnasium and MuJoCo from saying, once for each environment, that v4 is old: it is what
    the published curves were measured on."""
    mujoco_handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            yield
    finally:
        mujoco.set_mju_user_warning(mujoco_handler)


def check_name(env_id: str) -> None:
    """Raises UsageError for an id that Gymnasium does not know, or that it would guess a version for."""
    module, _, name = env_id.rpartition(":")
    if module or name in gym.registry:
        return
    if not re.search(r"-v\d+$", name):
        versions = [known for known in gym.registry if known.rpartition("-v")[0] == name]
        newest = sorted(versions, key=lambda known: int(known.rpartition("-v")[2]))[-2:]
        if newest:
            raise UsageError(
                f"give the version: {name!r} would silently become {newest[-1]}; write {' or '.join(newest)}"
            )
    lower = {known.lower(): known for known in gym.registry}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" Did you mean {lower[near[0]]}?" if near else " See gymnasium.pprint_registry()."
    raise UsageError(f"unknown environment {env_id!r}.{hint}")


def explain(env_id: str, problem: Exception) -> str:
    """One line of what to do about an environment that cannot be made."""
    name, _, version = env_id.rpartition("-v")
    if version in ("2", "3") and f"{name}-v4" in gym.registry:
        return f"v{version} needs the old mujoco-py; use {name}-v4 or {name}-v5"
    if env_id == "Pusher-v4":
        return "it needs mujoco < 3; use Pusher-v5"
    return " ".join(str(problem).split()) or type(problem).__name__


def check_spaces(env_id: str, observation: gym.Space, action: gym.Space) -> None:
    """Raises UsageError unless observations are a 1-D Box and actions a 1-D Box with finite bounds."""
    if not isinstance(action, gym.spaces.Box):
        raise UsageError(f"{env_id} has the action space {action}; a continuous one (Box) is needed")
    if len(action.shape) != 1 or action.shape[0] == 0:
        raise UsageError(f"{env_id} has actions of shape {action.shape}; a 1-D Box is needed")
    if not np.issubdtype(action.dtype, np.floating):
        raise UsageError(f"{env_id} has actions of dtype {action.dtype}; floating point ones are needed")
    if not isinstance(observation, gym.spaces.Box) or len(observation.shape) != 1 or not observation.shape[0]:
        kind = f"{type(observation).__name__}{getattr(observation, 'shape', None) or ''}"
        raise UsageError(
            f"observation space must be a 1-D Box; {env_id} has {kind}; wrap it with FlattenObservation"
        )
    for dim, (low, high) in enumerate(zip(action.low, action.high, strict=True)):
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UsageError(
                f"action bounds must be finite; dimension {dim} of {env_id} is [{low}, {high}]; "
                "use RescaleAction or ClipAction"
            )
        if low >= high:
            raise UsageError(f"action dimension {dim} of {env_id} has low={low} >= high={high}")


def scale_action(action: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """Maps [-1, 1] onto the space's bounds, clipped so that rounding cannot leave them."""
    center, half_range = (space.high + space.low) / 2, (space.high - space.low) / 2
    return np.clip(center + half_range * action, space.low, space.high).astype(space.dtype)


def check_finite(step: int, seeds: list[int], **tensors: np.ndarray) -> None:
    """Raises NonFiniteError naming step, seed and tensor; each tensor has a leading axis `(seed,)`."""
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            rows = np.reshape(values, (len(seeds), -1))
            index, entry = np.argwhere(~np.isfinite(rows))[0]
            raise NonFiniteError(
                f"non-finite {name} at step {step}, seed {seeds[index]}: [{entry}] is {rows[index, entry]}"
            )


class SeedEnvs:
    """One environment per seed, stepped in turn; each has its own random stream.

    `obs`: the current observations, `(seed, obs_dim)` float32. `transition`: the last step, leading axis
    `(seed,)`, with the true next observation also where an episode ended. `steps`: steps taken.
    """

    def __init__(self, env_id: str, seeds: list[int], env_reset: str = "reuse"):
        """Makes and resets the environments; `env_reset` is the flag of that name.

        Raises UsageError as `make_env`, or where the environment cannot be restored exactly, and
        NonFiniteError.
        """
        self.env_id, self.seeds, self.env_reset = env_id, seeds, env_reset
        fresh = env_reset == "fresh"
        if env_reset != "restart":
            check_replayable(env_id, lambda: make_env(env_id), fresh)
        self.envs = SyncVectorEnv(
            [lambda: Replayable(lambda: make_env(env_id), fresh) for _ in seeds],
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.obs_dim = self.envs.single_observation_space.shape[0]
        self.action_dim = self.envs.single_action_space.shape[0]
        self.steps = 0
        self.obs, _ = self.envs.reset(seed=[environment_seed(seed, TRAINING) for seed in seeds])
        self.transition: Transition | None = None
        check_finite(0, seeds, obs=self.obs)

    def step(self, action: np.ndarray) -> list[Episode]:
        """Steps every environment; one that ends is reset at once. Returns the episodes that ended.

        `action`: `(seed, action_dim)`, in [-1, 1]. Raises NonFiniteError.
        """
        self.steps += 1
        check_finite(self.steps, self.seeds, action=action)
        scaled = scale_action(action, self.envs.single_action_space)
        obs, reward, terminated, truncated, info = self.envs.step(scaled)
        next_obs, episodes = obs, []
        if (terminated | truncated).any():
            next_obs = obs.copy()
            for index in np.flatnonzero(terminated | truncated):
                next_obs[index] = info["final_obs"][index]
                ended = info["final_info"]["episode"]
                episodes.append(Episode(int(index), float(ended["r"][index]), int(ended["l"][index])))
        check_finite(self.steps, self.seeds, reward=reward, next_obs=next_obs, obs=obs)
        self.transition = Transition(
            obs=self.obs,
            action=action,
            reward=reward.astype(np.float32),
            next_obs=next_obs,
            terminated=terminated.astype(np.float32),
        )
        self.obs = obs
        return episodes

    def snapshot(self) -> tuple[list[dict], dict[str, np.ndarray]]:
        """Where every environment is: what JSON can hold, and arrays."""
        snapshots, actions = zip(*(env.snapshot() for env in self.envs.envs), strict=True)
        arrays = {f"actions/{seed}": taken for seed, taken in zip(self.seeds, actions, strict=True)}
        arrays |= {f"transition/{name}": np.asarray(value) for name, value in vars(self.transition).items()}
        return list(snapshots), {"obs": self.obs, **arrays}

    def restore(self, steps: int, snapshots: list[dict], arrays: dict[str, np.ndarray]) -> None:
        """Puts freshly made environments where those of the snapshot were, after `steps` steps.

        With `env_reset` "restart" they begin a new episode instead. Raises UsageError where one does not
        arrive there.
        """
        self.steps, self.obs = steps, arrays["obs"]
        names = Transition.__annotations__
        self.transition = Transition(**{name: arrays[f"transition/{name}"] for name in names})
        if self.env_reset == "restart":
            self.obs, _ = self.envs.reset(seed=[environment_seed(s, TRAINING, steps) for s in self.seeds])
            return
        for seed, env, snapshot, obs in zip(self.seeds, self.envs.envs, snapshots, self.obs, strict=True):
            actions = arrays[f"actions/{seed}"]
            there = env.restore(snapshot, actions)
            if there is None or not np.array_equal(there, obs):
                raise UsageError(
                    f"{self.env_id} of seed {seed} cannot be restored exactly: {len(actions)} steps lead "
                    "elsewhere; start anew with --env-reset fresh or --env-reset restart"
                )

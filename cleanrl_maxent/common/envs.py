"""Environments, checked when made; actions are scaled here and nowhere else."""

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
from cleanrl_maxent.common.spaces import check_name, check_spaces, explain

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


def make_env(env_id: str, discrete: bool = False) -> gym.Env:
    """The environment with episode statistics and copied float32 observations.

    `discrete`: discrete actions are taken too. Raises UsageError where the id is unknown, unversioned or
    not installable, or a space does not fit.
    """
    check_name(env_id)
    try:
        with no_deprecations():
            env = gym.make(env_id)
    except Exception as problem:
        raise UsageError(f"cannot make {env_id}: {explain(env_id, problem)}") from problem
    check_spaces(env_id, env.observation_space, env.action_space, discrete)
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


def scale_action(action: np.ndarray, space: gym.Space) -> np.ndarray:
    """Maps [-1, 1] onto a Box's bounds, clipped so that rounding cannot leave them; 0, 1, … onto Discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return space.start + action
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
    """One environment per seed, or `num_envs`, stepped in turn; each has its own random stream.

    Arrays lead with `(seed · num_envs,)`. `obs`: the current observations, `(..., obs_dim)` float32.
    `transition`: the last step, with the true next observation also where an episode ended; `ended`: 1
    where it did, be it terminated or truncated, float32. `steps`: steps taken with each seed.
    """

    def __init__(
        self,
        env_id: str,
        seeds: list[int],
        env_reset: str = "reuse",
        num_envs: int = 1,
        discrete: bool = False,
    ):
        """Makes and resets the environments; `env_reset` is the flag, `discrete` that of `make_env`.

        Raises UsageError as `make_env`, or where the environment cannot be restored exactly, and
        NonFiniteError.
        """
        self.env_id, self.seeds, self.env_reset, self.num_envs = env_id, seeds, env_reset, num_envs
        fresh = env_reset == "fresh"
        if env_reset != "restart":
            check_replayable(env_id, lambda: make_env(env_id, discrete), fresh)
        self.envs = SyncVectorEnv(
            [lambda: Replayable(lambda: make_env(env_id, discrete), fresh)] * (len(seeds) * num_envs),
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.obs_dim = self.envs.single_observation_space.shape[0]
        space = self.envs.single_action_space
        self.discrete = isinstance(space, gym.spaces.Discrete)
        self.action_dim = int(space.n) if self.discrete else space.shape[0]
        self.steps = 0
        self.obs = self.reset()
        self.transition: Transition | None = None
        self.ended: np.ndarray | None = None
        check_finite(0, seeds, obs=self.obs)

    def reset(self, *indices: int) -> np.ndarray:
        """Begins new episodes, whose seeds depend on the seed, on `indices` and on which copy it is."""
        copies = [() if copy == 0 else (copy,) for copy in range(self.num_envs)]
        resets = [environment_seed(s, TRAINING, *indices, *copy) for s in self.seeds for copy in copies]
        return self.envs.reset(seed=resets)[0]

    @property
    def elapsed(self) -> np.ndarray:
        """Steps of the current episodes so far, `(seed · num_envs,)`."""
        return np.array([len(env.actions) for env in self.envs.envs])

    def step(self, action: np.ndarray) -> list[Episode]:
        """Steps every environment; one that ends is reset at once. Returns the episodes that ended.

        `action`: `(..., action_dim)` in [-1, 1], or `(...)` integers from 0. Raises NonFiniteError.
        """
        self.steps += self.num_envs
        check_finite(self.steps, self.seeds, action=action)
        scaled = scale_action(action, self.envs.single_action_space)
        obs, reward, terminated, truncated, info = self.envs.step(scaled)
        next_obs, episodes, ended = obs, [], terminated | truncated
        if ended.any():
            next_obs = obs.copy()
            for index in np.flatnonzero(ended):
                next_obs[index] = info["final_obs"][index]
                episode = info["final_info"]["episode"]
                seed = int(index) // self.num_envs
                episodes.append(Episode(seed, float(episode["r"][index]), int(episode["l"][index])))
        check_finite(self.steps, self.seeds, reward=reward, next_obs=next_obs, obs=obs)
        self.transition = Transition(
            obs=self.obs,
            action=action,
            reward=reward.astype(np.float32),
            next_obs=next_obs,
            terminated=terminated.astype(np.float32),
        )
        self.obs, self.ended = obs, ended.astype(np.float32)
        return episodes

    def snapshot(self) -> tuple[list[dict], dict[str, np.ndarray]]:
        """Where every environment is: what JSON can hold, and arrays."""
        snapshots, actions = zip(*(env.snapshot() for env in self.envs.envs), strict=True)
        arrays = {f"actions/{name}": taken for name, taken in zip(self.names(), actions, strict=True)}
        arrays |= {f"transition/{name}": np.asarray(value) for name, value in vars(self.transition).items()}
        return list(snapshots), {"obs": self.obs, **arrays}

    def names(self) -> list[str]:
        """What the environments are called in a snapshot: their seed, and which copy of several."""
        copies = range(self.num_envs)
        return [f"{seed}/{copy}" if copy else f"{seed}" for seed in self.seeds for copy in copies]

    def restore(self, steps: int, snapshots: list[dict], arrays: dict[str, np.ndarray]) -> None:
        """Puts freshly made environments where those of the snapshot were, after `steps` steps.

        With `env_reset` "restart" they begin a new episode instead. Raises UsageError where one does not
        arrive there.
        """
        self.steps, self.obs = steps, arrays["obs"]
        names = Transition.__annotations__
        self.transition = Transition(**{name: arrays[f"transition/{name}"] for name in names})
        if self.env_reset == "restart":
            self.obs = self.reset(steps)
            return
        for name, env, snapshot, obs in zip(self.names(), self.envs.envs, snapshots, self.obs, strict=True):
            actions = arrays[f"actions/{name}"]
            there = env.restore(snapshot, actions)
            if there is None or not np.array_equal(there, obs):
                raise UsageError(
                    f"{self.env_id} of seed {name} cannot be restored exactly: {len(actions)} steps lead "
                    "elsewhere; start anew with --env-reset fresh or --env-reset restart"
                )

"""The environments of every seed, stepped in turn."""

from dataclasses import replace
from typing import NamedTuple, cast

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.door import LIMIT_IT, LONGEST_EPISODE, locate
from cleanrl_maxent.common.env.make import TRAINING, EnvChoice, environment_seed, make_env, scale_action
from cleanrl_maxent.common.env.restore import RestorableEnv, check_restorable
from cleanrl_maxent.common.env.task import describe_task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.files import subtree
from cleanrl_maxent.common.output import warn


class Episode(NamedTuple):
    """A finished episode: its seed's index, undiscounted return, and length in steps."""

    index: int
    episodic_return: float
    length: int


class SeedEnvs:
    """One environment per seed, or several copies, stepped in turn; each has its own random stream.

    Arrays lead with `(seed · copy,)`. `task`: dimensions and bounds. `obs`: the current observations,
    `(..., obs_dim)` float32.
    `transition`: the last step, zeros before the first, with the true next observation also if an episode
    ended; `ended`: 1 if
    it did, terminated or truncated, float32. `steps`: steps taken with each seed.
    """

    def __init__(self, choice: EnvChoice | str, seeds: list[int], env_reset: str = "reuse", copies: int = 1):
        """Makes and resets `copies` environments a seed; `choice`: see `make_env`; `env_reset` is the flag.

        Raises UsageError as `make_env`, or if the environment cannot be restored exactly, NonFiniteError, and
        EnvironmentFailed.
        """
        self.seeds, self.env_reset, self.copies = seeds, env_reset, copies
        self.env_id = choice if isinstance(choice, str) else choice.env_id
        if env_reset != "restart":
            check_restorable(self.env_id, lambda: make_env(choice), env_reset)
        self.envs = SyncVectorEnv(
            [lambda: RestorableEnv(lambda: make_env(choice), env_reset)] * (len(seeds) * copies),
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.warned = False  # of an episode without end
        self.task = describe_task(self.envs.single_observation_space, self.envs.single_action_space)
        self.steps = 0
        self.obs = self.reset()
        rows = len(seeds) * copies
        self.transition = jax.tree.map(lambda x: np.zeros((rows, *x.shape), x.dtype), self.example)
        self.ended: np.ndarray
        check_finite(0, seeds, obs=self.obs)

    def reset(self, *indices: int) -> np.ndarray:
        """Begins new episodes, whose seeds depend on the seed, on `indices` and on which copy it is."""
        # copy 0 is seeded like a single one
        copies = [(copy,) if copy else () for copy in range(self.copies)]
        resets: list[int | None] = [
            environment_seed(s, TRAINING, *indices, *copy) for s in self.seeds for copy in copies
        ]
        try:
            return self.envs.reset(seed=resets)[0]
        except Exception as problem:
            raise self.located(problem) from problem

    @property
    def example(self) -> Transition:
        """That of the task."""
        return self.task.example

    @property
    def single_envs(self) -> list[RestorableEnv]:
        """The environments one by one."""
        return cast(list[RestorableEnv], self.envs.envs)

    @property
    def elapsed(self) -> np.ndarray:
        """Steps of the current episodes so far, `(seed · copy,)`."""
        return np.array([env.checked.length for env in self.single_envs])

    def step(self, action: np.ndarray) -> list[Episode]:
        """Steps every environment; one that ends is reset at once. Returns the episodes that ended.

        `action`: `(..., action_dim)`, ±1 at the bounds and clipped to them, or `(...)` integers from 0.
        Raises NonFiniteError, EnvironmentFailed, and UsageError for what an environment must not return.
        """
        self.steps += self.copies
        check_finite(self.steps, self.seeds, action=action)
        scaled = scale_action(action, self.envs.single_action_space)
        try:
            obs, reward, terminated, truncated, info = self.envs.step(scaled)
        except Exception as problem:
            raise self.located(problem) from problem
        next_obs, episodes, ended = obs, [], terminated | truncated
        if ended.any():
            next_obs = obs.copy()
            for index in np.flatnonzero(ended):
                next_obs[index] = info["final_obs"][index]
                episode = info["final_info"]["episode"]
                seed = int(index) // self.copies
                episodes.append(Episode(seed, float(episode["return"][index]), int(episode["length"][index])))
        check_finite(self.steps, self.seeds, reward=reward, next_obs=next_obs, obs=obs)
        self.transition = Transition(
            obs=self.obs,
            action=action,
            reward=reward.astype(np.float32),
            next_obs=next_obs,
            terminated=terminated.astype(np.float32),
            truncated=truncated.astype(np.float32),
        )
        self.obs, self.ended = obs, ended.astype(np.float32)
        if not self.warned and max(env.checked.length for env in self.single_envs) >= LONGEST_EPISODE:
            self.warned = True
            warn(
                f"an episode of {self.env_id} has not ended after {LONGEST_EPISODE:,} steps: checkpoints "
                f"and the time to restore one grow with it, and an evaluation would not end; {LIMIT_IT}"
            )
        return episodes

    def close(self) -> None:
        """Closes every environment."""
        self.envs.close()

    def located(self, problem: Exception) -> Exception:
        """`problem`, from the environment that has failed, with its step and seed."""
        failed = (index for index, env in enumerate(self.single_envs) if env.checked.failed)
        seed = self.seeds[next(failed, 0) // self.copies]
        return locate(problem, self.env_id, f"training, step {self.steps}, seed {seed}")

    def snapshot(self) -> tuple[list[dict], dict[str, np.ndarray]]:
        """Where every environment is: what JSON can hold, and arrays."""
        snapshots, actions = zip(*(env.snapshot() for env in self.single_envs), strict=True)
        arrays = {f"actions/{name}": taken for name, taken in zip(self.names(), actions, strict=True)}
        arrays |= {f"transition/{name}": np.asarray(value) for name, value in vars(self.transition).items()}
        return list(snapshots), {"obs": self.obs, **arrays}

    def names(self) -> list[str]:
        """What the environments are called in a snapshot: their seed, and which copy of several."""
        numbers = range(self.copies)
        return [f"{seed}/{copy}" if copy else f"{seed}" for seed in self.seeds for copy in numbers]

    def restore(self, steps: int, snapshots: list[dict], arrays: dict[str, np.ndarray]) -> None:
        """Restores freshly made environments to a snapshot, taken after `steps` steps.

        With `env_reset` "restart" they begin a new episode instead. Raises UsageError if one does not
        arrive there.
        """
        self.steps, self.obs = steps, arrays["obs"]
        transition = subtree("transition/", arrays)
        transition.setdefault("truncated", np.zeros_like(transition["terminated"]))  # earlier ones lack it
        self.transition = Transition(**transition)
        if self.env_reset == "restart":  # which cuts the episode
            self.transition = replace(self.transition, truncated=np.ones_like(self.transition.terminated))
            self.obs = self.reset(steps)
            return
        single = zip(self.names(), self.single_envs, snapshots, self.obs, strict=True)
        for name, env, snapshot, obs in single:
            actions = arrays[f"actions/{name}"]
            try:
                restored = env.restore(snapshot, actions)
            except Exception as problem:
                where = f"restoring step {steps}, seed {name}"
                raise locate(problem, self.env_id, where) from problem
            if restored is None or not np.array_equal(restored, obs):
                raise UsageError(
                    f"{self.env_id} of seed {name} cannot be restored exactly: {len(actions)} steps lead "
                    "elsewhere; start anew with --env-reset fresh or --env-reset restart"
                )

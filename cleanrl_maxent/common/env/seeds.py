"""The environments of every seed, stepped in this process or in workers."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from cleanrl_maxent.common.data import Array, Transition
from cleanrl_maxent.common.env.batch import locating
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.make import TRAINING, EnvChoice, environment_seed, make_env, scale_action
from cleanrl_maxent.common.env.pool import Pool
from cleanrl_maxent.common.env.restore import check_restorable
from cleanrl_maxent.common.env.task import describe_task
from cleanrl_maxent.common.env.wrapper import LIMIT_IT, LONGEST_EPISODE
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.files import subtree
from cleanrl_maxent.common.output import warn


class Episode(NamedTuple):
    """A finished episode: its seed's index, undiscounted return, and length in steps."""

    index: int
    episodic_return: float
    length: int


class SeedEnvs:
    """One environment per seed, or several copies; each has its own random stream.

    Arrays lead with `(seed · copy,)`. `task`: dimensions and bounds. `obs`: the current observations,
    `(..., obs_dim)` float32. `transition`: the last step, zeros before the first; `next_obs` is the true next
    observation even if an episode ended. `ended`: float32, 1 if an episode ended, terminated or truncated.
    `steps`: environment steps taken with each seed.
    """

    def __init__(
        self,
        choice: EnvChoice | str,
        seeds: list[int],
        env_reset: str = "reuse",
        copies: int = 1,
        workers: int = 0,
    ):
        """Makes and resets `copies` environments per seed; `choice`: see `make_env`; `env_reset` is the flag.

        `workers`: processes that step them; 0: this one. Raises UsageError like `make_env` and
        if the environment cannot be restored exactly, NonFiniteError, EnvironmentFailed and WorkerDied.
        """
        self.seeds, self.env_reset, self.copies = seeds, env_reset, copies
        self.env_id = choice if isinstance(choice, str) else choice.env_id
        if env_reset != "restart":
            check_restorable(self.env_id, lambda: make_env(choice), env_reset)
        self.warned = False  # about an episode that does not end
        self.steps = 0
        self.pool = Pool(choice, env_reset, workers)
        try:
            self.make(len(seeds) * copies)
        except BaseException:
            self.pool.close()
            raise

    def make(self, rows: int) -> None:
        """Makes and resets the environments."""
        self.batch = self.pool.batch(rows, autoreset=True)
        self.batch.make(range(rows))
        self.batch.rows.running[:] = True
        self.task = describe_task(*self.batch.spaces)
        self.obs = self.reset()
        self.transition = jax.tree.map(lambda x: np.zeros((rows, *x.shape), x.dtype), self.example)
        self.ended: np.ndarray
        check_finite(0, self.seeds, obs=self.obs)

    def reset(self, *indices: int) -> np.ndarray:
        """Begins new episodes, seeded by the seed, `indices` and the number of the copy."""
        # copy 0 is seeded as if it were the only one
        copies = [(copy,) if copy else () for copy in range(self.copies)]
        self.batch.rows.seed[:] = [
            environment_seed(s, TRAINING, *indices, *copy) for s in self.seeds for copy in copies
        ]
        with self.locating():
            self.batch.reset()
        return self.batch.rows.obs.copy()

    @property
    def example(self) -> Transition:
        """The task's example."""
        return self.task.example

    @property
    def elapsed(self) -> np.ndarray:
        """Steps of the current episodes so far, `(seed · copy,)`."""
        return self.batch.rows.elapsed.copy()

    def step(self, action: np.ndarray) -> list[Episode]:
        """Steps every environment; one that ends is reset at once. Returns the episodes that ended.

        `action`: `(..., action_dim)`, ±1 at the bounds and clipped to them, or `(...)` integers from 0.
        Raises NonFiniteError, EnvironmentFailed, and UsageError for what an environment must not return.
        """
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: Array) -> None:
        """Begins a step; see `step`. Workers step while this process continues, until `step_wait`.

        Without workers nothing happens yet, and an `action` still being computed is not waited for.
        """
        self.action = action
        if self.pool.workers:
            self.send_action()
            with self.locating():
                self.batch.step_async()

    def send_action(self) -> None:
        """Gives every environment its action, and counts the step. Raises NonFiniteError."""
        self.steps += self.copies
        self.action = np.asarray(self.action)
        check_finite(self.steps, self.seeds, action=self.action)
        self.batch.rows.action[:] = scale_action(self.action, self.batch.spaces.action)

    def step_wait(self) -> list[Episode]:
        """Ends a step; see `step`."""
        if not self.pool.workers:
            self.send_action()
        rows = self.batch.rows
        with self.locating():
            self.batch.step_wait()
        obs, reward, ended = rows.obs.copy(), rows.reward, rows.terminated | rows.truncated
        next_obs = rows.next_obs.copy() if ended.any() else obs
        check_finite(self.steps, self.seeds, reward=reward, next_obs=next_obs)
        episodes = []
        for row in map(int, np.flatnonzero(ended)):
            of_episode = float(rows.episode_return[row]), int(rows.episode_length[row])
            episodes.append(Episode(row // self.copies, *of_episode))
        if episodes:
            check_finite(self.steps, self.seeds, obs=obs, episode_return=rows.episode_return)
        self.transition = Transition(
            obs=self.obs,
            action=self.action,
            reward=reward.astype(np.float32),
            next_obs=next_obs,
            terminated=rows.terminated.astype(np.float32),
            truncated=rows.truncated.astype(np.float32),
        )
        self.obs, self.ended = obs, ended.astype(np.float32)
        if not self.warned and rows.elapsed.max() >= LONGEST_EPISODE:
            self.warned = True
            warn(
                f"an episode of {self.env_id} has not ended after {LONGEST_EPISODE:,} steps: "
                f"checkpoints, and the time to restore one or to evaluate, grow with it; {LIMIT_IT}"
            )
        return episodes

    def close(self) -> None:
        """Closes every environment."""
        self.pool.close()

    def locating(self) -> AbstractContextManager[None]:
        """Adds step and seed to what is raised in training."""
        where = f"training, step {self.steps}"
        return locating(self.env_id, where, lambda row: self.seeds[row // self.copies])

    def snapshot(self) -> tuple[list[dict], dict[str, np.ndarray]]:
        """The state of every environment: values for JSON, and arrays."""
        snapshots, actions = zip(*self.batch.snapshot(), strict=True)
        arrays = {f"actions/{name}": taken for name, taken in zip(self.names(), actions, strict=True)}
        arrays |= {f"transition/{name}": np.asarray(value) for name, value in vars(self.transition).items()}
        return list(snapshots), {"obs": self.obs, **arrays}

    def names(self) -> list[str]:
        """The environments' names in a snapshot: the seed, and after the first copy its number."""
        numbers = range(self.copies)
        return [f"{seed}/{copy}" if copy else f"{seed}" for seed in self.seeds for copy in numbers]

    def restore(self, steps: int, snapshots: list[dict], arrays: dict[str, np.ndarray]) -> None:
        """Restores freshly made environments to a snapshot, taken after `steps` steps.

        With `env_reset` "restart" they begin a new episode instead. Raises UsageError if one reaches
        another state.
        """
        self.steps, self.obs = steps, arrays["obs"]
        transition = subtree("transition/", arrays)
        transition.setdefault("truncated", np.zeros_like(transition["terminated"]))  # older snapshots lack it
        self.transition = Transition(**transition)
        if self.env_reset == "restart":  # which cuts the episodes short
            self.transition = replace(self.transition, truncated=np.ones_like(self.transition.terminated))
            self.obs = self.reset(steps)
            return
        names = self.names()
        actions = [arrays[f"actions/{name}"] for name in names]
        with locating(self.env_id, f"restoring step {steps}", names.__getitem__):
            same = self.batch.restore(list(zip(snapshots, actions, strict=True)))
        for row, (name, taken) in enumerate(zip(names, actions, strict=True)):
            if not same[row] or not np.array_equal(self.batch.rows.obs[row], self.obs[row]):
                raise UsageError(
                    f"{self.env_id} of seed {name} cannot be restored exactly: {len(taken)} steps lead to "
                    "another state; start a new run with --env-reset fresh or --env-reset restart"
                )

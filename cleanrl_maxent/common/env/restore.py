"""Environments that are restored exactly, by replaying their random state and their actions."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.errors import UsageError


def generator_at(state: Any) -> np.random.Generator:
    """The random generator in a given state of PCG64, the one of every Gymnasium environment."""
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


class RestorableEnv(gym.Wrapper):
    """Remembers the random state before the last reset, and the actions since.

    Must be the outermost wrapper. With `fresh`, every reset builds a new environment, so that one whose
    state survives a reset can be restored too.
    """

    def __init__(self, build: Callable[[], gym.Env], fresh: bool = False):
        super().__init__(build())
        self.build, self.fresh = build, fresh
        self.seed: int | None = None
        self.before: dict[str, Any] | None = None  # random state before the last reset; None: it was seeded
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seed, self.before = seed, None
        else:
            self.before = self.random_state()
        if self.fresh and self.actions:
            self.rebuild()
        self.actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.actions.append(np.array(action))
        return self.env.step(action)

    def random_state(self) -> dict[str, Any]:
        return dict(self.unwrapped.np_random.bit_generator.state)

    def rebuild(self) -> None:
        """A new environment in the random state before the last reset."""
        self.env.close()
        self.env = self.build()
        if self.before:
            self.unwrapped.np_random = generator_at(self.before)

    def snapshot(self) -> tuple[dict[str, Any], np.ndarray]:
        """What JSON can hold, and the actions since the last reset, `(step, action_dim)`."""
        actions = np.array(self.actions, self.action_space.dtype).reshape(
            -1, *(self.action_space.shape or ())
        )
        return {"seed": self.seed, "before": self.before, "now": self.random_state()}, actions

    def restore(self, snapshot: dict[str, Any], actions: np.ndarray) -> np.ndarray | None:
        """Builds the environment anew and plays it to the snapshot.

        Returns the observation there, None if the random state differs.
        """
        self.seed, self.before, self.actions = snapshot["seed"], snapshot["before"], []
        self.rebuild()
        if self.before is None or not self.fresh:
            obs, _ = self.env.reset(seed=self.seed)
        if self.before is not None:
            self.unwrapped.np_random = generator_at(self.before)
            obs, _ = self.env.reset()
        for action in actions:
            obs, *_ = self.step(action)
        return obs if self.random_state() == snapshot["now"] else None


def check_restorable(env_id: str, build: Callable[[], gym.Env], fresh: bool) -> None:
    """Steps an environment through several episodes, restores a second one to its state, and steps both.

    Raises UsageError, naming the options that remain, if they diverge.
    """
    env, other = RestorableEnv(build, fresh), RestorableEnv(build, fresh)
    env.action_space.seed(0)
    env.reset(seed=0)
    for length in (37, 21, 12, 5):
        env.reset()
        for _ in range(length):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
    same = other.restore(*env.snapshot()) is not None
    for _ in range(50):
        action = env.action_space.sample()
        (obs, reward, terminated, truncated, _), replayed = env.step(action), other.step(action)
        same &= np.array_equal(obs, replayed[0], equal_nan=True)
        same &= np.array_equal(float(reward), float(replayed[1]), equal_nan=True)
        same &= (terminated, truncated) == replayed[2:4]
        if terminated or truncated:
            env.reset()
            other.reset()
    env.close()
    other.close()
    if not same:
        ways = "--env-reset restart" if fresh else "--env-reset fresh, or --env-reset restart"
        raise UsageError(
            f"{env_id} cannot be restored exactly: the same actions from its last reset lead elsewhere; "
            f"add {ways} (a resumed run then begins a new episode)"
        )

"""Environments that are restored exactly, from their random state and by replaying their actions."""

from collections.abc import Callable
from contextlib import closing
from copy import copy
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random

from cleanrl_maxent.common.env.wrapper import CheckedEnv, locate
from cleanrl_maxent.common.errors import NonFiniteError, UsageError

SEED = 3  # most other seeds miss the state that survives a reset of BipedalWalkerHardcore
STEPS_TOGETHER = 100
RESTART = "--env-reset restart (a resumed run then begins a new episode)"


def generator_at(state: Any) -> np.random.Generator:
    """A random generator in a given state of PCG64, which every Gymnasium environment uses."""
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


class RestorableEnv(gym.Wrapper):
    """Remembers the random state before the last reset, and the actions since.

    It must be the outermost wrapper. `env_reset` is the flag: with "fresh", every reset builds a new
    environment, so that state that survives a reset is restored too; with "restart", nothing is remembered,
    and the environment may have any random generator.
    """

    def __init__(self, build: Callable[[], CheckedEnv], env_reset: str = "reuse"):
        super().__init__(build())
        self.build, self.fresh, self.exact = build, env_reset == "fresh", env_reset != "restart"
        self.seed: int | None = None
        self.before: dict[str, Any] | None = None  # random state before the last reset; None: it was seeded
        self.actions: list[np.ndarray] = []

    @property
    def checked(self) -> CheckedEnv:
        """The wrapper that checks what the environment returns."""
        return cast(CheckedEnv, self.env)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seed, self.before = seed, None
        elif self.exact:
            self.before = self.random_state()
        if self.fresh and self.actions:
            self.rebuild()
        self.seed_generator(seed)
        self.actions = []
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        if self.exact:
            self.actions.append(np.array(action))
        return self.env.step(action)

    def random_state(self) -> dict[str, Any]:
        """The state of the environment's random generator; raises UsageError unless it is PCG64."""
        generator = getattr(self.unwrapped, "np_random", None)
        bits = getattr(generator, "bit_generator", None)
        if not isinstance(bits, np.random.PCG64):
            found = f"its np_random is {type(generator).__name__}, not NumPy's Generator with PCG64"
            raise UsageError(f"{self.checked.name} cannot be restored exactly: {found}; add {RESTART}")
        return dict(bits.state)

    def seed_generator(self, seed: int | None) -> None:
        """Seeds Gymnasium's random generator, for an environment whose `reset` does not pass its seed on."""
        is_gymnasiums = getattr(type(self.unwrapped), "np_random", None) is gym.Env.np_random
        if seed is None or not self.exact or not is_gymnasiums:
            return
        if isinstance(self.unwrapped.np_random, np.random.Generator):
            self.unwrapped.np_random, _ = np_random(seed)

    def rebuild(self) -> None:
        """Replaces the environment by a new one, in the random state before the last reset."""
        self.env.close()
        self.env = self.build()
        if self.before:
            self.unwrapped.np_random = generator_at(self.before)

    def snapshot(self) -> tuple[dict[str, Any], np.ndarray]:
        """Seed and random states, for JSON; and the actions since the last reset, `(step, ...)`."""
        actions = np.array(self.actions, self.action_space.dtype).reshape(
            -1, *(self.action_space.shape or ())
        )
        now = self.random_state() if self.exact else None
        return {"seed": self.seed, "before": self.before, "now": now}, actions

    def restore(self, snapshot: dict[str, Any], actions: np.ndarray) -> np.ndarray | None:
        """Rebuilds the environment and plays it to the snapshot.

        Returns the observation there, or None if the random state differs.
        """
        self.seed, self.before, self.actions = snapshot["seed"], snapshot["before"], []
        self.rebuild()
        if self.before is None or not self.fresh:
            self.seed_generator(self.seed)
            obs, _ = self.env.reset(seed=self.seed)
        if self.before is not None:
            self.unwrapped.np_random = generator_at(self.before)
            obs, _ = self.env.reset()
        for action in actions:
            obs, *_ = self.step(action)
        return obs if self.random_state() == snapshot["now"] else None


def check_restorable(name: str, build: Callable[[], CheckedEnv], env_reset: str) -> None:
    """Restores a second environment to several states of a first one, and steps both.

    Raises UsageError, naming the remaining options, if they diverge, and an environment's own exception as
    EnvironmentFailed. The check may miss state that survives a reset but rarely has an effect.
    """
    with closing(RestorableEnv(build, env_reset)) as env, closing(RestorableEnv(build, env_reset)) as other:
        try:
            same = stay_equal(env, other)
        except (UsageError, NonFiniteError):
            raise
        except (Exception, SystemExit) as problem:
            raise locate(problem, name, "in the test of whether it can be restored") from problem
    if not same:
        ways = RESTART if env_reset == "fresh" else f"--env-reset fresh, or {RESTART}"
        raise UsageError(
            f"{name} cannot be restored exactly: replaying actions since its last reset leads "
            f"to another state; add {ways}"
        )


def stay_equal(env: RestorableEnv, other: RestorableEnv) -> bool:
    """True if `other`, each time it is restored to the state of `env`, then does what `env` does."""
    env.action_space.seed(SEED)
    env.reset(seed=SEED)
    for length in (37, 21, 12, 5):
        env.reset()
        for _ in range(length):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        if other.restore(*env.snapshot()) is None:
            return False
        for _ in range(STEPS_TOGETHER):
            action = env.action_space.sample()
            again = copy(action)  # an environment may change the array that it gets
            (*values, _), (*replayed, _) = env.step(action), other.step(again)
            pairs = zip(map(np.asarray, values), map(np.asarray, replayed), strict=True)
            if not all(np.array_equal(*pair, equal_nan=True) for pair in pairs):
                return False
            if values[2] or values[3]:  # terminated or truncated
                env.reset()
                other.reset()
    return True

"""Environments stepped in turn, one per row: for training and evaluation, in this process or in workers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.env.restore import RestorableEnv
from cleanrl_maxent.common.env.wrapper import locate
from cleanrl_maxent.common.errors import UsageError, WorkerDied

ALIGNMENT = 64  # bytes; where an array begins in a buffer


class Spaces(NamedTuple):
    """The spaces of an environment."""

    observation: gym.Space
    action: gym.Space


class Rows(NamedTuple):
    """What environments receive and return; each array leads with `(row,)`."""

    running: np.ndarray  # bool: the rows that are reset and stepped
    seed: np.ndarray  # int64: of the next reset
    action: np.ndarray  # (row, ...), in the environment's units, of its dtype
    obs: np.ndarray  # (row, obs_dim) float32: the current observation
    next_obs: np.ndarray  # likewise: the observation after the last step, before any reset
    reward: np.ndarray  # float64
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool
    elapsed: np.ndarray  # int64: steps of the current episode
    episode_return: np.ndarray  # float64, undiscounted: of the episode that ended with the last step
    episode_length: np.ndarray  # int64, in steps: likewise

    def part(self, which: slice) -> "Rows":
        """Some of the rows, as views."""
        return Rows(*(array[which] for array in self))


def layout(count: int, spaces: Spaces) -> list[tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each array of `count` rows."""
    action_dtype, obs = spaces.action.dtype, (count, *(spaces.observation.shape or ()))
    scalars: dict[str, tuple[int, ...]] = dict.fromkeys(Rows._fields, (count,))
    shapes = scalars | {"action": (count, *(spaces.action.shape or ())), "obs": obs, "next_obs": obs}
    kinds = {"action": action_dtype, "obs": np.float32, "next_obs": np.float32}
    kinds |= dict.fromkeys(("running", "terminated", "truncated"), np.bool_)
    kinds |= dict.fromkeys(("seed", "elapsed", "episode_length"), np.int64)
    return [(shapes[name], np.dtype(kinds.get(name, np.float64))) for name in Rows._fields]


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def padded(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes that an array takes in a buffer, with the padding before the next one."""
    return round_up(int(np.prod(shape)) * dtype.itemsize, ALIGNMENT)


def bytes_of(count: int, spaces: Spaces) -> int:
    """Bytes of a buffer for `count` rows."""
    return sum(padded(*array) for array in layout(count, spaces))


def rows_in(buffer, count: int, spaces: Spaces) -> Rows:
    """`count` rows whose arrays lie in `buffer`, which has at least `bytes_of` bytes."""
    arrays, start = [], 0
    for shape, dtype in layout(count, spaces):
        arrays.append(np.ndarray(shape, dtype, buffer, start))
        start += padded(shape, dtype)
    return Rows(*arrays)


class RowFailed(Exception):
    """An environment raised the exception `problem`; `row` is its row."""

    def __init__(self, row: int, problem: Exception | SystemExit):
        super().__init__(row, problem)
        self.row, self.problem = row, problem


@contextmanager
def locating(name: str, where: str, seed: Callable[[int], object]) -> Iterator[None]:
    """Adds `where`, and the `seed` of a row, to an environment's exception or to WorkerDied."""
    try:
        yield
    except RowFailed as failed:
        raise locate(failed.problem, name, f"{where}, seed {seed(failed.row)}") from failed.problem
    except WorkerDied as problem:
        raise locate(problem, name, where) from problem


class Batch(Protocol):
    """Environments, one per row, wherever they live; see `EnvBatch`."""

    spaces: Spaces
    rows: Rows

    def make(self, which: Iterable[int]) -> None: ...
    def reset(self) -> None: ...
    def step_async(self) -> None: ...
    def step_wait(self) -> None: ...
    def snapshot(self) -> list[tuple[dict, np.ndarray]]: ...
    def restore(self, states: list[tuple[dict, np.ndarray]]) -> list[bool]: ...


class EnvBatch:
    """Environments that are stepped in turn. Each is made when it is first needed.

    With `autoreset`, the step that ends an episode also begins the next; without, the row stops running,
    and an episode that seems endless is refused. `make` sets `spaces` and `rows`. An exception in an
    episode, or a return value that is not allowed, is raised as RowFailed.
    """

    spaces: Spaces
    rows: Rows

    def __init__(self, build: Callable[[], RestorableEnv], count: int, autoreset: bool):
        """`build` makes an environment; there will be at most `count` of them."""
        self.build, self.count, self.autoreset = build, count, autoreset
        self.envs: dict[int, RestorableEnv] = {}  # those made so far, by row

    def make(self, which: Iterable[int]) -> None:
        """Makes the environments of some rows. Raises UsageError like `env`, after closing those made."""
        try:
            for row in which:
                self.env(row)
        except BaseException:
            self.close()
            raise

    def env(self, row: int) -> RestorableEnv:
        """The environment of a row. Raises UsageError like `make_env`, or if its spaces differ."""
        if row not in self.envs:
            env = self.envs[row] = self.build()
            spaces = Spaces(env.observation_space, env.action_space)
            if not hasattr(self, "spaces"):
                self.spaces = spaces
                buffer = np.zeros(bytes_of(self.count, spaces), np.uint8)
                self.rows = rows_in(buffer.data, self.count, spaces)
            check_same_spaces(env.checked.name, spaces, self.spaces)
        return self.envs[row]

    def reset(self) -> None:
        """Begins an episode in every running row, with its seed."""
        rows = self.rows
        for row in map(int, np.flatnonzero(rows.running)):
            try:
                rows.obs[row], _ = self.env(row).reset(seed=int(rows.seed[row]))
            except (Exception, SystemExit) as problem:
                raise RowFailed(row, problem) from problem
            rows.elapsed[row] = 0

    def step_async(self) -> None:
        """Does nothing: `step_wait` steps the environments of this process."""

    def step_wait(self) -> None:
        """Steps each running row with its action."""
        for row in map(int, np.flatnonzero(self.rows.running)):
            try:
                self.step_row(row)
            except (Exception, SystemExit) as problem:
                raise RowFailed(row, problem) from problem

    def step_row(self, row: int) -> None:
        rows, env = self.rows, self.envs[row]
        # a copy, because the environment may keep it
        obs, reward, terminated, truncated, info = env.step(rows.action[row].copy())
        rows.next_obs[row], rows.reward[row] = obs, reward
        rows.terminated[row], rows.truncated[row] = terminated, truncated
        ended = terminated or truncated
        if ended:
            rows.episode_return[row] = info["episode"]["return"]
            rows.episode_length[row] = info["episode"]["length"]
        if ended and self.autoreset:
            obs, _ = env.reset()
        elif ended:
            rows.running[row] = False
        elif not self.autoreset:
            env.checked.check_length()
        rows.obs[row], rows.elapsed[row] = obs, env.checked.length

    def snapshot(self) -> list[tuple[dict, np.ndarray]]:
        """The state of every environment: see `RestorableEnv.snapshot`."""
        return [self.envs[row].snapshot() for row in range(self.count)]

    def restore(self, states: list[tuple[dict, np.ndarray]]) -> list[bool]:
        """Restores every environment to its snapshot; False for one whose random state then differs."""
        same = []
        for row, state in enumerate(states):
            try:
                obs = self.env(row).restore(*state)
            except (Exception, SystemExit) as problem:
                raise RowFailed(row, problem) from problem
            same.append(obs is not None)
            self.rows.elapsed[row] = self.env(row).checked.length
            if obs is not None:
                self.rows.obs[row] = obs
        return same

    def close(self) -> None:
        """Closes the environments."""
        while self.envs:
            _, env = self.envs.popitem()
            env.close()


def check_same_spaces(name: str, spaces: Spaces, others: Spaces) -> None:
    """Raises UsageError unless an environment has the same spaces as the others."""
    if spaces != others:
        differ = f"{others} and {spaces}"
        raise UsageError(f"all environments of a run must have the same spaces; {name} has {differ}")

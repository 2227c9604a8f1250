"""Checks that an environment is supported, and explains when it is not; checks that values are finite."""

import difflib
import re

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.errors import NonFiniteError, UsageError


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


def check_spaces(
    env_id: str, observation: gym.Space, action: gym.Space, action_spaces: tuple[str, ...]
) -> None:
    """Raises UsageError unless observations are a 1-D Box and actions of one of the kinds `action_spaces`:
    Box, 1-D with finite bounds, or Discrete."""
    if not isinstance(observation, gym.spaces.Box) or len(observation.shape) != 1 or not observation.shape[0]:
        kind = f"{type(observation).__name__}{getattr(observation, 'shape', None) or ''}"
        raise UsageError(
            f"observation space must be a 1-D Box; {env_id} has {kind}; wrap it with FlattenObservation"
        )
    if not any(isinstance(action, getattr(gym.spaces, kind)) for kind in action_spaces):
        needed = {"Box": "a continuous one (Box)", "Discrete": "a discrete one (Discrete)"}
        kinds = needed[action_spaces[0]] if len(action_spaces) == 1 else " or ".join(action_spaces)
        raise UsageError(f"{env_id} has the action space {action}; {kinds} is needed")
    if not isinstance(action, gym.spaces.Box):
        return
    if len(action.shape) != 1 or action.shape[0] == 0:
        raise UsageError(f"{env_id} has actions of shape {action.shape}; a 1-D Box is needed")
    if not np.issubdtype(action.dtype, np.floating):
        raise UsageError(f"{env_id} has actions of dtype {action.dtype}; floating point ones are needed")
    for dim, (low, high) in enumerate(zip(action.low, action.high, strict=True)):
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UsageError(
                f"action bounds must be finite; dimension {dim} of {env_id} is [{low}, {high}]; "
                "use RescaleAction or ClipAction"
            )
        if low >= high:
            raise UsageError(f"action dimension {dim} of {env_id} has low={low} >= high={high}")


def check_finite(step: int, seeds: list[int], **tensors: np.ndarray) -> None:
    """Raises NonFiniteError naming step, seed and tensor; each tensor has a leading axis `(seed,)`."""
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            rows = np.reshape(values, (len(seeds), -1))
            index, entry = np.argwhere(~np.isfinite(rows))[0]
            raise NonFiniteError(
                f"non-finite {name} at step {step}, seed {seeds[index]}: [{entry}] is {rows[index, entry]}"
            )

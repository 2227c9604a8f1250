"""Checks that an environment is supported, and explains when it is not; checks that values are finite."""

import difflib
import inspect
import re
import traceback
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator

from cleanrl_maxent.common.env.wrapper import describe_exception
from cleanrl_maxent.common.errors import NonFiniteError, UsageError, require

UNBOUNDED = 1e30  # bounds beyond this mean no bounds
FLATTEN = "entry_point=lambda **kwargs: FlattenObservation(MyEnv(**kwargs))"
BOUND = "entry_point=lambda **kwargs: TransformAction(MyEnv(**kwargs), lambda action: action, Box(low, high))"


def check_name(env_id: str) -> None:
    """Raises UsageError for an id that Gymnasium does not know, or whose version it would guess."""
    module, colon, name = env_id.rpartition(":")
    if name in gym.registry:
        return
    if not re.search(r"-v\d+$", name):
        versions = [known for known in gym.registry if known.rpartition("-v")[0] == name]
        newest = sorted(versions, key=lambda known: int(known.rpartition("-v")[2]))[-2:]
        if newest:
            ids = [f"{module}{colon}{known}" for known in newest]
            silently = f"{env_id!r} would silently become {ids[-1]}"
            raise UsageError(f"give the version: {silently}; write {' or '.join(ids)}")
    if module:  # Gymnasium may not have seen its environments yet, or says why it has none of this name
        return
    lower = {known.lower(): known for known in gym.registry}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7)
    hint = f" Did you mean {lower[near[0]]}?" if near else " Write one of your own as my_module:MyEnv-v0."
    raise UsageError(f"unknown environment {env_id!r}.{hint}")


def explain(env_id: str, problem: BaseException, kwargs: dict[str, Any]) -> str:
    """One line that says what to do about an environment that cannot be made from these arguments."""
    name, _, version = env_id.rpartition("-v")
    if version in ("2", "3") and f"{name}-v4" in gym.registry:
        return f"v{version} needs the old mujoco-py; use {name}-v4 or {name}-v5"
    if env_id == "Pusher-v4":
        return "it needs mujoco < 3; use Pusher-v5"
    # Gymnasium re-raises a TypeError with a longer message
    own = problem.__cause__ if isinstance(problem.__cause__, TypeError) else problem
    if not str(own).strip():
        return describe_exception(own)
    line = " ".join(str(own).split())
    if lacks_render_mode(own, kwargs):
        return f"{line}; to be drawn, it must take the argument render_mode"
    module, _, id_there = env_id.rpartition(":")
    if module.endswith(".py"):
        return f"name the module, not its file: {module.removesuffix('.py')}:{id_there}"
    if isinstance(own, gym.error.DependencyNotInstalled) and "box2d" in line.lower():
        return "Box2D is not installed: pip install 'cleanrl_maxent[box2d]'"
    if isinstance(own, ModuleNotFoundError) and own.name in (module, module.partition(".")[0]):
        return f"{line}; start in the folder that has {own.name}, or install it"
    if not isinstance(own, gym.error.Error | ImportError) and (place := source_line(own)):
        line = f"{describe_exception(own)} ({place})"
    return line + describe_signature(env_id, kwargs) if isinstance(own, TypeError) else line


def lacks_render_mode(problem: BaseException, kwargs: dict[str, Any]) -> bool:
    """True if an environment that should be drawn does not take the argument `render_mode`."""
    return "render_mode" in kwargs and isinstance(problem, TypeError) and "'render_mode'" in str(problem)


def source_line(problem: BaseException) -> str:
    """File and line that raised an exception.

    Empty if Gymnasium did, as for arguments that do not fit, and for a syntax error, which names them itself.
    """
    if isinstance(problem, SyntaxError):
        return ""
    *_, frame = traceback.extract_tb(problem.__traceback__) or [None]
    inside = frame is None or Path(frame.filename).is_relative_to(Path(gym.__file__).parent)
    return "" if frame is None or inside else f"{Path(frame.filename).name}, line {frame.lineno}"


def describe_signature(env_id: str, kwargs: dict[str, Any]) -> str:
    """The arguments that an environment takes, if `kwargs` has any or does not fit them; else empty."""
    spec = gym.registry.get(env_id.rpartition(":")[2])
    if spec is None or spec.entry_point is None:
        return ""
    entry_point = spec.entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    try:
        signature = inspect.signature(creator)
    except ValueError:  # a class in C has none
        return ""
    given = {name: value for name, value in kwargs.items() if name != "render_mode"}
    try:
        signature.bind(**{**spec.kwargs, **kwargs})
        if not given:
            return ""
    except TypeError:
        pass
    parameters = ", ".join(str(parameter) for parameter in signature.parameters.values())
    if parameters.startswith("**"):  # a function that passes them on
        return ""
    return f"; its arguments, which --env-kwargs gives, are ({parameters})"


def check_kwargs(kwargs: dict[str, Any]) -> None:
    """Raises UsageError for arguments that are not the environment's own."""
    if "max_episode_steps" in kwargs:
        raise UsageError("env_kwargs must not have max_episode_steps: that is a flag, --max-episode-steps")
    if reserved := {"id", "render_mode", "disable_env_checker"} & kwargs.keys():
        raise UsageError(f"env_kwargs must not have {min(reserved)}: this program sets it")


def alternatives(kind: str, algorithm: Path) -> str:
    """The package's algorithms for this kind of action; only variants of `algorithm`, if any; or ""."""
    names = []
    for path in sorted(Path(__file__).parents[2].glob("*.py")):
        text = path.read_text("utf-8", errors="replace")
        stated = re.search(r"^    action_spaces: ClassVar = (.*)", text, re.MULTILINE)
        if "class Args(RunArgs)" in text and kind in (stated[1] if stated else "Box"):
            names.append(path.name)
    first, *_ = algorithm.stem.split("_")
    variants = [name for name in names if Path(name).stem.split("_")[0] == first]
    *others, last = variants or names or [""]
    return f"{', '.join(others)} or {last}" if others else last


def check_spaces(
    env_id: str, env: gym.Env, action_spaces: tuple[str, ...], algorithm: Path | None = None
) -> None:
    """Raises UsageError unless observations are a 1-D Box and actions of one of the kinds `action_spaces`:
    Box, 1-D with finite bounds, or Discrete. `algorithm`: its file, to suggest others."""
    observation, action = getattr(env, "observation_space", None), getattr(env, "action_space", None)
    if not isinstance(observation, gym.spaces.Box) or len(observation.shape) != 1 or not observation.shape[0]:
        shape = getattr(observation, "shape", None)
        require(
            shape != (0,), f"observations must not be empty; {env_id} has {type(observation).__name__}(0,)"
        )
        kind = f"{type(observation).__name__}{shape or ''}"
        raise UsageError(
            f"observation space must be a 1-D Box; {env_id} has {kind}; "
            f"wrap it where it is registered: {FLATTEN}"
        )
    if not any(isinstance(action, getattr(gym.spaces, kind)) for kind in action_spaces):
        needed = {"Box": "a continuous one (Box)", "Discrete": "a discrete one (Discrete)"}
        kinds = needed[action_spaces[0]] if len(action_spaces) == 1 else " or ".join(action_spaces)
        others = alternatives(type(action).__name__, algorithm) if algorithm else ""
        advice = f"; use {others}" if others else ""
        raise UsageError(f"{env_id} has the action space {action}; {kinds} is needed{advice}")
    if isinstance(action, gym.spaces.Box):
        check_bounds(env_id, action)


def check_bounds(env_id: str, action: gym.spaces.Box) -> None:
    """Raises UsageError unless actions are 1-D, floating point, and within bounds that can be scaled."""
    require(action.shape != (0,), f"actions must not be empty; {env_id} has Box(0,)")
    if len(action.shape) != 1:
        raise UsageError(f"{env_id} has actions of shape {action.shape}; a 1-D Box is needed")
    if not np.issubdtype(action.dtype, np.floating):
        raise UsageError(f"{env_id} has actions of dtype {action.dtype}; floating point ones are needed")
    with np.errstate(over="ignore", invalid="ignore"):
        widths = action.high - action.low
    for dim, (low, high, width) in enumerate(zip(action.low, action.high, widths, strict=True)):
        if not max(abs(low), abs(high), width) < UNBOUNDED:
            raise UsageError(
                f"action bounds must be finite; dimension {dim} of {env_id} is [{low}, {high}]; "
                f"wrap it where it is registered: {BOUND}"
            )
        if low >= high:
            raise UsageError(f"action dimension {dim} of {env_id} has low={low} >= high={high}")


def check_finite(step: int, seeds: list[int], /, **tensors: np.ndarray) -> None:
    """Raises NonFiniteError naming step, seed and tensor; each tensor has a leading axis `(seed,)`."""
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            rows = np.reshape(values, (len(seeds), -1))
            index, entry = np.argwhere(~np.isfinite(rows))[0]
            place = f"[{entry}] is " if rows.shape[1] > 1 else "it is "
            raise NonFiniteError(
                f"non-finite {name} at step {step}, seed {seeds[index]}: {place}{rows[index, entry]}"
            )

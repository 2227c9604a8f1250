"""What it takes to render an environment: a render mode, and for MuJoCo an OpenGL backend.

Each backend is tried in a separate process, because a broken driver may crash it.
"""

import functools
import importlib
import os
import platform
import subprocess
import sys
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from cleanrl_maxent.common.errors import UsageError, require

# Debian and Ubuntu packages of MuJoCo's OpenGL backends
PACKAGES = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6", "glfw": "libgl1, with a display"}
TIME_LIMIT = 60.0  # seconds; a probe usually takes about one
STILL = -1  # the id of MuJoCo's free camera
WIDER = 100  # factor on the size of the floor

PROBE = """
import importlib, sys
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
context.make_current()
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
"""


def has_display() -> bool:
    """True if the environment variables say that a window can be opened."""
    return platform.system() != "Linux" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@functools.cache
def can_draw(backend: str) -> bool:
    """True if MuJoCo renders with `backend`, egl, osmesa or glfw, in a separate process."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", PROBE, backend]
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=TIME_LIMIT)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@functools.cache
def choose_backend() -> str:
    """Sets MUJOCO_GL, which MuJoCo and Gymnasium read, to the first backend that renders here; returns "".

    Tries the one in MUJOCO_GL, if set; else glfw if there is a display, then EGL and OSMesa. If none renders,
    returns the reason, in one line. Outside Linux there is nothing to choose.
    """
    if platform.system() != "Linux":
        return ""
    named = os.environ.get("MUJOCO_GL")
    if named and named not in PACKAGES:
        return f"MUJOCO_GL is {named!r}; set it to {', '.join(PACKAGES)}, or leave it out"
    candidates = [named] if named else ["glfw"] * has_display() + ["egl", "osmesa"]
    for backend in candidates:
        if can_draw(backend):
            os.environ["MUJOCO_GL"] = backend
            return ""
    if named:
        return f"MuJoCo cannot render with MUJOCO_GL={named}: apt-get install {PACKAGES[named]}"
    return f"MuJoCo cannot render: apt-get install {PACKAGES['egl']}, or {PACKAGES['osmesa']}"


def prepare_rendering(env_id: str, render_mode: str) -> None:
    """Called before an environment with a render mode, "rgb_array" or "human", is made.

    For "rgb_array", chooses MuJoCo's backend, because the environment may import MuJoCo. Raises UsageError if
    the environment's metadata lack the mode, or if there is no display for a window.
    """
    if render_mode == "human" and not has_display():
        raise UsageError("a window needs a display; make a film instead")
    if render_mode == "rgb_array" and (reason := choose_backend()):
        # if MUJOCO_GL names a backend that is missing, MuJoCo cannot even be imported
        require(os.environ.get("MUJOCO_GL") not in PACKAGES, reason)
    if not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # else pygame complains
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    entry_point = gym.spec(name).entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    metadata = getattr(creator, "metadata", None)  # an entry point may be a function, which has none
    modes = metadata.get("render_modes", []) if isinstance(metadata, dict) else [render_mode]
    # Gymnasium opens a window for an environment that has rgb_array only
    if not {render_mode, "rgb_array"} & set(modes):
        raise UsageError(f"{env_id} has no render mode {render_mode}")


def check_rendering(env: gym.Env, render_mode: str) -> None:
    """Raises UsageError, naming packages to install, if MuJoCo should render the environment and cannot."""
    if not hasattr(env.unwrapped, "mujoco_renderer"):
        return
    if render_mode == "human":
        opens = platform.system() != "Linux" or can_draw("glfw")  # if it cannot, glfw ends the process
        require(opens, "no window can be opened; check DISPLAY, or make a film")
    elif reason := choose_backend():
        raise UsageError(reason)


def set_scene(env: gym.Env, size: int) -> None:
    """If MuJoCo renders the environment: frames of `size` pixels a side, a camera that follows the body, if
    the model has one (Gymnasium's own is fixed), and a floor that does not end after 20 m."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return
    renderer.width = renderer.height = size
    screen = renderer.model.vis.global_
    screen.offwidth, screen.offheight = max(screen.offwidth, size), max(screen.offheight, size)
    if renderer.camera_id == STILL:
        renderer.camera_id = following_camera(renderer.model)
    widen_floor(renderer.model)


def set_window_scene(env: gym.Env) -> None:
    """Sets the same camera and floor in an open window; the Tab key changes the camera."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return
    if (camera := following_camera(renderer.model)) != STILL:
        renderer.viewer.cam.type = mujoco_names().mjtCamera.mjCAMERA_FIXED  # the model's own, which moves
        renderer.viewer.cam.fixedcamid = camera
    widen_floor(renderer.model)


def widen_floor(model: Any) -> None:
    """Makes the planes of a MuJoCo model look larger; in the dynamics they are infinite anyway."""
    planes = model.geom_type == mujoco_names().mjtGeom.mjGEOM_PLANE
    model.geom_size[planes, :2] *= WIDER
    materials = model.geom_matid[planes]
    model.mat_texrepeat[materials[materials >= 0]] *= WIDER


def following_camera(model: Any) -> int:
    """The id of a MuJoCo model's camera "track"; STILL if it has none."""
    mujoco = mujoco_names()
    return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")


def mujoco_names() -> Any:
    """The module `mujoco`, which is imported after the backend is chosen."""
    return importlib.import_module("mujoco")

"""Films of a policy's episodes, and windows that show them.

A GIF needs Pillow, an MP4 imageio-ffmpeg, classic control pygame: the extra `video` has all three.
`env/render.py` chooses how MuJoCo renders without a display.
"""

import importlib
import io
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import gymnasium as gym
import numpy as np

from cleanrl_maxent.common.env.make import EnvChoice, make_env
from cleanrl_maxent.common.env.render import set_scene, set_window_scene
from cleanrl_maxent.common.env.wrapper import locate
from cleanrl_maxent.common.errors import Stopped, UsageError, is_out_of_memory, one_line, require
from cleanrl_maxent.common.files import write_file
from cleanrl_maxent.common.signals import stop_if_asked

MAX_FPS = 20.0  # frames per second
COLORS = 64  # of a GIF
END_PAUSE = 0.5  # seconds for which the last frame of an episode is held
OR_ALL = "(all that films need: pip install 'cleanrl_maxent[video]')"

Choose = Callable[[np.ndarray, int], np.ndarray]  # action, in the environment's units, for (obs, step)


class Player:
    """Plays episodes in an environment with a render mode, and calls `see` after each step."""

    def __init__(self, choice: EnvChoice | str, render_mode: str):
        """Raises UsageError like `make_env`."""
        self.env = make_env(choice, render_mode)
        self.env_id = self.env.name
        self.fps = float(self.env.metadata.get("render_fps") or MAX_FPS)  # steps per second in real time

    def play(self, choose: Choose, seed: int) -> tuple[float, int]:
        """Plays an episode from a reset with `seed`; returns its undiscounted return and its length in steps.

        Raises UsageError if a library is missing, rendering fails, or the episode seems endless; Stopped; and
        an environment's own exception as EnvironmentFailed.
        """
        total, step, over = 0.0, 0, False
        try:
            obs, _ = self.env.reset(seed=seed)
            self.see(0)
            while not over:
                stop_if_asked()
                obs, reward, terminated, truncated, _ = self.env.step(choose(obs, step))
                total, step, over = total + float(reward), step + 1, bool(terminated or truncated)
                self.see(step)
                if not over:
                    self.env.check_length()
        except gym.error.DependencyNotInstalled as problem:
            raise UsageError(explain_missing(self.env_id, problem)) from problem
        except (UsageError, Stopped):
            raise
        except (Exception, SystemExit) as problem:
            if is_out_of_memory(problem):
                raise
            raise locate(problem, self.env_id, f"in a film, step {step}") from problem
        return total, step

    def see(self, step: int) -> None:
        """Called after `step` steps of an episode."""

    def close(self) -> None:
        self.env.close()


class Window(Player):
    """Plays episodes in a window, in real time; raises UsageError if there is no display."""

    def __init__(self, choice: EnvChoice | str):
        super().__init__(choice, "human")
        self.opened = False  # MuJoCo opens it with the first reset

    def see(self, step: int) -> None:
        if not self.opened:
            set_window_scene(self.env)
            self.opened = True
        if step == 0:
            self.began = time.perf_counter()
        time.sleep(max(0.0, self.began + step / self.fps - time.perf_counter()))


class Film(Player):
    """Plays episodes, and keeps the frames of a film that shows them one after another, in real time.

    It keeps a frame every `every` steps: at most MAX_FPS frames per second, and at most `max_frames` in all.
    """

    def __init__(
        self,
        choice: EnvChoice | str,
        max_frames: int = 250,
        seconds: float | None = None,
        size: int = 320,
    ):
        """`seconds`: longest film, in the environment's time; episodes are always played to the end.
        `size`: pixels of the longer side, exact for MuJoCo; other frames are divided by the smallest integer
        that makes them fit. Raises UsageError like `make_env`.
        """
        super().__init__(choice, "rgb_array")
        set_scene(self.env, size)
        self.size, self.max_frames = size, max_frames
        self.frames: list[np.ndarray] = []  # (height, width, 3) uint8
        self.ends: list[int] = []  # the number of frames at the end of each episode shown
        self.last_step = math.inf if seconds is None else seconds * self.fps
        self.steps = 0  # of all earlier episodes
        self.expected = min(self.env.time_limit or math.inf, self.last_step)
        self.every = math.ceil(self.fps / MAX_FPS)
        if self.expected < math.inf:
            self.every = max(self.every, math.ceil(self.expected / max_frames))

    @property
    def frames_per_second(self) -> float:
        """The rate at which the film runs in real time."""
        return self.fps / self.every

    def play(self, choose: Choose, seed: int) -> tuple[float, int]:
        """Like `Player.play`; appends the episode to the film."""
        episode_return, length = super().play(choose, seed)
        self.steps += length
        if self.steps <= self.last_step:
            self.ends.append(len(self.frames))
        return episode_return, length

    def see(self, step: int) -> None:
        if step % self.every or self.steps + step > self.last_step:
            return
        if len(self.frames) == self.max_frames:
            if step >= self.expected:  # the state after the last step
                return
            # there is no time limit, or this is not the first episode
            self.frames = self.frames[::2]
            self.ends = [(end + 1) // 2 for end in self.ends]
            self.every *= 2
            if step % self.every:
                return
        self.frames.append(shrink(self.picture(), self.size))

    def picture(self) -> np.ndarray:
        """The rendered frame; raises UsageError unless it is `(height, width, 3)` uint8."""
        try:
            drawn = self.env.render()
        except gym.error.DependencyNotInstalled:
            raise
        except Exception as problem:
            line = one_line(problem)
            raise UsageError(f"{self.env_id} cannot be rendered: {line}") from problem
        array = np.asarray(drawn)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
            got = f"{array.dtype} of shape {array.shape}"
            raise UsageError(f"{self.env_id} draws {got}; uint8 of (height, width, 3) is needed")
        return array

    def write(self, path: Path) -> None:
        """Writes `*.gif` or `*.mp4`, whole or not at all; raises like `check_video_path`, and OSError."""
        check_video_path(path)
        pause = round(END_PAUSE * self.frames_per_second)
        frames = []
        for index, frame in enumerate(self.frames, start=1):
            frames += [frame] * (1 + pause * (index in self.ends))
        encode = encode_gif if path.suffix == ".gif" else encode_mp4
        write_file(path, encode(frames, self.frames_per_second))


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Averages squares of pixels until the longer side has at most `size`; `(height, width, 3)` uint8."""
    factor = math.ceil(max(picture.shape[:2]) / size)
    height, width = (side // factor for side in picture.shape[:2])
    squares = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return squares.mean(axis=(1, 3)).round().astype(np.uint8)


def check_video_path(path: Path) -> None:
    """Raises UsageError unless a film can be written there: extension, library, folder."""
    libraries = {".gif": ("PIL", "pillow"), ".mp4": ("imageio_ffmpeg", "imageio-ffmpeg")}
    require(path.suffix in libraries, f"a film is a .gif or an .mp4 file; got {str(path)!r}")
    module, package = libraries[path.suffix]
    try:
        importlib.import_module(module)
    except ImportError as problem:
        raise UsageError(f"{path.suffix} films need {package}: pip install {package} {OR_ALL}") from problem
    require(path.parent.is_dir(), f"{path.parent} is not a folder")
    require(not path.is_dir() and os.access(path.parent, os.W_OK), f"cannot write {path}")


def explain_missing(env_id: str, problem: Exception) -> str:
    """One line about a missing library that an environment needs to render."""
    if "pygame" in str(problem):
        return f"{env_id} needs pygame to be drawn: pip install 'gymnasium[classic-control]' {OR_ALL}"
    return f"{env_id} cannot be rendered: {one_line(problem)}"


def encode_gif(frames: list[np.ndarray], fps: float) -> bytes:
    """The bytes of a GIF that loops; all frames, `(height, width, 3)` uint8, share one palette."""
    from PIL import Image

    sample = np.concatenate(frames[:: math.ceil(len(frames) / 16)])
    palette = Image.fromarray(sample).quantize(COLORS, kmeans=1)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # GIF durations are in hundredths of a second: rounding the ends keeps the length right
    ends = np.round(100 * np.arange(len(frames) + 1) / fps)
    durations = [int(10 * hundredths) for hundredths in np.diff(ends)]
    file = io.BytesIO()
    images[0].save(
        file, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
    )
    return file.getvalue()


def encode_mp4(frames: list[np.ndarray], fps: float) -> bytes:
    """The bytes of an H.264 MP4; `frames` as in `encode_gif`. Raises UsageError without FFmpeg, OSError."""
    from imageio_ffmpeg import get_ffmpeg_exe  # its own writer forks, which JAX forbids

    try:
        executable = get_ffmpeg_exe()
    except RuntimeError as problem:  # imageio-ffmpeg has none for this platform
        raise UsageError(f".mp4 films need FFmpeg: {one_line(problem)}") from problem
    height, width = (side // 2 * 2 for side in frames[0].shape[:2])  # H.264 needs even sides
    pictures = np.stack(frames)[:, :height, :width]
    rate = str(Fraction(fps).limit_denominator(1000))
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    h264 = ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        command = [executable, "-loglevel", "error", *raw, *h264, str(path)]
        done = subprocess.run(command, input=pictures.tobytes(), capture_output=True)
        if done.returncode:
            raise OSError(f"FFmpeg failed: {' '.join(done.stderr.decode(errors='replace').split())}")
        return path.read_bytes()

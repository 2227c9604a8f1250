"""Films: what they show, what they need, and that a run neither changes nor ends because of one."""

import ctypes
import importlib
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs, read_frames
from PIL import Image
from tensorboardX.proto import event_pb2

from cleanrl_maxent import maxent_pg, sac
from cleanrl_maxent.common import film as film_module
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.env import render
from cleanrl_maxent.common.env.make import EnvChoice, make_env
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import Stopped, UsageError
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.film import Film, Window, check_video_path
from cleanrl_maxent.common.run.capture import Filming, image_summary
from cleanrl_maxent.environments.multigoal import GOAL, INK, PAPER, MultiGoal
from tests.support.runs import SMALL, digests, interrupted, rows, train
from tests.support.tree import ROOT


@pytest.fixture(autouse=True)
def read_without_fork(monkeypatch):
    """imageio-ffmpeg's reader of films forks otherwise, which JAX warns of."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")


MULTIGOAL = "cleanrl_maxent/MultiGoal-v0"


class Shown(gym.Env):
    """Draws the number of the step as a colour; 50 steps a second, an episode of `length` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None, length=10**9, side=8):
        self.render_mode, self.length, self.side = render_mode, length, side

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == self.length, False, {}

    def render(self):
        return np.full((self.side, self.side, 3), [self.count // 256, self.count % 256, 0], np.uint8)


class Flat(Shown):
    """Draws what is no picture."""

    def render(self):
        return np.zeros((8, 8))


def made_by_a_function(**given):
    return Shown(**given)


gym.register("Shown-v0", Shown, max_episode_steps=1000)
gym.register("Endless-v0", Shown, kwargs={"length": 1000})
gym.register("Brief-v0", Shown, max_episode_steps=30)
gym.register("Large-v0", Shown, max_episode_steps=30, kwargs={"side": 700})
gym.register("Flat-v0", Flat, max_episode_steps=30)
gym.register("Function-v0", made_by_a_function, max_episode_steps=30)


def still(obs, step):
    return np.zeros(1, np.float32)


def outwards(obs, step):
    """Leads to the goal on the right of the plane of MultiGoal."""
    return np.array([0.5, 0], np.float32)


def steps_shown(film):
    return [int(frame[0, 0, 0]) * 256 + int(frame[0, 0, 1]) for frame in film.frames]


def test_film_of_multigoal(tmp_path):
    """What is drawn: the goals, the path of the episode, the point where it is, earlier paths faintly."""
    film = Film(MULTIGOAL)
    episode_return, length = film.play(outwards, 3)
    env = make_env(MULTIGOAL)
    env.reset(seed=3)
    rewards = [env.step(outwards(None, step))[1] for step in range(length)]
    assert episode_return == sum(rewards) and length == len(film.frames) - 1
    x = int((env.unwrapped.position[0] + 7) / 14 * 320)
    y = int((7 - env.unwrapped.position[1]) / 14 * 320)
    first, last = film.frames[0], film.frames[-1]
    assert tuple(last[y, x]) == INK != tuple(first[y, x])
    assert np.abs(first[46, 160] - (0.25 * np.array(PAPER) + 0.75 * np.array(GOAL))).max() < 12
    film.play(outwards, 3)
    ink = np.abs(film.frames[10].astype(int) - first).sum(axis=-1)
    assert ink[y - 5 : y + 5, 170:250].max() > 30  # the path before
    film.close()

    film.write(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as image:
        assert image.size == (320, 320) and image.info["loop"] == 0
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
    # in real time, and a pause of half a second after each of two equal episodes
    fps = MultiGoal.metadata["render_fps"]
    shown = (len(durations) + 2 * round(fps / 2)) / fps
    assert len(durations) == 2 * (length + 1) and durations[length] > 500 > durations[length - 1]
    assert sum(durations) == pytest.approx(1000 * shown, abs=10)
    film.write(tmp_path / "film.mp4")
    frames, seconds = count_frames_and_secs(tmp_path / "film.mp4")
    assert frames == shown * fps and seconds == pytest.approx(shown, abs=0.01)
    meta = next(read_frames(tmp_path / "film.mp4"))
    assert meta["size"] == (320, 320) and meta["fps"] == fps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.gif", "film.mp4"]


@pytest.mark.parametrize(
    "env_id, given, every, count",
    [
        ("Shown-v0", {}, 4, 250),  # a time limit of 1000 steps
        ("Shown-v0", {"max_frames": 10_000}, 3, 334),  # 50 steps a second
        ("Shown-v0", {"seconds": 4.0}, 3, 67),
        ("Shown-v0", {"seconds": 10.0, "max_frames": 50}, 10, 50),
        ("Endless-v0", {}, 6, 167),  # no limit: every second one is dropped when there are too many
    ],
)
def test_pictures_are_spread_evenly(env_id, given, every, count):
    film = Film(env_id, **given)
    assert film.play(still, 0) == (1000, 1000)  # the whole episode, however little is shown
    assert len(film.frames) == count <= film.max_frames
    assert steps_shown(film) == list(range(0, every * count, every))
    assert film.frames_per_second == 50 / every


def test_episodes_follow_one_another():
    """Four of 30 steps, which need every third of 120 steps to fit; 1.4 s are two and a third of them."""
    film, cut = Film("Brief-v0", max_frames=30), Film("Brief-v0", seconds=1.4)
    for _ in range(4):
        assert film.play(still, 0) == cut.play(still, 0) == (30, 30)
    assert 15 < len(film.frames) <= 30 and film.every == 6 and film.ends[-1] == len(film.frames)
    assert steps_shown(cut) == [*range(0, 31, 3)] * 2 + [0, 3, 6, 9] and cut.ends == [11, 22]


def test_large_pictures_are_shrunk():
    film = Film("Large-v0", size=320)
    film.play(still, 0)
    assert film.frames[0].shape == (233, 233, 3) and steps_shown(film)[1] == 3


def test_an_environment_made_by_a_function():
    film = Film("Function-v0")
    film.play(still, 0)
    assert film.frames


def hide(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_missing_libraries(monkeypatch, tmp_path):
    hide(monkeypatch, "PIL", "imageio_ffmpeg", "pygame", "Box2D")
    with pytest.raises(UsageError, match=r"^\.gif films need pillow: pip install pillow .*\[video\]'\)$"):
        check_video_path(tmp_path / "a.gif")
    with pytest.raises(UsageError, match=r"^\.mp4 films need imageio-ffmpeg: pip install imageio-ffmpeg "):
        check_video_path(tmp_path / "a.mp4")
    with pytest.raises(UsageError, match=r"^Pendulum-v1 needs pygame .*: pip install 'gymnasium\[classic-"):
        Film("Pendulum-v1").play(still, 0)
    hide(monkeypatch, "gymnasium.envs.box2d.lunar_lander")
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander")
    with pytest.raises(UsageError, match="cannot make LunarLander-v3: .*Box2D.*pip install"):
        Film(EnvChoice("LunarLander-v3", ("Discrete",)))


def test_a_window_shows_an_episode_in_real_time(monkeypatch):
    """By pygame's driver for no screen."""
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window(MULTIGOAL)
    began = time.perf_counter()
    _, length = window.play(outwards, 0)
    assert time.perf_counter() - began > length / MultiGoal.metadata["render_fps"]
    window.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's of the same
def test_films_that_cannot_be(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"a \.gif or an \.mp4 file; got '.*a\.avi'"):
        check_video_path(tmp_path / "a.avi")
    with pytest.raises(UsageError, match="missing is not a folder"):
        check_video_path(tmp_path / "missing" / "a.gif")
    with pytest.raises(UsageError, match="TwoRooms-v0 has no render mode rgb_array"):
        Film(EnvChoice("cleanrl_maxent/TwoRooms-v0", ("Discrete",)))
    with pytest.raises(UsageError, match=r"Flat-v0 draws float64 of shape \(8, 8\); uint8"):
        Film("Flat-v0").play(still, 0)
    monkeypatch.setattr(Shown, "render", lambda self: 1 / 0)
    with pytest.raises(UsageError, match="Shown-v0 cannot be rendered: division by zero"):
        Film("Shown-v0").play(still, 0)
    monkeypatch.setattr(render.platform, "system", lambda: "Linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UsageError, match="a window needs a display"):
        Window("Pendulum-v1")


def test_a_film_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    film = Film("Brief-v0")
    film.play(still, 0)
    (tmp_path / "a.mp4").write_bytes(b"before")
    monkeypatch.setattr(film_module, "encode_mp4", lambda frames, fps: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        film.write(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"before"


@pytest.mark.parametrize(
    "named, display, draws, tried, chosen",
    [
        (None, None, {"egl", "osmesa"}, ["egl"], "egl"),
        (None, None, {"osmesa"}, ["egl", "osmesa"], "osmesa"),
        (None, None, set(), ["egl", "osmesa"], None),
        (None, ":0", {"glfw", "egl"}, ["glfw"], "glfw"),
        (None, ":0", {"egl"}, ["glfw", "egl"], "egl"),
        ("osmesa", None, {"osmesa", "egl"}, ["osmesa"], "osmesa"),
        ("osmesa", ":0", {"egl"}, ["osmesa"], None),
        ("disable", None, {"egl"}, [], None),
    ],
)
def test_backends_are_tried_in_order(monkeypatch, named, display, draws, tried, chosen):
    seen = []
    environment = {"MUJOCO_GL": named, "DISPLAY": display}
    monkeypatch.setattr(os, "environ", {name: value for name, value in environment.items() if value})
    monkeypatch.setattr(render.platform, "system", lambda: "Linux")
    monkeypatch.setattr(render, "can_draw", lambda backend: seen.append(backend) or backend in draws)
    reason = render.choose_backend.__wrapped__()
    assert seen == tried
    if chosen:
        assert not reason and os.environ["MUJOCO_GL"] == chosen
    else:
        assert os.environ.get("MUJOCO_GL") == named
        hint = {
            None: "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6",
            "osmesa": "install libosmesa6",
        }
        assert hint.get(named, "MUJOCO_GL is 'disable'; set it to egl") in reason


def test_a_backend_that_crashes_or_hangs_does_not_draw(monkeypatch):
    can_draw = render.can_draw.__wrapped__
    for program, answer in [("", True), ("import os; os.abort()", False), ("raise ImportError", False)]:
        monkeypatch.setattr(render, "PROBE", program)
        assert can_draw("egl") == answer
    monkeypatch.setattr(render, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(render, "TIME_LIMIT", 0.3)
    assert not can_draw("egl")


def has_library(name):
    try:
        return bool(ctypes.CDLL(name))
    except OSError:
        return False


def test_film_of_mujoco():
    """A frame of Hopper; drawing changes nothing of its dynamics, and the camera follows it."""
    if not (has_library("libEGL.so.1") or has_library("libOSMesa.so.8") or has_library("libOSMesa.so.6")):
        pytest.skip("neither libegl1 nor libosmesa6 is installed")
    film = Film("Hopper-v4", size=64)
    action = np.array([0.1, 0.2, 0.3], np.float32)
    played = film.play(lambda obs, step: action, 5)
    env = make_env("Hopper-v4")
    env.reset(seed=5)
    assert played == (sum(env.step(action)[1] for _ in range(played[1])), played[1])
    assert len(film.frames) == played[1] // 7 + 1 and film.frames[0].shape == (64, 64, 3)
    model, data = film.env.unwrapped.model, film.env.unwrapped.data
    data.qpos[0] = 500.0  # metres
    importlib.import_module("mujoco").mj_forward(model, data)
    far = film.picture().astype(int)
    film.close()
    assert np.abs(far - film.frames[-1]).mean() < 20  # the same figure upon the same floor
    assert np.ptp(far[-8:]) > 100


def test_mujoco_that_cannot_draw(monkeypatch):
    monkeypatch.setattr(render, "choose_backend", lambda: "MuJoCo cannot render: apt-get install …")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(UsageError, match="MuJoCo cannot render: apt-get install"):
        Film("Hopper-v4")
    Film(MULTIGOAL).play(outwards, 0)  # others do not need it
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # MuJoCo could not be imported
    with pytest.raises(UsageError, match="MuJoCo cannot render"):
        Film(MULTIGOAL)


@pytest.mark.parametrize(
    "total, frequency, count", [(1000, 100, 5), (1050, 100, 5), (1000, 300, 5), (90, 7, 1)]
)
@pytest.mark.parametrize("rollout", [1, 40])
def test_films_are_spread_evenly(tmp_path, total, frequency, count, rollout):
    given = dict(total_timesteps=total, eval_frequency=frequency, video_count=count, env_id=MULTIGOAL)
    if rollout == 1:
        args = sac.Args(**given, capture_video=True)
    else:
        args = maxent_pg.Args(**given, capture_video=True, num_envs=2, num_steps=20)
    filming, evaluation = Filming(args, tmp_path, print), Evaluation(args, sac.act)
    steps = range(rollout, args.last_step + 1, rollout)
    due = [step for step in steps if filming.due(step)]
    evaluated = [step for step in steps if evaluation.due(step)]
    assert set(due) <= set(evaluated) and due[-1] == args.last_step
    assert len(due) == min(count, len(evaluated)) or len(due) == count - 1 >= 2
    gaps = np.diff([0, *due])
    assert gaps.max() <= args.last_step / count + frequency + rollout
    assert not Filming(sac.Args(**given), tmp_path, print).due(args.last_step)


def test_the_film_is_the_first_episode_of_the_evaluation(tmp_path):
    """To the bit, among two seeds."""
    args = sac.Args(
        env_id=MULTIGOAL, seed=4, num_seeds=2, eval_episodes=1, hidden_dims=(8,), capture_video=True
    )
    states = jax.vmap(lambda key: sac.init(key, Task(2, 2), args))(jax.random.split(jax.random.key(0), 2))
    policy, keys = sac.policy(states), jax.random.split(jax.random.key(1), 2)
    evaluate, filming = Evaluation(args, sac.act, sac.sample_action), Filming(args, tmp_path, print)
    first, second = evaluate(70, policy, keys)
    random.seed(1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    filmed = filming.film(70, evaluate, policy, keys)
    assert filmed.episode_return == first["eval/return_mean"] != second["eval/return_mean"]
    assert filmed.length == first["eval/length"] and filmed.seconds > 0
    assert filmed.path == tmp_path / "videos" / "step-0000000070-seed-4.gif"
    assert filming.earlier(70) == [(70, filmed.path)] and not filming.earlier(69)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    image = image_summary(filmed.path).value[0].image
    assert (image.width, image.height) == (320, 320)
    assert image.encoded_image_string == filmed.path.read_bytes()


GIVEN = SMALL | dict(env_id=MULTIGOAL, total_timesteps=280, learning_starts=60)


def images(folder):
    """The steps of the pictures in a TensorBoard file."""
    data, found = next(Path(folder).glob("events.*")).read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [event.step for value in event.summary.value if value.HasField("image")]
        data = data[16 + length :]
    return found


@pytest.mark.slow
def test_a_run_learns_and_records_the_same_with_films(tmp_path):
    train(GIVEN, tmp_path / "plain")
    train(GIVEN | dict(capture_video=True, video_count=2), tmp_path / "filmed")
    plain, filmed = (digests(tmp_path / name) for name in ("plain", "filmed"))
    assert plain == filmed
    films = sorted(path.name for path in (tmp_path / "filmed" / "videos").iterdir())
    assert films == ["step-0000000140-seed-1.gif", "step-0000000280-seed-1.gif"]
    assert images(tmp_path / "filmed" / "seed-1") == [140, 280]
    timed = [row for row in rows(tmp_path / "filmed" / "timing.jsonl") if "film_seconds" in row]
    assert [row["global_step"] for row in timed] == [140, 280]
    assert all(row["film_seconds"] > 0 for row in timed)


@pytest.mark.slow
def test_a_signal_stops_a_film_and_the_run_resumes(tmp_path, monkeypatch):
    """At the step of the evaluation, which is made again: the same bits as without films and signals."""
    filmed = GIVEN | dict(capture_video=True, video_count=2)
    with monkeypatch.context() as patch:
        patch.setattr(Film, "see", lambda self, step: signals.received.append(signal.SIGTERM))
        with pytest.raises(Stopped, match="stopped by SIGTERM at step 140"):
            train(filmed, tmp_path / "stopped")
    signals.received.clear()
    assert not list((tmp_path / "stopped" / "videos").iterdir())
    train(filmed, tmp_path / "stopped")
    train(GIVEN, tmp_path / "plain")
    assert digests(tmp_path / "stopped") == digests(tmp_path / "plain")
    assert images(tmp_path / "stopped" / "seed-1") == [140, 280]


@pytest.mark.slow
def test_a_resumed_run_shows_its_earlier_films(tmp_path, monkeypatch):
    filmed = GIVEN | dict(capture_video=True, video_count=2)
    interrupted(filmed, tmp_path / "run", monkeypatch, at=200)
    train(filmed, tmp_path / "run")
    assert images(tmp_path / "run" / "seed-1") == [140, 280]


def test_a_failure_is_said_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    def fail(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Film, "write", fail)
    train(GIVEN | dict(capture_video=True), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["total_timesteps"] == 280
    said = capsys.readouterr().out
    assert said.count("warning") == 1 and "without films: [Errno 28] No space left on device" in said
    assert not list((tmp_path / "run" / "videos").iterdir())


def test_what_is_missing_is_said_at_the_start(tmp_path, monkeypatch):
    said = []
    hide(monkeypatch, "PIL")
    args = sac.Args(env_id=MULTIGOAL, capture_video=True)
    filming = Filming(args, tmp_path, said.append)
    assert "need pillow" in said[0] and len(said) == 1
    assert not filming.due(args.last_step) and not list(tmp_path.iterdir())


def test_the_films_are_in_the_readme_small_and_move():
    paths = [str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.gif")]
    assert set(paths) <= set(re.findall(r"docs/figures/\w+\.gif", (ROOT / "README.md").read_text()))
    assert len(paths) >= 3 and sum((ROOT / path).stat().st_size for path in paths) < 2e6
    for path in paths:
        with Image.open(ROOT / path) as image:
            assert image.n_frames > 50

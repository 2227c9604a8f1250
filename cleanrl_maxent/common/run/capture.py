"""`--capture-video`: films of evaluation episodes while a run trains."""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.env.make import chosen_env, scale_action
from cleanrl_maxent.common.errors import Stopped, one_line
from cleanrl_maxent.common.evaluation import Evaluation, episode_seed
from cleanrl_maxent.common.film import Choose, Film, check_video_path


class Filmed(NamedTuple):
    """A film, the seconds that it took to make, and its episode's undiscounted return and length in steps."""

    path: Path
    seconds: float
    episode_return: float
    length: int


class Filming:
    """Films the first episode of the first seed's evaluation, with the deterministic policy if there is one.

    A film is made between updates, in a separate environment, and saved as `videos/step-*-seed-*.gif` in the
    run's folder. A failure is reported once and ends the filming, never the run.
    """

    def __init__(self, args: RunArgs, folder: Path, say: Callable[[str], None]):
        """`say` shows a line. Makes the environment once, so that a missing library is reported early."""
        self.args, self.folder, self.say = args, folder / "videos", say
        self.on = args.capture_video
        if self.on:
            with self.attempt():
                check_video_path(folder / "film.gif")
                self.make_film().close()

    def make_film(self) -> Film:
        """A film without frames; raises UsageError."""
        return Film(chosen_env(self.args), self.args.video_frames)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Reports a failure and stops filming; restores the global random state. Raises Stopped."""
        with same_random_state():
            try:
                yield
            except Stopped:
                raise
            except Exception as problem:
                self.on = False
                line = one_line(problem)
                self.say(f"warning: the run continues without films: {line}")

    def due(self, steps: int) -> bool:
        """True at the evaluations to film: at most `--video-count`, including the one at the last step."""
        last = self.args.last_step
        frequency = self.args.eval_frequency or last

        def films(steps: int) -> int:  # films due up to the last evaluation
            return steps // frequency * frequency * self.args.video_count // last

        return self.on and (steps == last or films(steps) > films(steps - self.args.steps_per_update))

    def film(self, steps: int, evaluation: Evaluation, policy: Any, keys: jax.Array) -> Filmed | None:
        """Films an episode of the evaluation just made with the same arguments; None if it fails.

        `policy`, `keys`: leading axis `(seed,)`. Raises Stopped.
        """
        began = time.perf_counter()
        with self.attempt(), doing("filming"):
            path = self.folder / f"step-{steps:010}-seed-{self.args.seed}.gif"
            self.folder.mkdir(exist_ok=True)
            film = self.make_film()
            try:
                choose = first_episode(film, evaluation, policy, keys, steps)
                seed = episode_seed(self.args.seed, steps, evaluation.modes[0], 0)
                played = film.play(choose, seed)
                film.write(path)
            finally:
                film.close()
            return Filmed(path, time.perf_counter() - began, *played)
        return None

    def earlier(self, steps: int) -> list[tuple[int, Path]]:
        """The films up to step `steps`, each with its step, oldest first."""
        names = re.compile(rf"step-(\d{{10}})-seed-{self.args.seed}\.gif")
        films = [
            (int(match[1]), path) for path in self.folder.glob("*") if (match := names.fullmatch(path.name))
        ]
        return sorted(film for film in films if film[0] <= steps)


def first_episode(film: Film, evaluation: Evaluation, policy: Any, keys: jax.Array, steps: int) -> Choose:
    """Repeats the actions of the evaluation's first episode bit for bit, by computing in the same shapes."""
    args, space = evaluation.args, film.env.action_space
    shape = (args.num_seeds, len(evaluation.modes), args.eval_episodes)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, steps)

    def choose(obs: np.ndarray, step: int) -> np.ndarray:
        rows = np.broadcast_to(obs, (*shape, *obs.shape))
        actions, _ = evaluation.actions(policy, rows, keys, step)
        return scale_action(np.asarray(actions)[0, 0, 0], space)

    return choose


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restores the global random states of Python and NumPy, which an environment may use."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def image_summary(path: Path) -> Summary:
    """A GIF as an image summary, which TensorBoard animates; raises OSError."""
    content = path.read_bytes()
    width, height = (int.from_bytes(content[at : at + 2], "little") for at in (6, 8))
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=content)
    return Summary(value=[Summary.Value(tag="film", image=image)])

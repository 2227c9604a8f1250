"""Evaluates the policies of a finished run, shows one in a window, or films it.

    python -m cleanrl_maxent.enjoy runs/Hopper-v4__sac__1__1795242568 --episodes 100
    python -m cleanrl_maxent.enjoy runs/Hopper-v4__sac__1__1795242568 --video hopper.mp4

Episodes are those of the run's own last evaluation: as many of them return the same numbers, to the bit.
"""

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import t

import cleanrl_maxent
from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.cli import check_ranges, read_config, run_script
from cleanrl_maxent.common.devices import seed_sharding, set_up_device
from cleanrl_maxent.common.env.make import EVALUATION, environment_seed
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import MODES, Episodes, Evaluation
from cleanrl_maxent.common.film import Film, Window, check_video_path
from cleanrl_maxent.common.policy import LoadedPolicy, load_policy
from cleanrl_maxent.common.ranges import Count, Magnitude, Natural
from cleanrl_maxent.common.run.initial import split_seed
from cleanrl_maxent.common.run.start import split_keys

MODE_NAMES = dict(zip(MODES, ("deterministic", "sampled"), strict=True))


@dataclass(frozen=True)
class Args:
    """Evaluates the policies of a finished run, shows one in a window, or films it."""

    run_dir: tyro.conf.Positional[str]  # folder of a finished run, or of one seed of it
    seed: Natural | None = None  # which seed; None: all, or the first of them to be watched
    episodes: Count | None = None  # of each seed; None: as many as the run's evaluations, 1 to be watched
    stochastic: bool = False  # sample actions, instead of the policy's mode
    window: bool = False  # show it in a window, where there is a display
    video: str | None = None  # film it: FILE.mp4 or FILE.gif
    video_seconds: Magnitude = 10.0  # length of the film at most; 0: everything
    video_size: Count = 320  # width and height of the film, pixels
    algorithm: str | None = None  # file of the algorithm, if it is not one of this package
    device: Literal["auto", "cpu", "cuda", "tpu"] = "auto"  # where the networks live


def find_run(args: Args) -> tuple[Path, int | None]:
    """The run's folder, and the seed asked for, if any."""
    folder, seed = split_seed(Path(args.run_dir))
    return folder, args.seed if args.seed is not None else seed


def find_algorithm(args: Args, folder: Path) -> ModuleType:
    """The module that trained the run; raises UsageError if there is none."""
    if args.algorithm is None:
        return cleanrl_maxent.recorded_algorithm(folder, read_config(folder))
    path = Path(args.algorithm)
    require(path.is_file() and path.suffix == ".py", f"algorithm must be a Python file; got {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evaluate(args: Args) -> tuple[Evaluation, Episodes]:
    """Plays episodes of every seed asked for, in the mode asked for if the policy has it.

    Of what is not played the arrays hold zeros. Raises UsageError for a run that cannot be loaded.
    """
    folder, seed = find_run(args)
    algorithm = find_algorithm(args, folder)
    first = load_policy(algorithm, folder, seed)
    run_args = first.args
    policies = [load_policy(algorithm, folder, other).parameters for other in run_args.seeds]
    episodes = args.episodes or run_args.eval_episodes or 10
    evaluation = Evaluation(
        replace(run_args, eval_episodes=episodes), algorithm.act, getattr(algorithm, "sample_action", None)
    )
    # all seeds, as in the run, so that each does the same to the bit
    leaves = zip(*map(jax.tree.leaves, policies), strict=True)
    policy = jax.tree.unflatten(jax.tree.structure(policies[0]), list(map(jnp.stack, leaves)))
    keys = split_keys(jax.device_put(np.array(run_args.seeds), seed_sharding(run_args.num_seeds))).evaluate

    def played(other: int, mode: str) -> bool:
        return mode == chosen_mode(args, evaluation) and seed in (None, other)

    with doing("evaluating"):
        return evaluation, evaluation.play(run_args.last_step, policy, keys, played)


def chosen_mode(args: Args, evaluation: Evaluation) -> str:
    """The mode asked for, or the only one that the policy has."""
    asked = MODES[args.stochastic]
    return asked if asked in evaluation.modes else evaluation.modes[0]


def print_table(args: Args, evaluation: Evaluation, played: Episodes) -> None:
    """Returns and lengths of every seed that was played."""
    run_args, mode = evaluation.args, chosen_mode(args, evaluation)
    episodes, index = run_args.eval_episodes, evaluation.modes.index(mode)
    console = Console(highlight=False)
    trained = f"{run_args.algorithm()} on {run_args.env_id}, {run_args.last_step:,} steps"
    console.print(f"{trained}, {MODE_NAMES[mode]} policy", markup=False)
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("seed", "episodes", "return", "std", "95% of the mean", "lowest", "highest", "length"):
        table.add_column(name, justify="right")
    for seed, returns, lengths in zip(
        run_args.seeds, played.returns[:, index], played.lengths[:, index], strict=True
    ):
        if lengths.any():
            table.add_row(f"{seed}", f"{episodes}", *describe_returns(returns), f"{lengths.mean():.0f}")
    console.print(table)


def describe_returns(returns: np.ndarray) -> list[str]:
    """Mean, standard deviation, t interval of the mean, lowest, highest."""
    mean, std, count = returns.mean(), returns.std(), len(returns)
    half = t.ppf(0.975, count - 1) * returns.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    interval = f"{mean - half:,.1f} to {mean + half:,.1f}" if count > 1 else "–"
    return [f"{mean:,.1f}", f"{std:,.1f}", interval, f"{returns.min():,.1f}", f"{returns.max():,.1f}"]


def watch(args: Args) -> None:
    """Shows episodes of one seed in a window, or films them. Raises UsageError, OSError."""
    folder, seed = find_run(args)
    if args.video:
        check_video_path(Path(args.video))
    policy = load_policy(find_algorithm(args, folder), folder, seed)
    run_args = policy.args
    if args.window:
        player = Window(run_args.env_id, run_args.action_spaces)
    else:
        seconds = args.video_seconds or None
        player = Film(run_args.env_id, run_args.action_spaces, seconds=seconds, size=args.video_size)
    try:
        play(args, policy, player)
        if args.video and isinstance(player, Film):
            player.write(Path(args.video))
            print(f"wrote {args.video}, {Path(args.video).stat().st_size / 1e6:.2f} MB")
    finally:
        player.close()


def play(args: Args, policy: LoadedPolicy, player: Film | Window) -> None:
    """Plays episodes one after another, and prints each one's return."""
    mode, steps = MODES[args.stochastic], policy.args.last_step
    for episode in range(args.episodes or 1):
        resets = environment_seed(policy.seed, EVALUATION, steps, MODES.index(mode), episode)
        episode_return, length = player.play(lambda obs, step: policy(obs, not args.stochastic), resets)
        print(f"seed {policy.seed}, episode {episode + 1}: return {episode_return:,.1f}, {length} steps")


def main(args: Args) -> None:
    """Does what the flags ask for; raises UsageError."""
    check_ranges(args)
    require(not (args.window and args.video), "give --window or --video, not both")
    set_up_device(args.device, str(find_run(args)[0]))
    if args.window or args.video:
        watch(args)
    else:
        print_table(args, *evaluate(args))


if __name__ == "__main__":
    run_script(Args, main)

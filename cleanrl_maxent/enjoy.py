"""Evaluates the policies of a finished run, shows one in a window, or films it.

    python -m cleanrl_maxent.enjoy runs/Hopper-v4__sac__1__1795242568 --episodes 100
    python -m cleanrl_maxent.enjoy runs/Hopper-v4__sac__1__1795242568 --video hopper.mp4

Episodes are reset with the seeds of the run's last evaluation. Without a window or a film, the same number of
episodes repeats its results bit for bit.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.filesize import decimal
from scipy.stats import sem, t

import cleanrl_maxent
from cleanrl_maxent.common.activity import doing
from cleanrl_maxent.common.cli import RunArgs, run_script
from cleanrl_maxent.common.config import read_config
from cleanrl_maxent.common.devices import seed_sharding, set_up_device
from cleanrl_maxent.common.env.make import chosen_env, make_env
from cleanrl_maxent.common.env.task import describe_task
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import (
    MODE_NAMES,
    MODES,
    Episodes,
    Evaluation,
    episode_seed,
    policy_modes,
)
from cleanrl_maxent.common.film import Film, Window, check_video_path
from cleanrl_maxent.common.policy import LoadedPolicy, check_same_task, load_policy
from cleanrl_maxent.common.ranges import INTEGER, Count, Magnitude, Natural, check_ranges, integers
from cleanrl_maxent.common.run.initial import split_seed
from cleanrl_maxent.common.run.inventory import find_runs
from cleanrl_maxent.common.run.start import split_keys


@dataclass(frozen=True)
class Args:
    """Evaluates the policies of a finished run, shows one in a window, or films it."""

    run_dir: tyro.conf.Positional[str | None] = None  # a finished run, or one of its seeds; None: the newest
    seed: Natural | None = None  # seed to play; None: all, or the first one with --window or --video
    episodes: Count | None = None  # per seed; None: as in the run, or 1 with --window or --video
    stochastic: bool = False  # sample actions instead of taking the policy's mode
    window: bool = False  # show episodes in a window; needs a display
    video: str | None = None  # film episodes: FILE.mp4 or FILE.gif
    video_seconds: Magnitude = 10.0  # longest film, in seconds; 0: everything
    video_size: Annotated[int, INTEGER, integers(16)] = 320  # longer side of the film, pixels
    max_episode_steps: Count | None = None  # time limit of an episode; None: that of the run
    algorithm: str | None = None  # file of the algorithm, if it is not in this package
    # where the networks run; None: as in the run
    device: Literal["auto", "cpu", "cuda", "tpu"] | None = None


def find_run(args: Args) -> tuple[Path, int | None]:
    """The run's folder, and the seed asked for, None for all. Raises UsageError."""
    folder, seed = split_seed(Path(expanduser(args.run_dir)) if args.run_dir else newest_run(Path("runs")))
    return folder, args.seed if args.seed is not None else seed


def newest_run(top: Path) -> Path:
    """The run in `top` that finished last; raises UsageError if there is none."""
    results = [run / "result.json" for run in find_runs(top) if (run / "config.json").exists()]
    finished = [path for path in results if path.exists()]
    require(bool(finished), f"there is no finished run in {top}; name the folder of one")
    return max(finished, key=lambda path: path.stat().st_mtime).parent


def find_algorithm(args: Args, folder: Path) -> ModuleType:
    """The module that trained the run; raises UsageError if there is none."""
    if args.algorithm is None:
        return cleanrl_maxent.recorded_algorithm(folder, read_config(folder))
    return cleanrl_maxent.module_from_file(Path(expanduser(args.algorithm)))


def with_time_limit(args: Args, run_args: RunArgs) -> RunArgs:
    """The run's arguments, with the time limit asked for, if any."""
    return replace(run_args, max_episode_steps=args.max_episode_steps or run_args.max_episode_steps)


def evaluate(args: Args) -> tuple[Evaluation, Episodes]:
    """Plays episodes of every seed asked for, in the mode asked for if the policy has it.

    Results of episodes that are not played are zeros. Raises UsageError if the run cannot be loaded.
    """
    folder, seed = find_run(args)
    algorithm = find_algorithm(args, folder)
    asked = load_policy(algorithm, folder, seed)
    run_args = with_time_limit(args, asked.args)
    with closing(make_env(chosen_env(run_args))) as env:
        check_spaces(folder, run_args, env)
    # all seeds, as in the run, so each repeats its evaluation bit for bit; for the others any policy will do
    policies = [
        asked.parameters if seed is not None else load_policy(algorithm, folder, other).parameters
        for other in run_args.seeds
    ]
    episodes = args.episodes or run_args.eval_episodes or 10
    evaluation = Evaluation(
        replace(run_args, eval_episodes=episodes), algorithm.act, getattr(algorithm, "sample_action", None)
    )
    leaves = zip(*map(jax.tree.leaves, policies), strict=True)
    policy = jax.tree.unflatten(jax.tree.structure(policies[0]), list(map(jnp.stack, leaves)))
    keys = split_keys(jax.device_put(np.array(run_args.seeds), seed_sharding(run_args.num_seeds))).evaluate

    def played(other: int, mode: str) -> bool:
        return mode == chosen_mode(args, evaluation.modes) and seed in (None, other)

    with doing("evaluating"):
        return evaluation, evaluation.play(run_args.last_step, policy, keys, played)


def check_spaces(folder: Path, run_args: RunArgs, env: gym.Env) -> None:
    """Raises UsageError unless the environment, as it is today, has the spaces that the run had."""
    check_same_task(folder, run_args.env_id, describe_task(env.observation_space, env.action_space))


def chosen_mode(args: Args, modes: tuple[str, ...]) -> str:
    """The mode asked for, or the only one that the policy has."""
    asked = MODES[args.stochastic]
    return asked if asked in modes else modes[0]


def print_table(args: Args, evaluation: Evaluation, played: Episodes) -> None:
    """Prints the returns and lengths of every seed that was played."""
    run_args, mode = evaluation.args, chosen_mode(args, evaluation.modes)
    index = evaluation.modes.index(mode)
    print(f"{run_args.algorithm()} on {run_args.env_id} after {run_args.last_step:,} steps")
    episodes = f"{count} episodes" if (count := run_args.eval_episodes) > 1 else "one episode"
    print(f"{MODE_NAMES[mode]} policy, {episodes} per seed")
    table = [["seed", "mean ± 95%", "std", "lowest", "highest", "length"]]
    rows = zip(run_args.seeds, played.returns[:, index], played.lengths[:, index], strict=True)
    for seed, returns, lengths in rows:
        if lengths.any():
            table.append([f"{seed}", *describe_returns(returns), f"{lengths.mean():.0f}"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def describe_returns(returns: np.ndarray) -> list[str]:
    """Mean with half its 95% t interval, standard deviation, lowest, highest."""
    mean, std, count = returns.mean(), returns.std(), len(returns)
    half = f" ± {t.ppf(0.975, count - 1) * sem(returns):,.1f}" if count > 1 else ""
    return [f"{mean:,.1f}{half}", f"{std:,.1f}", f"{returns.min():,.1f}", f"{returns.max():,.1f}"]


def watch(args: Args) -> None:
    """Shows episodes of one seed in a window, or films them. Raises UsageError, OSError."""
    folder, seed = find_run(args)
    if args.video:
        check_video_path(Path(expanduser(args.video)))
    policy = load_policy(find_algorithm(args, folder), folder, seed)
    run_args = with_time_limit(args, policy.args)
    if args.window:
        player = Window(chosen_env(run_args))
    else:
        seconds = args.video_seconds or None
        player = Film(chosen_env(run_args), seconds=seconds, size=args.video_size)
    try:
        check_spaces(folder, run_args, player.env)
        play(args, policy, player)
        if args.video and isinstance(player, Film):
            path = Path(expanduser(args.video))
            player.write(path)
            print(f"wrote {path}, {decimal(path.stat().st_size)}")
    finally:
        player.close()


def play(args: Args, policy: LoadedPolicy, player: Film | Window) -> None:
    """Plays episodes one after another, and prints the return of each."""
    modes = policy_modes(policy.algorithm.act, policy.parameters, policy.task.obs_dim)
    mode = chosen_mode(args, modes)
    for episode in range(args.episodes or 1):
        reset = episode_seed(policy.seed, policy.args.last_step, mode, episode)
        episode_return, length = player.play(lambda obs, step: policy(obs, mode == MODES[0]), reset)
        print(f"seed {policy.seed}, episode {episode + 1}: return {episode_return:,.1f}, {length} steps")


def main(args: Args) -> None:
    """Does what the flags ask for; raises UsageError."""
    check_ranges(args)
    require(not (args.window and args.video), "give --window or --video, not both")
    folder, _ = find_run(args)
    if args.run_dir is None:
        args = replace(args, run_dir=str(folder))
        print(f"the newest finished run: {folder}")
    set_up_device(args.device or read_config(folder)["args"].get("device", "auto"), str(folder))
    if args.window or args.video:
        watch(args)
    else:
        print_table(args, *evaluate(args))


if __name__ == "__main__":
    run_script(Args, main)

"""The flags that no paper describes, their checks, and the way from a command line to `train`."""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import tyro

from cleanrl_maxent.common.signals import STOPPED, Stopped, listen


class UsageError(ValueError):
    """Bad input: one line that names the value and says what to do."""


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity: one line that names the step, the seed and the tensor."""


class Finished(Exception):
    """The run asked for is there already, complete."""


def parse_integer(text: str) -> int:
    """An integer written as `1000`, `1_000` or `1e3`; raises ValueError for `2.5` or `abc`."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text} is not a whole number")
    return int(number)


Integer = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: parse_integer(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True)
class RunArgs:
    """What to run, where, and what to keep of it."""

    env_id: str = "Hopper-v4"  # Gymnasium id, or my_module:Id-v0
    total_timesteps: Integer = 1_000_000  # environment steps of each seed
    seed: Integer = 1  # first seed
    num_seeds: Integer = 1  # seeds trained side by side: seed, seed + 1, …
    exp_name: str = ""  # part of the run folder's name
    run_dir: str | None = None  # run folder; None: a new one in runs/
    resume: str | None = None  # run folder to go on with
    checkpoint_frequency: Integer = 10_000  # steps between commits; 0: only the last
    env_reset: Literal["reuse", "fresh", "restart"] = "reuse"  # see docs/reliability.md
    allow_version_change: bool = False  # resume elsewhere, not exactly
    device: Literal["auto", "cpu", "cuda", "tpu"] = "auto"  # where the networks live
    eval_frequency: Integer = 5_000  # environment steps between evaluations
    eval_episodes: Integer = 10  # episodes per policy and seed; 0: none
    track: bool = False  # log to Weights & Biases
    wandb_project_name: str = "cleanrl_maxent"  # project there
    wandb_entity: str | None = None  # team there
    wandb_mode: Literal["online", "offline"] = "online"  # offline: upload later

    takes_discrete: ClassVar[bool] = False  # environments of discrete actions too

    @property
    def seeds(self) -> list[int]:
        """The seeds trained side by side."""
        return list(range(self.seed, self.seed + self.num_seeds))

    @property
    def stride(self) -> int:
        """Environment steps of a seed between boundaries, where a run can be stopped: a rollout's, or one."""
        return 1

    @property
    def last_step(self) -> int:
        """Where a run ends: `total_timesteps`, rounded down to whole strides."""
        return self.total_timesteps // self.stride * self.stride

    def passes(self, steps: int, frequency: int) -> bool:
        """True where a multiple of `frequency` lies in the stride that ends at `steps`."""
        return steps // frequency > (steps - self.stride) // frequency


def integer(value: Any, low: int) -> bool:
    """True for an int from `low` to what fits 32 bits, as the counts that reach the device must."""
    return isinstance(value, int) and low <= value < 2**31


AT_LEAST_1 = (lambda value: integer(value, 1), "an integer in [1, 2147483647]")
AT_LEAST_0 = (lambda value: integer(value, 0), "an integer in [0, 2147483647]")
RATE = (lambda value: 0 < value < math.inf, "a finite number > 0")
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "a finite number >= 0")
COUNTS = (
    *("total_timesteps", "num_seeds", "eval_frequency", "buffer_size", "batch_size"),
    *("policy_frequency", "target_network_frequency", "n_critics", "value_particles", "svgd_particles"),
    *("num_envs", "num_steps", "update_epochs", "num_minibatches"),
)
MAGNITUDES = ("alpha", "exploration_noise", "ou_theta", "ou_sigma", "policy_noise", "noise_clip", "clip_coef")
RATES = ("learning_rate", "policy_lr", "q_lr", "alpha_lr", "ou_dt", "max_grad_norm")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(COUNTS, AT_LEAST_1),
    **dict.fromkeys(("seed", "eval_episodes", "checkpoint_frequency", "learning_starts"), AT_LEAST_0),
    **dict.fromkeys(MAGNITUDES, NOT_NEGATIVE),
    **dict.fromkeys(RATES, RATE),
    "gamma": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "gae_lambda": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "tau": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "target_entropy_scale": (math.isfinite, "a finite number"),
    "reward_scale": (lambda value: value is None or 0 < value < math.inf, "a finite number > 0"),
    "update_ratio": (lambda value: 0 < value < 1, "in (0, 1)"),
    "hidden_dims": (
        lambda value: 1 <= len(value) <= 9 and all(integer(dim, 1) for dim in value),
        "one to nine widths, each >= 1",
    ),
}


def validate(args: RunArgs) -> None:
    """Checks every argument that can be judged without an environment or a device.

    Raises UsageError, naming the value and what to do.
    """
    given = asdict(args)
    for name, (holds, words) in RANGES.items():
        if name in given and not holds(given[name]):
            raise UsageError(f"{name} must be {words}; got {given[name]}")
    for name, kind in get_type_hints(type(args)).items():
        if get_origin(kind) is Literal and given[name] not in get_args(kind):
            raise UsageError(f"{name} must be {' or '.join(get_args(kind))}; got {given[name]!r}")
    if args.seed + args.num_seeds > 2**31:
        raise UsageError(f"seed + num_seeds goes beyond 2147483647: {args.seed} + {args.num_seeds}")
    if not args.exp_name or "/" in args.exp_name or ".." in args.exp_name:
        raise UsageError(f"exp_name must be a name without '/' or '..'; got {args.exp_name!r}")
    if args.run_dir == "":
        raise UsageError("run_dir is empty; name a folder, or leave --run-dir out")
    if args.resume is not None:
        raise UsageError("resume is for the command line; in Python, give run_dir and the same arguments")
    if given.get("autotune") and args.alpha == 0:
        raise UsageError("alpha 0 cannot be tuned (its logarithm is learned); add --no-autotune")
    if given.get("autotune") and "alpha_lr" in given and not 1e-4 <= args.alpha <= 1:
        raise UsageError(f"alpha is tuned within [0.0001, 1]; got {args.alpha}")
    if given.get("noise") == "ou" and not 0 < args.ou_theta * args.ou_dt < 2:
        raise UsageError(
            f"noise diverges unless 0 < ou_theta * ou_dt < 2; got {args.ou_theta} * {args.ou_dt}"
        )
    if "svgd_particles" in given:
        moved, fixed = args.moved_particles, args.fixed_particles
        if moved < 1 or fixed < 2:
            raise UsageError(
                f"svgd_particles {args.svgd_particles} x update_ratio {args.update_ratio} moves {moved} and "
                f"leaves {fixed}; at least 1 and 2 are needed"
            )
        if args.alpha == 0:
            raise UsageError("alpha must be > 0: soft Q-learning divides by it")
    if "num_steps" in given:
        rollout = f"a rollout of num_envs {args.num_envs} x num_steps {args.num_steps}"
        if args.stride > args.total_timesteps:
            raise UsageError(f"{rollout} is longer than total_timesteps {args.total_timesteps}")
        if args.stride % args.num_minibatches:
            raise UsageError(f"{rollout} cannot be split evenly into num_minibatches {args.num_minibatches}")
        if args.last_step // args.stride * args.update_epochs * args.num_minibatches >= 2**31:
            raise UsageError(f"update_epochs {args.update_epochs} make more than 2147483647 gradient steps")
    if "learning_starts" in given:
        check_replay_sizes(args)


def check_replay_sizes(args: RunArgs) -> None:
    """Raises UsageError unless learning starts, and with at least a batch of transitions."""
    if args.learning_starts >= args.total_timesteps:
        raise UsageError(
            f"learning would never start: learning_starts {args.learning_starts} >= "
            f"total_timesteps {args.total_timesteps}"
        )
    if args.batch_size > args.buffer_size:
        raise UsageError(f"batch_size {args.batch_size} > buffer_size {args.buffer_size}")
    if args.batch_size > args.learning_starts:
        raise UsageError(
            f"only {args.learning_starts} transitions when learning starts, fewer than batch_size "
            f"{args.batch_size}; raise --learning-starts"
        )


def run_from_command_line(args_class: type[RunArgs], train: Callable[[Any], Any]) -> None:
    """Parses the command line into `args_class` and calls `train` with it.

    Exit status 0: trained, or finished before. 2: bad input, non-finite values or a disk that fails, with
    one line on stderr. 75: stopped by a signal; `--resume` goes on.
    """
    listen()
    sys.path.append(os.getcwd())  # where the module of `--env-id my_module:MyEnv-v0` may be
    args = tyro.cli(args_class)
    try:
        if args.resume is not None:
            if args.run_dir is not None:
                raise UsageError("give --resume or --run-dir, not both")
            args = tyro.cli(args_class, default=recorded(args_class, args.resume))
            args = replace(args, run_dir=args.resume, resume=None)
        train(args)
    except Finished as done:
        print(done)
    except Stopped as stop:
        print(stop)
        sys.exit(STOPPED)
    except (UsageError, NonFiniteError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def recorded(args_class: type[RunArgs], folder: str) -> RunArgs:
    """The arguments of the run in `folder`; raises UsageError where there is none of this algorithm."""
    path = Path(folder) / "config.json"
    try:
        given = json.loads(path.read_text())["args"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UsageError(f"{folder} is not a run: cannot read {path}") from problem
    unknown = given.keys() ^ {field.name for field in fields(args_class)}
    if unknown:
        raise UsageError(f"{folder} is a run of another program: {min(unknown)} differs")
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return args_class(**{**given, **lists, "allow_version_change": False})

"""The arguments that every run has, their checks, and the command line."""

import filecmp
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import tyro

from cleanrl_maxent.common.activity import listeners, seconds_since_start
from cleanrl_maxent.common.config import check_known, read_config
from cleanrl_maxent.common.errors import (
    BAD_INPUT,
    FINISHED,
    INTERRUPTED,
    STOPPED,
    WORKER_DIED,
    NonFiniteError,
    Stopped,
    UsageError,
    WorkerDied,
    is_out_of_memory,
    one_line,
    require,
)
from cleanrl_maxent.common.output import ERRORS, make_output_lossy, say
from cleanrl_maxent.common.ranges import (
    LARGEST,
    READERS,
    Count,
    JsonObject,
    Natural,
    check_ranges,
    json_text,
    plain,
)
from cleanrl_maxent.common.signals import listen
from cleanrl_maxent.common.usage import help_text, join_values, program_name

PACKAGE = str(Path(__file__).resolve().parents[1])
FOLDERS = ("run_dir", "resume", "init_from", "dataset")  # arguments that name a folder


@dataclass(frozen=True)
class RunArgs:
    """What to run, where, and what to record; an algorithm's `Args` adds its hyperparameters."""

    env_id: str = "Hopper-v4"  # Gymnasium id, or my_module:Id-v0
    env_kwargs: JsonObject = "{}"  # arguments of the environment, as JSON
    max_episode_steps: Count | None = None  # longest episode, in steps; None: as registered
    total_timesteps: Count = 1_000_000  # environment steps per seed
    seed: Natural = 1  # first seed
    num_seeds: Count = 1  # seeds side by side; an 80 GB GPU holds 25-600
    exp_name: str = ""  # part of the run folder's name; by default the algorithm's name
    run_dir: str | None = None  # run folder; None: a new one in runs/
    resume: str | None = None  # run folder to resume
    init_from: str | None = None  # run folder whose networks a new run starts from
    checkpoint_frequency: Natural = 10_000  # steps between checkpoints; 0: at the end
    # fresh: rebuilt for every episode; restart: a resumed run begins a new episode
    env_reset: Literal["reuse", "fresh", "restart"] = "reuse"
    allow_version_change: bool = False  # resume even if versions or hardware differ
    device: Literal["auto", "cpu", "cuda", "tpu"] = "auto"  # where networks run
    deterministic: bool = False  # bit-identical runs on a GPU
    env_workers: Natural | None = None  # environment processes; 0: none; None: one per core on a GPU or TPU
    eval_frequency: Count | None = None  # steps between evaluations; None: ≤ 5,000·num_seeds
    eval_episodes: Natural = 10  # episodes per policy and seed; 0: none
    capture_video: bool = False  # film the first seed's evaluations, to videos/
    video_count: Count = 5  # most films per run, the last at the end
    video_frames: Count = 250  # frames per film at most
    track: bool = False  # log to Weights & Biases
    wandb_project_name: str = "cleanrl_maxent"  # W&B project
    wandb_entity: str | None = None  # W&B team
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: WANDB_MODE, else online
    upload_model: bool = False  # upload policies and scores to the Hugging Face hub at the end
    hf_entity: str | None = None  # user or organisation on the hub

    action_spaces: ClassVar[tuple[str, ...]] = ("Box",)  # kinds that the algorithm takes: Box, Discrete

    def __init_subclass__(cls) -> None:
        """Sets the default of `exp_name` to the algorithm's name, unless the class states one."""
        if "exp_name" not in cls.__dict__:
            cls.__annotations__["exp_name"] = str
            cls.exp_name = cls.algorithm()

    def __post_init__(self) -> None:
        """Converts what Python users may pass, NumPy numbers and paths, to Python's own types."""
        for name in (field.name for field in fields(self)):
            value = plain(getattr(self, name))
            if name in FOLDERS and isinstance(value, str):
                value = os.path.expanduser(value)
            object.__setattr__(self, name, json_text(value) if name == "env_kwargs" else value)

    def check(self) -> None:
        """Raises UsageError unless the arguments are consistent. An algorithm adds its own rules."""
        seeds = f"{self.seed} + {self.num_seeds}"
        fits = self.seed + self.num_seeds <= LARGEST + 1
        require(fits, f"seed + num_seeds goes beyond {LARGEST}: {seeds}")
        named = bool(self.exp_name) and "/" not in self.exp_name and ".." not in self.exp_name
        require(named, f"exp_name must be a name without '/' or '..'; got {self.exp_name!r}")
        require(self.run_dir != "", "run_dir is empty; name a folder, or leave --run-dir out")
        rollout = f"one rollout of {self.steps_per_update} steps"
        require(self.last_step > 0, f"total_timesteps {self.total_timesteps} is less than {rollout}")
        films = self.eval_episodes > 0 or not self.capture_video
        require(films, "capture_video films evaluation episodes; give eval_episodes > 0")
        in_python = "resume is for the command line; in Python, give run_dir and the same arguments"
        require(self.resume is None, in_python)

    @classmethod
    def algorithm(cls) -> str:
        """The algorithm's name: that of the file that defines these arguments.

        A class from an interactive session belongs to the algorithm that it extends.
        """
        return cls.file().stem

    @classmethod
    def file(cls) -> Path:
        """The file that defines these arguments."""
        files = (getattr(sys.modules.get(base.__module__), "__file__", None) for base in cls.__mro__)
        return next(Path(file) for file in files if file)

    @property
    def length_is_fixed(self) -> bool:
        """True if a larger `total_timesteps` changes the steps already taken, so a run cannot be extended."""
        return False

    @property
    def seeds(self) -> list[int]:
        """The seeds trained side by side."""
        return list(range(self.seed, self.seed + self.num_seeds))

    @property
    def steps_per_update(self) -> int:
        """Environment steps per seed between two points at which a run can stop: one, or a rollout."""
        return 1

    @property
    def last_step(self) -> int:
        """Where a run ends: `total_timesteps`, rounded down to whole updates."""
        return self.total_timesteps // self.steps_per_update * self.steps_per_update

    def crosses_multiple_of(self, frequency: int, steps: int) -> bool:
        """True if the update that ends at `steps` reached or crossed a multiple of `frequency`."""
        return steps // frequency > (steps - self.steps_per_update) // frequency


def validate(args: RunArgs) -> None:
    """Checks everything about the arguments that needs no environment and no device.

    Raises UsageError, naming the value and what to do.
    """
    check_ranges(args)
    RunArgs.check(args)
    args.check()


def check_file(file: Path) -> None:
    """Raises UsageError for a changed copy of one of this package's files with the same name.

    The tools identify algorithms by name, and would take the copy's runs for the original's.
    """
    original = Path(PACKAGE, file.name)
    same = not original.exists() or not file.exists() or filecmp.cmp(file, original, shallow=False)
    require(same, f"{file} differs from this package's {file.name}; give it another name")


def run_script(args_class: Any, function: Callable[[Any], Any]) -> NoReturn:
    """Parses the command line into `args_class`, calls `function` with it, and exits.

    The exit status is the function's result if that is an integer, else 0. Exceptions with a status in
    `errors`, and Ctrl-C, are printed as one line and set that status.
    """
    make_output_lossy()
    try:
        put_current_folder_first()
        result = function(parse(args_class))
        sys.exit(result if type(result) is int else FINISHED)
    except Stopped as stop:
        say(stop)
        sys.exit(STOPPED)
    except (UsageError, NonFiniteError, OSError, WorkerDied) as problem:
        print(f"error: {problem}", file=ERRORS)
        sys.exit(WORKER_DIED if isinstance(problem, WorkerDied) else BAD_INPUT)
    except KeyboardInterrupt:
        print("stopped", file=ERRORS)
        sys.exit(INTERRUPTED)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        print(f"error: not enough memory: {one_line(problem)}", file=ERRORS)
        sys.exit(BAD_INPUT)


def put_current_folder_first() -> None:
    """Lets Python search the current folder for modules first, for `--env-id my_module:MyEnv-v0`.

    By default, Python would search the folder of the algorithm's file first.
    """
    here = os.getcwd()
    sys.path[:] = [here, *(path for path in sys.path if path != here and os.path.realpath(path) != PACKAGE)]


def parse(args_class: Any, **default: Any) -> Any:
    """The arguments on the command line; `--help` prints those of an algorithm in groups, and exits.

    `default`: arguments to use if the command line gives none, instead of the defaults of the class.
    """
    is_algorithm = isinstance(args_class, type) and issubclass(args_class, RunArgs)
    if is_algorithm and {"-h", "--help"}.intersection(sys.argv):
        print(help_text(args_class, RunArgs))
        sys.exit(FINISHED)
    words = join_values(sys.argv[1:], args_class)
    return tyro.cli(args_class, args=words, prog=program_name(), registry=READERS, **default)


def run_from_command_line(args_class: type[RunArgs], train: Callable[[Any], Any]) -> NoReturn:
    """`run_script` for an algorithm: a signal saves the run and stops it; `--resume` resumes it."""
    listen()
    listeners.append(say)

    def start_or_resume(args: RunArgs) -> None:
        if args.resume is not None:
            require(
                args.run_dir is None,
                "give --resume or --run-dir, not both; a new run takes all its flags again",
            )
            args = parse(args_class, default=recorded_args(args_class, args.resume))
            args = replace(args, run_dir=args.resume, resume=None)
        say(f"imports: {seconds_since_start():.1f} s")
        train(args)

    run_script(args_class, start_or_resume)


def recorded_args(args_class: type[RunArgs], folder: str) -> RunArgs:
    """The arguments of the run in `folder`; arguments newer than the run have their defaults.

    Raises UsageError if it holds no run, one of another algorithm, or one with arguments unknown here.
    """
    folder = os.path.expanduser(folder)
    config, name = read_config(Path(folder)), args_class.algorithm()
    require(config["algorithm"] == name, f"{folder} is a run of {config['algorithm']}, not of {name}")
    given = config["args"]
    check_known(Path(folder), given, args_class)
    return args_class(**{**given, "allow_version_change": False})

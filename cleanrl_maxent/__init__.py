"""Maximum-entropy reinforcement learning in JAX: one self-contained file per algorithm."""

import os
import re
import sys
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from cleanrl_maxent import environments as environments

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cleanrl_maxent.common.policy import LoadedPolicy


@cache
def algorithm_names() -> tuple[str, ...]:
    """The algorithms' names: those of the modules of this package that define `Args` and `train`."""
    texts = {path.stem: path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))}
    return tuple(
        name
        for name, text in texts.items()
        if re.search(r"^class Args\b", text, re.MULTILINE) and re.search(r"^def train\b", text, re.MULTILINE)
    )


@cache
def algorithms() -> dict[str, ModuleType]:
    """The algorithms' modules by name, all of them imported."""
    return {name: import_module(f"{__name__}.{name}") for name in algorithm_names()}


def load_policy(
    run_dir: str | Path, seed: int | None = None, algorithm: ModuleType | str | Path | None = None
) -> "LoadedPolicy":
    """The trained policy of a seed, by default the first, of the finished run in `run_dir`.

        policy = load_policy("runs/Hopper-v4__sac__1__1795242568")
        action = policy(obs)

    `action` is in the environment's units; see `LoadedPolicy`. `run_dir` may also be a seed's folder in the
    run, `runs/x/seed-2`. `algorithm`: the module that trained it, or its file, if it is not in this package.
    Needs only `config.json` and `policy-{seed}.npz`, and executes nothing in them. Warns if the algorithm's
    file has changed since. Raises UsageError, in one line, if they are missing or damaged, do not fit each
    other, or were written by newer code, and OSError if the policy cannot be read.
    """
    # these import JAX, which a list of names does not need
    from cleanrl_maxent.common import config, policy
    from cleanrl_maxent.common.run.initial import split_seed

    folder, named = split_seed(Path(os.path.expanduser(run_dir)))
    seed = named if seed is None else seed
    if algorithm is None:
        algorithm = recorded_algorithm(folder, config.read_config(folder))
    elif isinstance(algorithm, str | Path):
        algorithm = module_from_file(Path(os.path.expanduser(algorithm)))
    return policy.load_policy(algorithm, folder, seed)


def recorded_algorithm(folder: Path, config: dict) -> ModuleType:
    """The module that trained the run in `folder`; raises UsageError if it is not in this package."""
    from cleanrl_maxent.common.errors import UsageError

    name = config["algorithm"]
    if name not in algorithm_names():
        outside = f"{folder} was trained by {name}.py, which is not part of this package"
        raise UsageError(f"{outside}; add --algorithm {name}.py (in Python, algorithm='{name}.py')")
    return import_module(f"{__name__}.{name}")


def module_from_file(path: Path) -> ModuleType:
    """Imports a user's file, which can import the modules beside it, as when it is run.

    Raises UsageError if there is no such file, or if it cannot be imported.
    """
    from cleanrl_maxent.common.errors import UsageError, require

    require(path.suffix == ".py", f"an algorithm must be a Python file; got {path}")
    require(path.is_file(), f"there is no file {path}")
    spec = spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    sys.modules[path.stem] = module = module_from_spec(spec)
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        from cleanrl_maxent.common.env.wrapper import describe_exception

        del sys.modules[path.stem]
        raise UsageError(f"{path} cannot be imported: {describe_exception(problem)}") from problem
    return module

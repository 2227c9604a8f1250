"""What `train` returns, and what a run writes when it finishes."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.policy import LoadedPolicy, load_policy


class Result(dict[str, Any]):
    """The content of `result.json`, and the policies.

    Keys: `run_dir`; `total_timesteps`, as given; `seconds`, wall clock; `evaluation_seconds`, those of them
    spent on evaluations; `evaluations`, the last one of each seed.
    """

    def __init__(self, content: dict[str, Any], args: RunArgs):
        super().__init__(content)
        self.args = args
        self.folder = Path(content["run_dir"]).resolve()  # in case the current folder changes

    def policy(self, seed: int | None = None) -> LoadedPolicy:
        """The trained policy of a seed, by default the first. Raises UsageError if it cannot be loaded."""
        return load_policy(module_of(self.args), self.folder, seed)


def module_of(args: RunArgs) -> ModuleType:
    """The module of the algorithm that defines these arguments, or of the one that they extend."""
    modules = [sys.modules[base.__module__] for base in type(args).__mro__]
    whole = (module for module in modules if hasattr(module, "init") and hasattr(module, "act"))
    return next(whole, modules[0])


def remove_results(folder: Path) -> None:
    """Removes what a run wrote when it finished."""
    for name in ("result.json", "README.md", "policy-*.npz"):
        for path in folder.glob(name):
            path.unlink()

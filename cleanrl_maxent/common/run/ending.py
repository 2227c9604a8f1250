"""What a run says when it ends before its last step: which step is saved, and how to resume."""

from pathlib import Path
from shlex import quote

from cleanrl_maxent.common.errors import WorkerDied
from cleanrl_maxent.common.run.checkpoint import Checkpoints
from cleanrl_maxent.common.signals import postponed


def how_to_resume(folder: Path) -> str:
    """The flag, or in Python the argument, that resumes the run in `folder`."""
    return f"run_dir={str(folder)!r}" if postponed else f"--resume {quote(str(folder))}"


def add_resume(problem: Exception, folder: Path, checkpoints: Checkpoints) -> None:
    """Adds the step at which a run was stopped and saved, and says how to resume it."""
    problem.args = (f"{problem} at step {checkpoints.steps:,}; resume with {how_to_resume(folder)}",)


def add_saved(problem: Exception, folder: Path, checkpoints: Checkpoints) -> None:
    """Adds to a failure's message the step that was saved before it."""
    kept = f"step {checkpoints.steps:,} is saved in {folder}" if checkpoints.last else "nothing is saved yet"
    again = f"; resume with {how_to_resume(folder)}" if isinstance(problem, WorkerDied) else ""
    problem.args = (f"{problem}; {kept}{again}",)

"""Cells as jobs of a Slurm cluster, by Slurm's own programs: sbatch, squeue, scontrol and scancel.

The queue is the only memory. A cell's job is named after the cell's folder, so a sweep that was killed finds
its jobs again, on any login node, and no cell has two jobs that run: Slurm starts a job with
`--dependency=singleton` only when no other of its name runs.
"""

import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cells import Cell
from benchmarks.executors import CANCELLED, LOST
from benchmarks.figures import plural
from cleanrl_maxent.common.errors import STOPPED, Stopped, UsageError
from cleanrl_maxent.common.output import say, warn

PATIENCE = 120  # seconds that a program of Slurm may take
# complaints of sbatch and squeue after which the same command may succeed; the job may even have been taken
TEMPORARY = re.compile(
    "MaxSubmit|slurm controller|timed out|connection|temporarily|try again|standby|zero bytes", re.I
)
# options that the script sets or relies on, or that would make another job of it or hide it from the sweep
OURS = re.compile(
    r"--(array|wrap|wait|test-only|job-name|output|parsable|dependency|signal|open-mode|no-requeue|chdir"
    r"|clusters)(=|$)|-[aWJodDM]"
)
OUT_OF_MEMORY = 125  # Slurm's exit status of a job that asked for too little

SCRIPT = """\
#!/bin/sh
#SBATCH --job-name={name}
#SBATCH --dependency=singleton
#SBATCH --output="{log}"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@{seconds}
export NPROC={threads}
exec {command}
"""


def job_name(cell: Cell) -> str:
    """The name of a cell's job, a function of the cell's absolute folder alone."""
    folder = cell.folder.resolve()
    readable = re.sub(r"[^\w.-]", "_", folder.name, flags=re.ASCII)[:60]
    return f"{readable}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def job_script(cell: Cell, seconds: int) -> str:
    """What sbatch reads; `seconds` before its time limit the run is told to save.

    `exec` makes the run the batch process, which alone gets the signal. The job's machine decides how many
    threads XLA has, but a run that has begun keeps its number: exact resume needs as many.
    """
    return SCRIPT.format(
        name=job_name(cell),
        log=str(cell.log().resolve()).replace("%", "%%"),
        seconds=seconds,
        threads=cell.threads() or "$SLURM_CPUS_PER_TASK",
        command=shlex.join(cell.command()),
    )


def ask(*command: str, text: str = "") -> tuple[str, str]:
    """What a program of Slurm prints, given `text`; and its complaint in one line, "" if it succeeded."""
    try:
        # a session of its own: Ctrl-C is for the sweep
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=PATIENCE, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} timed out"
    except OSError as problem:
        raise UsageError(f"Slurm is not on this machine: cannot run {command[0]}") from problem
    if done.returncode == 0:
        return done.stdout, ""
    return done.stdout, " ".join(done.stderr.split()) or f"{command[0]} ended with status {done.returncode}"


def exit_status(job: str) -> int:
    """How a job that has left the queue ended, as `Executor.ended` says; Slurm forgets it after minutes."""
    text, _ = ask("scontrol", "show", "job", job, "--oneliner")
    found = re.search(r"\bJobState=(\w+).*?\bExitCode=(\d+):(\d+)", text)
    if not found:
        return LOST
    state, code, signal = found[1], int(found[2]), int(found[3])
    known = {"COMPLETED": 0, "CANCELLED": CANCELLED, "OUT_OF_MEMORY": OUT_OF_MEMORY}
    if state in known:
        return known[state]
    if (code, signal) == (STOPPED, 0):
        return STOPPED
    if state != "FAILED":  # NODE_FAIL, TIMEOUT, PREEMPTED …
        return LOST
    if signal:
        return -signal
    return code if code < 128 else 128 - code  # a shell reports death by signal n as 128 + n


class SlurmExecutor:
    """Keeps up to `most` cells in the queue, submitted with the user's own `arguments` of sbatch.

    While Slurm does not answer nothing is submitted, and what was in the queue counts as still there.
    """

    def __init__(self, cells: list[Cell], most: int, arguments: str, seconds: int, pause: float):
        self.cells, self.most, self.seconds, self.pause = cells, most, seconds, pause
        self.arguments = check_arguments(arguments)
        self.jobs: dict[Cell, str] = {}  # cells in the queue, and their jobs' numbers
        self.started: set[Cell] = set()  # those that this sweep submitted
        self.answered = False  # Slurm did, the last time it was asked
        self.reached = False  # it answered at least once
        self.complaint = ""

    @property
    def room(self) -> int:
        return max(0, self.most - len(self.jobs)) if self.answered else 0

    @property
    def running(self) -> set[Cell]:
        return set(self.jobs)

    def start(self, cell: Cell) -> str:
        """Submits a cell's job. Raises UsageError if Slurm refuses it for good, Stopped as `ended` does."""
        self.check_not_cancelled()
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        name = f"--job-name={job_name(cell)}"  # on the command line it wins over SBATCH_JOB_NAME
        script = job_script(cell, self.seconds)
        answer, complaint = ask("sbatch", "--parsable", *self.arguments, name, text=script)
        self.listen(complaint)
        if complaint and not TEMPORARY.search(complaint):
            raise UsageError(f"{complaint.removeprefix('sbatch: error: ')} (sbatch, for {cell.folder})")
        if complaint:
            return ""
        self.jobs[cell] = answer.split()[-1].partition(";")[0]  # number;cluster
        self.started.add(cell)
        return "queued"

    def listen(self, complaint: str) -> None:
        """Notes whether Slurm answered; prints a complaint once."""
        self.answered = not complaint
        self.reached |= self.answered
        if complaint and complaint != self.complaint:
            warn(f"{complaint}; waiting, and trying again")
        self.complaint = complaint

    def check_not_cancelled(self) -> None:
        """Raises Stopped if somebody cancelled the sweep."""
        if self.cells and cancel_file(self.cells).exists():
            self.jobs = {}
            raise Stopped("cancelled by --cancel; the same command without it resumes the runs")

    def ended(self) -> Iterator[tuple[Cell, int]]:
        """As every executor's. Raises Stopped if somebody cancelled the sweep, UsageError if Slurm does not
        work here at all."""
        self.check_not_cancelled()
        queue, complaint = look(self.cells)
        if complaint and not self.reached and not TEMPORARY.search(complaint):
            raise UsageError(f"Slurm does not work on this machine: {complaint}")
        self.listen(complaint)
        if complaint:
            return
        gone = {cell: job for cell, job in self.jobs.items() if cell not in queue}
        self.jobs = {cell: job for cell, (job, _) in queue.items()}
        for cell, job in gone.items():
            if cell in self.started:
                self.started.remove(cell)
                yield cell, exit_status(job)

    def stop(self) -> None:
        """Leaves the jobs in the queue: they need no sweep to run."""
        if self.jobs:
            stay = f"{plural(len(self.jobs), 'job')} in Slurm's queue, where they stay"
            say(f"{stay}: the same command finds them, with --cancel it cancels them")


def check_arguments(arguments: str) -> list[str]:
    """The words of --sbatch; raises UsageError if one is the sweep's own, or a quote is not closed."""
    try:
        words = shlex.split(arguments)
    except ValueError as problem:
        raise UsageError(f"--sbatch {arguments!r}: {problem}") from problem
    if taken := [word for word in words if OURS.match(word)]:
        raise UsageError(f"--sbatch: {taken[0]} is not for you to give: the sweep sets it, or cannot use it")
    return words


def check_present() -> None:
    """Raises UsageError unless Slurm's programs are on this machine."""
    missing = [name for name in ("sbatch", "squeue", "scontrol", "scancel") if not shutil.which(name)]
    if missing:
        raise UsageError(f"Slurm is not on this machine: there is no {missing[0]}; use a login node")


def look(cells: list[Cell]) -> tuple[dict[Cell, tuple[str, str]], str]:
    """Number and state of the job of every cell in the queue; and squeue's complaint, "" if it answered."""
    names = {job_name(cell): cell for cell in cells}
    answer, complaint = ask("squeue", "--me", "--noheader", "--format=%i %T %j")
    jobs = [words for line in answer.splitlines() if len(words := line.split()) == 3]
    return {names[name]: (job, state) for job, state, name in jobs if name in names}, complaint


def cancel_file(cells: list[Cell]) -> Path:
    """Its presence tells sweeps of a suite, on whichever machine, that they were cancelled."""
    return cells[0].folder.parent / ".cancelled"


def cancel(cells: list[Cell]) -> None:
    """Takes the cells' waiting jobs out of the queue, and tells those that run to save and end.

    Raises UsageError if Slurm does not answer.
    """
    file = cancel_file(cells)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()  # before the look: a sweep must not submit anything after it
    counts = []
    # in this order: a job that starts between the two is told to end
    for state, how in (("PENDING", ["--state=PENDING"]), ("RUNNING", ["--batch", "--signal=TERM"])):
        queue, complaint = look(cells)
        jobs = [job for job, now in queue.values() if now == state]
        if jobs and not complaint:
            _, complaint = ask("scancel", *how, *jobs)
        if complaint:
            raise UsageError(f"cancelled {sum(counts)} jobs, then: {complaint}; try again")
        counts.append(len(jobs))
    say(f"cancelled {plural(counts[0], 'waiting job')}, and told {counts[1]} that run to save and end")

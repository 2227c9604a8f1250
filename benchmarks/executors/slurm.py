"""Runs cells as jobs of a Slurm cluster, with Slurm's own programs: sbatch, squeue, scontrol and scancel.

The queue is the only memory. A cell's job is named after the cell's folder, so a sweep that was killed finds
its jobs again, on any login node, and no cell has two running jobs: Slurm starts a job with
`--dependency=singleton` only when no other job of its name runs.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.cells import Cell
from benchmarks.executors import CANCELLED, LOST
from benchmarks.figures import plural
from cleanrl_maxent.common.errors import STOPPED, Stopped, UsageError, require
from cleanrl_maxent.common.output import say, warn

PATIENCE = 120  # seconds that a program of Slurm may take
# complaints of sbatch and squeue after which the same command may succeed; the job may even have been taken
TEMPORARY = re.compile(
    "(Max|Grp)Submit|slurm controller|timed out|connection|temporarily|try again|standby|zero bytes"
    "|partition not available|I/O error",
    re.I,
)
# options that the script sets or relies on, or that would change what the job is or hide it from the sweep
OURS = """
    --array --chdir --clusters --dependency --error --job-name --no-requeue --open-mode --output --parsable
    --quiet --signal --test-only --wait --wrap
""".split()
OURS_SHORT = re.compile("-[aDMdeJoQW]")
# the user's variables that would do the same, or narrow what squeue shows
VARIABLES = re.compile(
    "SQUEUE_.*|SCANCEL_.*|SLURM_CLUSTERS|SLURM_CPUS_PER_TASK|SBATCH_(ARRAY_INX|CLUSTERS|ERROR|JOB_NAME|NO_REQUEUE|OPEN_MODE|OUTPUT"
    "|SIGNAL|WAIT)"
)
CPUS = re.compile("--(cpus-per-g|tres-per-t)")  # options that --cpus-per-task would contradict
OUT_OF_MEMORY = 125  # Slurm's exit status of a job that asked for too little
NO_LOG = 53  # Slurm's signal for a job whose output file it cannot open
# states of a job that has left the queue for good
ENDED = """
    COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED OUT_OF_MEMORY BOOT_FAIL DEADLINE REVOKED
""".split()
# state of jobs, "" for others such as SUSPENDED -> how scancel ends them; in this order, since a job that
# starts meanwhile moves to a later state
CANCEL = {"PENDING": ["--state=PENDING"], "": [], "RUNNING": ["--batch", "--signal=TERM"]}
# usual reasons for a job to wait, which are not reported
USUAL = {"None", "Priority", "Resources", "Dependency", "BeginTime"}

SCRIPT = """\
#!/bin/sh
#SBATCH --job-name={name}
#SBATCH --dependency=singleton
#SBATCH --output="{log}"
#SBATCH --open-mode=append
#SBATCH --requeue
{cpus}#SBATCH --signal=B:USR1@{seconds}
export NPROC={threads}
exec {command}
"""


class Job(NamedTuple):
    """A line of squeue."""

    cell: Cell
    number: str
    state: str
    reason: str  # why it waits


def job_name(cell: Cell) -> str:
    """The name of a cell's job, a function of the cell's absolute folder alone."""
    folder = cell.folder.resolve()
    readable = re.sub(r"[^\w.-]", "_", folder.name, flags=re.ASCII)[:60]
    return f"{readable}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def job_script(cell: Cell, seconds: int, arguments: list[str]) -> str:
    """The script for sbatch with `arguments`; the run is told to save `seconds` before its time limit.

    `exec` makes the run the batch process, the only one that gets the signal. The job's CPUs decide how many
    threads XLA has, but a run that has begun keeps its number, as exact resume requires.
    """
    cpus = "" if any(map(CPUS.match, arguments)) else "#SBATCH --cpus-per-task=1\n"
    return SCRIPT.format(
        name=job_name(cell),
        log=str(cell.log().resolve()).replace("%", "%%"),
        cpus=cpus,
        seconds=seconds,
        threads=cell.threads() or "${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}",
        command=shlex.join(cell.command()),
    )


def ask(*command: str, text: str = "") -> tuple[str, str]:
    """What a program of Slurm prints, given `text`; and its complaint in one line, "" if it succeeded."""
    environment = {name: value for name, value in os.environ.items() if not VARIABLES.fullmatch(name)}
    try:
        # a session of its own: Ctrl-C is for the sweep
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", env=environment,
            timeout=PATIENCE, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} timed out"
    except OSError as problem:
        raise UsageError(f"Slurm is not on this machine: cannot run {command[0]}") from problem
    if done.returncode == 0:
        return done.stdout, ""
    return done.stdout, " ".join(done.stderr.split()) or f"{command[0]} ended with status {done.returncode}"


def exit_status(job: str) -> tuple[int | None, str]:
    """How a job that squeue no longer shows ended, as in `Executor.ended`, None if it has not; and scontrol's
    complaint, "" unless asking again later may help. Slurm forgets a job after some minutes."""
    text, complaint = ask("scontrol", "show", "job", job, "--oneliner")
    if TEMPORARY.search(complaint):
        return None, complaint
    return status_in(text), ""


def status_in(text: str) -> int | None:
    """How a job ended by scontrol's description, as in `Executor.ended`; None if it has not ended."""
    found = re.search(r"\bJobState=(\w+).*?\bExitCode=(\d+):(\d+)", text)
    if not found:
        return LOST
    state, code, signal = found[1], int(found[2]), int(found[3])
    if state not in ENDED:
        return None
    known = {"COMPLETED": 0, "CANCELLED": CANCELLED, "OUT_OF_MEMORY": OUT_OF_MEMORY}
    if state in known:
        return known[state]
    if (code, signal) == (STOPPED, 0):
        return STOPPED
    if state != "FAILED":  # NODE_FAIL, TIMEOUT, PREEMPTED …
        return LOST
    if signal == NO_LOG:
        return NO_LOG
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
        self.submitted = False  # Slurm took a job of this sweep
        self.late: set[Cell] = set()  # those that ended well, but had no result yet at the last look
        self.said: set[str] = set()  # names of the warnings already printed
        self.answered = False  # Slurm answered the last time it was asked
        self.reached = False  # Slurm answered at least once
        self.complaints: dict[str, str] = {}  # each program's last complaint, "" if it succeeded

    @property
    def room(self) -> int:
        return max(0, self.most - len(self.jobs)) if self.answered else 0

    @property
    def running(self) -> set[Cell]:
        return set(self.jobs)

    def start(self, cell: Cell) -> str:
        """Submits a cell's job. Raises UsageError if Slurm refuses the sweep's first job for good, Stopped as
        `ended` does."""
        self.check_not_cancelled()
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        script = job_script(cell, self.seconds, self.arguments)
        answer, complaint = ask("sbatch", "--parsable", *self.arguments, text=script)
        if complaint and not self.submitted and not TEMPORARY.search(complaint):
            raise UsageError(f"{complaint.removeprefix('sbatch: error: ')} (sbatch, for {cell.folder})")
        self.listen("sbatch", complaint)
        if complaint:
            return ""
        self.jobs[cell] = answer.split()[-1].partition(";")[0]  # number;cluster
        self.submitted = True
        return "queued"

    def listen(self, program: str, complaint: str) -> None:
        """Notes whether Slurm answered; prints a complaint once, until the program succeeds."""
        self.answered = not complaint
        self.reached |= self.answered
        if complaint and complaint != self.complaints.get(program):
            warn(f"{complaint}; waiting, and trying again")
        self.complaints[program] = complaint

    def check_not_cancelled(self) -> None:
        """Raises Stopped if somebody cancelled the sweep."""
        if self.cells and cancel_file(self.cells).exists():
            self.jobs = {}
            raise Stopped("cancelled by --cancel; the same command without it resumes the runs")

    def ended(self) -> Iterator[tuple[Cell, int]]:
        """As `Executor.ended`. Raises Stopped if somebody cancelled the sweep, UsageError if Slurm does not
        work here at all."""
        self.check_not_cancelled()
        queue, complaint = look(self.cells)
        if complaint and not self.reached and not TEMPORARY.search(complaint):
            raise UsageError(f"Slurm does not work on this machine: {complaint}")
        self.listen("squeue", complaint)
        if complaint:
            return
        self.say_why(queue)
        before, self.jobs = self.jobs, {job.cell: job.number for job in queue}
        complaint = ""
        for cell, number in before.items():
            if cell in self.jobs:
                continue
            # after a complaint, the other jobs are asked for at the next look
            status, complaint = (None, complaint) if complaint else exit_status(number)
            # a network file system may show a result a little later
            late = status == 0 and not cell.finished() and cell not in self.late
            if status is None or late:
                self.jobs[cell] = number
                self.late.update([cell] if late else [])
                continue
            if status == NO_LOG:
                log = cell.log().resolve()
                self.say_once(f"Slurm could not open {log}: do its nodes see this folder?", "log")
            self.late.discard(cell)
            yield cell, status
        self.listen("scontrol", complaint)

    def say_why(self, queue: list[Job]) -> None:
        """Prints, once, each unusual reason why jobs wait."""
        for job in queue:
            reason = job.reason.partition(",")[0]  # a list of nodes may follow
            if job.state == "PENDING" and reason not in USUAL:
                self.say_once(f"{job.cell.folder} waits in Slurm's queue: {job.reason}", reason)

    def say_once(self, text: str, name: str) -> None:
        """Prints a warning, unless one of the same name was printed before."""
        if name not in self.said:
            self.said.add(name)
            warn(text)

    def stop(self) -> None:
        """Leaves the jobs in the queue: they need no sweep to run."""
        if self.jobs:
            stay = f"{plural(len(self.jobs), 'job')} in Slurm's queue, where they stay"
            say(f"{stay}: the same command finds them, with --cancel it cancels them")


def check_arguments(arguments: str) -> list[str]:
    """The words of --sbatch.

    Raises UsageError if one is reserved for the sweep or belongs to no option, or if a quote is not closed.
    """
    try:
        words = shlex.split(arguments)
    except ValueError as problem:
        raise UsageError(f"--sbatch {arguments!r}: {problem}") from problem
    if taken := [word for word in words if is_ours(word)]:
        raise UsageError(f"--sbatch: {taken[0]} is reserved: the sweep sets it, or cannot use it")
    for before, word in pairwise(["", *words]):  # sbatch would take it for the name of the job's script
        takes_value = before.startswith("-") and "=" not in before
        belongs = word.startswith("-") or takes_value
        require(belongs, f"--sbatch: {word} belongs to no option, such as -p {word}")
    return words


def is_ours(word: str) -> bool:
    """True for an option that is reserved for the sweep, also abbreviated, as sbatch accepts it."""
    name = word.partition("=")[0]
    if name.startswith("--"):
        return name != "--" and any(option.startswith(name) for option in OURS)
    return bool(OURS_SHORT.match(word))


def check_present() -> None:
    """Raises UsageError unless Slurm's programs are on this machine."""
    missing = [name for name in ("sbatch", "squeue", "scontrol", "scancel") if not shutil.which(name)]
    if missing:
        raise UsageError(f"Slurm is not on this machine: there is no {missing[0]}; use a login node")


def look(cells: list[Cell]) -> tuple[list[Job], str]:
    """The jobs of the cells in the queue; and squeue's complaint, "" if it answered.

    A cell has two jobs if two sweeps submitted it.
    """
    names = {job_name(cell): cell for cell in cells}
    answer, complaint = ask("squeue", "--all", "--me", "--noheader", "--format=%i %T %j %r")
    lines = [words for line in answer.splitlines() if len(words := line.split(maxsplit=3)) == 4]
    jobs = [Job(names[name], number, state, reason) for number, state, name, reason in lines if name in names]
    return jobs, complaint


def cancel_file(cells: list[Cell]) -> Path:
    """Its presence tells sweeps of a suite, on whichever machine, that they were cancelled."""
    return cells[0].folder.parent / ".cancelled"


def cancel(cells: list[Cell]) -> None:
    """Removes the cells' waiting jobs from the queue, and tells the running ones to save and end.

    Raises UsageError if no job of theirs is in the queue, or if Slurm does not answer.
    """
    file = cancel_file(cells)
    if not file.parent.is_dir():
        queue, complaint = look(cells)
        if not queue:
            raise UsageError(complaint or f"nothing to cancel: there is no {file.parent}, and no job")
    file.parent.mkdir(parents=True, exist_ok=True)
    already = file.exists()  # for a sweep that may not have seen it yet
    file.touch()  # before the look: a sweep must not submit anything after it
    counts, seen = dict.fromkeys(CANCEL, 0), False
    for state, how in CANCEL.items():
        queue, complaint = look(cells)
        ending = [job.number for job in queue if job.state == "COMPLETING"]
        jobs = [job for job in queue if job.number not in ending]
        jobs = [job.number for job in jobs if state == (job.state if job.state in CANCEL else "")]
        if jobs and not complaint:
            _, complaint = ask("scancel", *how, *jobs)
        if complaint:
            raise UsageError(f"cancelled {sum(counts.values())} jobs, then: {complaint}; try again")
        counts[state] = len(jobs)
        seen = seen or bool(queue)
        if ending:  # Slurm may be about to requeue these; if not, its complaint does not matter
            ask("scancel", *ending)
    if not seen:
        if not already:
            file.unlink(missing_ok=True)
        flags = "--device, --seeds-per-run and --out-dir"
        raise UsageError(f"nothing to cancel: no job of these runs is queued; give the sweep's own {flags}")
    waiting = plural(counts["PENDING"] + counts[""], "job")
    say(f"cancelled {waiting} that did not run, and told {counts['RUNNING']} that run to save and end")

"""sbatch, squeue, scontrol and scancel as shell scripts that keep a queue in a folder, and run nothing."""

from typing import NamedTuple

# while `down` exists every program answers it, while `squeue_down` exists squeue does, and so on
HEAD = """#!/bin/sh
FOLDER=HERE
for file in $FOLDER/down $FOLDER/NAME_down; do
    if [ -e $file ]; then cat $file >&2; exit 1; fi
done
"""
# a job is a file: name, state, exit code
PROGRAMS = {
    "sbatch": """
        number=$(($(ls $FOLDER/jobs | wc -l) + 1))
        cat > $FOLDER/scripts/$number
        name=$(sed -n 's/^#SBATCH --job-name=//p' $FOLDER/scripts/$number)
        for word; do echo "$word"; done > $FOLDER/arguments/$number
        echo "$name PENDING 0:0" > $FOLDER/jobs/$number
        if [ -e $FOLDER/mute ]; then echo "sbatch: error: Socket timed out" >&2; exit 1; fi
        echo "$number;two"
    """,
    "squeue": """
        for number in $(ls $FOLDER/jobs); do
            read name state code < $FOLDER/jobs/$number
            case $state in
                PENDING|RUNNING|COMPLETING|CONFIGURING|SUSPENDED)
                    echo "$number $state $name $(cat $FOLDER/reason 2> /dev/null || echo None)";;
            esac
        done
        env | sed -n 's/=.*//p' > $FOLDER/variables
    """,
    "scontrol": """
        if [ -e $FOLDER/forgetful ]; then echo "error: Invalid job id specified" >&2; exit 1; fi
        read name state code < $FOLDER/jobs/$3
        echo "JobId=$3 JobName=$name JobState=$state Reason=None Restarts=0 ExitCode=$code Partition=main"
    """,
    "scancel": """
        new="CANCELLED 0:0"
        for word; do case $word in
            --signal=TERM) new="FAILED 75:0";;
            --*) ;;
            *) read name state code < $FOLDER/jobs/$word; echo "$name $new" > $FOLDER/jobs/$word;;
        esac; done
    """,
}


class Job(NamedTuple):
    """A line of the queue."""

    name: str
    state: str
    code: str


class FakeSlurm:
    """The folder; a test puts `FakeSlurm.path` first on PATH, and is the cluster."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "bin"
        for name in ("jobs", "scripts", "arguments", "bin"):
            (folder / name).mkdir(parents=True)
        for name, body in PROGRAMS.items():
            head = HEAD.replace("NAME", name).replace("HERE", str(folder))
            (self.path / name).write_text(head + body)
            (self.path / name).chmod(0o755)

    def jobs(self):
        """Every job ever submitted, by its number."""
        files = sorted((self.folder / "jobs").iterdir(), key=lambda path: int(path.name))
        return {int(path.name): Job(*path.read_text().split()) for path in files}

    def set(self, number, state, code="0:0"):
        """A job's new state."""
        name = self.jobs()[number].name
        (self.folder / "jobs" / str(number)).write_text(f"{name} {state} {code}\n")

    def arguments(self, number):
        """What sbatch was given for a job."""
        return (self.folder / "arguments" / str(number)).read_text().splitlines()

    def script(self, number):
        """What sbatch read for a job."""
        return (self.folder / "scripts" / str(number)).read_text()

    def say(self, name, text=""):
        """`down`, `sbatch_down`, `mute`, `forgetful` or `reason`, from now on, with what is said; `unsay`
        ends it."""
        (self.folder / name).write_text(text)

    def unsay(self, name):
        (self.folder / name).unlink()

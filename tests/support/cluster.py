"""A Slurm of two nodes on this machine, in a temporary folder; Debian's slurm-wlm and munge, as root."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

TEMPLATE = Path(__file__).with_name("slurm.conf")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")


def missing():
    """Why no cluster can be started here; "" if one can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if absent := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        return f"there is no {absent[0]}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start it"


def free_ports(count):
    """Numbers of ports that nobody listens to."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """Slurm's daemons as child processes, from `with` to its end, and no process of theirs after it."""

    def __init__(self, folder):
        self.folder, self.daemons = folder, {}
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self):
        try:
            self.set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def set_up(self):
        for name in ("state", "n1", "n2"):
            (self.folder / name).mkdir(parents=True)
        controller, first, second = free_ports(3)
        text, munge = TEMPLATE.read_text(), self.folder / "munge.socket"
        values = dict(FOLDER=self.folder, HOST=socket.gethostname(), MUNGE=munge)
        ports = dict(CONTROLLER=controller, FIRST=first, SECOND=second)
        for name, value in {**values, **ports}.items():
            text = text.replace(name, str(value))
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        # --force: for a key, logs and a socket below a temporary folder, and for root
        self.start("munged", "--foreground", "--force", f"--socket={munge}", *files)
        self.wait_for(munge.exists)
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_for(lambda: self.states() == {"n1": "idle", "n2": "idle"})

    def __exit__(self, *_):
        with suppress(subprocess.CalledProcessError):
            self.ask("scancel", "--user=root")
            self.wait_for(lambda: not self.ask("squeue", "--noheader"))
        for process in reversed(self.daemons.values()):
            process.terminate()
        for process in reversed(self.daemons.values()):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, program, *flags, name=""):
        with open(self.folder / "daemons.log", "ab") as log:
            process = subprocess.Popen(
                [shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"), *flags],
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        self.daemons[name or program] = process

    def start_controller(self):
        self.start("slurmctld", "-D")

    def start_node(self, node):
        self.start("slurmd", "-D", "-N", node, name=node)

    def kill(self, name):
        """SIGKILL to a daemon."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def kill_node(self, node, run):
        """What a power cut does to a node: SIGKILL to its slurmd, to the step's daemon and to its run."""
        step = parent_of(run)
        self.kill(node)
        for process in (step, run):
            os.kill(process, signal.SIGKILL)

    def ask(self, *command):
        """What a program of Slurm prints; raises CalledProcessError."""
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout

    def states(self):
        """The state of each node."""
        nodes = self.ask("sinfo", "--Node", "--partition=main", "--noheader", "--format=%N %T")
        return dict(line.split() for line in nodes.splitlines())

    def wait_for(self, holds, seconds=60):
        """Waits until `holds()`; AssertionError, with the daemons' last words, if it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(subprocess.CalledProcessError):
                if holds():
                    return
            time.sleep(0.2)
        logs = [path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log"))]
        raise AssertionError("\n".join(logs))


def parent_of(process):
    """The number of a process's parent."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])

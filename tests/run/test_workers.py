"""`--env-workers`: the bits of one process, what can be sent to a worker, and a worker that dies."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing, suppress
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from cleanrl_maxent import ppo, sac
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.env import pool, processes
from cleanrl_maxent.common.env.make import EnvChoice
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import (
    WORKER_DIED,
    EnvironmentFailed,
    NonFiniteError,
    Stopped,
    UsageError,
    WorkerDied,
)
from cleanrl_maxent.common.output import warned
from cleanrl_maxent.common.run import start as start_module
from cleanrl_maxent.common.run.run import Run
from tests.support import probes
from tests.support.runs import SMALL, differences, digests, flags, small_args, start, train

TINY = SMALL | dict(total_timesteps=200, num_seeds=3, eval_episodes=2)
LINE = r"environment worker 2 of 2 was killed by SIGKILL"


def pids(envs):
    """The processes that step environments."""
    return [process.pid for process in envs.pool.processes.running]


def is_alive(pid):
    """True for a process that has not ended, as one has that is waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def workers_of(parent):
    """The processes that step environments for another one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_child = f"PPid:\t{parent}\n" in (folder / "status").read_text()
            if is_child and b"env/worker.py" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def until_gone(numbers, seconds=20):
    """True once none of these processes is alive."""
    limit = time.monotonic() + seconds
    while any(map(is_alive, numbers)) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(map(is_alive, numbers))


def outcome(env_id, workers, steps=1, **options):
    """Type and message of what some steps of two environments raise, and the traceback of its cause."""
    envs = None
    try:
        envs = SeedEnvs(env_id, [4, 5], workers=workers, **options)
        for _ in range(steps):
            envs.step(np.zeros((2, 1), np.float32))
    except (UsageError, NonFiniteError, EnvironmentFailed) as problem:
        return type(problem), str(problem), "".join(traceback.format_exception(problem))
    finally:
        if envs:
            envs.close()
    raise AssertionError("nothing was raised")


# bits


@pytest.mark.parametrize(
    ("algorithm", "given", "counts"),
    [(sac, dict(num_seeds=3), (1, 2, 3)), (ppo, dict(env_id="CartPole-v1", num_seeds=2), (3,))],
    ids=["sac, continuous", "ppo, discrete"],
)
def test_workers_change_no_bit(algorithm, given, counts, tmp_path):
    """Records, policies, checkpoints: evaluations, replay and the state of every environment."""
    small = dict(total_timesteps=240, eval_frequency=120, eval_episodes=2)
    ends = []
    for workers in (0, *counts):
        args = small_args(
            algorithm, **small, **given, env_workers=workers, run_dir=str(tmp_path / f"{workers}")
        )
        algorithm.train(args)
        ends.append(digests(Path(args.run_dir)))
    assert len(ends[0]) > 10 and all(differences(ends[0], other) == [] for other in ends[1:])


def test_a_run_resumes_with_another_number_of_workers(tmp_path, monkeypatch):
    """Stopped twice: of two workers, and of none; resumed with three."""
    train(TINY, tmp_path / "whole")
    end_step = Run.end_step

    def stop(self, steps, *given):
        if steps in (75, 130) and not signals.received:
            signals.received.append(signal.SIGTERM)
        end_step(self, steps, *given)

    monkeypatch.setattr(Run, "end_step", stop)
    for workers in (2, 0):
        with pytest.raises(Stopped):
            train(TINY | dict(env_workers=workers), tmp_path / "run")
        signals.received.clear()
    train(TINY | dict(env_workers=3), tmp_path / "run")
    assert differences(digests(tmp_path / "whole"), digests(tmp_path / "run")) == []


@pytest.mark.parametrize(
    ("platform", "cores", "expected"), [("cpu", 16, 0), ("gpu", 16, 16), ("gpu", 64, 20)]
)
def test_the_default_is_a_process_for_each_core_of_a_machine_with_a_gpu(
    platform, cores, expected, monkeypatch
):
    """At most one an environment: here the 20 of an evaluation; NPROC is a run's share of the cores."""
    device = type("Device", (), {"platform": platform})
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(start_module, "chosen_device", lambda: device)
    monkeypatch.setattr(start_module, "cpu_count", lambda: cores)
    assert start_module.count_workers(sac.Args(), 1) == expected
    assert start_module.count_workers(sac.Args(env_workers=2), 1) == 2
    for share in (4, 128):
        monkeypatch.setenv("NPROC", str(share))
        assert start_module.count_workers(sac.Args(), 1) == min(expected, share)
    assert start_module.count_workers(sac.Args(env_workers=9, eval_episodes=0, num_seeds=2), 2) == 4


# what a worker is


def test_a_worker_imports_no_jax_and_has_one_thread(monkeypatch):
    """Besides the one that watches its parent. Other tests register environments that import JAX."""
    specs = pool.pickled_specs
    monkeypatch.setattr(pool, "pickled_specs", lambda env_id: {env_id: specs(env_id)[env_id]})

    class Told(probes.Point):
        """Its observation tells whether JAX is imported, and the number of the process."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.array(["jax" in sys.modules, os.getpid()], np.float32), {}

    probes.register("Told-v0", entry_point=Told)
    envs = SeedEnvs("Told-v0", [1, 2, 3], "restart", workers=2)
    imported, process = envs.obs.T
    assert not imported.any() and process[0] == process[2] != process[1] != os.getpid()
    for pid in pids(envs):
        assert re.search(r"^Threads:\s+2$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    envs.close()
    assert not any(map(is_alive, [*map(int, process)]))


SCRIPT = """
import gymnasium as gym, numpy as np
from tests.support.probes import Point
print("once")

class Mine(Point):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([7, PUSH], np.float32), {}

PUSH = 3
gym.register("Inner-v0", entry_point=lambda: Mine())
gym.register("Mine-v0", entry_point=lambda **options: gym.make("Inner-v0").unwrapped)

from cleanrl_maxent.common.env.seeds import SeedEnvs
envs = SeedEnvs("Mine-v0", [1, 2], workers=2)
print(envs.obs.tolist())
"""


def test_environments_registered_by_a_script_are_known_to_workers(tmp_path):
    """Classes and functions of the script itself, which is not run again; it may end without closing."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("once\n[[7.0, 3.0], [7.0, 3.0]]\n", "")


def test_a_module_of_the_users_folder_is_found_by_workers(tmp_path, monkeypatch, capfd):
    (tmp_path / "my_module.py").write_text(
        "import gymnasium as gym\nfrom tests.support.probes import Point\n"
        "gym.register('OfMyModule-v0', entry_point=Point)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    envs = SeedEnvs("my_module:OfMyModule-v0", [1, 2], workers=2)
    expected = SeedEnvs("OfMyModule-v0", [1, 2])
    assert np.array_equal(envs.obs, expected.obs)
    envs.close()
    assert "Overriding" not in capfd.readouterr().err


def test_what_cannot_be_sent_is_said_in_a_line():
    probes.register("Locked-v0", entry_point=probes.Point, kwargs={"returned": threading.Lock()})
    with pytest.raises(UsageError) as caught:
        SeedEnvs("Locked-v0", [1, 2], "restart", workers=2)
    assert str(caught.value) == (
        "Locked-v0 cannot be sent to a process of its own: cannot pickle '_thread.lock' object; "
        "add --env-workers 0"
    )


# exceptions


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("FourValues-v0", dict(env_reset="restart")),
        ("RewardHuge-v0", dict(env_reset="restart")),
        ("FailsLate-v0", dict(steps=701)),
        ("Silent-v0", dict(env_reset="restart")),
        ("NoSuch-v0", dict(env_reset="restart")),
        ("NanReward-v0", dict(steps=3, env_reset="restart")),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_lines_are_those_of_one_process(env_id, options):
    here, there = (outcome(env_id, workers, **options) for workers in (0, 2))
    assert here[:2] == there[:2]


def test_an_exception_in_a_worker_keeps_its_traceback():
    kind, said, text = outcome("FailsLate-v0", 2, 701)
    assert said.endswith("(training, step 700, seed 4): ZeroDivisionError: division by zero")
    assert re.search(r"in a worker:\nTraceback .*in fail_late\n.*ZeroDivisionError", text, re.DOTALL)


def test_an_environment_that_cannot_be_closed_is_a_warning(capfd):
    """Said once, by this process or a worker; the others are closed nevertheless."""
    for workers in (0, 1):
        warned.clear()
        envs = SeedEnvs("ClosesNever-v0", [1, 2], "restart", workers=workers)
        envs.close()
        said = "warning: ClosesNever-v0 could not be closed: RuntimeError: jammed\n"
        assert capfd.readouterr().err == said


def test_too_many_workers_are_said_in_a_line(monkeypatch):
    start, running = processes.start_worker, []

    def start_two(memory):
        if len(running) == 2:
            raise OSError(24, "Too many open files")
        running.append(start(memory))
        return running[-1]

    monkeypatch.setattr(processes, "start_worker", start_two)
    few = "only 2 of 3 environment workers started: Too many open files; lower --env-workers"
    with pytest.raises(UsageError, match=few):
        SeedEnvs("Pendulum-v1", [1, 2, 3], workers=3)
    assert all(process.returncode is not None for _, process in running)


# ends


def test_signals_are_for_the_parent():
    envs = SeedEnvs("Point-v0", [1, 2], workers=2)
    for pid in pids(envs):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.kill(pid, number)
    for _ in range(3):
        envs.step(np.zeros((2, 1), np.float32))
    envs.close()


def test_a_dead_worker_is_a_line_and_the_end_of_the_others():
    envs = SeedEnvs("Point-v0", [1, 2, 3], workers=2)
    numbers = pids(envs)
    envs.step(np.zeros((3, 1), np.float32))
    os.kill(numbers[1], signal.SIGKILL)
    with pytest.raises(WorkerDied) as caught:
        envs.step(np.zeros((3, 1), np.float32))
    assert str(caught.value) == f"{LINE} (training, step 2)"
    assert not any(map(is_alive, numbers))


@pytest.mark.parametrize("how", ["exec", "fork"])
def test_a_dead_worker_is_noticed_though_a_process_it_started_lives_on(how):
    """One that inherits every descriptor, and so holds the worker's end of the pipe if it was forked."""

    class Starting(probes.Point):
        def reset(self, *, seed=None, options=None):
            if how == "exec":
                os.system("sleep 30 &")
            elif os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            return super().reset(seed=seed, options=options)

    probes.register("Starting-v0", entry_point=Starting)
    with closing(SeedEnvs("Starting-v0", [1, 2], "restart", workers=2)) as envs:
        os.kill(pids(envs)[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(WorkerDied, match=LINE):
            envs.step(np.zeros((2, 1), np.float32))
        assert time.monotonic() - began < 15


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_resumes_to_the_bit(tmp_path):
    args = flags(TINY | dict(total_timesteps=570, checkpoint_frequency=20))
    train(TINY | dict(total_timesteps=570, checkpoint_frequency=20), tmp_path / "whole")
    run, log = tmp_path / "run", tmp_path / "run.log"
    process = start("sac", [*args, "--env-workers", "2"], run)
    while not any(run.glob("checkpoint/checkpoint-*.json")) and process.poll() is None:
        time.sleep(0.01)
    workers = workers_of(process.pid)
    os.kill(max(workers), signal.SIGKILL)
    assert len(workers) == 2 and process.wait() == WORKER_DIED
    said = log.read_text().splitlines()[-1]
    line = rf"error: {LINE}( \(.* step \d+\))?; step .* saved .*; resume with --resume {run}"
    assert re.fullmatch(line, said)
    assert start("sac", args, run).wait() == 0
    assert "resumed at step" in log.read_text()
    assert differences(digests(tmp_path / "whole"), digests(run)) == []


ORPHANS = """
import os, signal
from cleanrl_maxent.common.env.seeds import SeedEnvs
envs = SeedEnvs("Pendulum-v1", [1, 2], workers=2)
print(*(process.pid for process in envs.pool.processes.running), flush=True)
maps = "/proc/self/maps"
print(os.path.exists(maps) and "/dev/shm/" in open(maps).read(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_parent_that_was_killed():
    """No process, and no file in memory: what they share has no name."""
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    first, second, has_name = done.stdout.split()
    assert has_name == "False" and until_gone([int(first), int(second)])


HANGING = """
import os, signal, threading, time
import gymnasium as gym, numpy as np
from cleanrl_maxent.common.env.seeds import SeedEnvs
from gymnasium.envs.classic_control import PendulumEnv
class Hanging(PendulumEnv):
    def step(self, action):
        time.sleep(300)
gym.register("Hanging-v0", entry_point=Hanging)
envs = SeedEnvs("Hanging-v0", [1, 2], "restart", workers=2)
print(*(process.pid for process in envs.pool.processes.running), flush=True)
threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
envs.step(np.zeros((2, 1), np.float32))
"""


def test_a_worker_in_an_endless_step_ends_with_its_parent():
    done = subprocess.run([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    assert until_gone([*map(int, done.stdout.split())])


def test_the_only_environment_is_in_a_worker():
    """None is made here, as with `--eval-episodes 0` nowhere else; a second one is refused as it is here."""
    envs = SeedEnvs("OnlyOne-v0", [1], "restart", workers=1)
    envs.step(np.zeros((1, 1), np.float32))
    assert not probes.OnlyOne.living
    envs.close()
    lines = [outcome("OnlyOne-v0", workers, env_reset="restart")[:2] for workers in (0, 1)]
    probes.OnlyOne.living = 0
    assert lines[0] == lines[1] and "if only one can exist" in lines[0][1]


def test_discrete_actions_and_copies_in_workers():
    choice = EnvChoice("CartPole-v1", ("Box", "Discrete"))
    here, there = (SeedEnvs(choice, [1, 2], copies=3, workers=workers) for workers in (0, 4))
    for step in range(60):
        action = np.arange(6) * step % 2
        assert here.step(action) == there.step(action)
        assert all(
            np.array_equal(value, getattr(there.transition, name))
            for name, value in vars(here.transition).items()
        )
        assert np.array_equal(here.elapsed, there.elapsed)
    there.close()

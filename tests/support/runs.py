"""Small runs: their arguments, what they leave, and ways to stop them at a chosen moment."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from benchmarks.faults import differences as differences
from benchmarks.faults import digests as digests
from cleanrl_maxent import sac
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import Stopped

KILLED = Path(__file__).parent / "killed.py"

# the ring wraps twice; checkpoints, evaluations, losses and episodes (200 steps) fall on different steps
SMALL = dict(
    env_id="Pendulum-v1",
    total_timesteps=570,
    learning_starts=110,
    batch_size=16,
    buffer_size=200,
    hidden_dims=(8, 8),
    eval_frequency=140,
    eval_episodes=1,
    checkpoint_frequency=90,
)
# the same for any algorithm, which takes of these what it has
SMALLEST = SMALL | dict(
    policy_frequency=60,
    target_network_frequency=60,
    noise="ou",
    num_envs=2,
    num_steps=30,
    num_minibatches=4,
    update_epochs=2,
    critic_hidden_dims=(8, 8),
    n_critics=2,
    value_particles=3,
    svgd_particles=4,
    cg_damping=1.0,  # with the default, rounding errors grow in a few updates
    collect_steps=150,
    iterations=2,
    updates_per_iteration=3,
)


def small_args(algorithm, **given):
    """Arguments of a small run of any algorithm; `given` are all used, and must exist."""
    known = {field.name for field in fields(algorithm.Args)}
    return algorithm.Args(**{name: value for name, value in SMALLEST.items() if name in known} | given)


def flags(args):
    """Arguments as words of a command line."""
    words = []
    for name, value in args.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def train(args, path, algorithm=sac):
    """Trains into the folder `path`, in this process."""
    return algorithm.train(algorithm.Args(**args, run_dir=str(path)))


def start(algorithm, flags, folder, point="none"):
    """A process that trains into `folder`, and kills itself at `point`, `module:function:n`, if given.

    What it prints is in `{folder}.log`.
    """
    command = [sys.executable, str(KILLED), algorithm, point, *flags, "--run-dir", str(folder)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={"NPROC": "1", **os.environ})


def killed_in(folder):
    """The functions in which the last process of a run killed itself, the innermost last."""
    log = folder.with_suffix(".log").read_text().splitlines()
    return next(line for line in reversed(log) if line.startswith("killed in "))


def record_actions(patch):
    """A list that grows by the actions of every step of the environments, `(seeds, ...)`."""
    actions, step_async = [], SeedEnvs.step_async

    def step(envs, action):
        actions.append(np.array(action))
        return step_async(envs, action)

    patch.setattr(SeedEnvs, "step_async", step)
    return actions


def at_step(patch, number, action):
    """Calls `action` in the middle of environment step `number`, counted over the process."""
    original, count = SeedEnvs.step_async, [0]

    def step(self, actions):
        count[0] += 1
        if count[0] == number:
            action()
        return original(self, actions)

    patch.setattr(SeedEnvs, "step_async", step)


def stop_at(patch, number, name="SIGTERM"):
    """A signal arrives in the middle of environment step `number`, counted over the process."""
    at_step(patch, number, lambda: signals.received.append(signal.Signals[name]))


def train_until_stopped(args, monkeypatch, algorithm, at):
    """A run of `args` that a signal stopped in environment step number `at`, in this process."""
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        with pytest.raises(Stopped):
            algorithm.train(args)
    signals.received.clear()


def interrupted(args, path, monkeypatch, at=300, algorithm=sac):
    """A run of a table of arguments into `path`, stopped likewise."""
    train_until_stopped(algorithm.Args(**args, run_dir=str(path)), monkeypatch, algorithm, at)


def rows(path):
    """The rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def scalars(folder):
    """(tag, step, value) of every scalar in a folder's TensorBoard file."""
    data, found = next(Path(folder).glob("events.*")).read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found

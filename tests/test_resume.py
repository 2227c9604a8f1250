"""Exact resume: kills, stops, damage and mutants, each against a run that nobody touched."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import envs as probes
import jax
import numpy as np
import pytest
from faults import differences, digests, start
from test_runs import rows, scalars

from cleanrl_maxent import sac
from cleanrl_maxent.common import checkpoint, folder, machine, runs, signals
from cleanrl_maxent.common.arguments import Finished, NonFiniteError, UsageError
from cleanrl_maxent.common.checkpoint import Checkpoints, Damaged
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.replay import Replay, Segment, Transition, refill

# the ring wraps twice; commits, evaluations, losses and episodes (200 steps) fall on different steps
PENDULUM = dict(
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
THREADS = os.environ["NPROC"]
HOPPER = PENDULUM | dict(env_id="Hopper-v4", num_seeds=4)


def flags(args):
    words = []
    for name, value in args.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def train(args, path, algorithm=sac):
    return algorithm.train(algorithm.Args(**args, run_dir=str(path)))


def stop_at(monkeypatch, step, name="SIGTERM"):
    """A signal arrives in the middle of environment step number `step`, counted over the process."""
    original, count = SeedEnvs.step, [0]

    def stepped(self, action):
        count[0] += 1
        if count[0] == step:
            signals.received.append(signal.Signals[name])
        return original(self, action)

    monkeypatch.setattr(SeedEnvs, "step", stepped)


def interrupted(args, path, monkeypatch, at=300, algorithm=sac):
    """A run that a signal stopped `at` a step, in this process."""
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        with pytest.raises(signals.Stopped):
            train(args, path, algorithm)
    signals.received.clear()


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    path = tmp_path_factory.mktemp("pendulum") / "reference"
    train(PENDULUM, path)
    return digests(path)


# ---- kills


def references(args, path):
    assert start("sac", flags(args), path).wait() == 0, path.with_suffix(".log").read_text()
    return digests(path)


POINTS = [
    "cleanrl_maxent.common.checkpoint:os.fsync:1",  # writing config.json
    "cleanrl_maxent.sac:update:1",  # in compilation
    "cleanrl_maxent.common.checkpoint:os.fsync:3",  # first commit: the record not yet on the disk
    "cleanrl_maxent.common.checkpoint:os.fsync:{segment}",  # record flushed, nothing committed
    "cleanrl_maxent.common.checkpoint:os.replace:3",  # a segment, and no state
    "cleanrl_maxent.common.checkpoint:os.replace:4",  # segment and state, and no commit
    "cleanrl_maxent.common.checkpoint:Checkpoints.remove_others:1",  # committed, nothing removed
    "cleanrl_maxent.common.checkpoint:Path.unlink:{gc}",  # half of the old files removed
    "cleanrl_maxent.common.replayable:Replayable.restore:{last}",  # while resuming: environments
    "cleanrl_maxent.common.runs:refill:1",  # while resuming: the replay
    "cleanrl_maxent.common.evaluation:scale_action:150",  # in an evaluation
    "cleanrl_maxent.common.envs:SyncVectorEnv.step:60",  # between commits
    "cleanrl_maxent.common.checkpoint:os.fsync:{segment}",
    "cleanrl_maxent.common.runs:Run.save_policy:1",  # after the last step
    "cleanrl_maxent.common.runs:Run.finish:1",  # before result.json
]


@pytest.mark.parametrize("args", [PENDULUM, HOPPER], ids=["one seed, ring wraps", "four seeds"])
def test_sigkill_at_every_point(args, tmp_path):
    """One run, killed at one point after the other; it ends with the same bits."""
    reference = references(args, tmp_path / "reference")
    seeds, kills, run = args.get("num_seeds", 1), 0, tmp_path / "run"
    for point in POINTS[:: 1 if seeds == 1 else 3]:
        point = point.format(segment=3 + seeds, last=seeds, gc=seeds + 3)
        status = start("sac", flags(args), run, point).wait()
        assert status in (-signal.SIGKILL, 0), (point, run.with_suffix(".log").read_text()[-2000:])
        kills += status == -signal.SIGKILL
    assert start("sac", flags(args), run).wait() == 0, run.with_suffix(".log").read_text()[-2000:]
    assert kills >= (13 if seeds == 1 else 4)
    assert differences(reference, digests(run)) == []


def test_sigkill_at_random(tmp_path):
    """Four times, each a random moment after a new commit."""
    args = PENDULUM | dict(total_timesteps=1700, eval_frequency=600)
    reference, rng, kills = references(args, tmp_path / "reference"), random.Random(0), 0
    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoint")
    for _ in range(4):
        before, process = checkpoints.commits()[:1], start("sac", flags(args), run)
        while checkpoints.commits()[:1] == before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert start("sac", flags(args), run).wait() == 0
    assert kills >= 3 and run.with_suffix(".log").read_text().count("resumed at") >= 2
    assert differences(reference, digests(run)) == []


# ---- stops


@pytest.mark.parametrize("at", [1, 90, 111, 137, 279, 280, 569, 570])
def test_stop_at_a_step_boundary(at, pendulum, tmp_path, monkeypatch):
    interrupted(PENDULUM, tmp_path / "run", monkeypatch, at)
    assert Checkpoints(tmp_path / "run" / "checkpoint").commits()[0].name == f"commit-{at:010}.json"
    train(PENDULUM, tmp_path / "run")
    assert differences(pendulum, digests(tmp_path / "run")) == []


def test_stop_in_an_evaluation(pendulum, tmp_path, monkeypatch):
    from cleanrl_maxent.common import evaluation

    with monkeypatch.context() as patch:
        calls, scale = [], evaluation.scale_action

        def scaled(*given):
            calls.append(None)
            if len(calls) == 500:
                signals.received.append(signal.SIGTERM)
            return scale(*given)

        patch.setattr(evaluation, "scale_action", scaled)
        with pytest.raises(signals.Stopped):
            train(PENDULUM, tmp_path / "run")
    signals.received.clear()
    commit = Checkpoints(tmp_path / "run" / "checkpoint").commits()[0]
    assert commit.name == "commit-0000000280.json" and len(calls) <= 501
    train(PENDULUM, tmp_path / "run")
    assert differences(pendulum, digests(tmp_path / "run")) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_signal_commits_and_exits_75(name, pendulum, tmp_path):
    """A long run is stopped by a real signal, and goes on from `--resume` alone."""
    run = tmp_path / "run"
    long = PENDULUM | dict(total_timesteps=10**6, checkpoint_frequency=0)
    process = start("sac", flags(long), run)
    record = run / "seed-1" / "metrics.jsonl"
    deadline = time.time() + 300
    while not (record.exists() and record.stat().st_size) and time.time() < deadline:
        time.sleep(0.1)
    assert record.exists() and process.poll() is None
    process.send_signal(signal.Signals[name])
    sent = time.time()
    assert process.wait(60) == 75 and time.time() - sent < 10
    log = run.with_suffix(".log").read_text()
    assert re.search(rf"stopped by {name} at step [\d,]+; go on with --resume {re.escape(str(run))}", log)
    if name == "SIGTERM":
        commit = Checkpoints(run / "checkpoint").commits()[0]
        steps = json.loads(commit.read_text().partition("\n")[2])["steps"]
        done = subprocess.run(
            [sys.executable, sac.__file__, "--resume", str(run), "--total-timesteps", str(steps + 10)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and f"resumed at step {steps:,}" in done.stdout, done.stderr


def test_signal_in_compilation(pendulum, tmp_path, monkeypatch):
    """It arrives while the update is traced, before its first step ends."""
    original = sac.update

    def traced(*given):
        signals.received.append(signal.SIGTERM)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sac, "update", traced)
        with pytest.raises(signals.Stopped, match="stopped by SIGTERM at step 111;"):
            train(PENDULUM, tmp_path / "run")
    signals.received.clear()
    train(PENDULUM, tmp_path / "run")
    assert differences(pendulum, digests(tmp_path / "run")) == []


def test_stops_one_after_the_other(pendulum, tmp_path, monkeypatch):
    """Killed with rows that no commit covers, then stopped before a new row, twice."""
    args = PENDULUM | dict(checkpoint_frequency=190)
    with monkeypatch.context() as patch:
        original = runs.Run.record_episodes

        def record_episodes(self, steps, episodes):
            original(self, steps, episodes)
            if steps == 250:  # with a row at 200
                raise KeyError

        patch.setattr(runs.Run, "record_episodes", record_episodes)
        with pytest.raises(KeyError):
            train(args, tmp_path / "run")
    for at in (1, 2):
        interrupted(PENDULUM, tmp_path / "run", monkeypatch, at)
    assert Checkpoints(tmp_path / "run" / "checkpoint").commits()[0].name == "commit-0000000193.json"
    train(PENDULUM, tmp_path / "run")
    assert differences(pendulum, digests(tmp_path / "run")) == []


def test_second_sigint_ends_the_process():
    program = (
        "import os, signal, time\nfrom cleanrl_maxent.common import signals\nsignals.listen()\n"
        "os.kill(os.getpid(), signal.SIGINT)\nprint('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\nprint('never', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == "still here\n"
    assert "Ctrl-C again" in done.stderr


# ---- going on


def test_finished_run_says_so_and_a_larger_total_continues_it(pendulum, tmp_path):
    run = tmp_path / "run"
    train(PENDULUM | dict(total_timesteps=333), run)
    with pytest.raises(Finished, match="is finished"):
        train(PENDULUM | dict(total_timesteps=333), run)
    train(PENDULUM, run)
    assert differences(pendulum, digests(run)) == []
    done = subprocess.run(
        [sys.executable, sac.__file__, "--resume", str(run)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == f"{run} is finished (570 steps); nothing to do\n"


@pytest.fixture(scope="module")
def stopped_at_300(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(PENDULUM, path, patch)
    return path


@pytest.fixture
def stopped(stopped_at_300, tmp_path):
    """A run with two commits, at 270 and 300 steps."""
    return shutil.copytree(stopped_at_300, tmp_path / "run")


def test_tensorboard_is_rebuilt_from_the_record(stopped):
    train(PENDULUM, stopped)
    assert len(list(stopped.glob("seed-1/events.*"))) == 1
    board = [found for found in scalars(stopped / "seed-1") if found[0].split("/")[0] != "hyperparameters"]
    record = rows(stopped / "seed-1" / "metrics.jsonl")
    assert len(board) == sum(len(row) - 1 for row in record) == len({found[:2] for found in board})


def test_other_arguments_are_named(stopped):
    with pytest.raises(UsageError, match=r"started with gamma=0.99, tau=0.005; you gave 0.5, 0.1: name"):
        train(PENDULUM | dict(gamma=0.5, tau=0.1), stopped)
    with pytest.raises(UsageError, match="has 300 steps already, more than 290"):
        train(PENDULUM | dict(total_timesteps=290), stopped)


def test_other_versions_are_named(stopped, pendulum, monkeypatch):
    described = machine.describe_machine()
    described["versions"]["jax"] = "0.0.1"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "describe_machine", lambda: described)
        with pytest.raises(UsageError, match=r"jax \S+, now 0.0.1: not bit-exact; add --allow-version"):
            train(PENDULUM, stopped)
        described["cpu_threads"] = 7
        with pytest.raises(UsageError, match=f"cpu_threads {THREADS}, now 7"):
            train(PENDULUM, stopped)
    train(PENDULUM | dict(allow_version_change=True), stopped)
    assert differences(pendulum, digests(stopped)) == []


@pytest.mark.parametrize("flags", ["--xla_cpu_enable_fast_math=false", None])
def test_recorded_threads_and_flags_are_used(stopped, flags):
    """Bits depend on them, so a resumed run has those it began with."""
    config = json.loads((stopped / "config.json").read_text())
    assert config["cpu_threads"] == int(THREADS)
    assert config["xla_flags"] == (os.environ["XLA_FLAGS"] or None)
    program = (
        "import os\nfrom cleanrl_maxent.common.devices import set_up_device\n"
        f"set_up_device('cpu', {str(stopped)!r})\nprint(os.environ['NPROC'], os.environ['XLA_FLAGS'])"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
    (stopped / "config.json").write_text(json.dumps(config | {"cpu_threads": 5, "xla_flags": flags}))
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True)
    assert done.stdout == f"5 {flags or ''}\n"


def test_one_writer(tmp_path):
    held = folder.lock(tmp_path / "run")
    with pytest.raises(UsageError, match=f"is being written by process {os.getpid()}"):
        train(PENDULUM, tmp_path / "run")
    held.close()
    folder.lock(tmp_path / "run").close()


def test_zero_temperature_is_committed(tmp_path, monkeypatch):
    args = PENDULUM | dict(alpha=0.0, autotune=False)
    interrupted(args, tmp_path / "run", monkeypatch)
    train(args, tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", '{"model": 1}', "{"])
def test_folder_with_a_foreign_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="is not a run's|is damaged"):
        train(PENDULUM, tmp_path)


def test_resume_or_run_dir():
    """The two together, or an empty one, are refused."""
    for given, said in (("--resume a --run-dir b", "not both"), ("--resume=", "is not a run")):
        done = subprocess.run([sys.executable, sac.__file__, *given.split()], capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_not_a_run(tmp_path):
    done = subprocess.run(
        [sys.executable, sac.__file__, "--resume", str(tmp_path / "no")], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not a run" in done.stderr
    assert not (tmp_path / "no").exists()


# ---- faults


def test_disk_full_keeps_the_commit_before(stopped, pendulum, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        original = runs.Run.write_segment

        def write_segment(self, steps):
            with pytest.MonkeyPatch.context() as here:
                here.setattr(checkpoint.os, "fsync", full)
                return original(self, steps)

        patch.setattr(runs.Run, "write_segment", write_segment)
        with pytest.raises(OSError, match=r"No space left on device: '.*segment-0000000360.npz'"):
            train(PENDULUM, stopped)
    assert not list(stopped.rglob("*.tmp"))
    train(PENDULUM, stopped)
    assert differences(pendulum, digests(stopped)) == []


def test_non_finite_state_is_not_committed(stopped, monkeypatch):
    original = sac.update

    def broken(state, batch, key, index, args):
        state, metrics = original(state, batch, key, index, args)
        first = state.alpha.opt_state[0]
        moments = first._replace(nu=jax.tree.map(lambda leaf: leaf + np.inf, first.nu))
        alpha = state.alpha.replace(opt_state=(moments, *state.alpha.opt_state[1:]))
        return state.replace(alpha=alpha), metrics

    monkeypatch.setattr(sac, "update", broken)
    with pytest.raises(NonFiniteError, match="alpha/opt_state/0/nu/log_alpha at step 360, seed 1"):
        train(PENDULUM, stopped)
    assert Checkpoints(stopped / "checkpoint").commits()[0].name == "commit-0000000300.json"


def newest_files(run):
    """The files that the newest commit rests on."""
    checkpoints = Checkpoints(run / "checkpoint")
    path = checkpoints.commits()[0]
    body = checkpoints.read_commit(path)
    names = [path.name, body["state"]["name"], *body["segments"]]
    return [*(run / "checkpoint" / name for name in names), run / "seed-1" / "metrics.jsonl"]


def found_steps(run):
    """Steps of the commit that a resumed run would start from; None where it would refuse."""
    args = sac.Args(**PENDULUM, run_dir=str(run))
    config = json.loads((run / "config.json").read_text())
    try:
        commit = folder.find_commit(run, Checkpoints(run / "checkpoint"), args, config)
    except UsageError:
        return None
    return commit.steps if commit else 0


def test_no_damage_is_silent(stopped):
    """200 bit flips and 50 truncations of the files of the newest commit, and each file deleted."""
    assert found_steps(stopped) == 300
    files, rng = newest_files(stopped), random.Random(1)
    assert len(files) >= 4
    damages = [("flip", rng.choice(files)) for _ in range(200)]
    damages += [("cut", rng.choice(files)) for _ in range(50)] + [("delete", file) for file in files]
    outcomes = []
    for kind, file in damages:
        whole = file.read_bytes()
        if kind == "delete":
            file.unlink()
        elif kind == "cut":
            file.write_bytes(whole[: rng.randrange(len(whole))])
        else:
            at, damaged = rng.randrange(len(whole)), bytearray(whole)
            damaged[at] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
        outcomes.append(found_steps(stopped))
        file.write_bytes(whole)
    assert 300 not in outcomes and 270 in outcomes
    assert found_steps(stopped) == 300


@pytest.mark.parametrize("which", [0, 1])
def test_falls_back_to_the_commit_before_and_says_so(which, stopped, pendulum, capsys):
    file = newest_files(stopped)[which]
    file.write_bytes(file.read_bytes()[:-7])
    train(PENDULUM, stopped)
    said = capsys.readouterr().out
    assert f"warning: {file} fails its checksum; trying the commit before" in said
    assert "resumed at step 270" in said
    assert differences(pendulum, digests(stopped)) == []


def test_no_good_commit_left(stopped):
    for path in (stopped / "checkpoint").glob("state-*"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no good checkpoint left"):
        train(PENDULUM, stopped)


def test_changed_config_does_not_pass_for_the_run(stopped):
    path = stopped / "config.json"
    path.write_text(path.read_text().replace('"gamma": 0.99', '"gamma": 0.98'))
    with pytest.raises(UsageError, match=r"gamma=0.99; you gave 0.98"):
        train(PENDULUM | dict(gamma=0.98), stopped)


def test_lost_config_does_not_start_anew(stopped):
    (stopped / "config.json").unlink()
    with pytest.raises(UsageError, match="config.json is missing; put it back"):
        train(PENDULUM, stopped)
    assert len(Checkpoints(stopped / "checkpoint").commits()) == 2


def test_changed_threads_in_the_config_do_not_pass(stopped):
    """The commit knows the machine too, so a bit flip in config.json is not silent."""
    path = stopped / "config.json"
    path.write_text(path.read_text().replace(f'"cpu_threads": {THREADS}', '"cpu_threads": 3'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "3")
        with pytest.raises(UsageError, match=f"cpu_threads {THREADS}, now 3"):
            train(PENDULUM, stopped)


def test_newer_format(stopped, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    with pytest.raises(UsageError, match="has format 1, this program reads up to 0"):
        train(PENDULUM, stopped)


def test_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "state.npz", x=np.array([{}], object))
    sha256 = checkpoint.digest((tmp_path / "state.npz").read_bytes())
    with pytest.raises(Damaged, match="is refused: .*pickle"):
        Checkpoints(tmp_path).read_arrays("state.npz", sha256)
    with pytest.raises(Damaged, match="missing"):
        Checkpoints(tmp_path / "checkpoint").read_arrays("../state.npz", "")


def test_other_network_in_the_code(stopped, monkeypatch):
    init = sac.init
    wider = lambda key, obs_dim, action_dim, args: init(key, obs_dim + 1, action_dim, args)  # noqa: E731
    monkeypatch.setattr(sac, "init", wider)
    with pytest.raises(UsageError, match="other code: actor/.*kernel does not fit"):
        train(PENDULUM, stopped)


# ---- environments


def test_environment_that_cannot_be_replayed(tmp_path, monkeypatch):
    """State that survives a reset is noticed before anything is written; the ways out work."""
    probes.register("Surviving-v0", entry_point=probes.Surviving, max_episode_steps=20)
    args = PENDULUM | dict(env_id="Surviving-v0", total_timesteps=300)
    with pytest.raises(UsageError, match="Surviving-v0 cannot be restored exactly.*--env-reset fresh"):
        train(args, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fresh = args | dict(env_reset="fresh")
    train(fresh, tmp_path / "whole")
    interrupted(fresh, tmp_path / "run", monkeypatch, 213)
    train(fresh, tmp_path / "run")
    assert differences(digests(tmp_path / "whole"), digests(tmp_path / "run")) == []
    restart = args | dict(env_reset="restart")
    interrupted(restart, tmp_path / "inexact", monkeypatch, 213)
    train(restart, tmp_path / "inexact")


def test_environment_that_goes_elsewhere_when_restored(tmp_path, monkeypatch):
    interrupted(PENDULUM, tmp_path / "run", monkeypatch)
    from gymnasium.envs.classic_control import PendulumEnv

    monkeypatch.setattr(PendulumEnv, "_get_obs", lambda self: np.array([1, 0, self.state[1] + 1], np.float32))
    with pytest.raises(UsageError, match="Pendulum-v1 of seed 1 cannot be restored exactly: 100 steps"):
        train(PENDULUM, tmp_path / "run")


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Ant-v4", "Humanoid-v4", "HalfCheetah-v4", "Walker2d-v5"])
def test_restored_environments_go_on_to_the_bit(env_id):
    seeds, rng = [3, 4], np.random.default_rng(0)
    envs = SeedEnvs(env_id, seeds)
    for cut in (1, 40, 300):
        while envs.steps < cut:
            envs.step(rng.uniform(-1, 1, (2, envs.action_dim)).astype(np.float32))
        snapshots, arrays = envs.snapshot()
        other = SeedEnvs(env_id, seeds)
        other.restore(cut, json.loads(json.dumps(snapshots)), arrays)
        for _ in range(60):
            action = rng.uniform(-1, 1, (2, envs.action_dim)).astype(np.float32)
            assert envs.step(action) == other.step(action)
            for name, value in vars(envs.transition).items():
                assert np.array_equal(value, getattr(other.transition, name)), name


# ---- mutants: every part of the state is needed


def zeroed(*patterns):
    def mutate(commit):
        hit = [name for name in commit.arrays if any(re.search(pattern, name) for pattern in patterns)]
        assert hit, patterns
        return commit._replace(arrays=commit.arrays | {n: np.zeros_like(commit.arrays[n]) for n in hit})

    return mutate


def environments(**changes):
    def mutate(commit):
        snapshots = [snapshot | changes for snapshot in commit.meta["envs"]]
        return commit._replace(meta=commit.meta | {"envs": snapshots})

    return mutate


def record_lost(commit):
    records = [record | {"bytes": 0} for record in commit.meta["records"]]
    return commit._replace(meta=commit.meta | {"records": records})


def step_lost(commit):
    return commit._replace(steps=commit.steps - 1)


def one_transition_lost(commit):
    """The reward of one stored transition."""
    *before, last = commit.segments
    transitions = last.load()
    reward = transitions.reward.copy()
    reward[0, 5] += 1
    changed = transitions.replace(reward=reward)
    return commit._replace(segments=[*before, last._replace(load=lambda: changed)])


def segment_lost(commit):
    """Half of the ring."""
    first, second, *others = commit.segments
    zero = jax.tree.map(np.zeros_like, second.load())
    return commit._replace(segments=[first, second._replace(load=lambda: zero), *others])


MUTANTS = {
    "actor": zeroed("^state/actor/params"),
    "actor's optimiser, first moment": zeroed("^state/actor/opt_state/0/mu"),
    "actor's optimiser, second moment": zeroed("^state/actor/opt_state/0/nu"),
    "actor's optimiser, count": zeroed("^state/actor/opt_state/0/count"),
    "critics": zeroed("^state/critics/params"),
    "critics' optimiser": zeroed("^state/critics/opt_state/0/mu"),
    "target critics": zeroed("^state/target_critics"),
    "temperature": zeroed("^state/alpha/params"),
    "temperature's optimiser": zeroed("^state/alpha/opt_state/0/mu"),
    "transition in flight": zeroed("^envs/transition/reward"),
    "a transition of the replay": one_transition_lost,
    "a segment of the replay": segment_lost,
    "actions since the reset": zeroed("^envs/actions"),
    "random state of the reset": environments(before=None),
    "count of steps": step_lost,
    "length of the record": record_lost,
}


REFUSED = {"actions since the reset", "random state of the reset"}


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A stopped run, 290 steps in, to be copied; and what it is to end with."""
    args = PENDULUM | dict(total_timesteps=500, eval_episodes=0)
    path = tmp_path_factory.mktemp("mutants")
    with pytest.MonkeyPatch.context() as patch:
        interrupted(args, path / "run", patch, 290)
    train(args | dict(total_timesteps=400), path / "reference")
    return path / "run", digests(path / "reference")


@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_mutants_are_caught(mutant, stopped_once, tmp_path, monkeypatch):
    """Dropping one part of the state changes the end, or is refused; dropping none does not."""
    source, reference = stopped_once
    shutil.copytree(source, tmp_path / "run")
    args = PENDULUM | dict(total_timesteps=400, eval_episodes=0)
    if mutant is None:
        train(args, tmp_path / "run")
        assert differences(reference, digests(tmp_path / "run")) == []
        return
    find = folder.find_commit
    monkeypatch.setattr(runs, "find_commit", lambda *given: MUTANTS[mutant](find(*given)))
    if mutant in REFUSED:
        with pytest.raises(UsageError, match="cannot be restored exactly"):
            train(args, tmp_path / "run")
        return
    train(args, tmp_path / "run")
    assert differences(reference, digests(tmp_path / "run"))


def test_refilled_ring_is_the_ring():
    """Three segments of unequal length into rings larger and smaller than what was kept."""

    def transitions(start, stop):
        count = np.arange(start, stop, dtype=np.float32)
        seeds = np.stack([count, count + 1000])
        wide = np.repeat(seeds[..., None], 2, axis=-1)
        return Transition(obs=wide, action=wide, reward=seeds, next_obs=wide + 1, terminated=seeds % 2)

    cuts = [0, 13, 20, 41]
    segments = [
        Segment(a, b, lambda a=a, b=b: transitions(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    for capacity in (5, 20, 27, 40, 64):
        make = jax.vmap(lambda _, capacity=capacity: Replay.create(capacity, 2, 2))
        replay = refill(make(np.arange(2)), segments, 41)
        expected, whole = make(np.arange(2)), transitions(0, 40)
        for i in range(40):
            one = jax.tree.map(lambda leaf, i=i: leaf[:, i], whole)
            expected = jax.vmap(Replay.store, (0, 0, None))(expected, one, i)
        assert jax.tree.all(jax.tree.map(np.array_equal, replay, expected)), capacity

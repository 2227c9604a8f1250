"""SIGKILL at chosen points of the program and at random ones: the same bits in the end."""

import random
import signal
import time

import pytest

from cleanrl_maxent.common.run.checkpoint import Checkpoints
from tests.support.runs import SMALL, differences, digests, flags, killed_in, start

HOPPER = SMALL | dict(env_id="Hopper-v4", num_seeds=4, total_timesteps=330)
CHECKPOINT, RUN = "cleanrl_maxent.common.run.checkpoint", "cleanrl_maxent.common.run.run"
FILES = "cleanrl_maxent.common.files"

ROUNDS = 4  # restored environments in the test of whether they can be
# module:function:n, killed at its n-th call, and the functions that call it there, the innermost last
POINTS = [
    (f"{FILES}:os.fsync:1", "open write_json write_file"),  # writing config.json
    ("cleanrl_maxent.sac:update:1", "train call of_all learn"),  # in compilation
    ("cleanrl_maxent.common.run.record:Record.sync:1", "save snapshot"),  # the record not yet on the disk
    (f"{FILES}:os.replace:3", "write_segment add_segment write_file"),  # record on the disk, no segment
    (f"{FILES}:os.replace:4", "save write write_file"),  # a segment, and no state
    (f"{FILES}:os.replace:5", "save write write_file"),  # segment and state, and no checkpoint
    (f"{CHECKPOINT}:Checkpoints.remove_others:1", "save write"),  # written, nothing removed
    (f"{CHECKPOINT}:Path.unlink:{{gc}}", "write remove_others"),  # half of the old files removed
    (
        "cleanrl_maxent.common.env.restore:RestorableEnv.restore:{last}",
        "resume restore restore",
    ),  # while resuming
    (f"{RUN}:refill:1", "train resume"),  # while resuming: the replay
    ("cleanrl_maxent.common.evaluation:scale_action:150", "__call__ play"),  # in an evaluation
    ("cleanrl_maxent.common.env.seeds:scale_action:60", "train step_wait send_action"),  # between checkpoints
    (f"{FILES}:os.replace:3", "write_segment add_segment write_file"),  # once more, further on
    (f"{RUN}:save_policies:1", "train finish"),  # after the last step
    (f"{RUN}:Run.write_json:2", "train finish"),  # before result.json
]


def reference_of(args, path):
    """What a run in a process of its own, which nobody touches, ends with."""
    assert start("sac", flags(args), path).wait() == 0, path.with_suffix(".log").read_text()
    return digests(path)


@pytest.mark.slow
@pytest.mark.parametrize("args", [SMALL, HOPPER], ids=["one seed, ring wraps", "four seeds"])
def test_sigkill_at_every_point(args, tmp_path):
    """One run, killed at one point after the other, each where its comment says; the same bits in the end."""
    reference = reference_of(args, tmp_path / "reference")
    seeds, run = args.get("num_seeds", 1), tmp_path / "run"
    for point, callers in POINTS[:: 1 if seeds == 1 else 3]:
        point = point.format(last=seeds + ROUNDS, gc=seeds + 3)
        status = start("sac", flags(args), run, point).wait()
        assert status == -signal.SIGKILL, (point, run.with_suffix(".log").read_text()[-2000:])
        assert killed_in(run).endswith(callers), (point, killed_in(run))
    assert start("sac", flags(args), run).wait() == 0, run.with_suffix(".log").read_text()[-2000:]
    assert differences(reference, digests(run)) == []


@pytest.mark.slow
def test_sigkill_at_random(tmp_path):
    """Four times, each a random moment after a new checkpoint."""
    args = SMALL | dict(total_timesteps=1700, eval_frequency=600)
    reference, rng, kills = reference_of(args, tmp_path / "reference"), random.Random(0), 0
    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoint")
    for _ in range(4):
        before, process = checkpoints.paths()[:1], start("sac", flags(args), run)
        while checkpoints.paths()[:1] == before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert start("sac", flags(args), run).wait() == 0
    assert kills >= 3 and run.with_suffix(".log").read_text().count("resumed at") >= 2
    assert differences(reference, digests(run)) == []


@pytest.mark.slow
def test_sigkill_between_two_steps_of_the_actor_keeps_its_last_known_loss(tmp_path):
    """TD3's actor learns at steps 110, 170, …, 290; the run is killed at 293, resumed from 292, and has a
    row of losses at 300."""
    args = SMALL | dict(policy_frequency=60, checkpoint_frequency=4, eval_episodes=0, total_timesteps=330)
    assert start("td3", flags(args), tmp_path / "reference").wait() == 0
    run, point = tmp_path / "run", "cleanrl_maxent.common.env.seeds:scale_action:293"
    assert start("td3", flags(args), run, point).wait() == -signal.SIGKILL
    assert killed_in(run).endswith("train step_wait send_action")
    assert start("td3", flags(args), run).wait() == 0
    assert "resumed at step 292" in run.with_suffix(".log").read_text()
    assert differences(digests(tmp_path / "reference"), digests(run)) == []

"""Damage on the disk, and a disk that is full: noticed, and never silent."""

import errno
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from cleanrl_maxent import sac
from cleanrl_maxent.common import files
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.errors import Damaged, NonFiniteError, UsageError
from cleanrl_maxent.common.run import folder
from cleanrl_maxent.common.run.checkpoint import Checkpoints
from cleanrl_maxent.common.run.run import Run
from tests.support.runs import SMALL, differences, digests, train


@pytest.mark.slow
def test_disk_full_keeps_the_checkpoint_before(stopped, reference, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        original = Run.write_segment

        def write_segment(self, steps):
            with pytest.MonkeyPatch.context() as here:
                here.setattr(files.os, "fsync", full)
                return original(self, steps)

        patch.setattr(Run, "write_segment", write_segment)
        with pytest.raises(OSError, match=r"No space left on device: '.*segment-0000000360.npz'"):
            train(SMALL, stopped)
    assert not list(stopped.rglob("*.tmp"))
    train(SMALL, stopped)
    assert differences(reference, digests(stopped)) == []


def test_a_checkpoint_outlives_a_disk_that_fails_after_it(tmp_path, monkeypatch):
    """If it cannot be read again, nothing is removed; what cannot be removed stays until the next one."""
    checkpoints, arrays = Checkpoints(tmp_path / "checkpoint"), {"x": np.zeros(3)}

    def stale(*given):
        raise OSError(errno.ESTALE, "Stale file handle")

    def steps():
        return [int(path.stem.removeprefix("checkpoint-")) for path in checkpoints.paths()]

    for step, failing in ((1, ""), (2, ""), (3, "read_bytes"), (4, "unlink"), (5, "")):
        with monkeypatch.context() as patch:
            if failing:
                patch.setattr(Path, failing, stale)
            checkpoints.write(step, {}, arrays, 0)
        kept = {1: [1], 2: [2, 1], 3: [3, 2, 1], 4: [4, 3, 2, 1], 5: [5, 4]}[step]
        assert steps() == kept and all((tmp_path / f"checkpoint/state-{n:010}.npz").exists() for n in kept)


def test_a_state_may_have_any_names():
    check_finite(7, [1], step=np.ones(1), seeds=np.ones((1, 2)))
    with pytest.raises(NonFiniteError, match="non-finite step at step 7, seed 1"):
        check_finite(7, [1], step=np.full(1, np.nan))


@pytest.mark.slow
def test_non_finite_state_is_not_saved(stopped, monkeypatch):
    original = sac.update

    def broken(state, batch, key, index, args):
        state, metrics = original(state, batch, key, index, args)
        first = state.alpha.opt_state[0]
        moments = first._replace(nu=jax.tree.map(lambda leaf: leaf + np.inf, first.nu))
        alpha = state.alpha.replace(opt_state=(moments, *state.alpha.opt_state[1:]))
        return state.replace(alpha=alpha), metrics

    monkeypatch.setattr(sac, "update", broken)
    with pytest.raises(NonFiniteError, match="alpha/opt_state/0/nu/log_alpha at step 360, seed 1"):
        train(SMALL, stopped)
    assert Checkpoints(stopped / "checkpoint").paths()[0].name == "checkpoint-0000000300.json"


def newest_files(run):
    """The files of the newest checkpoint."""
    checkpoints = Checkpoints(run / "checkpoint")
    path = checkpoints.paths()[0]
    body = checkpoints.read_body(path)
    names = [path.name, body["state"]["name"], *body["segments"]]
    return [*(run / "checkpoint" / name for name in names), run / "seed-1" / "metrics.jsonl"]


def found_steps(run):
    """Steps of the checkpoint that a resumed run would start from; None where it would refuse."""
    args = sac.Args(**SMALL, run_dir=str(run))
    config = json.loads((run / "config.json").read_text())
    try:
        checkpoint = folder.find_checkpoint(run, Checkpoints(run / "checkpoint"), args, config)
    except UsageError:
        return None
    return checkpoint.steps if checkpoint else 0


@pytest.mark.slow
def test_no_damage_is_silent(stopped):
    """200 bit flips and 50 truncations of the files of the newest checkpoint, and each file deleted."""
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


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_falls_back_to_the_checkpoint_before_and_says_so(which, stopped, reference, capsys):
    file = newest_files(stopped)[which]
    file.write_bytes(file.read_bytes()[:-7])
    train(SMALL, stopped)
    said = capsys.readouterr().out
    assert f"warning: {file} fails its checksum; trying the previous checkpoint" in said
    assert "resumed at step 270" in said
    assert differences(reference, digests(stopped)) == []


def test_no_good_checkpoint_left(stopped):
    for path in (stopped / "checkpoint").glob("state-*"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no good checkpoint left"):
        train(SMALL, stopped)


def test_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "state.npz", x=np.array([{}], object))
    sha256 = files.digest((tmp_path / "state.npz").read_bytes())
    with pytest.raises(Damaged, match="is refused: .*pickle"):
        Checkpoints(tmp_path).read_arrays("state.npz", sha256)
    with pytest.raises(Damaged, match="missing"):
        Checkpoints(tmp_path / "checkpoint").read_arrays("../state.npz", "")

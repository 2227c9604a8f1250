"""`fitted_q --dataset`: the transitions that an earlier run recorded, and what is refused."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from cleanrl_maxent import fitted_q, maxent_pg, runs, sql_discrete
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.transitions import read_transitions
from tests.support.contract import CASES
from tests.support.pytrees import changed
from tests.support.runs import differences, digests, record_actions, train_until_stopped

CASE = {case.name: case for case in CASES if case.kind == "Discrete"}
TASK = Task(4, 2, discrete=True)
STEPS = 570


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a finished run of seeds 3 and 4, and its transitions, `(seed, transition, ...)`."""
    folder, seen, step = tmp_path_factory.mktemp("recorded") / "run", [], SeedEnvs.step_wait

    def note(self):
        episodes = step(self)
        seen.append(jax.tree.map(np.asarray, self.transition))
        return episodes

    args = CASE["sql_discrete"].args(seed=3, num_seeds=2, buffer_size=1000, eval_episodes=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedEnvs, "step_wait", note)
        sql_discrete.train(replace(args, run_dir=str(folder)))
    return folder, jax.tree.map(lambda *rows: np.stack(rows, axis=1), *seen)


def learner(source, path=None, **given):
    """Arguments of a small run on the transitions of another."""
    few = dict(iterations=3, updates_per_iteration=4, seed=3, eval_episodes=1) | given
    run_dir = str(path) if path else None
    env_id = few.pop("env_id", "CartPole-v1")
    return replace(CASE["fitted_q"].args(dataset=str(source), **few, run_dir=run_dir), env_id=env_id)


def pick(transitions, *indices):
    return jax.tree.map(lambda leaf: leaf[list(indices)], transitions)


def test_transitions_are_those_that_the_run_recorded(recorded):
    """All of them, in order, in several segments, with dtypes; each seed has those of its namesake."""
    folder, expected = recorded
    assert len(list((folder / "checkpoint").glob("segment-*"))) > 3
    assert expected.reward.shape == (2, STEPS) and changed(pick(expected, 0), pick(expected, 1))
    found = read_transitions(str(folder), learner(folder, num_seeds=2), TASK)
    assert not changed(found, expected)
    assert all(a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True))
    assert found.action.dtype == np.int32 and found.terminated.any()


def test_a_seed_can_be_picked(recorded):
    """That of the same number, or the one that is named, for every seed of the new run."""
    folder, expected = recorded
    for source, given, rows in (
        (folder, dict(seed=4), [1]),
        (f"{folder}/seed-4", dict(seed=9), [1]),
        (f"{folder}/seed-3", dict(seed=4, num_seeds=2), [0, 0]),
    ):
        found = read_transitions(str(source), learner(source, **given), TASK)
        assert not changed(found, pick(expected, *rows))


@pytest.mark.slow
def test_a_run_kept_no_more_than_its_replay_holds(recorded, tmp_path):
    """Then these are the last transitions, whole segments of them."""
    args = CASE["sql_discrete"].args(seed=3, num_seeds=2, buffer_size=100, eval_episodes=0)
    sql_discrete.train(replace(args, run_dir=str(tmp_path / "run")))
    found = read_transitions(str(tmp_path / "run"), learner(tmp_path / "run", num_seeds=2), TASK)
    count = found.reward.shape[1]
    assert 100 <= count < STEPS
    follows = (found.obs[:, 1:] == found.next_obs[:, :-1]).all(axis=-1)
    assert np.array_equal(follows, np.maximum(found.terminated, found.truncated)[:, :-1] == 0)


@pytest.mark.slow
def test_a_restarted_episode_is_cut_on_disk_too(tmp_path, monkeypatch):
    """Also for a second process, which reads what the first one wrote before it was stopped."""
    args = CASE["sql_discrete"].args(env_reset="restart", n_steps=3, buffer_size=1000, run_dir=str(tmp_path))
    for steps in (330, 130):
        train_until_stopped(args, monkeypatch, sql_discrete, steps)
    read = read_transitions(str(tmp_path), args, TASK)
    assert read.truncated.shape == (1, 460)
    begins = np.any(read.next_obs[0, :-1] != read.obs[0, 1:], axis=-1)
    ended = np.maximum(read.terminated, read.truncated)[0, :-1] > 0
    assert begins[329] and np.array_equal(begins, ended)


def fitted_batches(monkeypatch, args):
    """The batches of all iterations of a run, and how often the environments were stepped by it."""
    seen, steps = [], record_actions(monkeypatch)

    def update(state, batches, key, index, args):
        jax.debug.callback(lambda *given: seen.append(jax.tree.map(np.asarray, given)), batches)
        return state, {}

    monkeypatch.setattr(fitted_q, "update", update)
    fitted_q.train(args)
    jax.effects_barrier()
    return [batches for (batches,) in seen], steps


def test_a_run_learns_from_all_of_them_and_does_not_play(recorded, tmp_path, monkeypatch):
    folder, expected = recorded
    args = learner(folder, tmp_path / "run", seed=4, batch_size=1024, eval_episodes=0)
    fits, steps = fitted_batches(monkeypatch, args)
    assert steps == [] and len(fits) == 3
    rows = [{row.tobytes() for row in expected.obs[seed]} for seed in (0, 1)]
    for batches in fits:
        found = {row.tobytes() for row in batches.obs.reshape(-1, 4)}
        assert found <= rows[1] and len(found) > 0.98 * len(rows[1])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["args"]["dataset"] == str(folder) and config["args"]["total_timesteps"] == STEPS


@pytest.mark.slow
def test_a_finished_run_returns_its_result_and_repeats_to_the_bit(recorded, tmp_path, capsys):
    folder, _ = recorded
    args = learner(folder, tmp_path / "run")
    result = fitted_q.train(args)
    assert result["total_timesteps"] == STEPS and result["evaluations"]["3"]
    before = digests(tmp_path / "run")
    assert fitted_q.train(args) == result and "is finished" in capsys.readouterr().out
    assert differences(before, digests(tmp_path / "run")) == []
    assert (
        fitted_q.train(replace(args, run_dir=str(tmp_path / "again")))["evaluations"] == result["evaluations"]
    )
    assert differences(before, digests(tmp_path / "again")) == []


def refused(source, path, **given):
    """What `train` says, in a line; nothing is left behind."""
    with pytest.raises(UsageError) as caught:
        fitted_q.train(learner(source, path, **given))
    assert "\n" not in str(caught.value) and not path.exists()
    return str(caught.value)


def test_what_does_not_fit_is_refused_in_a_line(recorded, tmp_path):
    folder, new = recorded[0], tmp_path / "new"
    missing = tmp_path / "missing"
    assert refused(missing, new) == f"{missing} is not a run: there is no {missing}/config.json"
    (tmp_path / "empty").mkdir()
    assert "is not a run: there is no" in refused(tmp_path / "empty", new)
    words = f"spaces differ: obs_dim is 4 in {folder} and 6 in Acrobot-v1"
    assert refused(folder, new, env_id="Acrobot-v1") == words
    words = f"{folder} has seeds 3 to 4: name one, such as {folder}/seed-3"
    assert refused(folder, new, seed=1) == words
    assert refused(f"{folder}/seed-5", new) == words


def test_a_pruned_run_is_refused(recorded, tmp_path):
    """`runs.py --prune` removes checkpoints, and with them the transitions."""
    copied = shutil.copytree(recorded[0], tmp_path / "runs" / "pruned")
    runs.main(runs.Args(tmp_path / "runs", prune=True, yes=True))
    assert not (copied / "checkpoint").exists()
    words = f"{copied} has no checkpoint, which would hold its transitions"
    assert refused(copied, tmp_path / "new") == words


def test_a_damaged_segment_gives_way_to_the_checkpoint_before_or_is_refused(recorded, tmp_path):
    copied = shutil.copytree(recorded[0], tmp_path / "damaged")
    newest = max((copied / "checkpoint").glob("segment-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    found = read_transitions(str(copied), learner(copied, num_seeds=2), TASK)
    assert not changed(found, jax.tree.map(lambda leaf: leaf[:, :540], recorded[1]))
    min((copied / "checkpoint").glob("segment-*")).unlink()
    assert "has no good checkpoint, which would hold its transitions" in refused(copied, tmp_path / "new")


@pytest.mark.slow
def test_a_run_that_learned_from_rollouts_is_refused(tmp_path):
    args = CASE["maxent_pg"].args(seed=3, total_timesteps=120, eval_episodes=0)
    maxent_pg.train(replace(args, run_dir=str(tmp_path / "rollouts")))
    words = (
        f"{tmp_path}/rollouts keeps no transitions: it learned from rollouts, or from those of another run"
    )
    assert refused(tmp_path / "rollouts", tmp_path / "new") == words


def test_a_finished_run_does_not_need_its_data_any_more(recorded, tmp_path, capsys):
    folder, _ = recorded
    copy = shutil.copytree(folder, tmp_path / "copy")
    args = learner(copy, tmp_path / "run")
    result = fitted_q.train(args)
    shutil.rmtree(copy)
    assert fitted_q.train(args) == result and "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "longer"), [(350, 500), (100, 200)], ids=["last fit", "only fit"])
def test_a_run_that_more_steps_would_have_changed_is_not_extended(first, longer, tmp_path):
    given = dict(collect_steps=100, iterations=None, updates_per_iteration=1, eval_episodes=0)
    args = CASE["fitted_q"].args(**given, total_timesteps=first, run_dir=str(tmp_path / "run"))
    fitted_q.train(args)
    with pytest.raises(
        UsageError, match=f"total_timesteps={first}; you gave {longer}: its steps so far depend"
    ):
        fitted_q.train(replace(args, total_timesteps=longer))

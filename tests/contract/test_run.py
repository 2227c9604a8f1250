"""Whole runs: what they leave and save; that they resume to the bit; that seeds do not see one another."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from cleanrl_maxent import enjoy, load_policy
from cleanrl_maxent.common.env.make import scale_action
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.files import named_arrays
from cleanrl_maxent.common.policy import policy_arrays
from cleanrl_maxent.common.run.run import Run
from tests.support.pytrees import leaves
from tests.support.runs import at_step, differences, digests, record_actions, rows, train_until_stopped


class Finished(NamedTuple):
    """A run of two seeds."""

    args: Any
    folder: Path
    result: dict
    policies: Any  # what the run was given to save, leading axis (seed,)
    calls: int  # of SeedEnvs.step_async


@pytest.fixture(scope="session")
def run(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract") / "run"
    args = case.args(num_seeds=2, run_dir=str(folder))
    saved, finish = [], Run.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish", lambda self, policies: saved.append(policies) or finish(self, policies))
        calls = record_actions(patch)
        result = case.module.train(args)
    return Finished(args, folder, result, saved[0], len(calls))


def record(folder, seed):
    return rows(Path(folder) / f"seed-{seed}" / "metrics.jsonl")


def test_a_run_leaves_its_record_and_its_result(case, run):
    config = json.loads((run.folder / "config.json").read_text())
    assert config["algorithm"] == case.name and Task(**config["task"]).discrete == case.task.discrete
    assert json.loads((run.folder / "result.json").read_text()) == run.result
    evaluated = {json.dumps(row) for row in run.result["evaluations"].values()}
    assert len(evaluated) == 2 and record(run.folder, 1) != record(run.folder, 2)
    for seed in (1, 2):
        table = record(run.folder, seed)
        names = set().union(*table) - {"global_step"}
        assert {name.split("/")[0] for name in names} <= {"charts", "losses", "eval", "eval_stochastic"}
        assert {"charts/episodic_return", "charts/episodic_length"} < names
        assert all(np.isfinite(value) for row in table for value in row.values())
        steps = {kind: [row["global_step"] for row in table if any(n.startswith(kind) for n in row)]
                 for kind in ("losses", "eval")}  # fmt: skip
        ends = range(run.args.steps_per_update, run.args.last_step + 1, run.args.steps_per_update)
        at = {step for step in ends if run.args.crosses_multiple_of(140, step)} | {run.args.last_step}
        assert steps["eval"] == sorted(at)
        last = {run.args.last_step} if run.args.length_is_fixed else set()
        learned = [step for step in ends if run.args.crosses_multiple_of(100, step) or step in last]
        assert steps["losses"] == learned[-len(steps["losses"]) :] and len(steps["losses"]) >= 3
        if case.kind == "Box":  # episodes of 200 steps, of all copies together
            copies = getattr(run.args, "num_envs", 1)
            ends = range(200 * copies, run.args.last_step + 1, 200 * copies)
            finished = [row["global_step"] for row in table if "charts/episodic_return" in row]
            assert finished == [end for end in ends for _ in range(copies)] and finished


def test_a_policy_is_loaded_as_it_was_saved(case, run):
    """It acts as the one that was saved, in the environment's units."""
    obs, key = np.asarray(jax.random.normal(jax.random.key(1), (6, case.task.obs_dim))), jax.random.key(2)
    for index, seed in enumerate(run.args.seeds):
        saved = jax.tree.map(lambda leaf, i=index: leaf[i], run.policies)
        loaded = load_policy(run.folder, seed)
        assert (loaded.args, loaded.seed) == (run.args, seed)
        assert all(np.array_equal(*pair) for pair in leaves(loaded.parameters, saved))
        for deterministic in (True, False):
            actions = case.module.act(saved, obs, key, deterministic)
            expected = scale_action(np.asarray(actions), loaded.space)
            found = loaded(obs, deterministic, key)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert all(map(loaded.space.contains, found)) and loaded.space.contains(
                loaded(obs[0], deterministic)
            )


def test_a_finished_run_returns_what_it_recorded(case, run, capsys):
    before = digests(run.folder)
    result = case.module.train(run.args)
    assert result == run.result and "is finished" in capsys.readouterr().out
    assert digests(run.folder) == before and result.policy(2).seed == 2


def test_enjoy_returns_the_numbers_of_the_last_evaluation(case, run):
    """To the bit, for all seeds and for one of them, in each mode."""
    for seed in (None, 2):
        for stochastic in (False, True):
            args = enjoy.Args(str(run.folder), seed=seed, stochastic=stochastic)
            evaluation, played = enjoy.evaluate(args)
            name = enjoy.chosen_mode(args, evaluation.modes)
            mode = evaluation.modes.index(name)
            for index, of_seed in enumerate(run.args.seeds):
                recorded = run.result["evaluations"][str(of_seed)]
                if seed in (None, of_seed):
                    assert played.returns[index, mode].mean() == recorded[f"{name}/return_mean"]
                    assert played.returns[index, mode].std() == recorded[f"{name}/return_std"]
                    assert played.lengths[index, mode].mean() == recorded[f"{name}/length"]
                else:
                    assert not played.lengths[index].any()


def test_a_run_begins_with_the_networks_of_another(case, run, tmp_path, monkeypatch):
    """Its seeds with those of the seed that is named; its optimisers, noise and counters are fresh."""
    given = replace(run.args, seed=7, init_from=f"{run.folder}/seed-2", run_dir=str(tmp_path / "run"))
    states, resume = [], Run.resume

    def note(self, state, *replay):
        steps, started, replay = resume(self, state, *replay)
        states.extend((state, started))
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "resume", note)
    with pytest.raises(KeyboardInterrupt):
        case.module.train(given)
    fresh, started = (named_arrays(state) for state in states)
    taken = {name for name in fresh if not np.array_equal(fresh[name], started[name])}
    assert {name.partition("/")[0] for name in taken} & {"actor", "critics"}
    assert not [name for name in taken if "opt_state" in name or name.endswith("/step")]
    policies = policy_arrays(case.module.policy(states[1]))
    for name, trained in policy_arrays(run.policies).items():
        assert all(np.array_equal(of_seed, trained[1]) for of_seed in policies[name]), name
    source = json.loads((tmp_path / "run" / "config.json").read_text())["init_from"]
    assert source["seeds"] == [2, 2] and source["steps"] == run.args.last_step


@pytest.mark.slow
def test_a_stopped_and_a_killed_run_end_with_the_same_bits(case, run, tmp_path, monkeypatch):
    """A signal at a half of the run, and an exception later, between two checkpoints; every loss is recorded
    with the last value that it had, though the processes in between did not measure it."""
    args = replace(run.args, run_dir=str(tmp_path / "run"))
    train_until_stopped(args, monkeypatch, case.module, round(0.514 * run.calls))

    def crash():
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        at_step(patch, round(0.175 * run.calls), crash)
        with pytest.raises(RuntimeError, match="killed"):
            case.module.train(args)
    case.module.train(args)
    assert differences(digests(run.folder), digests(Path(args.run_dir))) == []


@pytest.mark.slow
def test_a_seed_alone_has_the_record_that_it_has_beside_another(case, run, tmp_path):
    args = replace(run.args, seed=2, num_seeds=1, run_dir=str(tmp_path / "alone"))
    case.module.train(args)
    for beside, alone in zip(record(run.folder, 2), record(args.run_dir, 2), strict=True):
        assert beside == pytest.approx(alone, rel=1e-3, abs=1e-3)

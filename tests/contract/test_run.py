"""Whole runs: what they leave and save; that they resume to the bit; that seeds do not see one another."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from cleanrl_maxent.common.env.seeds import SeedEnvs, Task
from cleanrl_maxent.common.policy import policy_arrays
from cleanrl_maxent.common.run.run import Run
from tests.support.runs import differences, digests, rows, train_until_stopped


class Finished(NamedTuple):
    """A run of two seeds."""

    args: Any
    folder: Path
    result: dict
    policies: Any  # what the run was given to save, leading axis (seed,)
    calls: int  # of SeedEnvs.step


@pytest.fixture(scope="session")
def run(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract") / "run"
    args = case.args(num_seeds=2, run_dir=str(folder))
    saved, calls, finish, step = [], [], Run.finish, SeedEnvs.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish", lambda self, policies: saved.append(policies) or finish(self, policies))
        patch.setattr(SeedEnvs, "step", lambda self, action: calls.append(None) or step(self, action))
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
        learned = [step for step in ends if run.args.crosses_multiple_of(100, step)]
        assert steps["losses"] == learned[-len(steps["losses"]) :] and len(steps["losses"]) >= 3


def test_a_policy_is_loaded_as_it_was_saved(case, run):
    """From `config.json` and `policy-1.npz` alone, without pickle; and it acts as the one that was saved."""
    config = json.loads((run.folder / "config.json").read_text())
    lists = {name: tuple(value) for name, value in config["args"].items() if isinstance(value, list)}
    args, task = case.module.Args(**config["args"] | lists), Task(**config["task"])
    assert args == run.args
    empty = jax.eval_shape(
        lambda key: case.module.policy(case.module.init(key, task, args)), jax.random.key(0)
    )
    obs = jax.random.normal(jax.random.key(1), (6, task.obs_dim))
    for index, seed in enumerate(run.args.seeds):
        policy = jax.tree.map(lambda leaf, i=index: leaf[i], run.policies)
        with np.load(run.folder / f"policy-{seed}.npz", allow_pickle=False) as file:
            arrays = dict(file)
        expected = policy_arrays(policy)
        assert arrays.keys() == expected.keys()
        assert all(np.array_equal(arrays[name], expected[name]) for name in arrays)
        names = iter(policy_arrays(jax.tree.map(lambda leaf: np.zeros(leaf.shape), empty)))
        loaded = jax.tree.map(lambda leaf: jax.numpy.asarray(arrays[next(names)], leaf.dtype), empty)  # noqa: B023
        for deterministic in (True, False):
            key = jax.random.key(2)
            actions = [case.module.act(p, obs, key, deterministic) for p in (policy, loaded)]
            assert np.array_equal(*actions) and np.isfinite(actions[0]).all()


@pytest.mark.slow
def test_a_stopped_and_a_killed_run_end_with_the_same_bits(case, run, tmp_path, monkeypatch):
    """A signal at a half of the run, and an exception later, between two checkpoints; every loss is recorded
    with the last value that it had, though the processes in between did not measure it."""
    args, original, count = replace(run.args, run_dir=str(tmp_path / "run")), SeedEnvs.step, [0]
    train_until_stopped(args, monkeypatch, case.module, round(0.514 * run.calls))

    def crash(self, action):
        count[0] += 1
        if count[0] == round(0.175 * run.calls):
            raise RuntimeError("killed")
        return original(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEnvs, "step", crash)
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

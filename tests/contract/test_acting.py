"""Actions of a run: uniform until learning starts, then those of `act`, sampled anew in every step."""

import math
from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from tests.support import probes, tables
from tests.support.contract import CASES, record_inputs
from tests.support.pytrees import leaves
from tests.support.runs import record_actions, small_args

START, TOTAL = 300, 600  # environment steps
WORLDS = {"Box": "Echo-v0", "Discrete": "DiscreteConstantReward-v0"}
REGISTERED = (probes.Echo, tables.DiscreteConstantReward)  # when these modules were imported
WITH_WARM_UP = [
    case for case in CASES if hasattr(case.module.Args, "learning_starts") or case.name == "fitted_q"
]
SAMPLING = [case for case in WITH_WARM_UP if not hasattr(case.module, "next_noise")]


def actions_of(case, folder, monkeypatch):
    """Every action of a run that learns nothing, `(step, ...)`."""
    actions = record_actions(monkeypatch)
    monkeypatch.setattr(case.module, "update", lambda state, *rest: (state, {}))
    wanted = dict(learning_starts=START, collect_steps=START, noise="gaussian", exploration_noise=0.0)
    wanted |= dict(epsilon=0.0, alpha=1.0)
    known = {field.name for field in fields(case.module.Args)}
    given = {name: value for name, value in wanted.items() if name in known}
    given |= dict(env_id=WORLDS[case.kind], total_timesteps=TOTAL, eval_episodes=0, checkpoint_frequency=0)
    case.module.train(small_args(case.module, **given, run_dir=str(folder)))
    return np.array(actions)[:, 0]


@pytest.mark.parametrize("case", WITH_WARM_UP, ids=str)
def test_actions_are_uniform_and_then_those_of_the_policy(case, tmp_path, monkeypatch):
    """`act` always chooses 1."""
    one = jnp.ones(2) if case.kind == "Box" else jnp.int32(1)
    monkeypatch.setattr(case.module, "act", lambda policy, obs, key, deterministic: one)
    actions = actions_of(case, tmp_path / "run", monkeypatch)
    first = actions[:START]
    if case.kind == "Box":
        assert kstest(first.ravel(), "uniform", (-1, 2)).pvalue > 1e-3 and len(np.unique(first)) > START
    else:
        assert np.abs(np.bincount(first, minlength=3) - START / 3).max() < 5 * math.sqrt(START * 2 / 9)
    assert (actions[START:] == 1).all()


@pytest.mark.parametrize("case", SAMPLING, ids=str)
def test_every_step_is_sampled_anew(case, tmp_path, monkeypatch):
    """Echo shows one observation; at temperature 1 an untrained policy takes every number often."""
    later = actions_of(case, tmp_path / "run", monkeypatch)[START:]
    if case.kind == "Box":
        assert len(np.unique(later, axis=0)) == TOTAL - START
    else:
        assert np.bincount(later, minlength=3).min() > 30


@pytest.mark.parametrize("case", [case for case in WITH_WARM_UP if case.name != "fitted_q"], ids=str)
def test_an_update_has_the_transition_of_the_step_before(case, tmp_path, monkeypatch):
    """A replay of one row holds that alone; the step under way comes with the next update."""
    given = dict(buffer_size=1, batch_size=1, learning_starts=1, total_timesteps=40, num_seeds=1)
    given |= dict(eval_episodes=0, checkpoint_frequency=0, run_dir=str(tmp_path / "run"))
    inputs = record_inputs(case, monkeypatch, case.args(**given))
    assert len(inputs) == 39
    for (transition, *_), batch in zip(inputs.played, inputs.data, strict=False):
        assert all(np.array_equal(found[:, 0], played) for found, played in leaves(batch, transition))

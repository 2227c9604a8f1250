"""Actions of a run: uniform until learning starts, then those of `act`, sampled anew in every step; and which
transitions an update is given."""

import math
from dataclasses import fields
from types import SimpleNamespace

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
COUNTING = {"Box": "Counting-v0", "Discrete": "DiscreteCounting-v0"}
REGISTERED = (probes.Echo, tables.DiscreteConstantReward)  # when these modules were imported
WITH_WARM_UP = [
    case for case in CASES if hasattr(case.module.Args, "learning_starts") or case.name == "fitted_q"
]
SAMPLING = [case for case in CASES if not hasattr(case.module, "next_noise")]


def known(case, wanted):
    """Those of the flags that the algorithm has."""
    names = {field.name for field in fields(case.module.Args)}
    return {name: value for name, value in wanted.items() if name in names}


def actions_of(case, folder, monkeypatch, **given):
    """Every action of a run that learns nothing, `(step, ...)`."""
    actions = record_actions(monkeypatch)
    monkeypatch.setattr(case.module, "update", lambda state, *rest: (state, {}))
    wanted = dict(learning_starts=START, collect_steps=START, noise="gaussian", exploration_noise=0.0)
    wanted |= dict(epsilon=0.0, alpha=1.0, env_id=WORLDS[case.kind]) | given
    shared = dict(total_timesteps=TOTAL, eval_episodes=0, checkpoint_frequency=0, run_dir=str(folder))
    case.module.train(small_args(case.module, **known(case, wanted), **shared))
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
        assert first.min() < -0.98 and first.max() > 0.98
    else:
        assert np.abs(np.bincount(first, minlength=3) - START / 3).max() < 5 * math.sqrt(START * 2 / 9)
    assert (actions[START:] == 1).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_action_answers_the_observation_of_its_step(case, tmp_path, monkeypatch):
    """Counting shows 0, 1, 2, over and over; `act` chooses a quarter of it, or the action of that number."""

    def answer(obs):
        return obs / 4 if case.kind == "Box" else obs[..., 0].astype(jnp.int32)

    def pi(policy, obs):
        return SimpleNamespace(sample=lambda key: answer(obs), action=lambda u: u)

    monkeypatch.setattr(case.module, "act", lambda policy, obs, key, deterministic: answer(obs))
    if case.name == "maxent_pg":  # keeps the sample before tanh, and so does not call `act`
        monkeypatch.setattr(case.module.Policy, "__call__", pi)
    given = dict(env_id=COUNTING[case.kind], hidden_dims=(4,), critic_hidden_dims=(4,))
    actions = actions_of(case, tmp_path / "run", monkeypatch, **given)
    shown = np.arange(len(actions)) % 3
    first = START if case in WITH_WARM_UP else 0
    assert np.allclose(actions.ravel()[first:], shown[first:] / (4 if case.kind == "Box" else 1))


@pytest.mark.parametrize("case", SAMPLING, ids=str)
def test_every_step_is_sampled_anew(case, tmp_path, monkeypatch):
    """Echo shows one observation; at temperature 1 an untrained policy takes every number often."""
    actions = actions_of(case, tmp_path / "run", monkeypatch)
    later = actions[START:] if case in WITH_WARM_UP else actions
    if case.kind == "Box":
        assert len(np.unique(later, axis=0)) == len(later)
    else:
        assert np.bincount(later, minlength=3).min() > 30


SINGLE_ROWS = [case for case in WITH_WARM_UP if case.name not in ("fitted_q", "crossq")]  # as batches


@pytest.mark.parametrize("case", SINGLE_ROWS, ids=str)
def test_an_update_has_the_transition_of_the_step_before(case, tmp_path, monkeypatch):
    """A replay of one row holds that alone; the step under way comes with the next update."""
    given = dict(buffer_size=1, batch_size=1, learning_starts=1, total_timesteps=40, num_seeds=1)
    given |= dict(eval_episodes=0, checkpoint_frequency=0, run_dir=str(tmp_path / "run"))
    inputs = record_inputs(case, monkeypatch, case.args(**given))
    assert len(inputs) == 39
    for (transition, *_), batch in zip(inputs.played, inputs.data, strict=False):
        assert all(np.array_equal(found[:, 0], played) for found, played in leaves(batch, transition))


@pytest.mark.parametrize("case", WITH_WARM_UP, ids=str)
def test_the_newest_transition_is_among_those_drawn(case, tmp_path, monkeypatch):
    """As soon as it is stored; an update draws 64 transitions or more, of at most 128."""
    wanted = known(case, dict(learning_starts=64, collect_steps=64, buffer_size=1000, iterations=2))
    given = dict(batch_size=64, total_timesteps=128, eval_episodes=0, checkpoint_frequency=0)
    args = case.args(**wanted, **given, run_dir=str(tmp_path / "run"))
    inputs = record_inputs(case, monkeypatch, args)
    stored = [64, 64, 128, 128] if case.name == "fitted_q" else range(64, 128)
    drawn = []
    for count, batch in zip(stored, inputs.data, strict=True):
        newest = inputs.played[count - 1][0].next_obs
        drawn.append((batch.next_obs.reshape(-1, case.task.obs_dim) == newest).all(axis=-1).any())
    assert np.mean(drawn) > 0.2

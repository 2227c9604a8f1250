"""What the studies share: they load what a run learned, and their variants differ as they say."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cells import Cell
from benchmarks.studies.corridor import corridor
from benchmarks.studies.fitted_q import cartpole
from benchmarks.studies.initialisation import sac_orthogonal, sac_uniform
from benchmarks.studies.multigoal import multigoal
from benchmarks.studies.particles import particles
from benchmarks.studies.policy_gradient import policy_gradient
from benchmarks.trained import trained_state
from cleanrl_maxent import load_policy, sac, sql, td3
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.initial import newest_checkpoint
from tests.support.results import EARLIER
from tests.support.runs import SMALL


@pytest.mark.slow
def test_what_a_run_learned_is_loaded(tmp_path):
    """The state of its first seed, the policy of any; what cannot be loaded is refused in a line."""
    run = tmp_path / "run"
    args = SMALL | dict(total_timesteps=280, eval_frequency=140)
    sac.train(sac.Args(**args, num_seeds=2, run_dir=str(run)))
    state, checkpoint = trained_state(sac, run)
    policies = [load_policy(run, seed).parameters for seed in (1, 2)]
    obs, key = jnp.ones((4, 3)), jax.random.key(0)
    first, second = (np.asarray(sac.act(policy, obs, key, False)) for policy in policies)
    assert checkpoint.steps == 280
    assert np.array_equal(sac.act(sac.policy(state), obs, key, False), first)
    assert not np.array_equal(first, second)
    with pytest.raises(UsageError, match="is a run of sac, not of td3"):
        trained_state(td3, run)
    for state in run.glob("checkpoint/state-*"):
        state.write_bytes(b"")
    with pytest.raises(UsageError, match="has no good checkpoint"):
        trained_state(sac, run)
    shutil.rmtree(run / "checkpoint")
    with pytest.raises(UsageError, match="has no checkpoint"):
        trained_state(sac, run)


def test_runs_of_an_earlier_version_are_not_loaded(tmp_path):
    with pytest.raises(UsageError, match="written by an earlier version: its task is not recorded"):
        load_policy(EARLIER)
    config = json.loads((EARLIER / "config.json").read_text())
    assert "task" not in config
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "commit-0000002000.json").touch()
    with pytest.raises(UsageError, match="written by an earlier version, which alone can resume it"):
        newest_checkpoint(tmp_path, "networks")


def test_the_uncorrected_loss_differs_from_the_one_in_sql_by_its_density():
    args = sql.Args(svgd_space="action", hidden_dims=(8,))
    state, zeros = particles.with_energy(args, particles.double_well, 2), jnp.zeros(4)
    batch = Transition(zeros[:, None], jnp.zeros((4, 2)), zeros, zeros[:, None], zeros)
    given = state.actor.params, state, batch, jax.random.key(1), args
    expected = sql.actor_loss(*given)[0]
    assert particles.uncorrected_loss(*given, sql.log_density)[0] == expected
    assert particles.uncorrected_loss(*given)[0] != expected


@pytest.mark.slow
def test_initial_weights_of_the_variants(tmp_path):
    """Of what a variant trains: each layer's bound or orthogonality, and its biases; `sac` is as before.

    The actor's learning rate leaves them as they were.
    """
    before, args = sac.linear, SMALL | dict(total_timesteps=140, learning_starts=139, eval_episodes=0)
    layers = {}
    for name, variant in dict(uniform=sac_uniform, orthogonal=sac_orthogonal).items():
        run_dir = str(tmp_path / name)
        variant.train(variant.Args(**args | dict(hidden_dims=(64, 64), policy_lr=1e-30, run_dir=run_dir)))
        assert sac.linear is before
        arrays = newest_checkpoint(tmp_path / name, "networks").arrays
        start = "state/actor/params/params/Dense_1/"
        layers[name] = [
            next(arrays[key][0] for key in arrays if key == start + part) for part in ("kernel", "bias")
        ]
    kernel, bias = layers["uniform"]
    assert all(0.9 / 8 < np.abs(array).max() <= 1 / 8 for array in (kernel, bias))
    kernel, bias = layers["orthogonal"]
    assert np.allclose(kernel @ kernel.T, np.eye(64), rtol=0, atol=1e-5) and np.abs(bias).max() < 1e-20


def test_runs_of_the_four_goals_that_are_not_finished_are_named(tmp_path, monkeypatch, capsys):
    """The finished ones are compared; the others are left out, each with a line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cell, "finished", lambda cell: cell.algorithm == "sql")
    finished = multigoal.finished_cells()
    assert finished and {cell.algorithm for cell in finished} == {"sql"}
    left_out = capsys.readouterr().err.splitlines()
    assert left_out and all(line.endswith(" is not finished: left out") for line in left_out)


@pytest.mark.parametrize("study", [cartpole, corridor, policy_gradient])
def test_a_study_of_no_seeds_is_refused(study, tmp_path, monkeypatch):
    """Before it writes an empty table over that of the last time."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="^seeds must be at least 1; got 0$"):
        study.main(study.Args(seeds=0))
    assert not list(tmp_path.iterdir())

"""The record of a run, its mirrors, and what is kept of a run that fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cleanrl_maxent
from cleanrl_maxent import maxent_pg, sac
from cleanrl_maxent.common.errors import EnvironmentFailed, NonFiniteError
from cleanrl_maxent.common.run import timing
from tests.support import probes
from tests.support.runs import SMALL, record_actions, rows, scalars, small_args, train


def test_record(run):
    folder, _ = run
    for seed in (3, 4):
        record = rows(folder / f"seed-{seed}" / "metrics.jsonl")
        names = set().union(*record)
        assert not any("SPS" in name or "time" in name for name in names)
        assert names == {
            "global_step",
            "charts/episodic_return",
            "charts/episodic_length",
            *(f"losses/qf{i}_{what}" for i in (1, 2) for what in ("loss", "values")),
            *(f"losses/{name}" for name in ("actor_loss", "alpha", "alpha_loss", "entropy")),
            *(
                f"{e}/{m}"
                for e in ("eval", "eval_stochastic")
                for m in ("return_mean", "return_std", "length")
            ),
            "eval/soft_return",
        }
        at = {
            "charts/episodic_return": [200, 400],
            "losses/alpha": [200, 300, 400, 500],
            "eval/return_mean": [140, 280, 420, 560, 570],
        }
        for name, steps in at.items():
            assert [row["global_step"] for row in record if name in row] == steps, name
    first, second = (rows(folder / f"seed-{seed}" / "metrics.jsonl") for seed in (3, 4))
    assert first != second


OTHERS = {
    "ddpg": ("eval", ("qf1_loss", "qf1_values", "actor_loss")),
    "td3": ("eval", ("qf1_loss", "qf2_loss", "qf1_values", "qf2_values", "actor_loss")),
    "sql": ("eval_stochastic", ("qf1_loss", "qf2_loss", "qf1_values", "qf2_values", "actor_loss")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_record_of_the_others(name, tmp_path, monkeypatch):
    """A policy without a mode, or without a density, is evaluated in one way. Updates measure, and learn
    nothing."""
    (mode, losses), algorithm = OTHERS[name], cleanrl_maxent.algorithms()[name]
    original = algorithm.update

    def update(state, batch, key, index, args):
        metrics = jax.eval_shape(lambda *given: original(*given, index, args)[1], state, batch, key)
        return state, {loss: jnp.zeros(shape.shape) for loss, shape in metrics.items()}

    monkeypatch.setattr(algorithm, "update", update)
    args = dict(total_timesteps=210, eval_frequency=210, checkpoint_frequency=0)
    algorithm.train(small_args(algorithm, **args, run_dir=str(tmp_path / "run")))
    assert set().union(*rows(tmp_path / "run" / "seed-1" / "metrics.jsonl")) == {
        "global_step",
        "charts/episodic_return",
        "charts/episodic_length",
        *(f"losses/{loss}" for loss in losses),
        *(f"{mode}/{name}" for name in ("return_mean", "return_std", "length")),
    }


@pytest.mark.slow
def test_record_of_rollouts(tmp_path):
    """Eight rollouts of 60 steps fit into 500; two environments of a seed, whose observations are counted."""
    args = dict(total_timesteps=500, num_seeds=2, eval_frequency=150, run_dir=str(tmp_path / "run"))
    maxent_pg.train(small_args(maxent_pg, **args))
    record = rows(tmp_path / "run" / "seed-2" / "metrics.jsonl")
    for name, steps in {
        "charts/episodic_return": [400, 400],
        "losses/value_loss": [120, 240, 300, 420, 480],
        "losses/return_std": [120, 240, 300, 420, 480],
        "eval/return_mean": [180, 300, 480],
        "eval/soft_return": [180, 300, 480],
    }.items():
        assert [row["global_step"] for row in record if name in row] == steps, name
    with np.load(tmp_path / "run" / "policy-2.npz") as saved:
        assert saved["observations/count"] == 480


def test_tensorboard_mirrors_the_record(run):
    folder, _ = run
    board = {(tag, step): value for tag, step, value in scalars(folder / "seed-3") if "charts/SPS" not in tag}
    for row in rows(folder / "seed-3" / "metrics.jsonl"):
        for name, value in row.items():
            if name != "global_step":
                assert board[name, row["global_step"]] == pytest.approx(value, rel=1e-6)


def test_same_seed_same_record(run, tmp_path):
    train(SMALL | dict(seed=3, num_seeds=2), tmp_path / "again")
    for seed in (3, 4):
        name = f"seed-{seed}/metrics.jsonl"
        assert (tmp_path / "again" / name).read_bytes() == (run[0] / name).read_bytes()


def test_seeds_explore_differently(tmp_path, monkeypatch):
    actions = record_actions(monkeypatch)
    args = SMALL | dict(learning_starts=300, total_timesteps=650, eval_episodes=0, checkpoint_frequency=0)
    train(args | dict(num_seeds=2), tmp_path / "x")
    actions = np.stack(actions)[..., 0]  # (step, seed)
    assert abs(np.corrcoef(actions[:300].T)[0, 1]) < 0.2 and np.abs(actions).max() <= 1
    assert len(np.unique(actions)) > 1200


def test_no_evaluation(tmp_path):
    result = train(SMALL | dict(eval_episodes=0, total_timesteps=120), tmp_path / "x")
    assert result["evaluations"] == {"1": {}}


def test_nan_from_the_environment_stops_the_run_and_keeps_the_record(tmp_path):
    args = SMALL | dict(env_id="LateNan-v0", learning_starts=290, eval_episodes=0)
    probes.register("LateNan-v0", entry_point=probes.Broken, kwargs={"at": 280}, disable_env_checker=True)
    with pytest.raises(NonFiniteError, match="reward at step 280, seed 1"):
        train(args, tmp_path / "x")
    assert (tmp_path / "x" / "config.json").exists() and not (tmp_path / "x" / "result.json").exists()


@pytest.mark.slow
def test_compiles_a_fixed_number_of_programs(tmp_path, caplog):
    """700 steps with episodes, evaluations and learning compile nothing that 250 steps did not."""
    counts = []
    for total, frequency in ((250, 125), (700, 500)):
        caplog.clear()
        jax.clear_caches()
        args = SMALL | dict(total_timesteps=total, eval_frequency=frequency)
        with jax.log_compiles(), caplog.at_level("WARNING"):
            train(args, tmp_path / str(total))
        counts.append(sum(r.message.startswith("Compiling") for r in caplog.records))
    assert counts[0] == counts[1] > 0


def test_a_metric_that_overflows_is_left_out_and_a_loss_stops_the_run(tmp_path, monkeypatch, capsys):
    """A ratio may be infinite while the loss and its gradient are sound; that is said once."""
    metrics = {"losses/actor_loss": jnp.float32(1), "losses/entropy": jnp.float32(jnp.inf)}
    monkeypatch.setattr(sac, "update", lambda state, *_: (state, metrics))
    args = SMALL | dict(eval_episodes=0, checkpoint_frequency=0)
    train(args, tmp_path / "run")
    record = rows(tmp_path / "run" / "seed-1" / "metrics.jsonl")
    assert any("losses/actor_loss" in row for row in record)
    assert not any("losses/entropy" in row for row in record)
    said = [line for line in capsys.readouterr().out.splitlines() if "not finite" in line]
    assert said == ["warning: losses/entropy is not finite at step 200, seed 1: left out"]
    metrics["losses/actor_loss"] = jnp.float32(jnp.nan)
    with pytest.raises(NonFiniteError, match="losses/actor_loss at step 200, seed 1"):
        train(args, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frequency", "kept"), [(0, "nothing is saved yet"), (300, "step 600 is saved in ")], ids=["none", "one"]
)
def test_an_environment_that_fails_says_where_and_what_is_saved(frequency, kept, tmp_path):
    args = dict(env_id="FailsLate-v0", total_timesteps=900, checkpoint_frequency=frequency, eval_episodes=0)
    with pytest.raises(EnvironmentFailed, match=f"step 700, seed 1.*; {kept}") as caught:
        train(SMALL | args, tmp_path / "run")
    assert isinstance(caught.value.__cause__, ZeroDivisionError) and "\n" not in str(caught.value)


def test_speed_is_that_since_the_last_row(tmp_path, monkeypatch):
    now = iter([0.0, 0.0, 10.0, 10.0, 12.0, 12.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    clock = timing.Timing(tmp_path / "timing.jsonl", 0, 0.0)
    assert [clock.measure(steps)["charts/SPS"] for steps in (1_000, 1_100)] == [100, 50]
    clock.close()

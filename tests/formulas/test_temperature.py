"""The temperature that SAC and CrossQ learn, and the one at which every algorithm counts entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import crossq, sac
from cleanrl_maxent.common.run.run import Run
from tests.support.contract import CASES
from tests.support.references import TASK, make_batch

CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize("autotune", [True, False])
@pytest.mark.parametrize("algorithm", [sac, crossq], ids=["sac", "crossq"])
def test_the_temperature_falls_while_entropy_exceeds_its_target(algorithm, autotune):
    """The target is -½ nat per dimension, of two; without autotune the temperature stays."""
    args = algorithm.Args(hidden_dims=(16, 16), alpha=0.3, target_entropy_scale=0.5, autotune=autotune)
    state = jax.jit(lambda: algorithm.init(jax.random.key(0), TASK, args))()
    improve = jax.jit(algorithm.improve_policy, static_argnums=3)
    after, metrics = improve(state, make_batch(), jax.random.key(7), args)
    expected = 0.3 * (float(metrics["losses/entropy"]) + 0.5 * 2)
    assert metrics["losses/alpha_loss"] == pytest.approx(expected, rel=1e-5)
    fall = float(state.alpha.params["log_alpha"] - after.alpha.params["log_alpha"])
    assert np.sign(fall) == (np.sign(expected) if autotune else 0)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("sac", {}, 0.6),
        ("crossq", {}, 0.6),
        ("sac_discrete", {}, 0.6),
        ("fitted_q", {}, 0.6),
        ("sac_v1", dict(reward_scale=4.0), 0.15),
        ("sql_discrete", dict(munchausen=0.75), 0.15),  # the optimum that is learned has (1 - m) α
        ("maxent_pg", dict(normalize_reward=False), 0.6),
        ("maxent_pg", {}, 2.4),  # returns have a standard deviation of 4
    ],
)
def test_soft_returns_are_in_reward_per_nat(name, given, expected, tmp_path, monkeypatch):
    case, seen = CASE[name], []

    def update(state, *rest):
        if hasattr(state, "returns"):
            statistics = state.returns.statistics
            statistics = statistics.replace(var=jnp.full_like(statistics.var, 16.0))
            state = state.replace(returns=state.returns.replace(statistics=statistics))
        return state, {}

    def evaluate(self, evaluation, steps, policies, keys, temperature=0.0):
        assert evaluation.sample_action is case.module.sample_action
        seen.append(float(np.ravel(temperature)[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(case.module, "update", update)
    monkeypatch.setattr(Run, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        case.module.train(case.args(alpha=0.6, **given, run_dir=str(tmp_path / "run")))
    assert seen == [pytest.approx(expected)]


@pytest.mark.parametrize("name", ["sac", "crossq", "sac_discrete", "maxent_pg"])
def test_temperature_zero(name):
    """Not learned; its logarithm is finite, as a checkpoint needs."""
    case = CASE[name]
    state = case.module.init(jax.random.key(0), case.task, case.args(alpha=0.0, autotune=False))
    log_alpha = float(state.alpha.params["log_alpha"])
    assert np.isfinite(log_alpha) and case.module.temperature(state) < 1e-30

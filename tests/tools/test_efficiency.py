"""benchmarks/efficiency.py and its variants of SAC."""

import jax
import numpy as np

from benchmarks import efficiency
from benchmarks.records import Curve
from benchmarks.studies.efficiency import sac_layer_norm, sac_two_updates
from cleanrl_maxent import sac
from tests.support.pytrees import distance
from tests.support.references import TASK, make_batch


def curve(returns, name="sac", flags="", env_id="Hopper-v4"):
    steps = np.arange(1, 1 + len(returns[0])) * 5_000
    kind = "sac", name, flags, env_id, 100_000, "deterministic"
    return Curve(*kind, [str(seed) for seed in range(len(returns))], steps, np.array(returns, float))


def test_a_score_is_reached_by_three_evaluations_in_a_row():
    found = efficiency.steps_to(
        curve([[0, 9, 0, 0, 2, 4, 3], [3, 3, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 8]]), 3
    )
    assert found.tolist() == [10_000 + 5_000, 15_000, np.inf]
    assert efficiency.steps_to(curve([[0, 8, 0, 0, 2, 4, 3]]), 3).tolist() == [35_000]


def test_medians_of_seeds_some_of_which_do_not_arrive():
    assert efficiency.spread(np.array([10.0, 30_000, 2_000])) == "2,000 (10–30,000)"
    assert efficiency.spread(np.array([1.25, np.inf, 3.0]), 1) == "3.0 (2 of 3 seeds)"
    assert efficiency.spread(np.array([1.0, np.inf, np.inf])) == "– (1 of 3 seeds)"


def test_what_is_compared(tmp_path, monkeypatch):
    """Default settings and named variants, of one number of steps; peers from their file, minutes by cost."""
    (tmp_path / "peers.csv").write_text(
        "program,env_id,seed,step,return_deterministic\n"
        + "".join(
            f"SBX SAC,Hopper-v4,{seed},{step},2600\n" for seed in (1, 2) for step in (5000, 10000, 15000)
        )
    )
    (tmp_path / "cost.csv").write_text("round,program,milliseconds\n1,SBX SAC,4\n2,SBX SAC,6\n3,SBX SAC,20\n")
    monkeypatch.setattr(efficiency, "PEERS", tmp_path / "peers.csv")
    monkeypatch.setattr(efficiency, "COSTS", tmp_path / "cost.csv")
    ours = curve([[0, 1_000, 2_000, 3_000]])
    others = [
        curve([[0] * 4], flags="--tau 0.1"),
        curve([[0] * 4], "sac-wide"),
        curve([[0] * 4], env_id="Ant-v4"),
    ]
    table = efficiency.score_table([ours, *others], "Hopper-v4")
    assert table[2:] == [
        "| SAC | 1 |  | 15,000 (15,000–15,000) |  | – (0 of 1 seed) |  |",
        "| SAC of SBX | 2 | 6.0" + 2 * " | 15,000 (15,000–15,000) | 1.5 (1.5–1.5)" + " |",
    ]


def test_two_updates_are_two_of_sac():
    args = sac_two_updates.Args(hidden_dims=(8, 8), batch_size=16)
    state, batch, key = sac.init(jax.random.key(0), TASK, args), make_batch(16), jax.random.key(1)
    update = jax.jit(sac.update, static_argnums=(3, 4))
    found, metrics = jax.jit(sac_two_updates.update, static_argnums=(3, 4))(state, batch, key, 1, args)
    for rows, one in zip((slice(0, 8), slice(8, 16)), jax.random.split(key), strict=True):
        half = jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch)
        state, expected = update(state, half, one, 1, args)
    assert metrics.keys() == expected.keys()
    assert all(np.allclose(metrics[name], expected[name], rtol=1e-4) for name in expected)
    assert distance(found.critics.params, state.critics.params) < 1e-6


def test_hidden_layers_of_the_critics_are_normalised():
    """Scaling the first layer's weights does not change Q, as it would without normalisation."""
    critic, obs, action = sac_layer_norm.Critic((16, 16)), np.ones(3), np.full(2, 0.5)
    params = critic.init(jax.random.key(0), obs, action)
    scaled = jax.tree.map(lambda leaf: leaf, params)
    scaled["params"]["Dense_0"] = jax.tree.map(lambda leaf: 100 * leaf, params["params"]["Dense_0"])
    before, after = (np.asarray(critic.apply(values, obs, action)) for values in (params, scaled))
    assert abs(after - before) < 1e-3
    layers = [
        {name: leaf for name, leaf in values["params"].items() if "Dense" in name}
        for values in (params, scaled)
    ]
    plain = sac.Critic((16, 16))
    before, after = (np.asarray(plain.apply({"params": values}, obs, action)) for values in layers)
    assert abs(after - before) > 0.1

"""benchmarks/efficiency.py and its variants of SAC."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import efficiency
from benchmarks.records import Curve
from benchmarks.studies.efficiency import cost, peer, sac_layer_norm, sac_two_updates
from cleanrl_maxent import sac
from cleanrl_maxent.common.run.initial import newest_checkpoint
from tests.support.pytrees import distance
from tests.support.references import TASK, make_batch
from tests.support.runs import SMALL


def curve(returns, name="sac", flags="", env_id="Hopper-v4"):
    """The first evaluations of a curve; the others are like the last."""
    returns = [[*of_seed, *of_seed[-1:] * (20 - len(of_seed))] for of_seed in returns]
    steps = np.arange(1, 21) * 5_000
    kind = "sac", name, flags, env_id, 100_000, "deterministic"
    return Curve(*kind, [str(seed) for seed in range(len(returns))], steps, np.array(returns, float))


def test_a_score_is_reached_by_three_evaluations_in_a_row():
    found = efficiency.steps_to(
        curve([[0, 9, 0, 0, 2, 4, 3], [3, 3, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 8, 0]]), 3
    )
    assert found.tolist() == [15_000, 15_000, np.inf]
    assert efficiency.steps_to(curve([[0, 8, 0, 0, 2, 4, 3]]), 3).tolist() == [35_000]


def test_medians_of_seeds_some_of_which_do_not_arrive():
    assert efficiency.spread(np.array([10.0, 30_000, 2_000])) == "2,000 (10–30,000)"
    assert efficiency.spread(np.array([1.25, np.inf, 3.0]), 1) == "3.0 (from 1.2; 2 of 3 seeds)"
    assert efficiency.spread(np.array([1.0, np.inf, np.inf])) == "– (from 1; 1 of 3 seeds)"
    assert efficiency.spread(np.array([np.inf, np.inf])) == "– (0 of 2 seeds)"


def test_what_is_compared(tmp_path, monkeypatch):
    """Default settings and known variants, evaluated every 5,000 steps; peers; minutes by cost."""
    steps = range(5_000, 100_001, 5_000)
    peers = [f"SBX SAC,Hopper-v4,{seed},{step},2600" for seed in (1, 2) for step in steps]
    (tmp_path / "peers.csv").write_text("\n".join(["program,env_id,seed,step,return_deterministic", *peers]))
    (tmp_path / "cost.csv").write_text("round,program,milliseconds\n1,SBX SAC,4\n2,SBX SAC,6\n3,SBX SAC,20\n")
    monkeypatch.setattr(efficiency, "PEERS", tmp_path / "peers.csv")
    monkeypatch.setattr(efficiency, "COSTS", tmp_path / "cost.csv")
    ours, rare = curve([[0, 1_000, 2_000, 3_000]]), curve([[0]], "sac_layer_norm")
    others = [
        curve([[0]], flags="--tau 0.1"),
        curve([[0]], "sac-wide"),
        curve([[0]], env_id="Ant-v4"),
        curve([[0], [2_000]], "sac_two_updates", "--batch-size 512"),
        replace(rare, steps=rare.steps[9::10], returns=rare.returns[:, 9::10]),
    ]
    table = efficiency.score_table([*others, ours], "Hopper-v4")
    assert table[2:] == [
        "| SAC | 1 |  | 15,000 (15,000–15,000) |  | 25,000 (25,000–25,000) |  |",
        "| SAC, two updates per step | 2 |  | – (from 15,000; 1 of 2 seeds) |  | – (0 of 2 seeds) |  |",
        "| SAC of SBX | 2 | 6.0" + 2 * " | 15,000 (15,000–15,000) | 0.5 (0.5–0.5)" + " |",
    ]


def test_what_is_timed_and_trained(tmp_path, monkeypatch):
    """A peer only by a python that has it; a variant by its file; a seed of a peer once."""
    assert cost.command("SBX SAC", cost.Args()) == []
    assert cost.command("SBX SAC", cost.Args(Path("python")))[2:] == [
        "sbx",
        "SAC",
        "Hopper-v4",
        "2000",
        "4000",
    ]
    for program, named in (("sac", "sac"), ("sac_layer_norm", str(Path(sac_layer_norm.__file__)))):
        command = cost.command(program, cost.Args())
        assert command[command.index("--algorithm") + 1] == named
    monkeypatch.setattr(peer, "ROWS", tmp_path / "peers.csv")
    assert not peer.is_trained("SAC", "Hopper-v4", 1)
    peer.ROWS.write_text(",".join(peer.COLUMNS) + "\nSBX SAC,Hopper-v4,1,5000,2\n")
    assert peer.is_trained("SAC", "Hopper-v4", 1) and not peer.is_trained("CrossQ", "Hopper-v4", 1)


@pytest.mark.slow
def test_a_variant_trains_with_what_it_replaces(tmp_path):
    """And leaves `sac` as it was."""
    before = sac.Critic, sac.update
    names = ("layer-norm", "two-updates")
    for name, variant in zip(names, (sac_layer_norm, sac_two_updates), strict=True):
        args = SMALL | dict(total_timesteps=280, eval_frequency=140, run_dir=str(tmp_path / name))
        variant.train(variant.Args(**args))
        assert (sac.Critic, sac.update) == before
    arrays = [newest_checkpoint(tmp_path / name, "networks").arrays for name in names]
    assert [any("LayerNorm_0" in leaf for leaf in of_one) for of_one in arrays] == [True, False]
    assert [of_one["state/critics/step"].tolist() for of_one in arrays] == [[170], [340]]


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

"""Networks of other shapes than the usual ones: they are carried, so they train, resume, and are saved."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cleanrl_maxent import ddpg, sac
from cleanrl_maxent.common.env.task import Task
from tests.support.runs import SMALL, differences, digests, interrupted, train

SHORT = SMALL | dict(total_timesteps=200, eval_frequency=200)


def assert_resumes(algorithm, args, folder, monkeypatch):
    """A run stopped in the middle ends as one that nobody touched; returns the arrays of its policy."""
    train(args, folder / "reference", algorithm)
    interrupted(args, folder / "run", monkeypatch, 150, algorithm)
    train(args, folder / "run", algorithm)
    assert differences(digests(folder / "reference"), digests(folder / "run")) == []
    with np.load(folder / "run" / "policy-1.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.slow
def test_ten_hidden_layers(tmp_path, monkeypatch):
    widths = range(3, 13)
    arrays = assert_resumes(ddpg, SHORT | dict(hidden_dims=tuple(widths)), tmp_path, monkeypatch)
    shapes = {name: array.shape for name, array in arrays.items() if name.endswith("kernel")}
    assert shapes == {
        f"params/Dense_{i}/kernel": shape
        for i, shape in enumerate(zip((3, *widths), (*widths, 1), strict=True))
    }


@pytest.mark.slow
def test_a_sibling_with_layer_norm(tmp_path, monkeypatch):
    """A file beside the algorithms that differs from sac.py in two lines, the layers of critic and actor."""
    text = Path(sac.__file__).read_text()
    plain, normed = "nn.relu(linear(x, dim))", "nn.relu(nn.LayerNorm()(linear(x, dim)))"
    assert text.count(plain) == 2
    path = tmp_path / "sac_layernorm.py"
    path.write_text(text.replace(plain, normed))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sibling = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, sibling)
    spec.loader.exec_module(sibling)
    assert sibling.Args().exp_name == "sac_layernorm"

    arrays = assert_resumes(sibling, SHORT, tmp_path, monkeypatch)
    assert {"params/LayerNorm_0/scale", "params/LayerNorm_1/bias", "params/Dense_2/kernel"} < arrays.keys()
    assert not (arrays["params/LayerNorm_0/scale"] == 1).all()
    state = jax.eval_shape(
        lambda key: sibling.init(key, Task(3, 1), sibling.Args(**SHORT)), jax.random.key(0)
    )
    names = iter(arrays[name] for name in arrays)
    policy = jax.tree.map(lambda leaf: next(names), sibling.policy(state))
    action = sibling.act(policy, np.ones((5, 3), np.float32), jax.random.key(0), True)
    assert action.shape == (5, 1) and np.abs(action).max() <= 1 and np.ptp(action) == 0

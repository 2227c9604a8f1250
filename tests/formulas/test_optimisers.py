"""Each network of the off-policy algorithms has the optimiser and the learning rate that its flag says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import crossq, ddpg, fitted_q, sac, sac_discrete, sac_v1, sql, sql_discrete, td3
from cleanrl_maxent.common.env.task import Task
from tests.support.pytrees import leaves

FLAGS = {
    ddpg: dict(actor="learning_rate", critic="learning_rate"),
    td3: dict(actor="learning_rate", critics="learning_rate"),
    sac: dict(actor="policy_lr", critics="q_lr", alpha="policy_lr"),
    sac_v1: dict(actor="policy_lr", critics="q_lr", value="v_lr"),
    sac_discrete: dict(actor="policy_lr", critics="q_lr", alpha="policy_lr"),
    crossq: dict(actor="policy_lr", critics="q_lr", alpha="policy_lr"),
    sql: dict(actor="policy_lr", critics="q_lr"),
    sql_discrete: dict(critics="q_lr"),
    fitted_q: dict(critics="q_lr"),
}
RATES = dict(learning_rate=0.01, policy_lr=0.02, q_lr=0.03, v_lr=0.04)


@pytest.mark.parametrize("algorithm", FLAGS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_network_learns_at_its_own_rate_with_adams_constants(algorithm):
    """The first step on a gradient of ones is one rate long, and on one of 1e-7, with ε = 1e-8, 1/1.1 of it;
    the next step, on a gradient of 0, tells β₁, 0.9 (CrossQ's 0.5), and β₂, 0.999."""
    flags = FLAGS[algorithm]
    args = algorithm.Args(hidden_dims=(4,), **{flag: RATES[flag] for flag in set(flags.values())})
    task = Task(3, 2, discrete="Box" not in algorithm.Args.action_spaces)
    state = jax.jit(lambda: algorithm.init(jax.random.key(0), task, args))()
    for name, flag in flags.items():
        beta = 0.5 if algorithm is crossq and name != "alpha" else 0.9
        second = (beta / (1 + beta)) / math.sqrt(0.999 / 1.999)
        for gradients, rates in (((1.0,), 1), ((1e-7,), 1 / 1.1), ((1.0, 0.0), second)):
            network = before = getattr(state, name)
            for gradient in gradients:
                grads = jax.tree.map(lambda leaf, g=gradient: jnp.full_like(leaf, g), network.params)
                before, network = network, network.apply_gradients(grads=grads)
            for old, new in leaves(before.params, network.params):
                np.testing.assert_allclose(old - new, rates * RATES[flag], rtol=5e-4)


PYTORCHS = [module for module in FLAGS if module not in (sac, sac_v1, crossq)]


@pytest.mark.parametrize("algorithm", PYTORCHS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_weights_and_biases_of_every_layer_are_uniform(algorithm):
    """From U(±1/√fan_in), the last layer's too."""
    task = Task(17, 6, discrete="Box" not in algorithm.Args.action_spaces)
    state = jax.jit(lambda: algorithm.init(jax.random.key(0), task, algorithm.Args()))()
    for name in FLAGS[algorithm].keys() - {"alpha"}:
        for layer in getattr(state, name).params["params"].values():
            bound = 1 / math.sqrt(layer["kernel"].shape[-2])
            for leaf in layer.values():
                assert 0 < np.abs(leaf).max() <= bound
                assert leaf.size < 100 or np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.15)

"""Every formula of ddpg.py against float64 NumPy."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cleanrl_maxent import ddpg
from cleanrl_maxent.common.env.task import Task
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import TASK, finite_difference, make_batch, mlp

ARGS = ddpg.Args(hidden_dims=(16, 16), batch_size=8)

critic_loss = jax.jit(jax.value_and_grad(ddpg.critic_loss, has_aux=True), static_argnums=3)
actor_loss = jax.jit(jax.value_and_grad(ddpg.actor_loss, has_aux=True))
update = jax.jit(lambda state, batch, index: ddpg.update(state, batch, jax.random.key(1), index, ARGS)[0])


@cache
def make_state():
    """A state whose targets differ from its networks, as after some training."""
    init = jax.jit(lambda seed: ddpg.init(jax.random.key(seed), TASK, ARGS))
    state, other = init(0), init(100)
    return state.replace(target_actor=other.actor.params, target_critic=other.critic.params)


@cache
def make_fast_state():
    """One whose steps are large: gradient descent of the actor by 1, and a critic with Adam's at 0.1."""
    state, descent = make_state(), optax.sgd(1.0)
    actor = state.actor.replace(tx=descent, opt_state=descent.init(state.actor.params))
    return state.replace(actor=actor, critic=state.critic.replace(tx=optax.adam(0.1)))


def reference_mu(params, obs):
    return np.tanh(mlp(params, np.float64(obs)))


def reference_q(params, obs, action):
    return mlp(params, np.concatenate([obs, action], axis=-1))[:, 0]


def test_critic_loss_and_gradient():
    """The mean squared residual of y = r + γ(1 - d) Q̄(s', μ̄(s')), which is held fixed."""
    state, batch = make_state(), make_batch()
    next_q = reference_q(
        state.target_critic, batch.next_obs, reference_mu(state.target_actor, batch.next_obs)
    )
    y = batch.reward + 0.99 * (1 - batch.terminated) * next_q

    def reference(params):
        return ((reference_q(params, batch.obs, batch.action) - y) ** 2).mean()

    params = state.critic.params
    (loss, metrics), grads = critic_loss(params, state, batch, ARGS)
    assert loss == pytest.approx(reference(params), rel=1e-5)
    assert metrics["losses/qf1_loss"] == pytest.approx(float(loss), rel=1e-6)
    values = reference_q(params, batch.obs, batch.action)
    assert metrics["losses/qf1_values"] == pytest.approx(values.mean(), rel=1e-4)
    for path, index in [(("Dense_0", "kernel"), (1, 2)), (("Dense_2", "bias"), (0,))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_actor_loss_and_gradient():
    """The gradient is the deterministic policy gradient."""
    state, batch = make_state(), make_batch()

    def reference(params):
        return -reference_q(state.critic.params, batch.obs, reference_mu(params, batch.obs)).mean()

    params = state.actor.params
    (loss, metrics), grads = actor_loss(params, state, batch)
    assert metrics["losses/actor_loss"] == loss
    assert loss == pytest.approx(reference(params), rel=1e-5)
    for path, index in [(("Dense_0", "kernel"), (0, 1)), (("Dense_2", "bias"), (1,))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_no_gradient_where_none_belongs():
    """The critic loss is flat in the actor and in both targets."""
    state, batch = make_state(), make_batch()

    def of_others(actor, target_actor, target_critic):
        others = {"target_actor": target_actor, "target_critic": target_critic}
        other = state.replace(actor=state.actor.replace(params=actor), **others)
        return ddpg.critic_loss(state.critic.params, other, batch, ARGS)[0]

    others = (state.actor.params, state.target_actor, state.target_critic)
    flat = jax.jit(jax.grad(of_others, (0, 1, 2)))(*others)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


def test_target_action_is_that_of_the_target_policy():
    state, batch = make_state(), make_batch(terminated=0.0)
    online = state.replace(actor=state.actor.replace(params=state.target_actor))
    target = state.replace(target_actor=state.actor.params)
    loss = [critic_loss(state.critic.params, s, batch, ARGS)[0][0] for s in (state, online, target)]
    assert loss[0] == loss[1] and loss[0] != loss[2]


def test_init():
    state = jax.jit(lambda key: ddpg.init(key, Task(17, 6), ddpg.Args()))(jax.random.key(0))
    for params, fan_in in [(state.actor.params, (17, 256, 256)), (state.critic.params, (23, 256, 256))]:
        for (name, layer), inputs in zip(sorted(params["params"].items()), fan_in, strict=True):
            for kind, leaf in layer.items():
                assert np.abs(leaf).max() <= 1 / math.sqrt(inputs), (name, kind)
            assert np.std(layer["kernel"]) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.15), name
    assert state.critic.params["params"]["Dense_0"]["kernel"].shape == (23, 256)


def test_everything_moves_at_every_update_and_targets_by_tau():
    before = make_fast_state()
    for index in range(2):
        after = update(before, make_batch(), index)
        for old, new, target in (
            (before.actor.params, after.actor.params, (before.target_actor, after.target_actor)),
            (before.critic.params, after.critic.params, (before.target_critic, after.target_critic)),
        ):
            assert changed(old, new) and changed(*target)
            for network, old_target, new_target in leaves(new, *target):
                expected = 0.005 * np.float64(network) + 0.995 * np.float64(old_target)
                assert np.allclose(new_target, expected, atol=1e-7)
        before = after


def test_the_actor_steps_against_the_new_critic():
    """Gradient descent of the actor by 1, after a critic's step that is large."""
    state, batch = make_fast_state(), make_batch()
    after = update(state, batch, 0)

    def descended(critic):
        _, grads = actor_loss(state.actor.params, state.replace(critic=critic), batch)
        return state.actor.apply_gradients(grads=grads).params

    assert distance(descended(after.critic), after.actor.params) < 1e-5
    assert distance(descended(state.critic), after.actor.params) > 1e-3

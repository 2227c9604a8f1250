"""a2c.py: its losses against float64 NumPy, and its step against RMSProp as A3C's paper has it."""

import jax
import numpy as np
import pytest

from cleanrl_maxent import a2c, a3c
from tests.support.pytrees import distance
from tests.support.rollouts import (
    KINDS,
    double,
    flat,
    float64,
    make_args,
    make_rollout,
    make_state,
    numeric_gradient,
    on_host,
    reference_entropy,
    reference_log_prob,
    reference_value,
    rmsprop,
)

ARGS = make_args(a2c, ent_coef=0.3, gae_lambda=0.8)
make_samples = on_host(jax.jit(a2c.make_samples, static_argnums=2))
update = jax.jit(a2c.update, static_argnums=4)


def losses(samples, args):
    """The actor's and the critic's, as functions of their parameters."""

    def of_actor(params):
        log_prob = reference_log_prob(params, samples.obs, samples.action)
        entropy = reference_entropy(params, samples.obs)
        return -np.mean(log_prob * samples.advantage + args.ent_coef * entropy)

    def of_critic(params):
        return 0.5 * np.mean((reference_value(params, samples.obs) - samples.value_target) ** 2)

    return of_actor, of_critic


@KINDS
@float64()
def test_gradients_are_those_of_the_losses(task):
    """The entropy bonus included; advantages and targets are data."""
    state, rollout = double((make_state(a2c, ARGS, task), make_rollout(a2c, ARGS, task)))
    samples = make_samples(state, rollout, ARGS)

    @jax.jit
    def both(state, samples):
        of_actor = jax.value_and_grad(a2c.actor_loss, has_aux=True)(state.actor.params, state, samples, ARGS)
        return of_actor, jax.value_and_grad(a2c.critic_loss, has_aux=True)(
            state.critic.params, state, samples
        )

    (actor, actor_grads), (critic, critic_grads) = both(state, samples)
    of_actor, of_critic = losses(samples, ARGS)
    assert actor[0] == pytest.approx(of_actor(state.actor.params), rel=1e-12)
    assert critic[0] == pytest.approx(of_critic(state.critic.params), rel=1e-12)
    entropy = reference_entropy(state.actor.params, samples.obs).mean()
    assert actor[1]["losses/entropy"] == pytest.approx(entropy, rel=1e-12)
    for loss, params, found in (
        (of_actor, state.actor.params, actor_grads),
        (of_critic, state.critic.params, critic_grads),
    ):
        np.testing.assert_allclose(flat(found), numeric_gradient(loss, params), rtol=0, atol=1e-8)


@float64()
def test_an_update_is_one_step_of_each_from_the_same_values():
    """RMSProp on the gradient, whose norm is bounded for actor and critic each; V is the one before."""
    args = make_args(a2c, ent_coef=0.3, gae_lambda=0.8, learning_rate=0.01, max_grad_norm=0.1)
    state, rollout = double((make_state(a2c, args), make_rollout(a2c, args)))
    samples = make_samples(state, rollout, args)
    after, metrics = update(state, rollout, jax.random.key(0), 0, args)
    of_actor, of_critic = losses(samples, args)
    for name, loss in (("actor", of_actor), ("critic", of_critic)):
        before, train_state = getattr(state, name).params, getattr(after, name)
        gradient = numeric_gradient(loss, before)
        assert np.linalg.norm(gradient) > 0.2, name
        step, _ = rmsprop(gradient, np.ones_like(gradient), 0.01, 0.1)
        moved = flat(train_state.params) - flat(before)
        np.testing.assert_allclose(moved, step, rtol=0, atol=1e-10, err_msg=name)
        assert int(train_state.step) == 1
    assert metrics["losses/actor_loss"] == pytest.approx(of_actor(state.actor.params), rel=1e-12)
    assert metrics["losses/value_loss"] == pytest.approx(of_critic(state.critic.params), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "gradient", "step"),
    [
        ("tensorflow", 0.05, 0.0502),
        ("tensorflow", 0.001, 0.0010),
        ("pytorch", 0.05, 9.98),
        ("pytorch", 0.001, 9.09),
    ],
)
@pytest.mark.parametrize("algorithm", [a2c, a3c], ids=["a2c", "a3c"])
@float64()
def test_first_steps_of_rmsprop(algorithm, kind, gradient, step):
    """In learning rates: ε inside the root or outside, a first mean square of 1 or 0 with decay 0.99."""
    args = make_args(algorithm, learning_rate=0.5, max_grad_norm=100.0, rmsprop=kind)
    state = double(make_state(algorithm, args)).actor
    inside = kind == "tensorflow"
    grads, scale = jax.tree.map(lambda leaf: 0 * leaf + gradient, state.params), float(inside)
    for number in range(3):
        after = state.apply_gradients(grads=grads)
        moved = flat(state.params) - flat(after.params)
        scale = 0.99 * scale + 0.01 * gradient**2
        root = np.sqrt(scale + 1e-5) if inside else np.sqrt(scale) + 1e-5
        np.testing.assert_allclose(moved, 0.5 * gradient / root, rtol=1e-9)
        if number == 0:
            np.testing.assert_allclose(moved / 0.5, step, atol=6e-5 if inside else 6e-3)
        state = after


def test_learning_rate_falls_to_zero_at_the_end():
    """Linearly, of actor and critic; four rollouts of 24 steps fit into 100."""
    args = make_args(a2c, anneal_lr=True, total_timesteps=100, learning_rate=0.01)
    state = make_state(a2c, args)
    for network in (state.actor, state.critic):
        grads, rates = jax.tree.map(lambda leaf: 0 * leaf + 0.01, network.params), []
        for _ in range(5):
            after = network.apply_gradients(grads=grads)
            rates.append(distance(after.params, network.params))
            network = after
        assert np.allclose(np.array(rates) / rates[0], [1, 0.75, 0.5, 0.25, 0], atol=0.02)

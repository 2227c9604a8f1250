"""Every formula of td3.py against float64 NumPy."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cleanrl_maxent import td3
from cleanrl_maxent.common.env.task import Task
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import (
    ACTION_DIM,
    TASK,
    finite_difference,
    make_batch,
    mlp,
    reference_q,
)

ARGS = td3.Args(hidden_dims=(16, 16), batch_size=8, policy_noise=0.6)  # so large that the clip at 0.5 is met
KEY = jax.random.key(7)

critic_loss = jax.jit(jax.value_and_grad(td3.critic_loss, has_aux=True), static_argnums=4)
actor_loss = jax.jit(jax.value_and_grad(td3.actor_loss, has_aux=True))
update = jax.jit(lambda state, batch, key, index: td3.update(state, batch, key, index, ARGS)[0])


@cache
def make_state():
    """A state whose targets differ from its networks, as after some training."""
    init = jax.jit(lambda seed: td3.init(jax.random.key(seed), TASK, ARGS))
    state, other = init(0), init(100)
    return state.replace(target_actor=other.actor.params, target_critics=other.critics.params)


@cache
def make_fast_state():
    """One whose steps are large: gradient descent of the actor by 1, and critics with Adam's at 0.1."""
    state, descent = make_state(), optax.sgd(1.0)
    actor = state.actor.replace(tx=descent, opt_state=descent.init(state.actor.params))
    return state.replace(actor=actor, critics=state.critics.replace(tx=optax.adam(0.1)))


def reference_mu(params, obs):
    return np.tanh(mlp(params, np.float64(obs)))


def test_critic_loss_and_gradient():
    """The mean squared residuals of y = r + γ(1 - d) min Q̄(s', μ̄(s') + ε), which is held fixed."""
    state, batch = make_state(), make_batch()
    noise = np.clip(0.6 * np.float64(jax.random.normal(KEY, batch.action.shape)), -0.5, 0.5)
    next_action = np.clip(reference_mu(state.target_actor, batch.next_obs) + noise, -1, 1)
    next_q = reference_q(state.target_critics, batch.next_obs, next_action).min(axis=0)
    y = batch.reward + 0.99 * (1 - batch.terminated) * next_q

    def reference(params):
        return ((reference_q(params, batch.obs, batch.action) - y) ** 2).mean(axis=1).sum()

    params = state.critics.params
    (loss, metrics), grads = critic_loss(params, state, batch, KEY, ARGS)
    assert loss == pytest.approx(reference(params), rel=1e-5)
    both = float(metrics["losses/qf1_loss"] + metrics["losses/qf2_loss"])
    assert loss == pytest.approx(both, rel=1e-6)
    for i, values in enumerate(reference_q(params, batch.obs, batch.action)):
        assert metrics[f"losses/qf{i + 1}_values"] == pytest.approx(values.mean(), rel=1e-4)
    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (0, 0))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_actor_loss_and_gradient():
    """The first critic alone; the gradient is the deterministic policy gradient."""
    state, batch = make_state(), make_batch()

    def reference(params):
        return -reference_q(state.critics.params, batch.obs, reference_mu(params, batch.obs))[0].mean()

    params = state.actor.params
    (loss, metrics), grads = actor_loss(params, state, batch)
    assert metrics["losses/actor_loss"] == loss
    assert loss == pytest.approx(reference(params), rel=1e-5)
    for path, index in [(("Dense_0", "kernel"), (0, 1)), (("Dense_2", "bias"), (1,))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_no_gradient_where_none_belongs():
    """The critic loss is flat in the actor and in all targets."""
    state, batch = make_state(), make_batch()

    def of_others(actor, target_actor, target_critics):
        others = {"target_actor": target_actor, "target_critics": target_critics}
        other = state.replace(actor=state.actor.replace(params=actor), **others)
        return td3.critic_loss(state.critics.params, other, batch, KEY, ARGS)[0]

    others = (state.actor.params, state.target_actor, state.target_critics)
    flat = jax.jit(jax.grad(of_others, (0, 1, 2)))(*others)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


def test_smoothing_noise_is_clipped_and_differs_per_row_and_dimension():
    """Critics that note the actions they are asked about; μ̄ is 0.8 in one dimension, 0 in the other."""
    args, seen = td3.Args(batch_size=4096, policy_noise=0.4), []

    def note(params, obs, action):
        seen.append(np.asarray(action))
        return params["zero"] * action[None, :, 0]  # (2, batch), as of two critics

    state = make_state()
    state = state.replace(
        actor=state.actor.replace(
            apply_fn=lambda params, obs: jnp.tile(jnp.array([0.8, 0.0]), (len(obs), 1))
        ),
        critics=state.critics.replace(apply_fn=note),
        target_critics={"zero": jnp.zeros((2, 1))},
    )
    td3.critic_loss({"zero": jnp.zeros((2, 1))}, state, make_batch(4096), jax.random.key(3), args)
    next_action = seen[0]
    assert next_action[:, 0].max() == 1 and next_action[:, 0].min() == pytest.approx(0.3)
    noise = next_action[:, 1]
    assert np.abs(noise).max() == 0.5
    beyond = math.erfc(0.5 / 0.4 / math.sqrt(2))
    assert (np.abs(noise) == 0.5).mean() == pytest.approx(beyond, abs=0.02)
    inside = (np.abs(noise) < 0.5) & (np.abs(next_action[:, 0] - 0.55) < 0.24)
    assert abs(np.corrcoef(next_action[inside].T)[0, 1]) < 0.06
    assert np.unique(noise[np.abs(noise) < 0.5]).size > 0.99 * (np.abs(noise) < 0.5).sum()


def test_target_action_is_that_of_the_target_policy():
    state, batch = make_state(), make_batch(terminated=0.0)
    online = state.replace(actor=state.actor.replace(params=state.target_actor))
    target = state.replace(target_actor=state.actor.params)
    loss = [critic_loss(state.critics.params, s, batch, KEY, ARGS)[0][0] for s in (state, online, target)]
    assert loss[0] == loss[1] and loss[0] != loss[2]


def test_init():
    state = jax.jit(lambda key: td3.init(key, Task(17, 6), td3.Args()))(jax.random.key(0))
    for params, fan_in in [(state.actor.params, (17, 256, 256)), (state.critics.params, (23, 256, 256))]:
        for (name, layer), inputs in zip(sorted(params["params"].items()), fan_in, strict=True):
            for kind, leaf in layer.items():
                assert np.abs(leaf).max() <= 1 / math.sqrt(inputs), (name, kind)
            assert np.std(layer["kernel"]) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.15), name
    kernel = state.critics.params["params"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 23, 256) and not np.allclose(kernel[0], kernel[1])


def test_delay_counts_updates_and_targets_move_by_tau():
    """Actor and all targets every second update, towards the new networks; critics always."""
    before, moved = make_fast_state(), []
    for index in range(6):
        after = update(before, make_batch(), jax.random.key(1), index)
        networks = (before.actor.params, after.actor.params), (before.critics.params, after.critics.params)
        targets = (before.target_actor, after.target_actor), (before.target_critics, after.target_critics)
        moved.append([changed(*pair) for pair in (*networks, *targets)])
        if index % 2 == 0:
            for (_, new), target in zip(networks, targets, strict=True):
                for network, old_target, new_target in leaves(new, *target):
                    expected = 0.005 * np.float64(network) + 0.995 * np.float64(old_target)
                    assert np.allclose(new_target, expected, atol=1e-7)
        before = after
    actor, critics, target_actor, target_critics = map(list, zip(*moved, strict=True))
    assert actor == target_actor == target_critics == [True, False] * 3 and all(critics)


def test_the_actor_steps_against_the_new_critics():
    """Gradient descent of the actor by 1, after a critics' step that is large."""
    state, batch = make_fast_state(), make_batch()
    after = update(state, batch, jax.random.key(1), 0)

    def descended(critics):
        _, grads = actor_loss(state.actor.params, state.replace(critics=critics), batch)
        return state.actor.apply_gradients(grads=grads).params

    assert distance(descended(after.critics), after.actor.params) < 1e-5
    assert distance(descended(state.critics), after.actor.params) > 1e-3


def test_the_smoothing_noise_comes_from_the_key():
    one, same, other = (update(make_fast_state(), make_batch(), jax.random.key(k), 0) for k in (1, 1, 2))
    assert changed(one.critics.params, other.critics.params)
    assert not changed(one.critics.params, same.critics.params)


@pytest.mark.slow
def test_target_actions_are_smoothed_in_units_of_the_normalised_action(tmp_path, monkeypatch):
    """Bounds ±0.4 and [-1, 3], an actor that does not learn: noise up to ±0.5 in either dimension, around one
    action; and learned from are actions in [-1, 1]."""
    seen = {"next": [], "stored": []}

    def measure(state, batch, key, index, args):
        """In place of `update`: the loss alone."""
        names = iter(seen)  # target critics are asked first

        def noted(critics, obs, action, apply=state.critics.apply_fn):
            jax.debug.callback(seen[next(names)].append, action)
            return apply(critics, obs, action)

        noting = state.replace(critics=state.critics.replace(apply_fn=noted))
        return state, td3.critic_loss(state.critics.params, noting, batch, key, args)[1]

    monkeypatch.setattr(td3, "update", measure)
    args = dict(env_id="tests.support.probes:Echo-v0", total_timesteps=300, learning_starts=200)
    args |= dict(batch_size=8, hidden_dims=(8,), policy_noise=0.4, eval_episodes=0)
    td3.train(td3.Args(**args, run_dir=str(tmp_path / "run")))
    jax.effects_barrier()
    smoothed, stored = (np.concatenate([np.asarray(rows) for rows in seen[name]]) for name in seen)
    assert smoothed.shape == stored.shape == (800, ACTION_DIM)
    assert np.ptp(smoothed, axis=0) == pytest.approx(1, abs=1e-6)
    assert np.abs(stored).max() <= 1 and np.abs(stored).max(axis=0) == pytest.approx(1, abs=0.1)

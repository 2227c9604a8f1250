"""Every formula of sac_v1.py against float64 NumPy or a closed form, and problems with known optima."""

import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import sac_v1
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import (
    ACTION_DIM,
    TASK,
    finite_difference,
    make_batch,
    mlp,
    reference_q,
    reference_sample,
    trained_on,
)
from tests.support.tables import make_state, trained_on_rows

ARGS = sac_v1.Args(hidden_dims=(16, 16), batch_size=8, alpha=0.3, reward_scale=2.0)
KEY = jax.random.key(7)

value_loss = jax.jit(jax.value_and_grad(sac_v1.value_loss, has_aux=True), static_argnums=4)
critic_loss = jax.jit(jax.value_and_grad(sac_v1.critic_loss, has_aux=True), static_argnums=3)
actor_loss = jax.jit(jax.value_and_grad(sac_v1.actor_loss, has_aux=True), static_argnums=4)
sample_action = jax.jit(sac_v1.sample_action)
update = jax.jit(sac_v1.update, static_argnums=4)


@cache
def some_state():
    """A state whose target differs from its value network, as after some training."""
    state, other = (make_state(sac_v1, ARGS, TASK, seed) for seed in (0, 100))
    return state.replace(target_value=other.value.params)


def reference_v(params, obs):
    return mlp(params, np.float64(obs))[:, 0]


def soft_q(actor, state, batch, key):
    """min Q - α log π at a fresh action, in float64."""
    action, log_prob = reference_sample(actor, batch.obs, key)
    return reference_q(state.critics.params, batch.obs, action).min(axis=0) - 0.3 * log_prob


def assert_gradient(grads, reference, params, entries):
    for path, index in entries:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=3e-3, abs=1e-5)


def test_value_loss_gradient_and_metrics():
    """The target has a fresh action of the policy, at the critics themselves."""
    state, batch = some_state(), make_batch()
    target, params = soft_q(state.actor.params, state, batch, KEY), state.value.params

    def reference(params):
        return 0.5 * ((reference_v(params, batch.obs) - target) ** 2).mean()

    (loss, metrics), grads = value_loss(params, state, batch, KEY, ARGS)
    assert loss == metrics["losses/value_loss"] == pytest.approx(reference(params), rel=1e-4)
    assert metrics["losses/values"] == pytest.approx(reference_v(params, batch.obs).mean(), rel=1e-4)
    assert_gradient(grads, reference, params, [(("Dense_0", "kernel"), (1, 2)), (("Dense_2", "bias"), (0,))])


def test_the_target_of_the_value_is_of_the_policy_and_not_of_the_batch():
    """It has neither the actions, rewards nor endings of the replay."""
    state, batch = some_state(), make_batch()
    other = make_batch(seed=1).replace(obs=batch.obs)
    given = state.value.params, state
    (loss, _), _ = value_loss(*given, batch, KEY, ARGS)
    assert value_loss(*given, other, KEY, ARGS)[0][0] == loss
    assert value_loss(*given, batch, jax.random.key(8), ARGS)[0][0] != loss


def test_critic_loss_gradient_and_metrics():
    """c r + γ (1 - d) V̄(s'): no policy, no entropy, no target critics."""
    state, batch = some_state(), make_batch()
    y = 2 * batch.reward + 0.99 * (1 - batch.terminated) * reference_v(state.target_value, batch.next_obs)

    def residuals(params):
        return 0.5 * (reference_q(params, batch.obs, batch.action) - y) ** 2

    params = state.critics.params
    (loss, metrics), grads = critic_loss(params, state, batch, ARGS)
    assert loss == pytest.approx(residuals(params).mean(axis=1).sum(), rel=1e-5)
    assert metrics["losses/qf1_loss"] == pytest.approx(residuals(params)[0].mean(), rel=1e-4)
    q = reference_q(params, batch.obs, batch.action)
    assert metrics["losses/qf2_values"] == pytest.approx(q[1].mean(), rel=1e-4)
    entries = [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (1, 0))]
    assert_gradient(grads, lambda p: residuals(p).mean(axis=1).sum(), params, entries)
    warmer = critic_loss(params, state, batch, replace(ARGS, alpha=3.0))[0][0]
    assert warmer == loss


def test_actor_loss_gradient_and_metrics():
    state, batch = some_state(), make_batch()

    def reference(params):
        return -soft_q(params, state, batch, KEY).mean()

    params = state.actor.params
    (loss, metrics), grads = actor_loss(params, state, batch, KEY, ARGS)
    assert loss == metrics["losses/actor_loss"] == pytest.approx(reference(params), rel=1e-4)
    _, log_prob = reference_sample(params, batch.obs, KEY)
    assert metrics["losses/entropy"] == pytest.approx(-log_prob.mean(), rel=1e-4)
    entries = [(("Dense_0", "kernel"), (0, 1)), (("Dense_2", "bias"), (0,)), (("Dense_2", "bias"), (3,))]
    assert_gradient(grads, reference, params, entries)


def test_no_gradient_where_none_belongs():
    """The loss of V is flat in actor and critics, the critics' in actor and both value networks."""
    state, batch = some_state(), make_batch()

    def with_others(actor, critics, value, target):
        return state.replace(
            actor=state.actor.replace(params=actor),
            critics=state.critics.replace(params=critics),
            value=state.value.replace(params=value),
            target_value=target,
        )

    def losses(*others):
        other = with_others(*others)
        of_value = sac_v1.value_loss(state.value.params, other, batch, KEY, ARGS)[0]
        return of_value + sac_v1.critic_loss(state.critics.params, other, batch, ARGS)[0]

    others = state.actor.params, state.critics.params, state.value.params, state.target_value
    flat = jax.jit(jax.grad(losses, (0, 1, 2, 3)))(*others)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


def scaled_outputs(params, factor):
    """A network whose outputs are `factor` times as large."""
    last = max(params["params"])
    return {"params": params["params"] | {last: jax.tree.map(lambda x: factor * x, params["params"][last])}}


def test_scaling_rewards_is_lowering_the_temperature():
    """All values at (c, α) are c times those at (1, α/c), and the policy's gradient too."""
    c, state, batch = 4.0, some_state(), make_batch()
    scaled = state.replace(
        critics=state.critics.replace(params=scaled_outputs(state.critics.params, c)),
        value=state.value.replace(params=scaled_outputs(state.value.params, c)),
        target_value=scaled_outputs(state.target_value, c),
    )
    one, other = replace(ARGS, reward_scale=1.0, alpha=0.3 / c), replace(ARGS, reward_scale=c, alpha=0.3)
    for loss, network, key, power in (
        (value_loss, "value", (KEY,), 2),
        (critic_loss, "critics", (), 2),
        (actor_loss, "actor", (KEY,), 1),
    ):
        (plain, _), _ = loss(getattr(state, network).params, state, batch, *key, one)
        (found, _), _ = loss(getattr(scaled, network).params, scaled, batch, *key, other)
        assert found == pytest.approx(c**power * float(plain), rel=1e-5)
    plain, found = (
        actor_loss(s.actor.params, s, batch, KEY, args)[1] for s, args in ((state, one), (scaled, other))
    )
    assert all(np.allclose(a, c * b, rtol=1e-4, atol=1e-5) for a, b in leaves(found, plain))


@pytest.mark.parametrize(
    ("env_id", "scale"),
    [
        ("Hopper-v4", 5),
        ("Hopper-v5", 5),
        ("Walker2d-v4", 5),
        ("HalfCheetah-v4", 5),
        ("Ant-v4", 5),
        ("Humanoid-v4", 20),
        ("HumanoidStandup-v4", 100),
        ("Pendulum-v1", 1),
        ("my_module:Walker2d-v4", 5),
    ],
)
def test_reward_scale_is_that_of_the_environment_unless_given(env_id, scale):
    assert sac_v1.reward_scale(sac_v1.Args(env_id=env_id)) == scale
    assert sac_v1.reward_scale(sac_v1.Args(env_id=env_id, reward_scale=2.5)) == 2.5


def test_samples_and_their_density():
    state, batch = some_state(), make_batch(64)
    policy = sac_v1.policy(state)
    action, log_prob = sample_action(policy, batch.obs, KEY)
    expected, density = reference_sample(state.actor.params, batch.obs, KEY)
    assert np.allclose(action, expected, rtol=0, atol=1e-5)
    assert np.allclose(log_prob, density, rtol=1e-4, atol=1e-4)
    mean = mlp(state.actor.params, np.float64(batch.obs))[:, :ACTION_DIM]
    assert np.allclose(sac_v1.act(policy, batch.obs, KEY, True), np.tanh(mean), rtol=0, atol=1e-5)
    assert np.allclose(sac_v1.act(policy, batch.obs, KEY, False), expected, rtol=0, atol=1e-5)


def test_init():
    """Weights within √(6 / (fan_in + fan_out)), biases 0; the target is a copy."""
    state = make_state(sac_v1, sac_v1.Args(), Task(14, 2))
    sizes = dict(actor=14, critics=16, value=14)
    for name, fan_in in sizes.items():
        layer = getattr(state, name).params["params"]["Dense_0"]
        bound = math.sqrt(6 / (fan_in + 256))
        assert 0.97 * bound < jnp.abs(layer["kernel"]).max() <= bound, name
        assert not jnp.any(layer["bias"]), name
    assert not changed(state.target_value, state.value.params)
    assert state.value.params["params"]["Dense_2"]["kernel"].shape == (256, 1)


def test_targets_move_by_tau_when_their_turn_comes():
    """All the rest moves at every update."""
    args = replace(ARGS, target_network_frequency=3, tau=0.3)
    state, batch = some_state(), make_batch()
    for index in range(6):
        after, _ = update(state, batch, KEY, jnp.int32(index), args)
        weight = 0.3 if index in (0, 3) else 0
        for target, new, old in leaves(after.target_value, after.value.params, state.target_value):
            assert np.allclose(target, weight * new + (1 - weight) * old, rtol=1e-6, atol=1e-7)
        for name in ("actor", "critics", "value"):
            assert changed(getattr(state, name).params, getattr(after, name).params)
        state = after


def test_a_hard_copy():
    args = replace(ARGS, target_network_frequency=1000, tau=1.0)
    for index, copied in ((1000, True), (1001, False)):
        after, _ = update(some_state(), make_batch(), KEY, jnp.int32(index), args)
        assert changed(after.target_value, after.value.params) != copied


def test_an_update_is_three_steps_in_their_order():
    """V against the old critics, critics against the old target, the actor against the new critics."""
    args = replace(ARGS, v_lr=0.1, q_lr=0.05, policy_lr=0.02)
    state, batch = make_state(sac_v1, args, TASK), make_batch()
    after, metrics = update(state, batch, KEY, jnp.int32(0), args)
    value_key, actor_key = jax.random.split(KEY)
    _, grads = value_loss(state.value.params, state, batch, value_key, args)
    value = state.value.apply_gradients(grads=grads)
    assert distance(value.params, after.value.params) < 1e-6
    _, grads = critic_loss(state.critics.params, state, batch, args)
    critics = state.critics.apply_gradients(grads=grads)
    assert distance(critics.params, after.critics.params) < 1e-6
    given = state.actor.params, state.replace(critics=after.critics, value=after.value), batch, actor_key
    _, grads = actor_loss(*given, args)
    assert distance(state.actor.apply_gradients(grads=grads).params, after.actor.params) < 1e-6
    names = {
        "values",
        "value_loss",
        "actor_loss",
        "entropy",
        "qf1_loss",
        "qf2_loss",
        "qf1_values",
        "qf2_values",
    }
    assert metrics.keys() == {f"losses/{name}" for name in names}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(reward_scale=0.0), "reward_scale must be a finite number > 0"),
        (dict(alpha=-1.0), "alpha must be a finite number >= 0"),
        (dict(tau=0.0), r"tau must be in \(0, 1\]"),
        (dict(learning_starts=100), "only 100 transitions when learning starts, fewer than batch_size 256"),
        (dict(learning_starts=10**6), "learning would never start"),
        (dict(buffer_size=100), "batch_size 256 > buffer_size 100"),
    ],
)
def test_refused_arguments(given, words):
    with pytest.raises(UsageError, match=words) as caught:
        validate(sac_v1.Args(**given))
    assert "\n" not in str(caught.value)
    validate(sac_v1.Args(alpha=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("c", [1.0, 2.0])
def test_one_step_problem_reaches_its_soft_optimum(c):
    """c reward = α[log N(atanh ã; m, s²) − log(1 − ã²)] and the episode ends: π* = tanh N(m, s²), and V is
    α log ∫ exp(Q/α) = 0."""
    m, s, alpha = 0.4, 0.5, 0.5
    args = sac_v1.Args(
        hidden_dims=(64, 64), alpha=alpha, reward_scale=c, q_lr=1e-3, policy_lr=1e-3, v_lr=1e-3
    )

    def step(state, index):
        key, action_key = jax.random.split(jax.random.fold_in(jax.random.key(5), index))
        action = jax.random.uniform(action_key, (256, 1), minval=-0.98, maxval=0.98)
        u = jnp.arctanh(action)
        log_density = -0.5 * ((u - m) / s) ** 2 - jnp.log(s * jnp.sqrt(2 * jnp.pi)) - jnp.log(1 - action**2)
        obs, ones = jnp.zeros((256, 1)), jnp.ones(256)
        batch = Transition(obs, action, alpha * log_density[:, 0] / c, obs, ones)
        return sac_v1.update(state, batch, key, index, args)[0], None

    @jax.jit
    def trained(key):
        return jax.lax.scan(step, sac_v1.init(key, Task(1, 1), args), jnp.arange(4000))[0]

    state = trained(jax.random.key(0))
    mean, log_std = sac_v1.policy(state)(jnp.zeros(1))
    assert mean[0] == pytest.approx(m, abs=0.1)
    assert math.exp(log_std[0]) == pytest.approx(s, rel=0.15)
    assert state.value.apply_fn(state.value.params, jnp.zeros(1)) == pytest.approx(0, abs=0.05)


PROBE = sac_v1.Args(
    hidden_dims=(64,), gamma=0.9, q_lr=3e-3, v_lr=3e-3, policy_lr=3e-3, tau=0.05, reward_scale=1.0
)
CONSTANT = "tests.support.probes:ConstantReward-v0"


@cache
def constant_reward(alpha):
    """The state after updates on reward 1 for ever, and the transitions."""
    return trained_on(sac_v1, replace(PROBE, alpha=alpha), CONSTANT)


def networks(state, rows):
    """V and the critics at the observations of the transitions, and the policy's entropy in nats."""
    obs = jnp.tile(rows.obs, (50, 1))
    _, log_prob = sample_action(sac_v1.policy(state), obs, jax.random.key(3))
    value = state.value.apply_fn(state.value.params, rows.obs)
    q = state.critics.apply_fn(state.critics.params, rows.obs, rows.action)
    return np.asarray(value), np.asarray(q), float(-log_prob.mean())


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_entropy_is_counted_once(alpha):
    """Reward 1 for ever, no value is cut at the limit of 50 steps: V = (1 + α H)/(1 - γ) and Q is V less
    α H. Counted twice, V would be 17 at α = 0.5; left out, 10."""
    state, rows = constant_reward(alpha)
    value, q, entropy = networks(state, rows)
    assert np.allclose(value, (1 + alpha * entropy) / 0.1, rtol=0.05)
    assert np.allclose(q, (1 + 0.9 * alpha * entropy) / 0.1, rtol=0.05)
    assert alpha == 0 or 0.6 < entropy <= math.log(2) + 0.01
    assert value.mean() - q.mean() == pytest.approx(alpha * entropy, abs=0.15)


@pytest.mark.slow
def test_termination_leaves_the_reward():
    """Q is 1, and V = 1 + α H."""
    args = replace(PROBE, alpha=0.5, batch_size=128)
    _, rows = constant_reward(0.5)
    ends = rows.replace(terminated=jnp.ones_like(rows.reward))
    state = trained_on_rows(sac_v1, args, ends, 2000, make_state(sac_v1, args, Task(1, 1)))
    value, q, entropy = networks(state, rows)
    assert np.allclose(q, 1, atol=0.05) and np.allclose(value, 1 + 0.5 * entropy, atol=0.08)


@pytest.mark.slow
def test_rewards_are_scaled_once():
    """At c = 5 and α = 1 every value is 5 times that at α = 1/5."""
    args = replace(PROBE, alpha=1.0, reward_scale=5.0)
    value, q, entropy = networks(*trained_on(sac_v1, args, CONSTANT))
    assert np.allclose(value, (5 + entropy) / 0.1, rtol=0.05)
    assert np.allclose(q, (5 + 0.9 * entropy) / 0.1, rtol=0.05)


@pytest.mark.slow
def test_an_episode_that_ends_has_the_values_of_its_steps():
    """Reward 1 for three steps: Q is 1 + γ + γ², 1 + γ, 1 without entropy."""
    state, rows = trained_on(sac_v1, replace(PROBE, alpha=0.0), "tests.support.probes:Counting-v0")
    _, q, _ = networks(state, rows)
    assert np.allclose(q, np.array([2.71, 1.9, 1.0])[np.int64(rows.obs[:, 0])], atol=0.1)


@pytest.mark.slow
def test_reward_that_depends_on_the_action():
    """Reward -(a - 0.3)² and the end, almost without entropy."""
    args = replace(PROBE, alpha=1e-3, q_lr=1e-3, policy_lr=1e-3, batch_size=128)
    rng = np.random.default_rng(0)
    action, obs = rng.uniform(-1, 1, (2000, 1)).astype(np.float32), np.zeros((2000, 1), np.float32)
    rows = Transition(obs, action, -((action[:, 0] - 0.3) ** 2), obs, np.ones(2000, np.float32))
    state = trained_on_rows(sac_v1, args, rows, 3000, make_state(sac_v1, args, Task(1, 1)))
    act = partial(sac_v1.act, sac_v1.policy(state), jnp.zeros(1), KEY)
    assert act(True) == pytest.approx(0.3, abs=0.05)


def test_log_std_is_clipped_and_the_density_exact_where_tanh_saturates(monkeypatch):
    params = {"params": {"Dense_0": {"kernel": jnp.zeros((1, 4)), "bias": jnp.array([1.0, 2.0, -30.0, 3.0])}}}
    mean, log_std = sac_v1.Actor((), 2).apply(params, jnp.zeros(1))
    assert mean.tolist() == [1, 2] and log_std.tolist() == [-20, 2]
    u = np.array([[-12.0], [-9.0], [9.0], [12.0]])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.float32(u / 5))
    wide = (jnp.zeros((4, 1)), jnp.full((4, 1), math.log(5)))
    _, log_prob = sac_v1.sample_action(lambda obs: wide, None, None)
    log_jacobian = math.log(4) - 2 * np.abs(u) - 2 * np.log1p(np.exp(-2 * np.abs(u)))
    expected = -0.5 * (u / 5) ** 2 - math.log(5 * math.sqrt(2 * math.pi)) - log_jacobian
    assert np.allclose(log_prob, expected[:, 0], atol=1e-4)

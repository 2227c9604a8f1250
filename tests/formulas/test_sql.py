"""Every formula of sql.py against float64 NumPy or a closed form, and probes with known values."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cleanrl_maxent import sql
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.env.task import Task
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import (
    ACTION_DIM,
    OBS_DIM,
    TASK,
    finite_difference,
    make_batch,
    mlp,
    trained_on,
)

ARGS = sql.Args(
    hidden_dims=(16, 16), batch_size=8, alpha=0.3, reward_scale=2.0, value_particles=5, svgd_particles=7
)

critic_loss = jax.jit(jax.value_and_grad(sql.critic_loss, has_aux=True), static_argnums=4)
actor_loss = jax.jit(jax.value_and_grad(sql.actor_loss, has_aux=True), static_argnums=4)
soft_value = jax.jit(sql.soft_value, static_argnums=(2, 4))
update = jax.jit(sql.update, static_argnums=4)


@cache
def make_state(n_critics=1):
    """A state whose targets differ from its critics, as after some training."""
    args = replace(ARGS, n_critics=n_critics)
    init = jax.jit(lambda seed: sql.init(jax.random.key(seed), TASK, args))
    state, other = init(0), init(100)
    return state.replace(target_critics=other.critics.params)


@cache
def make_fast_state():
    """One whose steps are large: gradient descent of the sampler by 1, and critics with Adam's at 0.1."""
    state, descent = make_state(), optax.sgd(1.0)
    actor = state.actor.replace(tx=descent, opt_state=descent.init(state.actor.params))
    return state.replace(actor=actor, critics=state.critics.replace(tx=optax.adam(0.1)))


def with_critic(function):
    """A state whose only critic is `function(obs, action)`."""
    state = make_state()
    critics = state.critics.replace(apply_fn=lambda params, obs, action: function(obs, action)[None])
    return state.replace(critics=critics)


def reference_q(stacked, obs, action):
    """The smallest critic in NumPy, `(...)`, of observations that are repeated for their actions."""
    x = np.concatenate([obs, action], axis=-1)
    count = len(jax.tree.leaves(stacked)[0])
    return np.min([mlp(jax.tree.map(lambda p, i=i: p[i], stacked), x)[..., 0] for i in range(count)], axis=0)


def repeated(obs, times):
    return np.repeat(np.float64(obs)[:, None], times, axis=1)


def reference_value(params, obs, key, args):
    """V = α log of the mean of exp(Q/α) over uniform actions, times their volume 2^D."""
    shape = (len(obs), args.value_particles, ACTION_DIM)
    action = np.float64(jax.random.uniform(key, shape, minval=-1, maxval=1))
    q = reference_q(params, repeated(obs, args.value_particles), action)
    return args.alpha * np.log(np.exp(q / args.alpha).mean(axis=1) * 2**ACTION_DIM)


@pytest.mark.parametrize("n_critics", [1, 2])
def test_critic_loss_and_gradient(n_critics):
    args, state, batch = replace(ARGS, n_critics=n_critics), make_state(n_critics), make_batch()
    key = jax.random.key(7)
    value = reference_value(state.target_critics, batch.next_obs, key, args)
    y = 2 * batch.reward + args.gamma * (1 - batch.terminated) * value

    def reference(params):
        critics = [jax.tree.map(lambda p, i=i: p[i : i + 1], params) for i in range(n_critics)]
        return sum(0.5 * ((reference_q(c, batch.obs, batch.action) - y) ** 2).mean() for c in critics)

    params = state.critics.params
    (loss, metrics), grads = critic_loss(params, state, batch, key, args)
    assert loss == pytest.approx(reference(params), rel=1e-5) and len(metrics) == 2 * n_critics
    for i in range(n_critics):
        q = reference_q(jax.tree.map(lambda p, i=i: p[i : i + 1], params), batch.obs, batch.action)
        assert metrics[f"losses/qf{i + 1}_values"] == pytest.approx(q.mean(), rel=1e-4, abs=1e-6)
        assert metrics[f"losses/qf{i + 1}_loss"] == pytest.approx(0.5 * ((q - y) ** 2).mean(), rel=1e-4)
    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (n_critics - 1, 0))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("kappa", "dim", "biases", "rounding"),
    [
        (1, 1, (-0.01, -0.00, -0.00), 0.005),
        (10, 1, (-0.42, -0.11, -0.02), 0.005),
        (3, 6, (-2.2, -1.3, -0.5), 0.05),
        (10, 6, (-20, -15, -9), 0.5),
    ],
)
def test_bias_of_uniform_proposals(kappa, dim, biases, rounding):
    """Q/α = κ Σ a has V/α = D log(2 sinh κ/κ); the bias of K = 16, 50, 256 proposals, in nats."""
    exact = dim * math.log(2 * math.sinh(kappa) / kappa)
    state = with_critic(lambda obs, action: 0.5 * kappa * action.sum(-1))
    for count, bias in zip((16, 50, 256), biases, strict=True):
        args = sql.Args(value_particles=count, alpha=0.5)
        value = soft_value(state, jnp.zeros((4000, 1)), dim, jax.random.key(0), args) / 0.5
        error = float(value.std()) / math.sqrt(4000)
        assert abs(float(value.mean()) - exact - bias) < 4 * error + rounding


def test_scaling_rewards_is_lowering_the_temperature():
    """V of c Q at α = 1 is c times V of Q at α = 1/c, so by induction all of Q is, with c r."""

    def values(scale, alpha):
        args = sql.Args(alpha=alpha, value_particles=8)
        state = with_critic(lambda obs, action: scale * jnp.sin(3 * action.sum(-1)))
        return np.asarray(soft_value(state, jnp.zeros((6, 1)), 2, jax.random.key(0), args))

    assert np.allclose(values(4.0, 1.0), 4 * values(1.0, 0.25), rtol=1e-5)


PROBE = sql.Args(
    hidden_dims=(64,),
    gamma=0.9,
    alpha=0.5,
    reward_scale=1.0,
    q_lr=3e-3,
    tau=0.05,
    target_network_frequency=1,
    value_particles=4,
    svgd_particles=4,
)


@pytest.mark.slow
def test_termination_tells_whether_the_constants_of_the_soft_value_are_right():
    """Reward 1 for three steps and the end: each step to come adds its reward and α log 2 of entropy."""
    state, rows = trained_on(sql, PROBE, "tests.support.probes:Counting-v0")
    q = np.asarray(state.critics.apply_fn(state.critics.params, rows.obs, rows.action))
    last = 1.0
    middle = 1 + 0.9 * (last + 0.5 * math.log(2))
    first = 1 + 0.9 * (middle + 0.5 * math.log(2))
    assert np.allclose(q, np.array([first, middle, last])[np.int64(rows.obs[:, 0])], atol=0.1)


@pytest.mark.slow
def test_time_limit_does_not_cut_the_bootstrap():
    """Reward 1, γ 0.9, one action: Q = 1 + γ(Q + α log 2) everywhere, also at the limit of 50 steps."""
    state, rows = trained_on(sql, PROBE, "tests.support.probes:ConstantReward-v0")
    q = np.asarray(state.critics.apply_fn(state.critics.params, rows.obs, rows.action))
    assert np.allclose(q, (1 + 0.9 * 0.5 * math.log(2)) / 0.1, atol=0.5)


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (6,), (4, 3), (7, 9)])
def test_lower_median(shape):
    """Of an even count the lower one of the middle two; zeros and equal numbers among them."""
    rng = np.random.default_rng(0)
    lower_median = jax.jit(sql.lower_median)
    for scale in (1e-30, 1.0, 1e30):
        squared = np.float32(scale * rng.exponential(size=shape) ** 4)
        for numbers in (squared, np.float32(squared > np.median(squared)), 0 * squared):
            expected = np.quantile(numbers, 0.5, method="lower")
            assert lower_median(numbers) == expected == np.sort(numbers, axis=None)[(numbers.size - 1) // 2]


def test_stein_direction():
    """Against a loop: h is the lower median over log of the fixed ones; repulsion points away from them."""
    rng = np.random.default_rng(0)
    fixed, moved, score = rng.normal(size=(4, 2)), rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    distances = sorted(float(((x - y) ** 2).sum()) for x in fixed for y in moved)
    h = distances[5] / math.log(4)  # of twelve: the sixth
    expected = np.zeros((3, 2))
    for j, y in enumerate(moved):
        for x, g in zip(fixed, score, strict=True):
            kernel = math.exp(-((x - y) ** 2).sum() / h)
            expected[j] += (kernel * g - 2 * (x - y) / h * kernel) / 4
    stein_direction = jax.jit(sql.stein_direction)
    assert np.allclose(stein_direction(*map(jnp.array, (fixed, moved, score))), expected)
    away = stein_direction(jnp.zeros((2, 1)), jnp.array([[0.5], [-0.5]]), jnp.zeros((2, 1)))
    assert away[0] > 0 > away[1]
    near = stein_direction(jnp.zeros((2, 1)), jnp.array([[0.01]]), jnp.ones((2, 1)))
    assert near == pytest.approx(math.exp(-0.1) * (1 + 2 * 0.01 / 1e-3))  # the width is at least 1e-3
    together = stein_direction(jnp.zeros((2, 1)), jnp.zeros((1, 1)), jnp.ones((2, 1)))
    assert together == pytest.approx(1)


@pytest.mark.parametrize("n_critics", [1, 2])
@pytest.mark.parametrize("space", ["raw", "action"])
def test_log_density(space, n_critics):
    args, state, batch = replace(ARGS, svgd_space=space), make_state(n_critics), make_batch()
    particle = np.random.default_rng(0).uniform(-0.9, 0.9, (8, 5, ACTION_DIM))
    action = np.tanh(particle) if space == "raw" else particle
    q = reference_q(state.critics.params, repeated(batch.obs, 5), action)
    expected = q / 0.3 + np.log(1 - action**2).sum(-1)
    density = jax.jit(sql.log_density, static_argnums=3)(jnp.float32(particle), batch.obs, state, args)
    assert np.allclose(density, expected, rtol=1e-4, atol=1e-4)


def test_score_of_saturated_samples():
    """Far from 0 log(1 - tanh²u) is log 4 - 2|u|, in float32 too, where tanh²u is 1."""
    state = with_critic(lambda obs, action: 0 * action.sum(-1))
    u = jnp.array([-30.0, 30.0]).reshape(1, 2, 1)

    def density(u):
        found = sql.log_density(u, jnp.zeros((1, 1)), state, sql.Args())
        return found.sum(), found

    (_, found), score = jax.jit(jax.value_and_grad(density, has_aux=True))(u)
    assert found[0] == pytest.approx(math.log(4) - 60, rel=1e-6)
    assert score.ravel() == pytest.approx([2, -2], rel=1e-6)


@pytest.mark.parametrize("space", ["raw", "action"])
def test_actor_loss_moves_samples_along_their_direction(space):
    """Its gradient is the mean over states and particles of -direction · df/dφ, in float64."""
    args = replace(ARGS, svgd_space=space, update_ratio=0.6)
    assert args.particles == (4, 3)  # four move, three stay
    assert replace(args, update_ratio=0.29, svgd_particles=100).particles == (29, 71)
    state, batch, key = make_state(), make_batch(), jax.random.key(3)
    fixed_key, moved_key = jax.random.split(key)

    def samples(params, key, count):
        noise = np.float64(jax.random.normal(key, (8, count, ACTION_DIM)))
        u = mlp(params, np.concatenate([repeated(batch.obs, count), noise], axis=-1))
        return u if space == "raw" else np.tanh(u)

    params = state.actor.params
    fixed, moved = samples(params, fixed_key, 3), samples(params, moved_key, 4)

    def density(particle):
        action = np.tanh(particle) if space == "raw" else particle
        q = reference_q(state.critics.params, repeated(batch.obs, 3), action)
        return q / 0.3 + np.log(1 - action**2 + 1e-6 * (space == "action")).sum(-1)

    steps = 1e-5 * np.eye(ACTION_DIM)
    score = np.stack([(density(fixed + step) - density(fixed - step)) / 2e-5 for step in steps], axis=-1)
    direction = np.asarray(jax.jit(jax.vmap(sql.stein_direction))(fixed, moved, score))

    def reference(params):
        return -(direction * samples(params, moved_key, 4)).sum(-1).mean()

    (loss, metrics), grads = actor_loss(params, state, batch, key, args)
    assert metrics["losses/actor_loss"] == loss
    assert loss == pytest.approx(reference(params), rel=1e-3)
    for path, index in [(("Dense_0", "kernel"), (4, 1)), (("Dense_2", "bias"), (1,))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=5e-3, abs=1e-5)


def double_well(obs, action):
    return -8 * (action[..., 0] ** 2 - 0.36) ** 2


@pytest.mark.parametrize("space", ["raw", "action"])
def test_stein_identity(space):
    """At its fixed point E_p[κ g + ∇κ] = 0, by quadrature: for p = exp(Q) over actions where particles are
    raw; where they are actions, for exp(Q) Π(1 - a² + 1e-6), not exp(Q).
    """
    args, state = sql.Args(svgd_space=space), with_critic(double_well)

    def log_density(x):
        return sql.log_density(x.reshape(1, 1, 1), jnp.zeros((1, 1)), state, args).sum()

    def of_one(x, y):
        """κ(x, y) g(x) + ∇κ(x, y): two more fixed particles, one on each side of y, make the width 0.25
        and cancel each other.
        """
        width = math.sqrt(0.25 * math.log(3))
        score = jnp.array([jax.grad(log_density)(x), 0, 0])[:, None]
        fixed = jnp.array([x, y - width, y + width])[:, None]
        return 3 * sql.stein_direction(fixed, y.reshape(1, 1), score)[0, 0]

    @jax.jit
    def largest(u):
        action = jnp.tanh(u)
        x = u if space == "raw" else action
        directions = jax.vmap(jax.vmap(of_one, (0, None)), (None, 0))(x, jnp.array([-0.9, -0.3, 0.1, 0.6]))
        found = []
        for tilt in (0, 1):
            density = jnp.exp(double_well(None, action[:, None])) * (1 - action**2 + 1e-6) ** tilt
            weights = density * (1 - action**2)  # da = (1 - a²) du
            found.append(jnp.abs(directions @ weights / weights.sum()).max())
        return found

    with jax.enable_x64(True):
        found = [float(value) for value in largest(jnp.linspace(-15, 15, 40_001))]
    right, wrong = found if space == "raw" else reversed(found)
    assert right < 1e-6 and wrong > 0.1


def test_init():
    state = jax.jit(lambda key: sql.init(key, Task(17, 6), sql.Args(n_critics=2)))(jax.random.key(0))
    kernels = state.critics.params["params"]["Dense_0"]["kernel"]
    assert 0.99 / math.sqrt(23) < jnp.abs(kernels).max() <= 1 / math.sqrt(23)
    assert kernels.shape == (2, 23, 128) and not np.allclose(kernels[0], kernels[1])
    assert state.actor.params["params"]["Dense_0"]["kernel"].shape == (23, 128)  # observation and noise


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_targets_move_when_their_turn_comes(tau):
    args = replace(ARGS, target_network_frequency=3, tau=tau)
    state = make_fast_state()
    for index in range(6):
        after, _ = update(state, make_batch(), jax.random.key(1), jnp.int32(index), args)
        weight = tau if index in (0, 3) else 0
        for target, new, old in leaves(after.target_critics, after.critics.params, state.target_critics):
            if weight in (0, 1):  # a copy, or nothing: exactly
                assert np.array_equal(target, new if weight else old)
            else:
                assert np.allclose(target, weight * new + (1 - weight) * old, rtol=1e-6, atol=1e-7)
        assert changed(state.actor.params, after.actor.params)
        state = after


def test_the_sampler_steps_towards_the_new_critics():
    """Gradient descent of the sampler by 1, after a critics' step that is large."""
    args = replace(ARGS, target_network_frequency=3)
    state, batch, key = make_fast_state(), make_batch(), jax.random.key(1)
    after, _ = update(state, batch, key, jnp.int32(0), args)
    noise_key = jax.random.split(key)[1]

    def descended(critics):
        _, grads = actor_loss(state.actor.params, state.replace(critics=critics), batch, noise_key, args)
        return state.actor.apply_gradients(grads=grads).params

    assert distance(descended(after.critics), after.actor.params) < 1e-5
    assert distance(descended(state.critics), after.actor.params) > 1e-3


def test_noise_is_another_one_for_every_state_and_particle():
    policy, obs, key = sql.policy(make_state()), jnp.zeros((5, 4, OBS_DIM)), jax.random.key(0)
    u = np.asarray(policy(obs, key)).reshape(-1, ACTION_DIM)
    assert len(np.unique(u[:, 0])) == 20
    for deterministic in (True, False):
        assert np.array_equal(sql.act(policy, obs[0], key, deterministic), jnp.tanh(policy(obs[0], key)))


@pytest.mark.parametrize(
    ("env_id", "scale"),
    [
        ("Hopper-v4", 30),
        ("Hopper-v5", 30),
        ("HalfCheetah-v4", 30),
        ("Swimmer-v4", 30),
        ("Humanoid-v4", 100),
        ("Ant-v4", 300),
        ("Pendulum-v1", 1),
        ("my_module:Walker2d-v4", 10),
    ],
)
def test_reward_scale_is_that_of_the_environment_unless_given(env_id, scale):
    assert sql.reward_scale(sql.Args(env_id=env_id)) == scale
    assert sql.reward_scale(sql.Args(env_id=env_id, reward_scale=2.5)) == 2.5


def test_the_fewest_particles_learn():
    args = replace(ARGS, svgd_particles=3)  # one moves, two stay
    validate(args)
    assert args.particles == (1, 2)
    state = make_state()
    after, metrics = update(state, make_batch(), jax.random.key(1), 0, args)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.actor.params, metrics)))
    assert changed(state.actor.params, after.actor.params)

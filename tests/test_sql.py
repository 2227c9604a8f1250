"""sql.py: every formula against float64 NumPy or a closed form, and samplers of known distributions."""

import math
from functools import cache, partial
from unittest import mock

import envs as probes
import gymnasium as gym
import jax
import jax.numpy as jnp
import mixture
import multigoal
import numpy as np
import optax
import particles
import pytest
from faults import differences, digests
from gymnasium.utils.env_checker import check_env
from matplotlib import image
from test_resume import PENDULUM, interrupted
from test_sac import ACTION_DIM, OBS_DIM, finite_difference, make_batch, mlp

from cleanrl_maxent import sql
from cleanrl_maxent.common.arguments import UsageError, recorded, validate
from cleanrl_maxent.environments.multigoal import MultiGoal

ARGS = sql.Args(
    hidden_dims=(16, 16), batch_size=8, alpha=0.3, reward_scale=2.0, value_particles=5, svgd_particles=7
)


@cache
def make_state(args=ARGS):
    """A state whose targets differ from its critics, as after some training."""
    init = jax.jit(lambda seed: sql.init(jax.random.key(seed), OBS_DIM, ACTION_DIM, args))
    state, other = init(0), init(100)
    return state.replace(target_critics=other.critics.params)


def reference_q(stacked, obs, action):
    """The smallest critic in NumPy, `(...)`, of observations that are repeated for their actions."""
    x = np.concatenate([obs, action], axis=-1)
    count = len(jax.tree.leaves(stacked)[0])
    return np.min([mlp(jax.tree.map(lambda p, i=i: p[i], stacked), x)[..., 0] for i in range(count)], axis=0)


def repeated(obs, times):
    return np.repeat(np.float64(obs)[:, None], times, axis=1)


# ---- the soft value and its residual


def reference_value(params, obs, key, args):
    """V = α log of the mean of exp(Q/α) over uniform actions, times their volume 2^D."""
    shape = (len(obs), args.value_particles, ACTION_DIM)
    action = np.float64(jax.random.uniform(key, shape, minval=-1, maxval=1))
    q = reference_q(params, repeated(obs, args.value_particles), action)
    return args.alpha * np.log(np.exp(q / args.alpha).mean(axis=1) * 2**ACTION_DIM)


@pytest.mark.parametrize("n_critics", [1, 2])
def test_critic_loss_and_gradient(n_critics):
    args = sql.Args(**{**vars(ARGS), "n_critics": n_critics})
    state, batch, key = make_state(args), make_batch(), jax.random.key(7)
    value = reference_value(state.target_critics, batch.next_obs, key, args)
    y = 2 * batch.reward + args.gamma * (1 - batch.terminated) * value

    def reference(params):
        critics = [jax.tree.map(lambda p, i=i: p[i : i + 1], params) for i in range(n_critics)]
        return sum(0.5 * ((reference_q(c, batch.obs, batch.action) - y) ** 2).mean() for c in critics)

    params = state.critics.params
    loss_and_grads = jax.jit(jax.value_and_grad(sql.critic_loss, has_aux=True), static_argnums=4)
    (loss, metrics), grads = loss_and_grads(params, state, batch, key, args)
    assert loss == pytest.approx(reference(params), rel=1e-5) and len(metrics) == 2 * n_critics
    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (n_critics - 1, 0))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def with_critic(function, args, obs_dim=1, action_dim=1):
    """A state whose only critic is `function(obs, action)`, with nothing to learn."""
    state = jax.jit(lambda key: sql.init(key, obs_dim, action_dim, args))(jax.random.key(0))
    critics = state.critics.replace(apply_fn=lambda params, obs, action: function(obs, action)[None])
    return state.replace(critics=critics)


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
    for count, bias in zip((16, 50, 256), biases, strict=True):
        args = sql.Args(value_particles=count, alpha=0.5)
        state = with_critic(lambda obs, action: 0.5 * kappa * action.sum(-1), args)
        value = sql.soft_value(state, jnp.zeros((4000, 1)), dim, jax.random.key(0), args) / 0.5
        error = float(value.std()) / math.sqrt(4000)
        assert abs(float(value.mean()) - exact - bias) < 4 * error + rounding


def test_mixture_of_proposals():
    """Half uniform, half fitted, they estimate V/α = D log(2 sinh κ/κ) of Q/α = κ Σ a."""
    exact = 2 * math.log(2 * math.sinh(3) / 3)
    share = np.random.default_rng(0).uniform(1e-6, 1, (100, 64, 2))
    samples = jnp.arctanh(jnp.float32(1 + np.log(share + (1 - share) * math.exp(-6)) / 3))
    value = particles.mixture_value(lambda a: 3 * a.sum(-1), samples, jax.random.key(0), 4096)
    assert np.allclose(value, exact, atol=0.1) and float(value.mean()) == pytest.approx(exact, abs=0.01)


def test_training_with_the_mixture(tmp_path):
    """Its soft value is that of the smaller target, by quadrature; its command trains with it, and sql.py
    does not go on with such a run.
    """
    args = sql.Args(**{**vars(ARGS), "value_particles": 8192, "n_critics": 2})
    state, obs = make_state(args), make_batch().obs
    middles = (np.arange(40) + 0.5) / 20 - 1
    grid = np.stack(np.meshgrid(*[middles] * ACTION_DIM), axis=-1).reshape(1, -1, ACTION_DIM)
    q = reference_q(state.target_critics, repeated(obs, grid.shape[1]), grid.repeat(len(obs), axis=0))
    exact = args.alpha * np.log(np.exp(q / args.alpha).mean(axis=1) * 2**ACTION_DIM)
    value = jax.jit(lambda state, obs, key: mixture.soft_value(state, obs, ACTION_DIM, key, args))
    assert np.allclose(value(state, obs, jax.random.key(0)), exact, atol=0.02)
    with pytest.raises(UsageError, match="value_particles must be even, half of each kind; got 3"):
        mixture.train(mixture.Args(value_particles=3))
    with mock.patch.object(mixture, "mixture_value", side_effect=RuntimeError("called")):
        with pytest.raises(RuntimeError, match="called"):
            mixture.train(mixture.Args(**SMALL_RUN | dict(value_particles=4), run_dir=str(tmp_path / "run")))
    with pytest.raises(UsageError, match="is a run of another program: value_proposals differs"):
        recorded(sql.Args, str(tmp_path / "run"))


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


def test_termination_tells_whether_the_constants_of_the_soft_value_are_right():
    """Reward 1 for three steps and the end: each step to come adds its reward and α log 2 of entropy."""
    state, rows = probes.trained_on(sql, PROBE, "Counting-v0")
    q = np.asarray(state.critics.apply_fn(state.critics.params, rows.obs, rows.action))
    last = 1.0
    middle = 1 + 0.9 * (last + 0.5 * math.log(2))
    first = 1 + 0.9 * (middle + 0.5 * math.log(2))
    assert np.allclose(q, np.array([first, middle, last])[np.int64(rows.obs[:, 0])], atol=0.1)


def test_time_limit_does_not_cut_the_bootstrap():
    """Reward 1, γ 0.9, one action: Q = 1 + γ(Q + α log 2) everywhere, also at the limit of 50 steps."""
    state, rows = probes.trained_on(sql, PROBE, "ConstantReward-v0")
    q = np.asarray(state.critics.apply_fn(state.critics.params, rows.obs, rows.action))
    assert np.allclose(q, (1 + 0.9 * 0.5 * math.log(2)) / 0.1, atol=0.5)


def test_scaling_rewards_is_lowering_the_temperature():
    """V of c Q at α = 1 is c times V of Q at α = 1/c, so by induction all of Q is, with c r."""
    key, obs = jax.random.key(0), jnp.zeros((6, 1))

    def values(scale, alpha):
        args = sql.Args(alpha=alpha, value_particles=8)
        state = with_critic(lambda obs, action: scale * jnp.sin(3 * action.sum(-1)), args)
        return np.asarray(sql.soft_value(state, obs, 2, key, args))

    assert np.allclose(values(4.0, 1.0), 4 * values(1.0, 0.25), rtol=1e-5)


# ---- Stein's direction


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
    assert np.allclose(sql.stein_direction(jnp.array(fixed), jnp.array(moved), jnp.array(score)), expected)
    away = sql.stein_direction(jnp.zeros((2, 1)), jnp.array([[0.5], [-0.5]]), jnp.zeros((2, 1)))
    assert away[0] > 0 > away[1]
    near = sql.stein_direction(jnp.zeros((2, 1)), jnp.array([[0.01]]), jnp.ones((2, 1)))
    assert near == pytest.approx(math.exp(-0.1) * (1 + 2 * 0.01 / 1e-3))  # the width is at least 1e-3
    together = sql.stein_direction(jnp.zeros((2, 1)), jnp.zeros((1, 1)), jnp.ones((2, 1)))
    assert together == pytest.approx(1)


@pytest.mark.parametrize("n_critics", [1, 2])
@pytest.mark.parametrize("space", ["raw", "action"])
def test_log_density(space, n_critics):
    args = sql.Args(**{**vars(ARGS), "svgd_space": space, "n_critics": n_critics})
    state, batch = make_state(args), make_batch()
    particle = np.random.default_rng(0).uniform(-0.9, 0.9, (8, 5, ACTION_DIM))
    action = np.tanh(particle) if space == "raw" else particle
    q = reference_q(state.critics.params, repeated(batch.obs, 5), action)
    expected = q / 0.3 + np.log(1 - action**2).sum(-1)
    density = sql.log_density(jnp.float32(particle), batch.obs, state, args)
    assert np.allclose(density, expected, rtol=1e-4, atol=1e-4)


def test_score_of_saturated_samples():
    """Far from 0 log(1 - tanh²u) is log 4 - 2|u|, in float32 too, where tanh²u is 1."""
    state = with_critic(lambda obs, action: 0 * action.sum(-1), sql.Args())
    u = jnp.array([-30.0, 30.0]).reshape(1, 2, 1)

    def density(u):
        return sql.log_density(u, jnp.zeros((1, 1)), state, sql.Args())

    assert density(u)[0] == pytest.approx(math.log(4) - 60, rel=1e-6)
    score = jax.grad(lambda u: density(u).sum())(u)
    assert score.ravel() == pytest.approx([2, -2], rel=1e-6)


@pytest.mark.parametrize("space", ["raw", "action"])
def test_actor_loss_moves_samples_along_their_direction(space):
    """Its gradient is the mean over states and particles of -direction · df/dφ, in float64."""
    args = sql.Args(**{**vars(ARGS), "svgd_space": space, "update_ratio": 0.6})  # 4 move, 3 stay
    state, batch, key = make_state(args), make_batch(), jax.random.key(3)
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
    direction = np.asarray(jax.vmap(sql.stein_direction)(fixed, moved, score))

    def reference(params):
        return -(direction * samples(params, moved_key, 4)).sum(-1).mean()

    loss_and_grads = jax.jit(jax.value_and_grad(sql.actor_loss, has_aux=True), static_argnums=4)
    (loss, _), grads = loss_and_grads(params, state, batch, key, args)
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
    args = sql.Args(svgd_space=space)
    state = with_critic(double_well, args)

    def log_density(x):
        return sql.log_density(x.reshape(1, 1, 1), jnp.zeros((1, 1)), state, args).sum()

    def of_one(x, y):
        """κ(x, y) g(x) + ∇κ(x, y): two more fixed particles, one on each side of y, make the width 0.25
        and cancel each other.
        """
        distance = math.sqrt(0.25 * math.log(3))
        score = jnp.array([jax.grad(log_density)(x), 0, 0])[:, None]
        fixed = jnp.array([x, y - distance, y + distance])[:, None]
        return 3 * sql.stein_direction(fixed, y.reshape(1, 1), score)[0, 0]

    with jax.enable_x64(True):
        u = jnp.linspace(-15, 15, 40_001)
        action, x = jnp.tanh(u), u if space == "raw" else jnp.tanh(u)
        tilts = {
            tilt: jnp.exp(double_well(None, action[:, None])) * (1 - action**2 + 1e-6) ** tilt
            for tilt in (0, 1)
        }
        of_grid = jax.jit(jax.vmap(of_one, (0, None)))

        def largest(tilt):
            weights = tilts[tilt] * (1 - action**2)  # da = (1 - a²) du
            means = [weights @ of_grid(x, y) / weights.sum() for y in jnp.array([-0.9, -0.3, 0.1, 0.6])]
            return max(abs(float(mean)) for mean in means)

        right, wrong = (0, 1) if space == "raw" else (1, 0)
        assert largest(right) < 1e-6 and largest(wrong) > 0.1


# ---- samplers of known distributions

QUICK = dict(steps=500, hidden_dims=(64, 64), policy_lr=1e-3)


@pytest.mark.parametrize("dim", [1, 2])
def test_sampler_of_a_flat_energy(dim):
    """Uniform actions have E[a²] = 1/3; the published step's have the density ∝ Π(1 - a²), 1/5."""
    squares = {
        space: np.mean(particles.train_sampler(particles.flat, dim, space, **QUICK) ** 2)
        for space in ("raw", "action")
    }
    assert squares["raw"] == pytest.approx(1 / 3, abs=0.03)
    assert squares["action"] == pytest.approx(1 / 5, abs=0.03)


@pytest.mark.parametrize("dim", [1, 2])
def test_sampler_of_several_modes(dim):
    """Modes at ±0.6 in every dimension: all are sampled, and raw particles come nearest to exp(Q)/Z."""
    energy = particles.double_well
    actions = {s: particles.train_sampler(energy, dim, s, **QUICK) for s in ("raw", "action")}
    distance = {space: particles.total_variation(found, energy) for space, found in actions.items()}
    assert distance["raw"] < (0.05 if dim == 1 else 0.12) < distance["action"]
    assert particles.rarest_orthant(actions["raw"]) > 0.8 / 2**dim


def test_distance_to_known_samples():
    """Samples of exp(5a)/Z by the inverse of its distribution have none; uniform ones have 0.67."""
    share = np.random.default_rng(0).random((100_000, 1))
    exact = 1 + np.log(share + (1 - share) * math.exp(-10)) / 5
    edges = np.linspace(-1, 1, 21)
    weights = np.diff(np.exp(5 * edges)) / (math.exp(5) - math.exp(-5))
    assert particles.bin_probabilities(particles.slope, 1) == pytest.approx(weights, abs=1e-3)
    assert particles.total_variation(exact, particles.slope) < 0.01
    uniform = particles.total_variation(2 * share - 1, particles.slope)
    assert uniform == pytest.approx(0.5 * np.abs(weights - 1 / 20).sum(), abs=0.01)
    assert uniform == pytest.approx(0.67, abs=0.01)


# ---- init, update, whole runs


def test_init():
    state = jax.jit(lambda key: sql.init(key, 17, 6, sql.Args(n_critics=2)))(jax.random.key(0))
    for target, learned in zip(
        *map(jax.tree.leaves, (state.target_critics, state.critics.params)), strict=True
    ):
        assert np.array_equal(target, learned)
    kernels = state.critics.params["params"]["Dense_0"]["kernel"]
    assert 0.99 / math.sqrt(23) < jnp.abs(kernels).max() <= 1 / math.sqrt(23)
    assert kernels.shape == (2, 23, 128) and not np.allclose(kernels[0], kernels[1])
    assert state.actor.params["params"]["Dense_0"]["kernel"].shape == (23, 128)  # observation and noise


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_targets_move_when_their_turn_comes_and_it_compiles_once(tau):
    args = sql.Args(**{**vars(ARGS), "target_network_frequency": 3, "tau": tau})
    update = jax.jit(lambda state, index: sql.update(state, make_batch(), jax.random.key(1), index, args)[0])
    state = make_state(args)
    for index in range(6):
        after = update(state, index)
        weight = tau if index in (0, 3) else 0
        trees = (after.target_critics, after.critics.params, state.target_critics)
        for target, new, old in zip(*map(jax.tree.leaves, trees), strict=True):
            if weight in (0, 1):  # a copy, or nothing: exactly
                assert np.array_equal(target, new if weight else old)
            else:
                assert np.allclose(target, weight * new + (1 - weight) * old, rtol=1e-6, atol=1e-7)
        assert not np.array_equal(*(s.actor.params["params"]["Dense_0"]["kernel"] for s in (state, after)))
        state = after
    assert update._cache_size() == 1


def test_the_sampler_steps_towards_the_new_critics():
    """Gradient descent of the sampler by 1, after a critics' step that is large."""
    args, descent = sql.Args(**{**vars(ARGS), "q_lr": 0.1}), optax.sgd(1.0)
    state, batch, key = make_state(args), make_batch(), jax.random.key(1)
    state = state.replace(actor=state.actor.replace(tx=descent, opt_state=descent.init(state.actor.params)))
    after = jax.jit(lambda state: sql.update(state, batch, key, 0, args)[0])(state)
    noise_key = jax.random.split(key)[1]

    @jax.jit
    def distance(critics):
        given = state.replace(critics=critics)
        grads = jax.grad(sql.actor_loss, has_aux=True)(state.actor.params, given, batch, noise_key, args)[0]
        pairs = zip(
            *map(jax.tree.leaves, (state.actor.apply_gradients(grads=grads).params, after.actor.params)),
            strict=True,
        )
        return jnp.stack([jnp.abs(a - b).max() for a, b in pairs]).max()

    assert distance(after.critics) < 1e-5 and distance(state.critics) > 1e-3


def test_one_seed_alone_equals_that_seed_among_three():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    states = jax.jit(jax.vmap(lambda key: sql.init(key, OBS_DIM, ACTION_DIM, ARGS)))(keys)
    batches = [make_batch(8, seed) for seed in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    probes.assert_last_among_others_is_itself(
        lambda *given: sql.update(*given, 0, ARGS)[0], states, together, keys
    )


def test_noise_is_another_one_for_every_state_and_particle():
    params, obs = make_state().actor.params, jnp.zeros((5, 4, OBS_DIM))
    u = np.asarray(sql.sample(params, obs, jax.random.key(0))).reshape(-1, ACTION_DIM)
    assert len(np.unique(u[:, 0])) == 20
    one = sql.act(params, obs[0], jax.random.key(0), deterministic=True)
    assert np.array_equal(one, jnp.tanh(sql.sample(params, obs[0], jax.random.key(0))))


@pytest.mark.parametrize(
    ("env_id", "scale"),
    [
        ("Hopper-v4", 30),
        ("Hopper-v5", 30),
        ("Ant-v4", 300),
        ("Pendulum-v1", 1),
        ("my_module:Walker2d-v4", 10),
    ],
)
def test_reward_scale_is_that_of_the_environment_unless_given(env_id, scale):
    assert sql.reward_scale(sql.Args(env_id=env_id)) == scale
    assert sql.reward_scale(sql.Args(env_id=env_id, reward_scale=2.5)) == 2.5


def test_the_fewest_particles_learn():
    args = sql.Args(**{**vars(ARGS), "svgd_particles": 3})  # one moves, two stay
    validate(args)
    state = make_state(args)
    after, metrics = jax.jit(lambda s: sql.update(s, make_batch(), jax.random.key(1), 0, args))(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.actor.params, metrics)))
    assert not np.array_equal(*(s.actor.params["params"]["Dense_0"]["kernel"] for s in (state, after)))


SMALL_RUN = PENDULUM | dict(value_particles=3, svgd_particles=4, n_critics=2)


def test_resume_is_exact(tmp_path, monkeypatch):
    args = SMALL_RUN | dict(target_network_frequency=50)
    sql.train(sql.Args(**args, run_dir=str(tmp_path / "reference")))
    run = tmp_path / "run"
    for at in (230, 61):
        interrupted(args, run, monkeypatch, at, sql)
    sql.train(sql.Args(**args, run_dir=str(run)))
    assert differences(digests(tmp_path / "reference"), digests(run)) == []
    record = (run / "seed-1" / "metrics.jsonl").read_text()
    assert "eval_stochastic/return_mean" in record and '"eval/' not in record
    assert "losses/qf2_loss" in record


# ---- the point and its four goals


def test_multigoal():
    """Reward and end by hand: the action is clipped, the goal's bonus is paid where the point arrives."""
    env = gym.make("cleanrl_maxent/MultiGoal-v0")
    check_env(env.unwrapped)
    starts = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    assert starts.std() == pytest.approx(0.1, abs=0.015) and abs(starts.mean()) < 0.02
    point = env.unwrapped
    for position, action, reward, terminated in [
        ([0.0, 0.0], [0.5, 0.0], -30 * 0.25 - 4.5**2, False),
        ([0.0, 0.0], [2.0, -3.0], -60 - 4**2 - 1, False),  # clipped to (1, -1)
        ([3.5, 0.0], [0.6, 0.0], -30 * 0.36 - 0.9**2 + 10, True),
        ([3.5, 0.0], [0.5, 0.0], -30 * 0.25 - 1, False),  # at distance 1, which is not less than 1
        ([-7.0, 0.0], [-1.0, 0.0], -30 - 4, False),  # held by the wall
    ]:
        point.position = np.array(position)
        obs, got, ended, truncated, _ = point.step(np.float32(action))
        assert got == pytest.approx(reward, rel=1e-5) and ended == terminated and not truncated
    env.reset(seed=1)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]
    start = gym.make("cleanrl_maxent/MultiGoal-v0", init_sigma=0.0).reset(seed=1)[0]
    assert np.array_equal(start, [0, 0])


def test_exact_soft_optimum_of_multigoal():
    """V(0, 0) and the entropy there; at (-2.5, 0) the mean leads to the nearest goal; rollouts reach all."""
    env = MultiGoal()
    V = multigoal.soft_values(env, tolerance=1e-2)
    assert V[28, 28] == pytest.approx(-122.7, abs=0.05)
    origin = multigoal.soft_policy(env, V, np.zeros(2))
    assert -np.sum(origin * np.log(origin / multigoal.CELL**2)) == pytest.approx(1.296, abs=1e-3)
    left = multigoal.soft_policy(env, V, np.array([-2.5, 0.0])) @ multigoal.ACTIONS
    assert left == pytest.approx([-0.42, 0], abs=0.005)
    assert V[38, 38] == pytest.approx(-57.4, abs=0.1)
    played = multigoal.play(multigoal.exact_policy(env, V), 200)
    assert played["returns"].mean() == pytest.approx(-192, abs=4 * 39 / 14)
    assert played["lengths"].mean() == pytest.approx(9.96, abs=4 * 2.8 / 14)
    assert all(np.mean(played["goals"] == goal) > 0.15 for goal in range(4))
    for path in played["paths"]:  # from the start, by steps that an action can make
        assert np.linalg.norm(path[0]) < 0.6 and np.abs(np.diff(path, axis=0)).max() <= 1 + 1e-6


def test_multigoal_without_runs_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multigoal, "soft_values", None)  # a minute of dynamic programming
    with pytest.raises(UsageError, match="no run in runs/multigoal is finished; leave --no-train out"):
        multigoal.main(multigoal.Args(train=False))


def test_multigoal_figure(tmp_path):
    """A row of three states and the episodes for each policy, of a network or of the dynamic program."""
    env, V, state = MultiGoal(), np.zeros((57, 57)), sql.init(jax.random.key(0), 2, 2, ARGS)
    learned = multigoal.trained_policy(sql, state, deterministic=False)
    exact = multigoal.exact_policy(env, V)
    for shown in (
        [("exact", partial(multigoal.exact_values, env, V), exact)],
        [("exact", partial(multigoal.exact_values, env, V), exact)]
        + [("sql", partial(multigoal.learned_values, state), learned)],
    ):
        multigoal.draw(shown, tmp_path / "figure.png")
        height, width, _ = image.imread(tmp_path / "figure.png").shape
        assert (height, width) == (240 * len(shown), 960)

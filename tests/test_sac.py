"""Every formula of sac.py against float64 NumPy or a closed form."""

import math
from functools import cache

import envs as probes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from cleanrl_maxent import sac
from cleanrl_maxent.common.replay import Replay, Transition

ARGS = sac.Args(hidden_dims=(16, 16), batch_size=8, alpha=0.3)
OBS_DIM, ACTION_DIM = 3, 2


def make_batch(size=8, seed=0, terminated=None):
    rng = np.random.default_rng(seed)
    flags = rng.integers(0, 2, size) if terminated is None else np.full(size, terminated)
    return Transition(
        obs=rng.normal(size=(size, OBS_DIM)).astype(np.float32),
        action=rng.uniform(-1, 1, (size, ACTION_DIM)).astype(np.float32),
        reward=rng.normal(size=size).astype(np.float32),
        next_obs=rng.normal(size=(size, OBS_DIM)).astype(np.float32),
        terminated=flags.astype(np.float32),
    )


@cache
def make_state(args=ARGS):
    """A state whose targets differ from its critics, as after some training."""
    init = jax.jit(lambda seed: sac.init(jax.random.key(seed), OBS_DIM, ACTION_DIM, args))
    state, other = init(0), init(100)
    return state.replace(target_critics=other.critics.params)


def layers(params):
    """Kernels and biases in float64, first layer to last."""
    named = params["params"]
    return [(np.float64(named[k]["kernel"]), np.float64(named[k]["bias"])) for k in sorted(named)]


def mlp(params, x):
    *hidden, last = layers(params)
    for kernel, bias in hidden:
        x = np.maximum(x @ kernel + bias, 0)
    return x @ last[0] + last[1]


def reference_q(stacked, obs, action):
    """Both critics in NumPy, `(2, batch)`."""
    x = np.concatenate([obs, action], axis=-1)
    return np.stack([mlp(jax.tree.map(lambda p, i=i: p[i], stacked), x)[:, 0] for i in range(2)])


def reference_sample(params, obs, key):
    """Sample and log-density with the textbook Jacobian log(1 - a²), in float64."""
    out = mlp(params, np.float64(obs))
    mean, log_std = out[:, :ACTION_DIM], np.clip(out[:, ACTION_DIM:], -20, 2)
    noise = np.float64(jax.random.normal(key, mean.shape))
    std = np.exp(log_std)
    action = np.tanh(mean + std * noise)
    density = np.exp(-0.5 * noise**2) / (std * math.sqrt(2 * math.pi)) / (1 - action**2)
    return action, np.log(density).sum(-1)


def constant_policy(mean, log_std):
    """Parameters of an actor without hidden layers whose Gaussian is the same everywhere."""
    bias = jnp.asarray(np.hstack([mean, log_std]), jnp.float32)
    return {"params": {"Dense_0": {"kernel": jnp.zeros((1, bias.size)), "bias": bias}}}


# --- the tanh-Gaussian ---


def sample_at(monkeypatch, mean, log_std, u):
    """Action and log-density of sample_action where the Gaussian drew `u`."""
    noise = jnp.asarray((u - mean) / math.exp(log_std), jnp.float32)[:, None]
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    obs = jnp.zeros((len(u), 1))
    action, log_prob = sac.sample_action(constant_policy(mean, log_std), obs, None)
    return np.float64(action[:, 0]), np.float64(log_prob)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (4.0, 1.0), (0.0, 0.1)])
def test_density_integrates_to_one(monkeypatch, mean, std):
    u = np.linspace(mean - 8 * std, mean + 8 * std, 20001)
    action, log_prob = sample_at(monkeypatch, mean, math.log(std), u)
    assert np.allclose(action, np.tanh(u), atol=1e-6)
    assert np.trapezoid(np.exp(log_prob) / np.cosh(u) ** 2, u) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 3.0])
def test_entropy_of_the_squashed_gaussian(monkeypatch, std):
    """H(tanh u) = H(u) + E[log(1 - tanh² u)], the expectation by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    log_jacobian = -2 * np.log(np.cosh(std * nodes))
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    entropy += weights @ log_jacobian / math.sqrt(2 * math.pi)
    u = np.linspace(-9 * std, 9 * std, 20001)
    log_prob = sample_at(monkeypatch, 0.0, math.log(std), u)[1]
    density = np.exp(-0.5 * (u / std) ** 2) / (std * math.sqrt(2 * math.pi))
    assert np.trapezoid(-log_prob * density, u) == pytest.approx(entropy, abs=1e-3)


def test_density_is_exact_where_tanh_saturates(monkeypatch):
    u = np.array([-12.0, -9.0, 9.0, 12.0])
    log_prob = sample_at(monkeypatch, 0.0, math.log(5.0), u)[1]
    normal = -0.5 * (u / 5) ** 2 - math.log(5 * math.sqrt(2 * math.pi))
    log_jacobian = math.log(4) - 2 * np.abs(u) - 2 * np.log1p(np.exp(-2 * np.abs(u)))
    assert np.allclose(log_prob, normal - log_jacobian, atol=1e-4)


def test_density_sums_over_dimensions():
    means, log_stds, key = [0.3, -1.0], [0.1, -0.7], jax.random.key(3)
    noise = np.float64(jax.random.normal(key, (2,)))
    action, log_prob = sac.sample_action(constant_policy(means, log_stds), jnp.zeros(1), key)
    u = np.array(means) + np.exp(log_stds) * noise
    each = -0.5 * noise**2 - log_stds - 0.5 * math.log(2 * math.pi) - np.log(1 - np.tanh(u) ** 2)
    assert log_prob.shape == () and log_prob == pytest.approx(each.sum(), abs=1e-5)
    assert np.allclose(action, np.tanh(u), atol=1e-6)


def test_act_is_tanh_of_the_mean_or_a_sample():
    params, key = constant_policy([0.5, -2.0], [0.0, 0.0]), jax.random.key(0)
    assert np.allclose(sac.act(params, jnp.zeros(1), key, True), np.tanh([0.5, -2.0]))
    sampled = sac.sample_action(params, jnp.zeros(1), key)[0]
    assert np.array_equal(sac.act(params, jnp.zeros(1), key, False), sampled)


# --- losses ---


def test_critic_loss_and_metrics():
    state, batch, key = make_state(), make_batch(), jax.random.key(7)
    loss, metrics = sac.critic_loss(state.critics.params, state, batch, key, ARGS)
    next_action, next_log_prob = reference_sample(state.actor.params, batch.next_obs, key)
    next_q = reference_q(state.target_critics, batch.next_obs, next_action).min(axis=0)
    y = batch.reward + 0.99 * (1 - batch.terminated) * (next_q - ARGS.alpha * next_log_prob)
    q = reference_q(state.critics.params, batch.obs, batch.action)
    assert loss == pytest.approx(0.5 * ((q - y) ** 2).mean(axis=1).sum(), rel=1e-5)
    assert metrics["losses/qf1_loss"] == pytest.approx(0.5 * ((q[0] - y) ** 2).mean(), rel=1e-5)
    assert metrics["losses/qf2_values"] == pytest.approx(q[1].mean(), rel=1e-4)


def test_actor_loss():
    state, batch, key = make_state(), make_batch(), jax.random.key(7)
    loss, metrics = sac.actor_loss(state.actor.params, state, batch, key)
    action, log_prob = reference_sample(state.actor.params, batch.obs, key)
    q = reference_q(state.critics.params, batch.obs, action).min(axis=0)
    assert loss == pytest.approx((ARGS.alpha * log_prob - q).mean(), rel=1e-4)
    assert metrics["losses/entropy"] == pytest.approx(-log_prob.mean(), rel=1e-4)


def finite_difference(reference, params, path, index, h=1e-5):
    """Central difference of a float64 function of the parameters along one of their entries."""

    def at(step):
        copied = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
        leaf = copied["params"][path[0]][path[1]]
        leaf[index] += step
        return reference(copied)

    return (at(h) - at(-h)) / (2 * h)


def test_critic_gradient_is_that_of_the_residual_alone():
    """Central differences of the float64 loss whose target is held fixed."""
    state, batch, key = make_state(), make_batch(), jax.random.key(7)
    state = state.replace(target_critics=state.critics.params)
    grads = jax.grad(sac.critic_loss, has_aux=True)(state.critics.params, state, batch, key, ARGS)[0]
    next_action, next_log_prob = reference_sample(state.actor.params, batch.next_obs, key)
    next_q = reference_q(state.critics.params, batch.next_obs, next_action).min(axis=0)
    y = batch.reward + 0.99 * (1 - batch.terminated) * (next_q - ARGS.alpha * next_log_prob)

    def reference(params):
        return 0.5 * ((reference_q(params, batch.obs, batch.action) - y) ** 2).mean(axis=1).sum()

    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (1, 0))]:
        expected = finite_difference(reference, state.critics.params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_actor_gradient():
    state, batch, key = make_state(), make_batch(), jax.random.key(7)
    grads = jax.grad(sac.actor_loss, has_aux=True)(state.actor.params, state, batch, key)[0]

    def reference(params):
        action, log_prob = reference_sample(params, batch.obs, key)
        return (
            ARGS.alpha * log_prob - reference_q(state.critics.params, batch.obs, action).min(axis=0)
        ).mean()

    for path, index in [
        (("Dense_0", "kernel"), (0, 1)),
        (("Dense_2", "bias"), (0,)),
        (("Dense_2", "bias"), (3,)),
    ]:
        expected = finite_difference(reference, state.actor.params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_no_gradient_where_none_belongs():
    """The critic loss is flat in the actor, the targets and the temperature."""
    state, batch, key = make_state(), make_batch(), jax.random.key(7)

    def norm(tree):
        return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    def of_critics(actor, target, alpha):
        other = state.replace(
            actor=state.actor.replace(params=actor),
            target_critics=target,
            alpha=state.alpha.replace(params=alpha),
        )
        return sac.critic_loss(state.critics.params, other, batch, key, ARGS)[0]

    flat = jax.grad(of_critics, (0, 1, 2))(state.actor.params, state.target_critics, state.alpha.params)
    assert norm(flat) == 0


@pytest.mark.parametrize(("entropy", "sign"), [(-1.0, 1), (-3.0, -1)])
def test_alpha_falls_while_the_policy_is_too_random(entropy, sign):
    """With -D = -2 as target an entropy of -1 is too much: descent must lower α."""
    grads = jax.grad(sac.alpha_loss, has_aux=True)({"log_alpha": jnp.log(0.5)}, entropy, -2.0)[0]
    assert grads["log_alpha"] == pytest.approx(0.5 * (entropy + 2), rel=1e-6)
    assert np.sign(grads["log_alpha"]) == sign


def test_alpha_reaches_the_closed_form_of_the_dual():
    """For Q = -(k/2)|u|², unsquashed, H(α) = D/2 log(2πeα/k): the optimum is k exp(2H̄/D)/(2πe)."""
    k, dim, target = 3.0, 2, -2.0
    alpha = TrainState.create(apply_fn=None, params={"log_alpha": jnp.zeros(())}, tx=optax.sgd(0.2))

    def step(alpha, _):
        entropy = dim / 2 * jnp.log(2 * jnp.pi * jnp.e * jnp.exp(alpha.params["log_alpha"]) / k)
        grads = jax.grad(sac.alpha_loss, has_aux=True)(alpha.params, entropy, target)[0]
        return alpha.apply_gradients(grads=grads), None

    alpha = jax.lax.scan(step, alpha, None, length=30_000)[0]
    assert k * math.exp(2 * target / dim) / (2 * math.pi * math.e) == pytest.approx(0.023772, rel=1e-4)
    assert float(jnp.exp(alpha.params["log_alpha"])) == pytest.approx(0.023772, rel=1e-3)


def test_target_entropy_is_minus_the_number_of_actions():
    state, batch = make_state(), make_batch()
    _, metrics = sac.update(state, batch, jax.random.key(1), 0, ARGS)
    expected = float(ARGS.alpha * (metrics["losses/entropy"] + ACTION_DIM))
    assert metrics["losses/alpha_loss"] == pytest.approx(expected, rel=1e-6)


# --- init and update ---


def test_init():
    state = sac.init(jax.random.key(0), OBS_DIM, ACTION_DIM, ARGS)
    kernel = state.critics.params["params"]["Dense_0"]["kernel"]  # (2, in, out)
    assert not np.allclose(kernel[0], kernel[1])
    for target, critic in zip(
        *map(jax.tree.leaves, (state.target_critics, state.critics.params)), strict=True
    ):
        assert np.array_equal(target, critic)
    wide = sac.init(jax.random.key(0), 17, 6, sac.Args())
    for name, leaf in wide.actor.params["params"]["Dense_1"].items():
        assert np.abs(leaf).max() <= 1 / 16, name
        assert np.std(leaf) == pytest.approx(1 / 16 / math.sqrt(3), rel=0.15), name
    assert float(sac.temperature(state)) == pytest.approx(0.3)


def test_targets_move_by_tau_towards_the_new_critics():
    before, batch = make_state(), make_batch()
    after = sac.update(before, batch, jax.random.key(1), 0, ARGS)[0]
    leaves = (before.target_critics, after.critics.params, after.target_critics)
    for old, new, target in zip(*map(jax.tree.leaves, leaves), strict=True):
        assert np.allclose(target, 0.005 * np.float64(new) + 0.995 * np.float64(old), atol=1e-7)


def test_frequencies_count_updates_and_compile_once():
    args = sac.Args(hidden_dims=(16, 16), policy_frequency=2, target_network_frequency=3)
    traces = []

    @jax.jit
    def update(state, index):
        traces.append(1)
        return sac.update(state, make_batch(), jax.random.key(1), index, args)

    state, moved, losses = make_state(args=args), [], []
    for index in range(6):
        after, metrics = update(state, index)
        losses.append({name: float(metrics[name]) for name in state.policy_metrics})
        changed = [
            any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
            for pair in (
                (state.actor.params, after.actor.params),
                (state.alpha.params, after.alpha.params),
                (state.target_critics, after.target_critics),
                (state.critics.params, after.critics.params),
            )
        ]
        moved.append(changed)
        state = after
    actor, alpha, targets, critics = zip(*moved, strict=True)
    assert actor == alpha == (True, False) * 3
    assert losses[::2] == losses[1::2]  # of the last step of actor and temperature
    assert all(losses[0][name] != losses[2][name] for name in losses[0])
    assert targets == (True, False, False) * 2 and all(critics) and len(traces) == 1


def test_fixed_temperature_stays():
    args = sac.Args(hidden_dims=(16, 16), autotune=False, alpha=0.2)
    state = sac.update(make_state(args=args), make_batch(), jax.random.key(1), 0, args)[0]
    assert sac.temperature(state) == pytest.approx(0.2)


# --- seeds ---


def test_one_seed_alone_equals_that_seed_among_four():
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    state = jax.vmap(lambda key: sac.init(key, OBS_DIM, ACTION_DIM, ARGS))(keys)
    many = [make_batch(64, seed) for seed in range(4)]
    replay = Replay(jax.tree.map(lambda *rows: jnp.stack(rows), *many))

    def step(state, replay, key, index):
        sample_key, update_key = jax.random.split(jax.random.fold_in(key, index))
        batch = replay.sample(sample_key, ARGS.batch_size, 64)
        return sac.update(state, batch, update_key, index, ARGS)[0]

    together = jax.jit(jax.vmap(step, (0, 0, 0, None)))
    alone = jax.jit(step)
    row, single = jax.tree.map(lambda leaf: leaf[2], (state, replay)), None
    for index in range(200):
        state = together(state, replay, keys, index)
        single = alone(row[0] if single is None else single, row[1], keys[2], index)
        if index in (0, 199):
            tolerance = 1e-6 if index == 0 else 1e-3
            among = jax.tree.map(lambda leaf: leaf[2], state)
            for a, b in zip(*map(jax.tree.leaves, (among, single)), strict=True):
                assert np.allclose(a, b, rtol=0, atol=tolerance * max(1, float(jnp.abs(b).max())))


def test_noises_of_seeds_are_uncorrelated():
    params = constant_policy(0.0, 0.0)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    steps = jnp.arange(10_000)
    draw = jax.vmap(
        lambda key, step: sac.act(params, jnp.zeros(1), jax.random.fold_in(key, step), False)[0], (None, 0)
    )
    noise = np.arctanh(np.clip(jax.vmap(draw, (0, None))(keys, steps), -0.999999, 0.999999))
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1]) < 0.05


# --- known optima ---


def test_one_step_problem_reaches_its_soft_optimum():
    """reward = α[log N(atanh ã; m, s²) − log(1 − ã²)] and the episode ends: π* = tanh N(m, s²)."""
    m, s, alpha = 0.4, 0.5, 0.5
    args = sac.Args(hidden_dims=(64, 64), autotune=False, alpha=alpha, q_lr=1e-3, policy_lr=1e-3)

    def step(state, index):
        key, action_key = jax.random.split(jax.random.fold_in(jax.random.key(5), index))
        action = jax.random.uniform(action_key, (256, 1), minval=-0.98, maxval=0.98)
        u = jnp.arctanh(action)
        log_density = -0.5 * ((u - m) / s) ** 2 - jnp.log(s * jnp.sqrt(2 * jnp.pi)) - jnp.log(1 - action**2)
        obs, ones = jnp.zeros((256, 1)), jnp.ones(256)
        batch = Transition(obs, action, alpha * log_density[:, 0], obs, ones)
        return sac.update(state, batch, key, index, args)[0], None

    state = sac.init(jax.random.key(0), 1, 1, args)
    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(5000))[0])(state)
    mean, log_std = sac.gaussian(state.actor.params, jnp.zeros(1))
    assert mean[0] == pytest.approx(m, abs=0.1)
    assert math.exp(log_std[0]) == pytest.approx(s, rel=0.15)


def test_time_limit_does_not_cut_the_bootstrap():
    """Reward 1, horizon 50, γ 0.9, α fixed at 0: Q is 1/(1 - γ) = 10 everywhere, also at the limit."""
    assert np.allclose(values_of("ConstantReward-v0", gamma=0.9)[0], 10, atol=0.5)


def test_termination_cuts_the_bootstrap():
    """Reward 1 for three steps and the end: Q is 1 + γ + γ², 1 + γ, 1."""
    q, obs = values_of("Counting-v0", gamma=0.9)
    assert np.allclose(q, np.array([2.71, 1.9, 1.0])[obs[:, 0].astype(int)], atol=0.1)


def values_of(env_id, gamma):
    """Both critics where 600 uniform actions led, `(2, 600)`, trained on that with α = 0; and the states."""
    args = sac.Args(hidden_dims=(64,), autotune=False, alpha=0.0, gamma=gamma, q_lr=3e-3, tau=0.05)
    state, rows = probes.trained_on(sac, args, env_id)
    q = state.critics.apply_fn(state.critics.params, rows.obs, rows.action)
    return np.asarray(q), np.asarray(rows.obs)

"""maxent_pg.py: its gradient and advantages against the exact ones, and whole runs against the optimum."""

import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks.studies.corridor import corridor
from cleanrl_maxent import maxent_pg, tabular
from cleanrl_maxent.common.data import Statistics, Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.finite import corridor as corridor_mdp
from cleanrl_maxent.environments.finite import random_mdp, two_rooms
from tests.support.pytrees import distance
from tests.support.references import finite_difference

PLAIN = dict(normalize_observation=False, normalize_reward=False, norm_adv=False, anneal_lr=False)
ARGS = maxent_pg.Args(**PLAIN, num_envs=4, num_steps=6, hidden_dims=(8,), alpha=0.3, total_timesteps=24_000)

make_samples = jax.jit(maxent_pg.make_samples, static_argnums=2)
actor_loss = jax.jit(jax.value_and_grad(maxent_pg.actor_loss, has_aux=True), static_argnums=4)
critic_loss = jax.jit(maxent_pg.critic_loss)
advantages = jax.jit(maxent_pg.advantages, static_argnums=5)
normalize = jax.jit(lambda statistics, rows: statistics.normalize(rows, 10))
sample_action = jax.jit(maxent_pg.sample_action)
act = jax.jit(maxent_pg.act, static_argnums=3)
sample = jax.jit(lambda pi, key: pi.sample(key))


@jax.jit
def distribution(state, obs):
    """That of the actor, at observations which are taken as they are."""
    return maxent_pg.policy(state).actor(obs)


@jax.jit
def log_prob(state, obs, u):
    return distribution(state, obs).log_prob(u)


@partial(jax.jit, static_argnums=2)
def track_returns(state, rollout, args):
    """The state after the returns of a rollout."""
    reward, ended, elapsed = rollout.transition.reward, rollout.ended, rollout.elapsed
    return state.replace(returns=state.returns.add(reward, ended, elapsed, args.gamma))


def make_rollout(args, state, seed=0):
    """Two-dimensional observations and actions, with both kinds of ending."""
    rng = np.random.default_rng(seed)
    shape = args.num_steps, args.num_envs
    obs = rng.normal(size=(*shape, 2)).astype(np.float32)
    pi = distribution(state, obs)
    u = sample(pi, jax.random.key(seed))
    action = pi.action(u)
    terminated = (rng.random(shape) < 0.2).astype(np.float32)
    truncated = (rng.random(shape) < 0.2).astype(np.float32)
    reward, next_obs = rng.normal(size=shape).astype(np.float32), rng.normal(size=(*shape, 2))
    transition = Transition(obs, action, reward, next_obs.astype(np.float32), terminated)
    elapsed = rng.integers(0, 9, shape)
    return maxent_pg.Rollout(transition, u, np.maximum(terminated, truncated), elapsed)


@cache
def make_state(args=ARGS, discrete=False):
    """The heads' weights are enlarged, so that log-probabilities differ."""
    task = Task(2, 2, discrete)
    state = jax.jit(lambda key: maxent_pg.init(key, task, args))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf, state.actor.params)
    for head in ("logits",) if discrete else ("mean", "log_std"):
        params["params"][head]["kernel"] = 100 * params["params"][head]["kernel"]
    return state.replace(actor=state.actor.replace(params=params))


def reference_log_prob(params, obs, u):
    """In float64: the textbook density of tanh(u), or the logarithm of softmax."""
    layers = {name: jax.tree.map(np.float64, layer) for name, layer in params["params"].items()}
    x = np.tanh(obs @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    if "logits" in layers:
        logits = x @ layers["logits"]["kernel"] + layers["logits"]["bias"]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(log_probs, np.asarray(u)[..., None], -1)[..., 0]
    mean, log_std = (x @ layers[head]["kernel"] + layers[head]["bias"] for head in ("mean", "log_std"))
    std = np.exp(np.clip(log_std, -20, 2))
    density = np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi)) / (1 - np.tanh(u) ** 2)
    return np.log(density).sum(-1)


KINDS = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


@KINDS
def test_log_prob(discrete):
    state = make_state(discrete=discrete)
    obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    pi = distribution(state, obs)
    u = sample(pi, jax.random.key(1))
    expected = reference_log_prob(state.actor.params, obs, u if discrete else np.float64(u))
    assert np.allclose(log_prob(state, obs, u), expected, rtol=1e-3, atol=1e-4)
    assert np.array_equal(pi.action(u), u if discrete else jnp.tanh(u))
    chosen, log_probs = sample_action(maxent_pg.policy(state), obs, jax.random.key(1))
    assert np.allclose(chosen, pi.action(u), rtol=0, atol=1e-6)
    assert np.allclose(log_probs, expected, rtol=1e-3, atol=1e-4)


@KINDS
def test_entropy_is_minus_the_mean_of_log_prob(discrete):
    @jax.jit
    def both(state, obs):
        pi = distribution(state, obs)
        expected = -pi.log_prob(pi.sample(jax.random.key(1)))
        return expected, pi.entropy(pi.sample(jax.random.key(2))), pi.entropy_unit()

    expected, found, unit = both(make_state(discrete=discrete), jnp.ones((100_000, 2)))
    error = float(expected.std() + found.std()) / math.sqrt(100_000)
    assert abs(float(found.mean() - expected.mean())) < 4 * error + 1e-5
    assert not discrete or float(found.std()) < 1e-6
    assert unit == pytest.approx(math.log(2) if discrete else -2)


@KINDS
def test_deterministic_action(discrete):
    state, obs = make_state(discrete=discrete), jnp.ones(2)
    pi = distribution(state, obs)
    expected = pi.logits.argmax() if discrete else jnp.tanh(pi.mean)
    found = [act(maxent_pg.policy(state), obs, jax.random.key(0), True), pi.mode()]
    assert all(np.allclose(action, expected, rtol=0, atol=1e-6) for action in found)


def test_density_is_exact_where_tanh_saturates():
    u = np.array([-12.0, -9.0, 9.0, 12.0])
    pi = maxent_pg.TanhGaussian(jnp.zeros((4, 1)), jnp.full((4, 1), math.log(5)))
    normal = -0.5 * (u / 5) ** 2 - math.log(5 * math.sqrt(2 * math.pi))
    log_jacobian = math.log(4) - 2 * np.abs(u) - 2 * np.log1p(np.exp(-2 * np.abs(u)))
    assert np.allclose(pi.log_prob(jnp.float32(u)[:, None]), normal - log_jacobian, atol=1e-4)


def test_the_standard_deviation_is_clipped():
    state = make_state()
    layers = state.actor.params["params"]
    bias = {"kernel": layers["log_std"]["kernel"] * 0, "bias": jnp.array([-30.0, 3.0])}
    actor = Partial(state.actor.apply_fn, {"params": layers | {"log_std": bias}})
    assert actor(jnp.ones(2)).log_std.tolist() == [-20, 2]


def test_init():
    """Orthogonal weights: √2 in hidden layers, 1 in the last of V, 0.01 in the actor's heads, so that σ is 1
    and the mean 0 at first."""
    state = jax.jit(lambda key: maxent_pg.init(key, Task(17, 6), maxent_pg.Args()))(jax.random.key(0))
    scales = {
        "actor": dict(Dense_1=math.sqrt(2), mean=0.01, log_std=0.01),
        "critic": dict(Dense_1=math.sqrt(2), Dense_2=1.0),
    }
    for network, of_layers in scales.items():
        for name, scale in of_layers.items():
            layer = getattr(state, network).params["params"][name]
            kernel = np.float64(layer["kernel"])
            assert np.allclose(kernel.T @ kernel, scale**2 * np.eye(kernel.shape[1]), atol=1e-5), name
            assert not layer["bias"].any()


@pytest.mark.parametrize("backup", [True, False])
@KINDS
def test_samples(discrete, backup):
    """Soft rewards in values and advantages, this step's own entropy taken out of the actor's again."""
    args = replace(ARGS, backup_entropy=backup, gamma_power=True)
    state = make_state(discrete=discrete)
    rollout = make_rollout(args, state)
    samples = make_samples(state, rollout, args)
    made = rollout.transition
    log_probs = reference_log_prob(state.actor.params, made.obs, rollout.u)
    reward = made.reward - 0.3 * log_probs if backup else made.reward
    value, next_value = (state.critic.apply_fn(state.critic.params, obs) for obs in (made.obs, made.next_obs))
    advantage = advantages(reward, value, next_value, made.terminated, rollout.ended, args)
    assert np.allclose(samples.value_target, (advantage + value).ravel(), rtol=1e-3, atol=1e-3)
    expected = advantage + (0.3 * log_probs if backup else 0)
    assert np.allclose(samples.advantage, expected.ravel(), rtol=1e-3, atol=1e-3)
    assert np.allclose(samples.weight, 0.99 ** rollout.elapsed.ravel()) and np.allclose(samples.alpha, 0.3)


def exact_rollout(mdp, pi, steps, count):
    """Steps of copies of a finite MDP, one-hot observations; what a row lacks to 1 ends the episode."""
    rng = np.random.default_rng(0)
    num_states, num_actions = mdp.R.shape
    cumulative = np.cumsum(mdp.P, axis=-1)
    states, elapsed = rng.choice(num_states, count, p=mdp.start), np.zeros(count, int)
    rows = []
    for _ in range(steps):
        actions = (pi[states].cumsum(-1) < rng.random((count, 1))).sum(-1).clip(0, num_actions - 1)
        following = (cumulative[states, actions] < rng.random((count, 1))).sum(-1)
        ended = following == num_states
        following = np.where(ended, states, following)
        rows.append((states, actions, mdp.R[states, actions], following, ended, elapsed))
        fresh = rng.choice(num_states, count, p=mdp.start)
        states, elapsed = np.where(ended, fresh, following), np.where(ended, 0, elapsed + 1)
    states, actions, reward, following, ended, elapsed = map(np.array, zip(*rows, strict=True))
    one_hot, ended = np.eye(num_states, dtype=np.float32), np.float32(ended)
    transition = Transition(one_hot[states], actions, np.float32(reward), one_hot[following], ended)
    return maxent_pg.Rollout(transition, actions, ended, elapsed)


def tabular_state(args, logits, V):
    """The state with logits `(S, A)` and values `(S,)` as tables; args.hidden_dims is ()."""
    task = Task(*logits.shape, True)
    state = jax.jit(lambda key: maxent_pg.init(key, task, args))(jax.random.key(0))
    actor = {"params": {"logits": {"kernel": jnp.float32(logits), "bias": jnp.zeros(task.action_dim)}}}
    critic = {"params": {"Dense_0": {"kernel": jnp.float32(V)[:, None], "bias": jnp.zeros(1)}}}
    return state.replace(actor=state.actor.replace(params=actor), critic=state.critic.replace(params=critic))


@pytest.mark.parametrize("backup", [True, False])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95])
def test_expected_gradient_is_the_exact_one(backup, gae_lambda):
    """Logits as a table, the exact V as the critic, weights γ^t, on two rooms: the mean over 60 rollouts lies
    within four standard errors of the exact gradient, and the other flag's does not."""
    mdp, gamma, alpha = two_rooms(4), 0.9, 0.5
    args = maxent_pg.Args(
        **PLAIN,
        **dict(hidden_dims=(), num_envs=64, num_steps=200, gamma=gamma, gae_lambda=gae_lambda, alpha=alpha),
        **dict(clip_coef=0.0, gamma_power=True, backup_entropy=backup),
    )
    logits = np.random.default_rng(1).normal(size=(3, 4))
    pi = tabular.boltzmann(logits, 1)
    V = (
        tabular.soft_evaluate(*mdp[:2], gamma, alpha, pi) if backup else tabular.evaluate(*mdp[:2], gamma, pi)
    )[1]
    state = tabular_state(args, logits, V)

    @jax.jit
    @jax.vmap
    def gradient(rollout):
        samples = maxent_pg.make_samples(state, rollout, args)
        given = state, samples, jax.random.key(0), args
        grads, _ = jax.grad(maxent_pg.actor_loss, has_aux=True)(state.actor.params, *given)
        return grads["params"]["logits"]["kernel"]

    many = exact_rollout(mdp, pi, args.num_steps, 60 * 64)
    rollouts = jax.tree.map(lambda x: np.stack(np.split(x, 60, axis=1)), many)
    episodes = rollouts.ended.sum(axis=(1, 2))  # all of two steps, so that a rollout cuts none
    steps = args.num_steps * args.num_envs
    estimates = -np.asarray(gradient(rollouts)) * (steps / episodes)[:, None, None]
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / math.sqrt(len(estimates))
    exact, other = tabular.maxent_gradient, tabular.bonus_gradient
    if not backup:
        exact, other = other, exact
    given = *mdp[:2], gamma, alpha, mdp.start, pi
    assert (np.abs(mean - exact(*given)) < 4 * error + 1e-5).all()
    assert (np.abs(mean - other(*given)) > 8 * error).any()


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95])
def test_soft_advantage_vanishes_at_the_optimum(gae_lambda):
    """With V* and π*, where no transition is random: at every step, not only on average, whatever λ is."""
    mdp, gamma, alpha = corridor_mdp(3, 4), 0.9, 0.5
    flags = dict(hidden_dims=(), num_envs=64, num_steps=50, gamma=gamma, alpha=alpha, gae_lambda=gae_lambda)
    args = maxent_pg.Args(**PLAIN, **flags)
    pi, _, V = tabular.soft_optimum(*mdp[:2], gamma, alpha)
    samples = make_samples(tabular_state(args, np.log(pi), V), exact_rollout(mdp, pi, 50, 64), args)
    soft_advantage = samples.advantage - alpha * samples.log_prob
    assert np.abs(samples.advantage).max() > 0.1 and np.abs(soft_advantage).max() < 1e-5


@KINDS
@pytest.mark.parametrize("clip_coef", [0.2, 0.0])
def test_actor_loss(discrete, clip_coef):
    """Away from the policy that drew the samples, so that some ratios are clipped; and its gradient, through
    the reparameterised sample too."""
    args = replace(ARGS, clip_coef=clip_coef)
    state = make_state(discrete=discrete)
    samples = make_samples(state, make_rollout(args, state), args)
    samples = samples.replace(weight=jnp.linspace(0.5, 1, len(samples.weight)))
    params = jax.tree.map(lambda leaf: 0.5 * leaf, state.actor.params)
    (loss, metrics), grads = actor_loss(params, state, samples, jax.random.key(5), args)

    obs, advantage, weight = map(np.float64, (samples.obs, samples.advantage, samples.weight))

    def reference(params):
        log_probs = reference_log_prob(params, obs, np.asarray(samples.u))
        ratio = np.exp(log_probs - np.float64(samples.log_prob))
        clipped = np.clip(ratio, 0.8, 1.2) if clip_coef else ratio
        surrogate = np.minimum(ratio * advantage, clipped * advantage)
        if discrete:
            every = [reference_log_prob(params, obs, np.full(len(ratio), a)) for a in range(2)]
            entropy = -sum(np.exp(values) * values for values in every)
        else:
            layers = {name: jax.tree.map(np.float64, layer) for name, layer in params["params"].items()}
            x = np.tanh(obs @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
            mean, log_std = (
                x @ layers[head]["kernel"] + layers[head]["bias"] for head in ("mean", "log_std")
            )
            noise = np.float64(jax.random.normal(jax.random.key(5), mean.shape))
            u = mean + np.exp(np.clip(log_std, -20, 2)) * noise
            entropy = -reference_log_prob(params, obs, u)
        return -(weight * (surrogate + 0.3 * entropy)).mean()

    assert loss == pytest.approx(reference(params), rel=1e-4)
    assert (metrics["losses/clipfrac"] > 0) == bool(clip_coef)
    log_ratio = reference_log_prob(params, obs, np.asarray(samples.u)) - np.float64(samples.log_prob)
    divergence = np.mean(np.exp(log_ratio) - 1 - log_ratio)
    assert metrics["losses/approx_kl"] == pytest.approx(divergence, rel=1e-3)
    expected = finite_difference(reference, params, ("Dense_0", "kernel"), (0, 1))
    assert grads["params"]["Dense_0"]["kernel"][0, 1] == pytest.approx(expected, rel=5e-3, abs=1e-6)


def test_every_minibatch_has_noise_of_its_own(monkeypatch):
    """For the entropy's estimate, in each of two passes over three minibatches."""
    args, state, keys = replace(ARGS, update_epochs=2, num_minibatches=3), make_state(), []

    def note(params, state, batch, key, args):
        jax.debug.callback(lambda data: keys.append(data.tobytes()), jax.random.key_data(key))
        return 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params)), {}

    monkeypatch.setattr(maxent_pg, "actor_loss", note)
    rollout = jax.tree.map(jnp.asarray, make_rollout(args, state))
    maxent_pg.update(state, rollout, jax.random.key(0), 0, args)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 2 * 3


@pytest.mark.parametrize("backup", [True, False])
def test_scaling_advantages_keeps_the_temperature(backup):
    """`--norm-adv` divides the whole gradient by one number: the trade between reward and entropy stays."""
    args = replace(ARGS, backup_entropy=backup, num_envs=64)
    state = make_state(discrete=True)
    rollout = make_rollout(args, state)

    def flat(grads):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])

    def gradient(args):
        samples = make_samples(state, rollout, args)
        _, grads = actor_loss(state.actor.params, state, samples, jax.random.key(0), ARGS)
        return flat(grads), samples

    plain, samples = gradient(args)
    scaled, _ = gradient(replace(args, norm_adv=True))

    def mean_log_prob(params):
        return state.actor.apply_fn(params, samples.obs).log_prob(samples.u).mean()

    baseline = samples.advantage.mean() * flat(jax.jit(jax.grad(mean_log_prob))(state.actor.params))
    assert np.allclose(scaled * samples.advantage.std(), plain + baseline, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_scaling_rewards_leaves_the_entropy_alone(factor):
    """Soft rewards are r/σ - α log π, so with r' = 1000 r nothing changes but σ: α is in scaled reward."""
    args = replace(ARGS, normalize_reward=True, gae_lambda=0.0, gamma=0.0)
    state = make_state(discrete=True)
    rollout = make_rollout(args, state)
    scaled = rollout.transition.reward * factor
    rollout = rollout.replace(transition=rollout.transition.replace(reward=scaled))
    tracked = track_returns(state, rollout, args)
    deviation = np.float64(scaled).std()  # with γ = 0 a return is its reward
    assert tracked.returns.std == pytest.approx(deviation, rel=1e-5)
    samples = make_samples(tracked, rollout, args)
    log_probs = reference_log_prob(state.actor.params, rollout.transition.obs, rollout.u)
    soft_reward = scaled / deviation - 0.3 * log_probs
    assert np.allclose(samples.value_target, soft_reward.ravel(), rtol=1e-3, atol=1e-4)


def test_observations_are_normalised_by_the_rollouts_before():
    """Those of the first are taken as they are; then mean and variance are those of all rows."""
    args = maxent_pg.Args(num_envs=4, num_steps=6, num_minibatches=1, update_epochs=1, hidden_dims=(8,))
    state = make_state(args)
    update = jax.jit(lambda state, rollout: maxent_pg.update(state, rollout, jax.random.key(1), 0, args))
    rollouts = [make_rollout(args, state, seed) for seed in range(3)]
    assert np.array_equal(
        normalize(state.observations, rollouts[0].transition.obs), rollouts[0].transition.obs
    )
    for rollout in rollouts:
        tracked = track_returns(state, rollout, args)
        samples = make_samples(tracked, rollout, args)
        expected, _ = critic_loss(state.critic.params, tracked, samples)
        state, metrics = update(state, rollout)
        assert float(metrics["losses/value_loss"]) == pytest.approx(float(expected), rel=1e-4)
    obs = np.concatenate([r.transition.obs.reshape(-1, 2) for r in rollouts]).astype(np.float64)
    assert np.allclose(state.observations.mean, obs.mean(axis=0), atol=1e-5)
    assert np.allclose(state.observations.var, obs.var(axis=0), rtol=1e-4)
    expected = np.clip((obs - obs.mean(axis=0)) / obs.std(axis=0), -10, 10)
    assert np.allclose(normalize(state.observations, jnp.float32(obs)), expected, atol=1e-4)
    policy, key, raw = maxent_pg.policy(state), jax.random.key(3), jnp.float32(5 + 3 * obs)
    plain, seen = policy.replace(observations=Statistics.create((2,))), normalize(state.observations, raw)
    deterministic = [act(p, x, key, True) for p, x in ((policy, raw), (plain, seen))]
    assert np.allclose(*deterministic, atol=1e-5)
    sampled = [sample_action(p, x, key) for p, x in ((policy, raw), (plain, seen))]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*sampled, strict=True))


@KINDS
def test_temperature_is_learned_and_bounded(discrete):
    """Targets are half of log 2 nats for two actions, -1 nat for two dimensions."""
    args = replace(ARGS, autotune=True, alpha_lr=1.0)
    state, target = make_state(args, discrete), 0.5 * math.log(2) if discrete else -1.0
    samples = make_samples(state, make_rollout(args, state), args)
    improve = jax.jit(maxent_pg.adapt_temperature, static_argnums=2)
    gradient = jax.grad(maxent_pg.alpha_loss, has_aux=True)
    for entropy, sign in ((target + 0.5, -1), (target - 0.5, 1)):
        grads, _ = gradient(state.alpha.params, entropy, target)
        assert grads["log_alpha"] == pytest.approx(0.3 * (entropy - target), rel=1e-4)
        spread = jnp.linspace(-1, 1, len(samples.log_prob))
        samples = samples.replace(log_prob=spread - entropy)  # whose mean is what counts
        moved, metrics = improve(state, samples, args)
        assert np.sign(maxent_pg.temperature(moved) - 0.3) == sign
        assert metrics["losses/alpha_loss"] == pytest.approx(0.3 * (entropy - target), rel=1e-4)
        for _ in range(200):
            moved, _ = improve(moved, samples, args)
        assert maxent_pg.temperature(moved) == pytest.approx(1e-4 if sign < 0 else 1.0, rel=1e-4)
    fixed, _ = improve(state, samples, replace(args, autotune=False))
    assert maxent_pg.temperature(fixed) == maxent_pg.temperature(state)


def test_a_target_entropy_that_no_policy_has_is_refused():
    """The entropy over two actions is at most log 2 nats; a fixed temperature has no target."""
    args = replace(ARGS, autotune=True, target_entropy_scale=1.0)
    with pytest.raises(UsageError, match="target_entropy_scale must be < 1 for discrete actions"):
        make_state(args, True)
    for possible, discrete in ((args, False), (replace(args, autotune=False), True)):
        make_state(possible, discrete)


def test_each_update_takes_one_step_of_adam_with_the_temperature():
    """The first steps of Adam are as long as its learning rate, since the gradient keeps its sign."""
    args = replace(ARGS, autotune=True, alpha_lr=0.01, num_minibatches=2)
    state = make_state(args)
    rollout = make_rollout(args, state)
    for number in (1, 2):
        after, _ = maxent_pg.update(state, rollout, jax.random.key(0), 0, args)
        moved = after.alpha.params["log_alpha"] - state.alpha.params["log_alpha"]
        assert abs(moved) == pytest.approx(0.01, rel=1e-2)
        assert int(after.alpha.step) == int(after.alpha.opt_state[0].count) == number
        state = after


def test_learning_rate_falls_to_zero_at_the_end():
    args = maxent_pg.Args(
        num_envs=4, num_steps=6, num_minibatches=2, update_epochs=3, total_timesteps=100, hidden_dims=(8,)
    )
    state = make_state(args)
    update = jax.jit(lambda state, rollout: maxent_pg.update(state, rollout, jax.random.key(1), 0, args)[0])
    moves = []
    for _ in range(5):  # four rollouts of 24 steps fit into 100
        after = update(state, make_rollout(args, state))
        moves.append(distance(state.actor.params, after.actor.params))
        state = after
    # compiled, the last rate is 0 but for rounding
    assert moves[0] > moves[3] > 0 and moves[4] < 1e-6 * moves[3]


def trained_policy(tmp_path, **given):
    """π of a finite environment, `(S, A)`, after a run."""
    args = dict(eval_episodes=0, learning_rate=3e-3, num_minibatches=2, checkpoint_frequency=0)
    args |= dict(normalize_observation=False, normalize_reward=False, hidden_dims=(32,))
    maxent_pg.train(maxent_pg.Args(**args | given, run_dir=str(tmp_path / "run")))
    return corridor.probabilities(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("backup", "expected"), [(True, 0.7210), (False, 0.3682)])
def test_two_rooms(backup, expected, tmp_path):
    """The preferred room flips with the flag, as the oracle says."""
    P, R, _ = two_rooms()
    find = tabular.optimal_policy if backup else tabular.bonus_policy
    assert find(P, R, 0.99, 0.5)[0, 4:].sum() == pytest.approx(expected, abs=1e-4)
    given = dict(env_id="cleanrl_maxent/TwoRooms-v0", alpha=0.5, total_timesteps=50_000)
    pi = trained_policy(tmp_path, **given, backup_entropy=backup, num_envs=32, num_steps=32)
    assert pi[0, 4:].sum() == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_random_mdp(tmp_path):
    """Total variation from the soft optimum, in every state."""
    P, R, _ = random_mdp()
    optimum = tabular.soft_optimum(P, R, 0.9, 0.5)[0]
    given = dict(env_id="cleanrl_maxent/RandomMDP-v0", alpha=0.5, gamma=0.9, total_timesteps=60_000)
    pi = trained_policy(tmp_path, **given)
    assert (0.5 * np.abs(pi - optimum).sum(axis=-1)).max() < 0.05

"""maxent_pg.py: its gradient and advantages against the exact ones, and whole runs against the optimum."""

import math
from functools import cache

import corridor
import envs as probes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import differences, digests
from test_resume import interrupted
from test_sac import finite_difference

from cleanrl_maxent import maxent_pg, tabular
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.replay import Transition
from cleanrl_maxent.environments.finite import random_mdp, two_rooms

PLAIN = dict(normalize_observation=False, normalize_reward=False, norm_adv=False, anneal_lr=False)
ARGS = maxent_pg.Args(**PLAIN, num_envs=4, num_steps=6, hidden_dims=(8,), alpha=0.3, total_timesteps=24_000)


def make_rollout(args, state, seed=0):
    """Two-dimensional observations and actions, with both kinds of ending."""
    rng = np.random.default_rng(seed)
    shape = args.num_steps, args.num_envs
    obs = rng.normal(size=(*shape, 2)).astype(np.float32)
    u, action = maxent_pg.draw(state.actor.params, obs, jax.random.key(seed))
    terminated = (rng.random(shape) < 0.2).astype(np.float32)
    truncated = (rng.random(shape) < 0.2).astype(np.float32)
    reward, next_obs = rng.normal(size=shape).astype(np.float32), rng.normal(size=(*shape, 2))
    transition = Transition(obs, action, reward, next_obs.astype(np.float32), terminated)
    elapsed = rng.integers(0, 9, shape)
    return maxent_pg.Rollout(transition, u, np.maximum(terminated, truncated), elapsed)


@cache
def make_state(args=ARGS, discrete=False):
    """The heads' weights are enlarged, so that log-probabilities differ."""
    state = jax.jit(lambda key: maxent_pg.init(key, 2, 2, args, discrete))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf, state.actor.params)
    for head in ("logits",) if discrete else ("mean", "log_std"):
        params["params"][head]["kernel"] = 100 * params["params"][head]["kernel"]
    return state.replace(actor=state.actor.replace(params=params))


# ---- the policy


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
    params = make_state(discrete=discrete).actor.params
    obs = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    u, action = maxent_pg.draw(params, obs, jax.random.key(1))
    expected = reference_log_prob(params, obs, np.float64(u) if not discrete else u)
    assert np.allclose(maxent_pg.log_prob(params, obs, u), expected, rtol=1e-3, atol=1e-4)
    assert np.array_equal(action, u if discrete else jnp.tanh(u))
    policy = maxent_pg.policy_of(make_state(discrete=discrete))
    chosen, log_probs = maxent_pg.sample_action(policy, obs, jax.random.key(1))
    assert np.array_equal(chosen, action) and np.allclose(log_probs, expected, rtol=1e-3, atol=1e-4)


@KINDS
def test_entropy_is_minus_the_mean_of_log_prob(discrete):
    params, obs = make_state(discrete=discrete).actor.params, jnp.ones((100_000, 2))
    u, _ = maxent_pg.draw(params, obs, jax.random.key(1))
    expected = -maxent_pg.log_prob(params, obs, u)
    found = maxent_pg.policy_entropy(params, obs, jax.random.key(2))
    error = float(expected.std() + found.std()) / math.sqrt(100_000)
    assert abs(float(found.mean() - expected.mean())) < 4 * error + 1e-5
    assert not discrete or float(found.std()) < 1e-6


@KINDS
def test_deterministic_action(discrete):
    policy, obs = maxent_pg.policy_of(make_state(discrete=discrete)), jnp.ones(2)
    output = maxent_pg.heads(policy["actor"], obs)
    expected = output.argmax() if discrete else jnp.tanh(output[0])
    assert np.array_equal(maxent_pg.act(policy, obs, jax.random.key(0), True), expected)


def test_init():
    """Orthogonal weights: √2 in hidden layers, 0.01 in the heads, so that σ is 1 and the mean 0 at first."""
    state = maxent_pg.init(jax.random.key(0), 17, 6, maxent_pg.Args())
    params = state.actor.params["params"]
    for name, scale in (("Dense_1", math.sqrt(2)), ("mean", 0.01), ("log_std", 0.01)):
        kernel = np.float64(params[name]["kernel"])
        assert np.allclose(kernel.T @ kernel, scale**2 * np.eye(kernel.shape[1]), atol=1e-5), name
        assert not params[name]["bias"].any()


# ---- advantages


def test_advantages_against_a_loop():
    """Float64, row by row: a terminal state has no value, and an end of either kind ends the trace."""
    rng, gamma, lam = np.random.default_rng(0), 0.9, 0.8
    args = maxent_pg.Args(gamma=gamma, gae_lambda=lam)
    reward, value, next_value = rng.normal(size=(3, 40, 3))
    terminated, truncated = (rng.random((2, 40, 3)) < 0.15).astype(float)
    ended = np.maximum(terminated, truncated)
    assert (terminated * truncated).any() and (truncated > terminated).any()
    expected = np.zeros((40, 3))
    for env in range(3):
        for start in range(40):
            discount = 1.0
            for t in range(start, 40):
                bootstrap = 0.0 if terminated[t, env] else gamma * next_value[t, env]
                expected[start, env] += discount * (reward[t, env] + bootstrap - value[t, env])
                discount *= gamma * lam
                if ended[t, env]:
                    break
    found = maxent_pg.advantages(*map(jnp.float32, (reward, value, next_value, terminated, ended)), args)
    assert np.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backup", [True, False])
@KINDS
def test_samples(discrete, backup):
    """Soft rewards in values and advantages, this step's own entropy taken out of the actor's again."""
    args = maxent_pg.Args(**{**vars(ARGS), "backup_entropy": backup, "gamma_power": True})
    state = make_state(discrete=discrete)
    rollout = make_rollout(args, state)
    samples, alpha = maxent_pg.to_samples(state, rollout, args)
    made = rollout.transition
    log_probs = reference_log_prob(state.actor.params, made.obs, rollout.u)
    reward = made.reward - 0.3 * log_probs if backup else made.reward
    value, next_value = (state.critic.apply_fn(state.critic.params, obs) for obs in (made.obs, made.next_obs))
    advantage = maxent_pg.advantages(reward, value, next_value, made.terminated, rollout.ended, args)
    assert np.allclose(samples.value_target, (advantage + value).ravel(), rtol=1e-3, atol=1e-3)
    expected = advantage + (0.3 * log_probs if backup else 0)
    assert np.allclose(samples.advantage, expected.ravel(), rtol=1e-3, atol=1e-3)
    assert np.allclose(samples.weight, 0.99 ** rollout.elapsed.ravel()) and alpha == pytest.approx(0.3)


def exact_rollout(mdp, pi, gamma, steps, seed):
    """Steps of 64 copies of a finite MDP, one-hot observations; what a row lacks to 1 ends the episode."""
    rng, count = np.random.default_rng(seed), 64
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
    state = maxent_pg.init(jax.random.key(0), 3, 4, args, discrete=True)
    table = {"params": {"logits": {"kernel": jnp.float32(logits), "bias": jnp.zeros(4)}}}
    values = {"params": {"Dense_0": {"kernel": jnp.float32(V)[:, None], "bias": jnp.zeros(1)}}}
    state = state.replace(actor=state.actor.replace(params=table), critic=state.critic.replace(params=values))

    @jax.jit
    def gradient(rollout):
        samples, scaled_alpha = maxent_pg.to_samples(state, rollout, args)
        grads, _ = jax.grad(maxent_pg.actor_loss, has_aux=True)(
            table, samples, scaled_alpha, jax.random.key(0), args
        )
        return grads["params"]["logits"]["kernel"]

    estimates = []
    for seed in range(60):
        rollout = exact_rollout(mdp, pi, gamma, args.num_steps, seed)
        episodes = rollout.ended.sum()  # all of two steps, so that a rollout cuts none
        estimates.append(-np.asarray(gradient(rollout)) * rollout.ended.size / episodes)
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / math.sqrt(len(estimates))
    exact, other = tabular.maxent_gradient, tabular.bonus_gradient
    if not backup:
        exact, other = other, exact
    given = *mdp[:2], gamma, alpha, mdp.start, pi
    assert (np.abs(mean - exact(*given)) < 4 * error + 1e-5).all()
    assert (np.abs(mean - other(*given)) > 8 * error).any()


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95])
def test_soft_advantage_vanishes_at_the_optimum(gae_lambda):
    """With V* and π* the soft advantage is 0 at every step, not only in the mean, whatever λ is."""
    mdp, gamma, alpha = random_mdp(0, 4, 3, end_probability=0.1), 0.9, 0.5
    args = maxent_pg.Args(
        **PLAIN, hidden_dims=(), num_envs=64, num_steps=50, gamma=gamma, alpha=alpha, gae_lambda=gae_lambda
    )
    pi, _, V = tabular.soft_optimum(*mdp[:2], gamma, alpha)
    table = {"params": {"logits": {"kernel": jnp.float32(np.log(pi)), "bias": jnp.zeros(3)}}}
    rollout = exact_rollout(mdp, pi, gamma, 50, 0)
    made = rollout.transition
    expected_next = mdp.P @ V  # in place of the one that was drawn: the advantage is that of the action
    states, actions = made.obs.argmax(-1), made.action
    soft_reward = made.reward - alpha * maxent_pg.log_prob(table, made.obs, actions)
    advantage = maxent_pg.advantages(
        soft_reward, V[states], expected_next[states, actions], 0 * rollout.ended, rollout.ended, args
    )
    assert np.abs(advantage).max() < 1e-4


# ---- losses


@KINDS
@pytest.mark.parametrize("clip_coef", [0.2, 0.0])
def test_actor_loss(discrete, clip_coef):
    """Away from the policy that drew the samples, so that some ratios are clipped; and its gradient, through
    the reparameterised sample too."""
    args = maxent_pg.Args(**{**vars(ARGS), "clip_coef": clip_coef})
    state = make_state(discrete=discrete)
    samples, alpha = maxent_pg.to_samples(state, make_rollout(args, state), args)
    samples = samples.replace(weight=jnp.linspace(0.5, 1, len(samples.weight)))
    params = jax.tree.map(lambda leaf: 0.5 * leaf, state.actor.params)
    loss, metrics = maxent_pg.actor_loss(params, samples, alpha, jax.random.key(5), args)

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
    gradient = jax.grad(maxent_pg.actor_loss, has_aux=True)
    grads, _ = gradient(params, samples, alpha, jax.random.key(5), args)
    expected = finite_difference(reference, params, ("Dense_0", "kernel"), (0, 1))
    assert grads["params"]["Dense_0"]["kernel"][0, 1] == pytest.approx(expected, rel=5e-3, abs=1e-6)


def test_critic_loss():
    state = make_state()
    samples, _ = maxent_pg.to_samples(state, make_rollout(ARGS, state), ARGS)
    value = state.critic.apply_fn(state.critic.params, samples.obs)
    expected = 0.5 * np.mean((np.float64(value) - np.float64(samples.value_target)) ** 2)
    assert maxent_pg.critic_loss(state.critic.params, state, samples)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backup", [True, False])
def test_scaling_advantages_keeps_the_temperature(backup):
    """`--norm-adv` divides the whole gradient by one number: the trade between reward and entropy stays."""
    args = maxent_pg.Args(**{**vars(ARGS), "backup_entropy": backup, "num_envs": 64})
    scaled_args = maxent_pg.Args(**{**vars(args), "norm_adv": True})
    state = make_state(args, discrete=True)
    rollout = make_rollout(args, state)

    def gradient(args):
        samples, alpha = maxent_pg.to_samples(state, rollout, args)
        params, key = state.actor.params, jax.random.key(0)
        grads = jax.grad(maxent_pg.actor_loss, has_aux=True)(params, samples, alpha, key, args)[0]
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)]), samples

    plain, samples = gradient(args)
    scaled, _ = gradient(scaled_args)
    mean_score = jax.grad(
        lambda params: maxent_pg.log_prob(params, samples.obs, samples.u).mean() * samples.advantage.mean()
    )(state.actor.params)
    baseline = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mean_score)])
    assert np.allclose(scaled * samples.advantage.std(), plain + baseline, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_scaling_rewards_leaves_the_entropy_alone(factor):
    """Soft rewards are r/σ - α log π, so with r' = 1000 r nothing changes but σ: α is in scaled reward."""
    args = maxent_pg.Args(**{**vars(ARGS), "normalize_reward": True, "gae_lambda": 0.0, "gamma": 0.0})
    state = make_state(discrete=True)
    rollout = make_rollout(args, state)
    scaled = rollout.transition.reward * factor
    rollout = rollout.replace(transition=rollout.transition.replace(reward=scaled))
    tracked = maxent_pg.track_returns(state, rollout, args)
    deviation = np.float64(scaled).std()  # with γ = 0 a return is its reward
    assert maxent_pg.return_deviation(tracked) == pytest.approx(deviation, rel=1e-5)
    samples, _ = maxent_pg.to_samples(tracked, rollout, args)
    log_probs = reference_log_prob(state.actor.params, rollout.transition.obs, rollout.u)
    soft_reward = scaled / deviation - 0.3 * log_probs
    assert np.allclose(samples.value_target, soft_reward.ravel(), rtol=1e-3, atol=1e-4)


def test_discounted_returns_go_on_over_rollouts_and_stop_at_ends():
    args = maxent_pg.Args(num_envs=1, num_steps=3, gamma=0.5)
    state = maxent_pg.init(jax.random.key(0), 1, 1, args)
    totals = []
    for reward, ended in (([1.0, 2.0, 4.0], [0, 0, 0]), ([8.0, 1.0, 1.0], [1, 0, 1])):
        zeros = np.zeros((3, 1), np.float32)
        column = np.float32(reward)[:, None]
        transition = Transition(zeros[..., None], zeros[..., None], column, zeros[..., None], zeros)
        rollout = maxent_pg.Rollout(transition, zeros[..., None], np.float32(ended)[:, None], zeros)
        state = maxent_pg.track_returns(state, rollout, args)
        totals += [state]
    returns = [1, 2.5, 5.25, 10.625, 1, 1.5]
    assert totals[0].running_return == pytest.approx([5.25]) and totals[1].running_return == pytest.approx(
        [0]
    )
    assert state.returns.mean == pytest.approx(np.mean(returns), rel=1e-5)
    assert state.returns.var == pytest.approx(np.var(returns), rel=1e-5) and state.returns.count == 6


def test_observations_are_normalised_by_the_rollouts_before():
    """Those of the first are taken as they are; then mean and variance are those of all rows."""
    args = maxent_pg.Args(num_envs=4, num_steps=6, num_minibatches=1, update_epochs=1, hidden_dims=(8,))
    state = make_state(args)
    update = jax.jit(lambda state, rollout: maxent_pg.update(state, rollout, jax.random.key(1), args))
    rollouts = [make_rollout(args, state, seed) for seed in range(3)]
    assert np.array_equal(
        maxent_pg.normalized(state.observations, rollouts[0].transition.obs), rollouts[0].transition.obs
    )
    for rollout in rollouts:
        tracked = maxent_pg.track_returns(state, rollout, args)
        samples, _ = maxent_pg.to_samples(tracked, rollout, args)
        expected = maxent_pg.critic_loss(state.critic.params, tracked, samples)[0]
        state, metrics = update(state, rollout)
        assert float(metrics["losses/value_loss"]) == pytest.approx(float(expected), rel=1e-4)
    obs = np.concatenate([r.transition.obs.reshape(-1, 2) for r in rollouts]).astype(np.float64)
    assert np.allclose(state.observations.mean, obs.mean(axis=0), atol=1e-5)
    assert np.allclose(state.observations.var, obs.var(axis=0), rtol=1e-4)
    expected = np.clip((obs - obs.mean(axis=0)) / obs.std(axis=0), -10, 10)
    assert np.allclose(maxent_pg.normalized(state.observations, jnp.float32(obs)), expected, atol=1e-4)
    policy, key, raw = maxent_pg.policy_of(state), jax.random.key(3), jnp.float32(5 + 3 * obs)
    plain = policy | {"observations": maxent_pg.Statistics(jnp.zeros(2), jnp.ones(2), jnp.zeros(()))}
    seen = maxent_pg.normalized(state.observations, raw)
    deterministic = [maxent_pg.act(p, x, key, True) for p, x in ((policy, raw), (plain, seen))]
    assert np.allclose(*deterministic, atol=1e-5)
    sampled = [maxent_pg.sample_action(p, x, key) for p, x in ((policy, raw), (plain, seen))]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*sampled, strict=True))


@KINDS
def test_temperature_is_learned_and_bounded(discrete):
    """Targets are half of log 2 nats for two actions, -1 nat for two dimensions."""
    args = maxent_pg.Args(**{**vars(ARGS), "autotune": True, "alpha_lr": 1.0})
    state, target = make_state(args, discrete), 0.5 * math.log(2) if discrete else -1.0
    for entropy, sign in ((target + 0.5, -1), (target - 0.5, 1)):
        moved, metrics = maxent_pg.improve_temperature(state, entropy, args)
        assert np.sign(maxent_pg.temperature(moved) - 0.3) == sign
        assert metrics["losses/alpha_loss"] == pytest.approx(0.3 * (entropy - target), rel=1e-4)
        for _ in range(200):
            moved, _ = maxent_pg.improve_temperature(moved, entropy, args)
        assert maxent_pg.temperature(moved) == pytest.approx(1e-4 if sign < 0 else 1.0, rel=1e-4)


def test_learning_rate_falls_to_zero_at_the_end():
    args = maxent_pg.Args(
        num_envs=4, num_steps=6, num_minibatches=2, update_epochs=3, total_timesteps=100, hidden_dims=(8,)
    )
    state = maxent_pg.init(jax.random.key(0), 2, 2, args)
    update = jax.jit(lambda state, rollout: maxent_pg.update(state, rollout, jax.random.key(1), args)[0])
    moves = []
    for _ in range(5):  # four rollouts of 24 steps fit into 100
        after = update(state, make_rollout(args, state))
        pairs = zip(*map(jax.tree.leaves, (state.actor.params, after.actor.params)), strict=True)
        moves.append(max(float(jnp.abs(a - b).max()) for a, b in pairs))
        state = after
    assert moves[0] > moves[3] > 0 == moves[4]


@KINDS
def test_one_seed_alone_equals_that_seed_among_three(discrete):
    args = maxent_pg.Args(num_envs=4, num_steps=6, num_minibatches=2, update_epochs=2, hidden_dims=(8,))
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    states = jax.jit(jax.vmap(lambda key: maxent_pg.init(key, 2, 2, args, discrete)))(keys)
    rollouts = [make_rollout(args, make_state(args, discrete), seed) for seed in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rollouts)
    probes.assert_last_among_others_is_itself(
        lambda *given: maxent_pg.update(*given, args)[0], states, together, keys
    )


# ---- whole runs


def trained_policy(tmp_path, num_states, **given):
    """π of a finite environment, `(S, A)`, after a run."""
    args = dict(eval_episodes=0, learning_rate=1e-3, num_minibatches=8, checkpoint_frequency=0)
    args |= dict(normalize_observation=False, normalize_reward=False, hidden_dims=(32,))
    maxent_pg.train(maxent_pg.Args(**args | given, run_dir=str(tmp_path / "run")))
    return corridor.probabilities(tmp_path / "run" / "policy-1.npz", num_states)


@pytest.mark.parametrize(("backup", "expected"), [(True, 0.7210), (False, 0.3682)])
def test_two_rooms(backup, expected, tmp_path):
    """The preferred room flips with the flag, as the oracle says."""
    P, R, _ = two_rooms()
    find = tabular.optimal_policy if backup else tabular.bonus_policy
    assert find(P, R, 0.99, 0.5)[0, 4:].sum() == pytest.approx(expected, abs=1e-4)
    env_id, steps = "cleanrl_maxent/TwoRooms-v0", 80_000
    pi = trained_policy(tmp_path, 3, env_id=env_id, alpha=0.5, backup_entropy=backup, total_timesteps=steps)
    assert pi[0, 4:].sum() == pytest.approx(expected, abs=0.03)


def test_random_mdp(tmp_path):
    """Total variation from the soft optimum, in every state."""
    P, R, _ = random_mdp()
    optimum = tabular.soft_optimum(P, R, 0.9, 0.5)[0]
    given = dict(env_id="cleanrl_maxent/RandomMDP-v0", alpha=0.5, gamma=0.9, total_timesteps=150_000)
    pi = trained_policy(tmp_path, 5, **given, num_minibatches=2)
    assert (0.5 * np.abs(pi - optimum).sum(axis=-1)).max() < 0.05


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_resume_is_exact(env_id, tmp_path, monkeypatch):
    """Two seeds with three environments each: two stops, saved at the end of their rollout, and a crash
    within one, which is played again."""
    args = dict(env_id=env_id, num_seeds=2, num_envs=3, num_steps=20, num_minibatches=4, update_epochs=2)
    args |= dict(total_timesteps=500, checkpoint_frequency=100, eval_frequency=150, eval_episodes=1)
    args |= dict(hidden_dims=(8, 8), autotune=True)
    maxent_pg.train(maxent_pg.Args(**args, run_dir=str(tmp_path / "reference")))
    run = tmp_path / "run"
    for at in (67, 33):
        interrupted(args, run, monkeypatch, at, maxent_pg)
    original, count = SeedEnvs.step, [0]

    def crash(self, action):
        count[0] += 1
        if count[0] == 27:
            raise RuntimeError("killed")
        return original(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEnvs, "step", crash)
        with pytest.raises(RuntimeError, match="killed"):
            maxent_pg.train(maxent_pg.Args(**args, run_dir=str(run)))
    maxent_pg.train(maxent_pg.Args(**args, run_dir=str(run)))
    assert differences(digests(tmp_path / "reference"), digests(run)) == []
    record = (run / "seed-2" / "metrics.jsonl").read_text()
    assert "eval/return_mean" in record and "eval/soft_return" in record
    with np.load(run / "policy-2.npz") as saved:
        assert saved["observations/count"] == 480


def test_environments_of_a_seed_differ_and_episodes_are_its_own():
    envs = SeedEnvs("CartPole-v1", [1, 2], num_envs=3, discrete=True)
    assert len(np.unique(envs.obs[:, 0])) == 6 and envs.action_dim == 2
    alone = SeedEnvs("CartPole-v1", [2], num_envs=3, discrete=True)
    assert np.array_equal(alone.obs, envs.obs[3:])
    ended = []
    for _ in range(60):
        before = envs.elapsed
        ended += envs.step(np.ones(6, np.int64))
        assert (envs.elapsed == np.where(envs.ended, 0, before + 1)).all()
    assert {episode.index for episode in ended} == {0, 1}

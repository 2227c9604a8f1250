"""What REINFORCE, A2C, A3C, TRPO and PPO share: distributions, advantages, and gradients that coincide."""

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from cleanrl_maxent import a2c, a3c, maxent_pg, ppo, reinforce, trpo
from cleanrl_maxent.common.data import Statistics, Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from tests.support.contract import Case, record_inputs
from tests.support.probes import Echo
from tests.support.pytrees import distance
from tests.support.rollouts import (
    DISCRETE,
    KINDS,
    advantages_by_definition,
    double,
    flat,
    float64,
    make_args,
    make_rollout,
    make_state,
    new_state,
    numeric_gradient,
    reference_entropy,
    reference_log_prob,
    reference_value,
    tabular_state,
    with_optimiser,
)
from tests.support.runs import small_args

FAMILY = (reinforce, a2c, a3c, trpo, ppo)
STATISTICS = Statistics(jnp.array([1.0, 2, 3]), jnp.array([4, 1, 0.25]), jnp.float32(5))


def each(*algorithms):
    """A test for each of these."""
    names = [algorithm.__name__.rpartition(".")[2] for algorithm in algorithms]
    return pytest.mark.parametrize("algorithm", algorithms, ids=names)


def density(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


@each(*FAMILY)
@float64()
def test_gaussian(algorithm):
    """Density of samples, beyond ±1 too; entropy and divergence by integrals; all sum over dimensions."""
    mean, log_std = np.array([[0.3, -1.0], [2.0, 0.0]]), np.array([[0.1, -0.7], [0.0, 0.0]])
    action, std = np.array([[1.7, -3.0], [0.0, 4.0]]), np.exp(log_std)
    pi = algorithm.Gaussian(jnp.array(mean), jnp.array(log_std))
    expected = np.log(density(action, mean, std)).sum(-1)
    np.testing.assert_allclose(pi.log_prob(jnp.array(action)), expected, rtol=1e-13)
    x = np.linspace(-30, 30, 60_001)[:, None, None]
    p = density(x, mean, std)
    entropy = np.trapezoid(-p * np.log(np.maximum(p, 1e-300)), x, axis=0).sum(-1)
    np.testing.assert_allclose(pi.entropy(), entropy, rtol=1e-10)
    assert pi.entropy()[1] / 2 == pytest.approx(1.41894, abs=5e-6)
    assert np.array_equal(pi.mode(), mean)
    if algorithm in (trpo, ppo):
        other_mean, other_std = mean + [[0.5, -0.2], [0.0, 1.0]], std * [[1.3, 0.6], [2.0, 1.0]]
        q = density(x, other_mean, other_std)
        logs = np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300))
        divergence = np.trapezoid(p * logs, x, axis=0).sum(-1)
        other = algorithm.Gaussian(jnp.array(other_mean), jnp.log(other_std))
        np.testing.assert_allclose(pi.kl(other), divergence, rtol=1e-8)
        assert np.abs(other.kl(pi) - pi.kl(other)).min() > 0.01 and (pi.kl(pi) == 0).all()


@each(*FAMILY)
@float64()
def test_categorical(algorithm):
    """In float64 against sums over the probabilities; an impossible action adds nothing."""
    logits = np.array([[0.2, -0.1, 0.4, 0.0], [3.0, 1.0, -800.0, 2.0]])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pi, action = algorithm.Categorical(jnp.array(logits)), jnp.array([2, 1])
    np.testing.assert_allclose(pi.log_prob(action), np.log(p[[0, 1], [2, 1]]), rtol=1e-12)
    np.testing.assert_allclose(pi.entropy(), -(p * np.log(np.maximum(p, 1e-300))).sum(-1), rtol=1e-12)
    assert pi.mode().tolist() == [2, 0]
    if algorithm in (trpo, ppo):
        q = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
        other = algorithm.Categorical(jnp.log(q))
        expected = (p * np.log(np.maximum(p, 1e-300) / q)).sum(-1)
        np.testing.assert_allclose(pi.kl(other), expected, rtol=1e-12)
        reverse = (q[0] * np.log(q[0] / p[0])).sum()
        assert other.kl(pi)[0] == pytest.approx(reverse, rel=1e-12) and abs(reverse - expected[0]) > 1e-3


@each(*FAMILY)
def test_samples_follow_the_distribution(algorithm):
    """Mean, std and frequencies of 20,000 samples within five standard errors."""
    shape, key = (20_000, 2), jax.random.key(0)
    mean, std = np.array([0.3, -2.0]), np.array([0.5, 2.0])
    sample = algorithm.Gaussian(jnp.broadcast_to(mean, shape), jnp.broadcast_to(np.log(std), shape)).sample
    found = np.float64(sample(key))
    assert (np.abs(found.mean(0) - mean) < 5 * std / math.sqrt(20_000)).all()
    assert (np.abs(found.std(0) - std) < 5 * std / math.sqrt(40_000)).all()
    p = np.array([0.1, 0.2, 0.7])
    numbers = algorithm.Categorical(jnp.broadcast_to(jnp.log(p), (20_000, 3))).sample(key)
    found = np.bincount(numbers, minlength=3) / 20_000
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()


@KINDS
def test_a_key_makes_the_same_networks_in_all_files(task):
    """Orthogonal weights, √2 in hidden layers and 0.01 in the heads; one std for all states, as asked."""
    args = dict(hidden_dims=(8, 8), log_std_init=-0.5)
    states = [new_state(algorithm, make_args(algorithm, **args), task) for algorithm in FAMILY]
    for state in states[1:]:
        assert distance(states[0].actor.params, state.actor.params) == 0
        assert distance(states[0].critic.params, state.critic.params) == 0
    params = states[0].actor.params["params"]
    for name, scale in (("Dense_1", math.sqrt(2)), ("logits" if task.discrete else "mean", 0.01)):
        kernel = np.float64(params[name]["kernel"])
        assert np.allclose(kernel.T @ kernel, scale**2 * np.eye(kernel.shape[1]), atol=1e-5), name
        assert not params[name]["bias"].any()
    if not task.discrete:
        assert params["log_std"].tolist() == [-0.5, -0.5]


@each(*FAMILY)
@KINDS
def test_actions_are_those_of_the_distribution_at_normalised_observations(algorithm, task):
    """Mean or likeliest if deterministic, else a sample."""
    state = make_state(algorithm, make_args(algorithm), task).replace(observations=STATISTICS)
    obs, key = jnp.array([[2.0, 1.0, 3.5], [-900.0, 2.0, 3.0]]), jax.random.key(1)
    seen = np.array([[0.5, -1, 1], [-10, 0, 0]])
    pi = state.actor.apply_fn(state.actor.params, jnp.float32(seen))
    for deterministic, expected in ((True, pi.mode()), (False, pi.sample(key))):
        found = algorithm.act(algorithm.policy(state), obs, key, deterministic)
        assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@each(*FAMILY)
def test_samples_keep_the_action_and_the_environment_gets_it_clipped(algorithm, monkeypatch, tmp_path):
    """Bounds ±0.4 and [-1, 3]."""
    monkeypatch.setattr(Echo, "actions", [])
    given = dict(num_envs=2, num_steps=20, hidden_dims=(4,), log_std_init=0.5, total_timesteps=80)
    given |= dict(normalize_observation=False, num_minibatches=2, eval_episodes=0)
    args = make_args(algorithm, **given, run_dir=str(tmp_path / "run"), env_id="Echo-v0")
    inputs = record_inputs(Case("", "Box", algorithm), monkeypatch, args)
    action = np.concatenate([rollout.transition.action[0] for rollout in inputs.data])
    assert (np.abs(action) > 1.5).any(axis=(0, 1)).all()
    assert len(np.unique(action[..., 0])) == action[..., 0].size  # every step has a key of its own
    done = np.array(Echo.actions[-80:]).reshape(action.shape)
    assert np.allclose(done, np.clip(action, -1, 1) * [0.4, 2] + [0, 1], atol=1e-6)
    assert len(inputs) == 2 and inputs.data[0].transition.obs.shape == (1, 20, 2, 1)
    state = algorithm.init(jax.random.key(0), Task(1, 2), args)
    rollout = jax.tree.map(lambda leaf: leaf[0], inputs.data[0])
    samples = algorithm.make_samples(state, rollout, args)
    assert np.array_equal(samples.action, rollout.transition.action.reshape(40, 2))


def random_episodes():
    """Reward, V(s), V(s'), terminated and ended of 40 steps of three environments."""
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 40, 3))
    terminated, truncated = (rng.random((2, 40, 3)) < 0.15).astype(float)
    assert (terminated * truncated).any() and (truncated > terminated).any()
    ended = np.maximum(terminated, truncated)
    next_value[:-1] = np.where(ended[:-1], next_value[:-1], value[1:])
    return reward, value, next_value, terminated, ended


@each(*FAMILY, maxent_pg)
@float64()
def test_advantages_without_decay_are_returns_minus_values(algorithm):
    """R as in the box of A3C: backwards from 0 or V of the true next state, anew where an episode ended."""
    reward, value, next_value, terminated, ended = given = random_episodes()
    returns, R = np.zeros((40, 3)), next_value[-1]
    for t in reversed(range(40)):
        R = reward[t] + 0.9 * np.where(terminated[t], 0, np.where(ended[t], next_value[t], R))
        returns[t] = R
    args = SimpleNamespace(gamma=0.9, gae_lambda=1.0)
    found = jax.jit(lambda *given: algorithm.advantages(*given, args))(*map(jnp.array, given))
    np.testing.assert_allclose(found, returns - value, rtol=0, atol=1e-14)


@each(*FAMILY, maxent_pg)
@float64()
def test_advantages_are_discounted_sums_of_residuals(algorithm):
    given, args = random_episodes(), SimpleNamespace(gamma=0.9, gae_lambda=0.8)
    found = jax.jit(lambda *given: algorithm.advantages(*given, args))(*map(jnp.array, given))
    np.testing.assert_allclose(found, advantages_by_definition(*given, 0.9, 0.8), rtol=0, atol=1e-14)


@each(*FAMILY)
@float64()
def test_a_time_limit_is_no_end_of_the_return(algorithm):
    """Reward 1 at every step, a limit of 50, the exact V = 10: no step has an advantage, nor the 50th."""
    args = make_args(algorithm, hidden_dims=(), num_envs=1, num_steps=120, gamma=0.9, gae_lambda=0.95)
    state = double(tabular_state(algorithm, args, np.zeros((1, 2)), np.array([10.0])))
    ones, zeros = np.ones((120, 1)), np.zeros((120, 1))
    ended = (np.arange(120) % 50 == 49).astype(float)[:, None]
    elapsed = np.arange(120)[:, None] % 50
    make_samples = jax.jit(lambda state, rollout: algorithm.make_samples(state, rollout, args))
    for terminated, vanishes in ((zeros, True), (ended, False)):
        transition = Transition(ones[..., None], zeros.astype(int), ones, ones[..., None], terminated)
        samples = make_samples(state, algorithm.Rollout(transition, ended, elapsed))
        assert (np.abs(samples.advantage).max() < 1e-12) == vanishes


@each(*FAMILY)
def test_advantages_are_scaled_over_the_rollout(algorithm):
    """To mean 0 and std 1, on request; targets of V are not."""
    args = make_args(algorithm)
    state = make_state(algorithm, args)
    rollout = make_rollout(algorithm, args)
    make_samples = jax.jit(algorithm.make_samples, static_argnums=2)
    plain = make_samples(state, rollout, args)
    scaled = make_samples(state, rollout, make_args(algorithm, norm_adv=True))
    expected = (plain.advantage - plain.advantage.mean()) / plain.advantage.std()
    assert np.allclose(scaled.advantage, expected, atol=1e-5) and plain.advantage.std() < 10
    assert abs(plain.advantage.std() - 1) > 0.05
    assert np.array_equal(scaled.value_target, plain.value_target)


@each(*FAMILY, maxent_pg)
def test_advantages_that_are_all_alike_are_scaled_to_zero(algorithm):
    """Reward 1 and the end at every step, where V is 0: the std is 0."""
    args = make_args(algorithm, hidden_dims=(), num_steps=8, norm_adv=True, alpha=0.0)
    state = tabular_state(algorithm, args, np.zeros((1, 2)), np.zeros(1))
    rollout, ones = make_rollout(algorithm, args, Task(1, 2, True)), np.ones((8, 4), np.float32)
    transition = rollout.transition.replace(reward=ones, terminated=ones)
    rollout = rollout.replace(transition=transition, ended=ones)
    assert not algorithm.make_samples(state, rollout, args).advantage.any()


@each(*FAMILY, maxent_pg)
def test_losses_see_the_observations_that_the_policy_saw(algorithm):
    """And log π_old is that of the actions at these observations."""
    args = make_args(algorithm, alpha=0.3)
    state = make_state(algorithm, args, DISCRETE).replace(observations=STATISTICS)
    rollout = make_rollout(algorithm, args, DISCRETE)
    rollout.transition.obs[0, 0] = -900
    seen = np.clip((rollout.transition.obs.reshape(24, 3) - [1, 2, 3]) / [2, 1, 0.5], -10, 10)
    samples = algorithm.make_samples(state, rollout, args)
    assert np.allclose(samples.obs, seen, atol=1e-4)
    if algorithm in (trpo, ppo, maxent_pg):
        expected = reference_log_prob(state.actor.params, seen, rollout.transition.action.ravel())
        old = samples.log_prob if algorithm is maxent_pg else samples.old.log_prob(samples.action)
        assert np.allclose(old, expected, atol=1e-4)


@each(*FAMILY, maxent_pg)
@float64()
def test_critic_loss_and_gradient(algorithm):
    args = make_args(algorithm)
    state, rollout = double((make_state(algorithm, args), make_rollout(algorithm, args)))
    samples, params = jax.device_get((algorithm.make_samples(state, rollout, args), state.critic.params))

    def half_squared_error(params):
        return 0.5 * np.mean((reference_value(params, samples.obs) - samples.value_target) ** 2)

    (loss, metrics), grads = jax.value_and_grad(algorithm.critic_loss, has_aux=True)(params, state, samples)
    assert loss == metrics["losses/value_loss"] == pytest.approx(half_squared_error(params), rel=1e-12)
    np.testing.assert_allclose(flat(grads), numeric_gradient(half_squared_error, params), rtol=0, atol=1e-8)


LOSSES = {
    "reinforce": (reinforce, {}),
    "a2c": (a2c, dict(ent_coef=0.0)),
    "a3c": (a3c, dict(ent_coef=0.0)),
    "trpo": (trpo, {}),
    "ppo, clip": (ppo, dict(clip_coef=0.2)),
    "ppo, penalty": (ppo, dict(clip_coef=0.0, kl_coef=3.0)),
    "ppo, clip and penalty": (ppo, dict(clip_coef=0.1, kl_coef=0.5)),
    "ppo, neither": (ppo, dict(clip_coef=0.0)),
    "maxent_pg": (maxent_pg, dict(alpha=0.0)),  # of discrete actions; others it squashes
}


def loss_of(algorithm, args):
    """The actor's loss, of parameters, state and samples."""
    if algorithm is trpo:
        return lambda *given: -trpo.surrogate(*given)
    more = {reinforce: (), maxent_pg: (jax.random.key(0), args)}.get(algorithm, (args,))
    return lambda *given: algorithm.actor_loss(*given, *more)[0]


@KINDS
@float64()
def test_all_losses_have_the_policy_gradient(task):
    """At the policy that sampled, with the same advantages: -mean ∇log π Â, whatever the clip or penalty."""
    found, advantage = {}, np.random.default_rng(5).normal(size=24)
    for name, (algorithm, given) in LOSSES.items():
        if algorithm is maxent_pg and not task.discrete:
            continue
        args = make_args(algorithm, **given)
        state, rollout = double((make_state(algorithm, args, task), make_rollout(algorithm, args, task)))

        @jax.jit
        def gradient(state, rollout, algorithm=algorithm, args=args):
            samples = algorithm.make_samples(state, rollout, args).replace(advantage=jnp.array(advantage))
            return jax.grad(loss_of(algorithm, args))(state.actor.params, state, samples)

        found[name] = flat(gradient(state, rollout))
    obs, action = (x.reshape(24, *x.shape[2:]) for x in (rollout.transition.obs, rollout.transition.action))

    def weighted(params):
        return -np.mean(reference_log_prob(params, obs, action) * advantage)

    expected = numeric_gradient(weighted, state.actor.params)
    assert np.abs(expected).max() > 0.01
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(gradient, found["reinforce"], rtol=0, atol=1e-15, err_msg=name)


@float64()
def test_one_step_on_the_whole_rollout_is_the_same_in_all_files():
    """With one optimiser: PPO of one pass and minibatch is A2C, and REINFORCE; TRPO has their critic."""
    given = dict(update_epochs=1, num_minibatches=1, gae_lambda=1.0, ent_coef=0.0)
    after = {}
    for algorithm in (reinforce, a2c, trpo, ppo):
        args = make_args(algorithm, **given)
        state, rollout = double((make_state(algorithm, args), make_rollout(algorithm, args)))
        update = jax.jit(lambda s, r, al=algorithm, args=args: al.update(s, r, jax.random.key(0), 0, args)[0])
        after[algorithm] = update(with_optimiser(state, optax.adam(0.01)), rollout)
    for algorithm in (a2c, trpo, ppo):
        assert distance(after[algorithm].critic.params, after[reinforce].critic.params) < 1e-13
        if algorithm is not trpo:
            assert distance(after[algorithm].actor.params, after[reinforce].actor.params) < 1e-13
    assert distance(after[a2c].actor.params, state.actor.params) > 5e-3


@each(reinforce, a2c, a3c, trpo, ppo)
@float64()
def test_advantages_of_whole_episodes_are_returns_minus_values(algorithm):
    """Without decay, if the rollout holds the whole episodes: Σ γ^k r to the end, minus V, step by step."""
    args = make_args(algorithm, num_steps=12, gamma=0.9, gae_lambda=1.0)
    state, rollout = double((make_state(algorithm, args), make_rollout(algorithm, args)))
    ended = np.zeros((12, 4))
    ended[[2, 6, 11]] = 1
    following = jnp.roll(rollout.transition.obs, -1, axis=0)
    transition = rollout.transition.replace(terminated=ended, next_obs=following)
    rollout = rollout.replace(transition=transition, ended=ended)
    samples = jax.jit(lambda *given: algorithm.make_samples(*given, args))(state, rollout)
    reward, returns = np.float64(rollout.transition.reward), np.zeros((12, 4))
    for first, last in ((0, 2), (3, 6), (7, 11)):
        for t in range(first, last + 1):
            returns[t] = sum(0.9 ** (k - t) * reward[k] for k in range(t, last + 1))
    value = reference_value(state.critic.params, rollout.transition.obs.reshape(48, 3))
    np.testing.assert_allclose(samples.advantage, returns.ravel() - value, rtol=0, atol=1e-12)
    np.testing.assert_allclose(samples.value_target, returns.ravel(), rtol=0, atol=1e-12)


@each(reinforce, trpo, ppo, maxent_pg)
@float64()
def test_every_pass_of_the_critic_uses_every_step_once(algorithm):
    """Values as a table, gradient steps halfway to a target: k passes leave 2^-k of each error."""
    args = make_args(algorithm, hidden_dims=(), num_minibatches=3, update_epochs=4)
    state = double(tabular_state(algorithm, args, np.zeros((24, 2)), np.zeros(24)))
    rollout = double(make_rollout(algorithm, args, Task(24, 2, True)))
    obs = jnp.eye(24).reshape(6, 4, 24)
    rollout = rollout.replace(transition=rollout.transition.replace(obs=obs, next_obs=0 * obs))
    # a minibatch has 8 rows, each with an eighth of its own gradient
    table = dict(apply_fn=lambda params, obs: obs @ params["V"], params={"V": jnp.linspace(-1, 1, 24)})
    state = state.replace(critic=TrainState.create(**table, tx=optax.sgd(8 / 2)))

    @jax.jit
    def errors(state):
        samples = algorithm.make_samples(state, rollout, args)
        after = algorithm.update(state, rollout, jax.random.key(0), 0, args)[0]
        values = [s.critic.apply_fn(s.critic.params, samples.obs) for s in (state, after)]
        return [value - samples.value_target for value in values]

    before, after = errors(state)
    np.testing.assert_allclose(after, before / 2**4, rtol=1e-10)


@each(reinforce, trpo)
def test_every_pass_of_the_critic_has_an_order_of_its_own(algorithm, monkeypatch):
    """Which is not that of the rollout either; steps are told apart by their value targets."""
    args, batches = make_args(algorithm, update_epochs=2, num_minibatches=3), []

    def note(params, state, batch):
        jax.debug.callback(lambda rows: batches.append(np.asarray(rows)), batch.value_target)
        return 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params)), {}

    monkeypatch.setattr(algorithm, "critic_loss", note)
    rollout = jax.tree.map(jnp.asarray, make_rollout(algorithm, args))
    state = make_state(algorithm, args)
    samples = algorithm.make_samples(state, rollout, args)
    for key in range(2):
        algorithm.fit_critic(state, samples, jax.random.key(key), args)
    jax.effects_barrier()
    orders = np.array([samples.value_target, *np.reshape(batches, (4, 24))])
    assert len({order.tobytes() for order in orders}) == 5
    assert (np.sort(orders) == np.sort(orders[0])).all()


@each(*FAMILY, maxent_pg)
def test_observations_and_rewards_are_scaled_by_what_was_seen(algorithm):
    """Observations by the rollouts before, so the first is taken as it is; rewards by this one too."""
    given = dict(normalize_observation=True, normalize_reward=True, num_minibatches=1, update_epochs=1)
    args, seen, returns = make_args(algorithm, **given, gamma=0.5, alpha=0.0), [], []
    state, running = new_state(algorithm, args), np.zeros(4)
    update = jax.jit(lambda state, rollout: algorithm.update(state, rollout, jax.random.key(0), 0, args))
    for seed in range(2):
        rollout = make_rollout(algorithm, args, seed=seed)
        rollout = rollout.replace(elapsed=np.array(rollout.elapsed) + 1)  # no episode begins with the rollout
        steps, params = rollout.transition, state.critic.params
        for reward, ended in zip(steps.reward, rollout.ended, strict=True):
            returns.append(0.5 * running + reward)
            running = (1 - ended) * returns[-1]
        state, metrics = update(state, rollout)
        deviation = np.std(returns)
        assert metrics["losses/return_std"] == pytest.approx(deviation, rel=1e-4)
        obs, next_obs = (np.float64(x).reshape(24, 3) for x in (steps.obs, steps.next_obs))
        if seen:
            mean, std = np.mean(seen, axis=0), np.std(seen, axis=0)
            obs, next_obs = ((x - mean) / std for x in (obs, next_obs))
        value, next_value = (reference_value(params, x).reshape(6, 4) for x in (obs, next_obs))
        decay = getattr(args, "gae_lambda", 1.0)
        given = steps.reward / deviation, value, next_value, steps.terminated, rollout.ended
        # the targets are the values plus the advantages
        expected = 0.5 * np.mean(advantages_by_definition(*given, 0.5, decay) ** 2)
        assert metrics["losses/value_loss"] == pytest.approx(expected, rel=1e-3)
        seen += list(np.float64(steps.obs).reshape(24, 3))
    assert np.allclose(state.observations.mean, np.mean(seen, axis=0), atol=1e-5)
    assert np.allclose(state.observations.var, np.var(seen, axis=0), rtol=1e-4)


@each(reinforce, trpo, ppo, maxent_pg)
def test_metrics_of_several_gradient_steps_are_means(algorithm, monkeypatch):
    """Of all passes and minibatches: of the mean value target of each, that of the rollout."""
    args = make_args(algorithm, update_epochs=2, num_minibatches=3)
    rollout, state = jax.tree.map(jnp.asarray, make_rollout(algorithm, args)), make_state(algorithm, args)

    def note(params, state, batch):
        nothing = 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params))
        return nothing, {"losses/value_loss": batch.value_target.mean()}

    monkeypatch.setattr(algorithm, "critic_loss", note)
    expected = algorithm.make_samples(state, rollout, args).value_target.mean()
    _, metrics = algorithm.update(state, rollout, jax.random.key(0), 0, args)
    assert metrics["losses/value_loss"] == pytest.approx(float(expected), abs=1e-5)


@each(reinforce, trpo)
@KINDS
def test_recorded_entropy(algorithm, task):
    """Of the policy before its step, averaged over all steps of the rollout; PPO's is with its loss."""
    args = make_args(algorithm)
    rollout = jax.tree.map(jnp.asarray, make_rollout(algorithm, args, task))
    state = make_state(algorithm, args, task)
    entropy = reference_entropy(state.actor.params, algorithm.make_samples(state, rollout, args).obs).mean()
    _, metrics = algorithm.update(state, rollout, jax.random.key(0), 0, args)
    assert metrics["losses/entropy"] == pytest.approx(entropy, rel=1e-5)


@each(a2c, a3c, ppo, maxent_pg)
def test_an_annealed_run_is_not_extended(algorithm, tmp_path):
    """Its learning rates depend on its length; with a constant rate a run can be extended."""
    given = dict(env_id="CartPole-v1", total_timesteps=240, eval_episodes=0)
    for anneal in (True, False):
        args = small_args(algorithm, **given, anneal_lr=anneal, run_dir=str(tmp_path / str(anneal)))
        algorithm.train(args)
        longer = replace(args, total_timesteps=480)
        if anneal:
            with pytest.raises(UsageError, match="its steps so far depend on its length"):
                algorithm.train(longer)
        else:
            assert algorithm.train(longer)["total_timesteps"] == longer.last_step


@each(*FAMILY, maxent_pg)
def test_without_normalisation_no_statistics_are_taken(algorithm):
    args = make_args(algorithm, normalize_observation=False)
    rollout = jax.tree.map(jnp.asarray, make_rollout(algorithm, args))
    after, _ = algorithm.update(make_state(algorithm, args), rollout, jax.random.key(0), 0, args)
    assert after.observations.count == 0

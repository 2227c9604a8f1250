"""reinforce.py: its three estimators over all episodes of a small MDP, and which steps count."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from cleanrl_maxent import reinforce
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.errors import UsageError
from tests.support.pytrees import distance
from tests.support.rollouts import (
    BOX,
    KINDS,
    double,
    flat,
    float64,
    make_args,
    make_rollout,
    make_state,
    numeric_gradient,
    on_host,
    reference_log_prob,
    reference_value,
    tabular_state,
)

FULL = dict(causality=False, baseline=False)
CAUSAL = dict(baseline=False)
BASELINE = {}
make_samples = on_host(jax.jit(reinforce.make_samples, static_argnums=2))
actor_loss = jax.jit(jax.value_and_grad(reinforce.actor_loss, has_aux=True))

REWARD = np.array([[0, 1], [0.5, 2]])
TO_ONE = np.array([0.3, 0.8])  # probability of state 1 after an action, in either state
THETA = np.array([[0.2, -0.1], [0, 0.3]])  # logits


def softmax(theta):
    return np.exp(theta) / np.exp(theta).sum(-1, keepdims=True)


def values(gamma, theta=THETA):
    """V_t(s) of three steps, `(3, 2)`."""
    found, following = [], np.zeros(2)
    for _ in range(3):
        Q = REWARD + gamma * (TO_ONE * following[1] + (1 - TO_ONE) * following[0])
        following = (softmax(theta) * Q).sum(-1)
        found.insert(0, following)
    return np.array(found)


def episodes():
    """All there are from state 0: states and actions, `(32, 3)`, and their probabilities."""
    pi, states, actions, weights = softmax(THETA), [], [], []
    for s1, s2 in itertools.product((0, 1), repeat=2):
        for chosen in itertools.product((0, 1), repeat=3):
            visited = (0, s1, s2)
            moves = [TO_ONE[a] if s else 1 - TO_ONE[a] for a, s in zip(chosen, visited[1:], strict=False)]
            states.append(visited)
            actions.append(chosen)
            weights.append(np.prod(moves) * np.prod([pi[s, a] for s, a in zip(visited, chosen, strict=True)]))
    return np.array(states), np.array(actions), np.array(weights)


def estimates(args, gamma, terminates):
    """The gradient's estimate from each episode, `(32, 2, 2)`; a state is observed with its time."""
    states, actions, _ = episodes()
    state = double(tabular_state(reinforce, args, np.tile(THETA, (3, 1)), values(gamma).ravel()))
    ended = np.array([0.0, 0, 1])[:, None]

    @jax.jit
    @jax.vmap
    def estimate(obs, action, reward):
        transition = Transition(obs, action, reward, jnp.roll(obs, -1, axis=0), terminates * ended)
        rollout = reinforce.Rollout(transition, ended, np.arange(3)[:, None])
        samples = reinforce.make_samples(state, rollout, args)
        grads, _ = jax.grad(reinforce.actor_loss, has_aux=True)(state.actor.params, state, samples)
        # the loss is a mean over three steps
        return -3 * grads["params"]["logits"]["kernel"].reshape(3, 2, 2).sum(axis=0)

    obs = np.eye(6)[2 * np.arange(3) + states][:, :, None]  # (episode, step, env, 6)
    return np.asarray(estimate(obs, actions[..., None], REWARD[states, actions][..., None]))


GRADIENTS = {1.0: [0.652022, 0.448728], 0.9: [0.595602, 0.380393]}
VARIANCES = {
    1.0: {"full": 10.110, "causal": 5.841, "baseline": 1.248},
    0.9: {"full": 7.894, "causal": 4.368, "baseline": 0.894},
}


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("name", ["full", "causal", "baseline"])
@float64()
def test_each_estimator_is_unbiased_and_has_its_variance(name, gamma):
    """In expectation the exact gradient of E Σ γ^t r; the variance falls with causality and the baseline."""
    flags = {"full": FULL, "causal": CAUSAL, "baseline": BASELINE}[name]
    power = gamma < 1 and name != "full"
    given = dict(num_envs=1, num_steps=3, hidden_dims=(), gamma=gamma, gamma_power=power)
    args = make_args(reinforce, **flags, **given)
    found, weights = estimates(args, gamma, terminates=1.0), episodes()[2]
    mean = np.einsum("n,nsa->sa", weights, found)
    exact = np.zeros((2, 2))
    for index in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[index] = 1e-6
        difference = values(gamma, THETA + step) - values(gamma, THETA - step)
        exact[index] = difference[0, 0] / 2e-6
    np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-9)
    signed = np.array([[-1, 1], [-1, 1]]) * np.array(GRADIENTS[gamma])[:, None]
    np.testing.assert_allclose(mean, signed, rtol=0, atol=1e-6)
    variance = np.einsum("n,nsa->", weights, (found - mean) ** 2)
    assert variance == pytest.approx(VARIANCES[gamma][name], abs=5.1e-4)


def test_exact_values():
    np.testing.assert_allclose(values(1.0)[0], [2.272437, 3.283417], atol=1e-6)


@pytest.mark.parametrize("flags", [FULL, CAUSAL], ids=["full", "causal"])
@float64()
def test_without_a_baseline_a_time_limit_is_the_horizon(flags):
    """Estimates are the same whether the last step terminates or is cut; with the baseline they are not."""
    shared = dict(num_envs=1, num_steps=3, hidden_dims=())
    args = make_args(reinforce, **flags, **shared)
    assert np.array_equal(estimates(args, 1.0, 1.0), estimates(args, 1.0, 0.0))
    args = make_args(reinforce, **shared)
    assert np.abs(estimates(args, 1.0, 1.0) - estimates(args, 1.0, 0.0)).max() > 0.1


@float64()
def test_a_baseline_can_remove_all_variance():
    """Two arms, rewards 1 and 0, each with probability ½: with V = ½ both estimates are the gradient, ¼."""
    for baseline, expected in ((True, [0.25, 0.25]), (False, [0.5, 0.0])):
        args = make_args(reinforce, num_envs=1, num_steps=1, hidden_dims=(), baseline=baseline)
        state = double(tabular_state(reinforce, args, np.zeros((1, 2)), np.array([0.5])))
        one, found = np.ones((1, 1)), []
        for arm, reward in ((0, 1.0), (1, 0.0)):
            transition = Transition(one[..., None], np.full((1, 1), arm), reward * one, one[..., None], one)
            samples = make_samples(state, double(reinforce.Rollout(transition, one, 0 * one)), args)
            _, grads = actor_loss(state.actor.params, state, samples)
            found.append(-float(grads["params"]["logits"]["kernel"][0, 0]))
        assert found == pytest.approx(expected, abs=1e-15)
        assert np.var(found) == pytest.approx(0 if baseline else 0.0625, abs=1e-15)


ENDED = np.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1]]).T.astype(np.float32)
ELAPSED = np.array([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [1, 0, 1, 0, 1, 2]]).T
COUNTS = {  # of three environments: the last episode is cut; the only one never ends; the first began before
    "baseline": ["111111", "111111", "111111"],
    "causal": ["111110", "000000", "111111"],
    "full": ["111110", "000000", "011111"],
    "full, baseline": ["111111", "111111", "011111"],
}
ESTIMATORS = {
    "baseline": BASELINE,
    "causal": CAUSAL,
    "full": FULL,
    "full, baseline": dict(causality=False),
}


def cut_rollout(args, task=BOX):
    """Random steps whose episodes end as in ENDED, by termination."""
    rollout = make_rollout(reinforce, args, task)
    steps = rollout.transition
    following = np.concatenate([steps.obs[1:], steps.next_obs[-1:]])
    transition = steps.replace(terminated=ENDED, next_obs=following)
    return reinforce.Rollout(transition, ENDED, ELAPSED)


@pytest.mark.parametrize("name", COUNTS)
def test_steps_of_episodes_that_are_not_known_do_not_count(name):
    """The others weigh more, so that the loss is their mean; nothing of those left out reaches a gradient."""
    args = make_args(reinforce, num_envs=3, **ESTIMATORS[name])
    rollout, state = cut_rollout(args), make_state(reinforce, args)
    samples = make_samples(state, rollout, args)
    counts = np.array([list(map(int, row)) for row in COUNTS[name]]).T.ravel()
    assert np.allclose(samples.weight, counts / counts.mean(), rtol=1e-6)
    loss, grads = actor_loss(state.actor.params, state, samples)
    log_prob = reference_log_prob(state.actor.params, samples.obs, samples.action)
    assert loss[0] == pytest.approx(-(log_prob * samples.advantage)[counts > 0].mean(), rel=1e-4)
    uncounted = counts == 0
    other = samples.replace(advantage=jnp.where(uncounted, 99.0, samples.advantage))
    assert np.allclose(flat(actor_loss(state.actor.params, state, other)[1]), flat(grads), atol=1e-6)


@pytest.mark.parametrize("name", COUNTS)
def test_advantages_are_normalised_over_the_steps_that_count(name):
    """To mean 0 and std 1, whatever was rewarded in the others."""
    args = make_args(reinforce, num_envs=3, norm_adv=True, **ESTIMATORS[name])
    rollout, state = cut_rollout(args), make_state(reinforce, args)
    samples = make_samples(state, rollout, args)
    counts = np.array([list(map(int, row)) for row in COUNTS[name]]).T.ravel() > 0
    found = np.float64(samples.advantage)[counts]
    assert found.mean() == pytest.approx(0, abs=1e-5) and found.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("flags", [FULL, CAUSAL], ids=["full", "causal"])
def test_a_rollout_in_which_no_episode_ends_teaches_nothing(flags):
    args = make_args(reinforce, **flags)
    state, rollout = make_state(reinforce, args), make_rollout(reinforce, args)
    none = np.zeros_like(rollout.ended)
    transition = rollout.transition.replace(terminated=none)
    samples = make_samples(state, reinforce.Rollout(transition, none, rollout.elapsed), args)
    (loss, _), grads = actor_loss(state.actor.params, state, samples)
    assert loss == 0 and not flat(grads).any()


@pytest.mark.parametrize("name", COUNTS)
@float64()
def test_advantages_step_by_step(name):
    """The discounted rewards of the episode, from its start or from the step on, minus V if there is one;
    targets of V are always those from the step on."""
    args = make_args(reinforce, num_envs=3, gamma=0.9, **ESTIMATORS[name])
    state, rollout = double((make_state(reinforce, args), cut_rollout(args)))
    samples = make_samples(state, rollout, args)
    steps, (expected, targets) = rollout.transition, np.zeros((2, 6, 3))
    every = (obs.reshape(18, 3) for obs in (steps.obs, steps.next_obs))
    value, next_value = (reference_value(state.critic.params, obs).reshape(6, 3) for obs in every)
    for t, env in np.ndindex(6, 3):
        last = t + int(np.argmax([*ENDED[t:, env], 1]))
        cut = last == 6  # by the rollout
        last = min(last, 5)
        togo = sum(0.9 ** (k - t) * steps.reward[k, env] for k in range(t, last + 1))
        if args.baseline:
            togo += cut * 0.9 ** (last + 1 - t) * next_value[last, env]
        targets[t, env] = togo
        togo -= args.baseline * value[t, env]
        if not args.causality:
            first = t - ELAPSED[t, env]
            past = sum(0.9 ** (k - first) * steps.reward[k, env] for k in range(max(first, 0), t))
            togo = past + 0.9 ** (t - first) * togo
        expected[t, env] = togo
    counts = np.array([list(map(int, row)) for row in COUNTS[name]]).T
    assert np.abs((np.asarray(samples.advantage).reshape(6, 3) - expected) * counts).max() < 1e-13
    np.testing.assert_allclose(samples.value_target, targets.ravel(), rtol=0, atol=1e-13)


def test_the_power_of_gamma_counts_from_the_start_of_the_episode():
    """It leaves the advantages as they are, normalised ones too."""
    given = dict(num_envs=3, gamma=0.9, norm_adv=True)
    args, plain = make_args(reinforce, **given, gamma_power=True), make_args(reinforce, **given)
    state, rollout = make_state(reinforce, args), cut_rollout(args)
    samples = make_samples(state, rollout, args)
    assert np.allclose(samples.weight, 0.9 ** ELAPSED.ravel())
    assert np.allclose(samples.advantage, make_samples(state, rollout, plain).advantage, atol=1e-5)
    with pytest.raises(UsageError, match="gamma_power: the whole return is discounted already"):
        validate(make_args(reinforce, gamma_power=True, causality=False))


@KINDS
@float64()
def test_gradients_are_those_of_the_losses(task):
    args = make_args(reinforce, gamma=0.9, gamma_power=True)
    state, rollout = double((make_state(reinforce, args, task), make_rollout(reinforce, args, task)))
    samples = make_samples(state, rollout, args)

    def loss(params):
        log_prob = reference_log_prob(params, samples.obs, samples.action)
        return -np.mean(samples.weight * samples.advantage * log_prob)

    (found, metrics), grads = actor_loss(state.actor.params, state, samples)
    assert found == metrics["losses/actor_loss"] == pytest.approx(loss(state.actor.params), rel=1e-12)
    np.testing.assert_allclose(flat(grads), numeric_gradient(loss, state.actor.params), rtol=0, atol=1e-8)


def adam(gradient, rate, largest):
    """The first step, after the gradient's norm is bounded."""
    gradient = gradient * min(1, largest / np.linalg.norm(gradient))
    return -rate * gradient / (np.abs(gradient) + 1e-5)


@float64()
def test_gradients_of_either_network_are_clipped():
    """A small entry beside a large one: of a large one alone, Adam's first step hides the clip."""
    args = make_args(reinforce, learning_rate=0.02, critic_lr=0.001, max_grad_norm=0.05)
    state = double(make_state(reinforce, args))
    for network, rate in ((state.actor, 0.02), (state.critic, 0.001)):
        start, unravel = ravel_pytree(network.params)
        gradient = jnp.zeros_like(start).at[:2].set(jnp.array([5, 1e-4]))
        after = network.apply_gradients(grads=unravel(gradient))
        np.testing.assert_allclose(flat(after.params) - start, adam(gradient, rate, 0.05), rtol=0, atol=1e-12)


@float64()
def test_one_step_of_the_actor_and_many_of_the_critic():
    """The actor uses advantages of the critic before its steps; each network has its own learning rate."""
    args = make_args(reinforce, learning_rate=0.02, critic_lr=0.001, max_grad_norm=0.05)
    state, rollout = double((make_state(reinforce, args), make_rollout(reinforce, args)))
    samples = make_samples(state, rollout, args)
    after, metrics = jax.jit(lambda s, r: reinforce.update(s, r, jax.random.key(0), 0, args))(state, rollout)
    _, grads = actor_loss(state.actor.params, state, samples)
    assert np.linalg.norm(flat(grads)) > 0.1
    moved = flat(after.actor.params) - flat(state.actor.params)
    np.testing.assert_allclose(moved, adam(flat(grads), 0.02, 0.05), rtol=0, atol=1e-12)
    assert int(after.actor.step) == 1 and int(after.critic.step) == 2 * 2
    assert 1e-3 < distance(after.critic.params, state.critic.params) < 4.1e-3
    error = reference_value(state.critic.params, samples.obs) - samples.value_target
    assert metrics["losses/value_loss"] == pytest.approx(0.5 * (error**2).mean(), rel=0.05)
    after_error = reference_value(after.critic.params, samples.obs) - samples.value_target
    assert (after_error**2).mean() < (error**2).mean()

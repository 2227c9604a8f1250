"""Every formula of sac_discrete.py against float64 NumPy or a closed form, and exact optima."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import sac_discrete, tabular
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.finite import corridor, random_mdp, two_rooms
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import every_q, finite_difference, make_batch, mlp
from tests.support.tables import (
    all_rows,
    as_table,
    delayed_rows,
    frequencies,
    make_state,
    probe_rows,
    sample_rows,
    table,
    task_of,
    total_variation,
    trained_on_rows,
)

TASK = Task(3, 4, discrete=True)
ARGS = sac_discrete.Args(hidden_dims=(16, 16), batch_size=8, alpha=0.3, gamma=0.9)
KEY = jax.random.key(7)
REDUCE = {"min": np.min, "mean": np.mean}
REDUCTIONS = pytest.mark.parametrize("critic_reduce", REDUCE)

critic_loss = jax.jit(jax.value_and_grad(sac_discrete.critic_loss, has_aux=True), static_argnums=3)
actor_loss = jax.jit(jax.value_and_grad(sac_discrete.actor_loss, has_aux=True), static_argnums=3)
improve_policy = jax.jit(sac_discrete.improve_policy, static_argnums=2)
update = jax.jit(sac_discrete.update, static_argnums=4)
act = jax.jit(sac_discrete.act, static_argnums=3)
sample_action = jax.jit(sac_discrete.sample_action)


@cache
def some_state(args=ARGS):
    """A state whose targets differ from its critics, and whose policy is far from uniform."""
    state, other = (make_state(sac_discrete, args, TASK, seed) for seed in (0, 100))
    sharper = jax.tree.map(lambda leaf: 3 * leaf, state.actor.params)
    actor = state.actor.replace(params=sharper)
    return state.replace(actor=actor, target_critics=other.critics.params)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@REDUCTIONS
@pytest.mark.parametrize("backup_entropy", [True, False])
def test_critic_loss_gradient_and_metrics(critic_reduce, backup_entropy):
    args = replace(ARGS, critic_reduce=critic_reduce, backup_entropy=backup_entropy)
    state, batch = some_state(), make_batch(task=TASK)
    log_prob = log_softmax(mlp(state.actor.params, np.float64(batch.next_obs)))
    next_q = REDUCE[critic_reduce](every_q(state.target_critics, batch.next_obs), axis=0)
    value = np.sum(np.exp(log_prob) * (next_q - backup_entropy * 0.3 * log_prob), axis=-1)
    y = batch.reward + 0.9 * (1 - batch.terminated) * value

    def residuals(params):
        return 0.5 * (every_q(params, batch.obs)[:, np.arange(8), batch.action] - y) ** 2

    params = state.critics.params
    (loss, metrics), grads = critic_loss(params, state, batch, args)
    assert loss == pytest.approx(residuals(params).mean(axis=1).sum(), rel=1e-5)
    for i, name in enumerate(("qf1", "qf2")):
        assert metrics[f"losses/{name}_loss"] == pytest.approx(residuals(params)[i].mean(), rel=1e-4)
        q = every_q(params, batch.obs)[i, np.arange(8), batch.action]
        assert metrics[f"losses/{name}_values"] == pytest.approx(q.mean(), rel=1e-4)
    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (1, 3))]:
        expected = finite_difference(lambda p: residuals(p).mean(axis=1).sum(), params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("num_actions", [2, 3, 7, 18])
def test_the_value_is_a_sum_over_actions(num_actions):
    """Q = 1 everywhere and no entropy: V is 1 however many actions there are."""
    args = replace(ARGS, hidden_dims=(), autotune=False, alpha=0.0)
    task = Task(3, num_actions, discrete=True)
    state, batch = make_state(sac_discrete, args, task), make_batch(terminated=0, task=task)
    ones = as_table(state.critics.params, 0.0)
    ones["params"]["Dense_0"]["bias"] += 1
    state = state.replace(target_critics=ones)
    (loss, _), _ = critic_loss(ones, state, batch.replace(reward=np.full(8, 0.25, np.float32)), args)
    assert loss == pytest.approx(2 * 0.5 * (1 - 0.25 - 0.9) ** 2, rel=1e-5)


def test_no_gradient_where_none_belongs():
    """The critic loss is flat in the actor, the targets and the temperature."""
    state, batch = some_state(), make_batch(task=TASK)

    def of_others(actor, target, alpha):
        other = state.replace(
            actor=state.actor.replace(params=actor),
            target_critics=target,
            alpha=state.alpha.replace(params=alpha),
        )
        return sac_discrete.critic_loss(state.critics.params, other, batch, ARGS)[0]

    flat = jax.jit(jax.grad(of_others, (0, 1, 2)))(
        state.actor.params, state.target_critics, state.alpha.params
    )
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


@REDUCTIONS
def test_actor_loss_and_gradient(critic_reduce):
    args = replace(ARGS, critic_reduce=critic_reduce)
    state, batch = some_state(), make_batch(task=TASK)
    q = REDUCE[critic_reduce](every_q(state.critics.params, batch.obs), axis=0)

    def reference(params):
        log_prob = log_softmax(mlp(params, np.float64(batch.obs)))
        return np.sum(np.exp(log_prob) * (0.3 * log_prob - q), axis=-1).mean()

    params = state.actor.params
    (loss, metrics), grads = actor_loss(params, state, batch, args)
    assert loss == metrics["losses/actor_loss"] == pytest.approx(reference(params), rel=1e-5)
    log_prob = log_softmax(mlp(params, np.float64(batch.obs)))
    assert metrics["losses/entropy"] == pytest.approx(
        -np.sum(np.exp(log_prob) * log_prob, -1).mean(), rel=1e-5
    )
    for path, index in [(("Dense_0", "kernel"), (0, 1)), (("Dense_2", "bias"), (3,))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_gradient_in_the_logits():
    """p (α log p - q - E_p[α log p - q]) of each action, a mean over the states of the batch."""
    args, alpha = replace(ARGS, hidden_dims=()), 0.3
    rng, state = np.random.default_rng(0), make_state(sac_discrete, args, TASK)
    logits, q = rng.normal(size=(2, 3, 4))
    params = as_table(state.actor.params, logits)
    critics = as_table(state.critics.params, np.stack([q, q + 1]))
    state = state.replace(critics=state.critics.replace(params=critics))
    batch = make_batch(12, task=TASK).replace(obs=np.repeat(np.eye(3, dtype=np.float32), [2, 4, 6], axis=0))
    _, grads = actor_loss(params, state, batch, args)
    log_p = log_softmax(logits)
    p, soft = np.exp(log_p), alpha * log_p - q
    expected = p * (soft - np.sum(p * soft, axis=-1, keepdims=True)) * np.array([[2], [4], [6]]) / 12
    assert np.allclose(grads["params"]["Dense_0"]["kernel"], expected, rtol=0, atol=1e-6)


def test_impossible_actions_do_no_harm():
    """Where a probability underflows to 0, so that its logarithm would be -∞."""
    args = replace(ARGS, hidden_dims=())
    state = make_state(sac_discrete, args, TASK)
    far = as_table(state.actor.params, np.array([0, 300, -300, 1.0]) * np.ones((3, 1)))
    batch = make_batch(task=TASK).replace(obs=np.eye(3, dtype=np.float32)[np.zeros(8, int)])
    batch = batch.replace(next_obs=batch.obs)
    state = state.replace(actor=state.actor.replace(params=far))
    (_, metrics), grads = actor_loss(far, state, batch, args)
    loss, more = critic_loss(state.critics.params, state, batch, args)
    assert metrics["losses/entropy"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, grads, loss, more)))


@pytest.mark.parametrize(("entropy", "sign"), [(1.2, 1), (0.3, -1)])
def test_alpha_falls_while_the_policy_is_too_random(entropy, sign):
    grads = jax.grad(sac_discrete.alpha_loss, has_aux=True)({"log_alpha": jnp.log(0.5)}, entropy, 0.7)[0]
    assert grads["log_alpha"] == pytest.approx(0.5 * (entropy - 0.7), rel=1e-6)
    assert np.sign(grads["log_alpha"]) == sign


@pytest.mark.parametrize("scale", [0.5, 0.98])
def test_target_entropy_is_a_positive_share_of_the_largest(scale):
    """κ log A; and the entropy is that before the actor's step."""
    args = replace(ARGS, target_entropy_scale=scale, policy_lr=0.1)
    state, batch = some_state(), make_batch(task=TASK)
    after, metrics = improve_policy(state, batch, args)
    log_prob = log_softmax(mlp(state.actor.params, np.float64(batch.obs)))
    entropy = -np.sum(np.exp(log_prob) * log_prob, axis=-1).mean()
    expected = 0.3 * (entropy - scale * math.log(4))
    assert metrics["losses/alpha_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["losses/alpha"] == pytest.approx(0.3, rel=1e-6)
    assert np.sign(float(sac_discrete.temperature(state)) - sac_discrete.temperature(after)) == np.sign(
        expected
    )


@pytest.mark.parametrize(("alpha", "scale", "bound"), [(1.1e-4, 0.0, 1e-4), (1.9, 0.99, 2.0)])
def test_the_temperature_that_is_learned_stays_in_its_bounds(alpha, scale, bound):
    args = replace(ARGS, alpha=alpha, alpha_max=2.0, target_entropy_scale=scale, policy_lr=0.3)
    state = make_state(sac_discrete, args, TASK)
    if scale:  # a policy that is less random than asked for
        sharp = jax.tree.map(lambda leaf: 30 * leaf, state.actor.params)
        state = state.replace(actor=state.actor.replace(params=sharp))
    for number in (1, 2):
        state, _ = improve_policy(state, make_batch(task=TASK), args)
        assert sac_discrete.temperature(state) == pytest.approx(bound, rel=1e-5)
        assert int(state.alpha.step) == int(state.alpha.opt_state[0].count) == number


def test_the_temperature_is_fixed_if_it_is_not_tuned():
    args = replace(ARGS, autotune=False)
    state = some_state()
    after, metrics = improve_policy(state, make_batch(task=TASK), args)
    assert not changed(state.alpha, after.alpha) and metrics["losses/alpha"] == pytest.approx(0.3)
    zero = make_state(sac_discrete, replace(args, alpha=0.0), TASK)
    assert 0 < sac_discrete.temperature(zero) < 1e-30


def test_init():
    state = make_state(sac_discrete, sac_discrete.Args(), Task(16, 6, True))
    for params in (state.actor.params, state.critics.params):
        assert 0.24 < jnp.abs(params["params"]["Dense_0"]["kernel"]).max() <= 0.25
    kernels = state.critics.params["params"]["Dense_2"]["kernel"]
    assert kernels.shape == (2, 256, 6) and not np.allclose(kernels[0], kernels[1])
    assert state.actor.params["params"]["Dense_2"]["bias"].shape == (6,)
    assert float(sac_discrete.temperature(state)) == pytest.approx(0.2)


def test_frequencies_count_updates_and_targets_move_by_tau():
    """Which part of the state moves at which update; and metrics of the policy when it moves."""
    args = replace(ARGS, policy_frequency=2, target_network_frequency=3)
    batch, state, moved = make_batch(task=TASK), some_state(), []
    for index in range(6):
        after, _ = update(state, batch, KEY, jnp.int32(index), args)
        pairs = (
            (state.actor.params, after.actor.params),
            (state.alpha.params, after.alpha.params),
            (state.target_critics, after.target_critics),
            (state.critics.params, after.critics.params),
        )
        moved.append([changed(*pair) for pair in pairs])
        if moved[-1][2]:
            for old, new, target in leaves(state.target_critics, after.critics.params, after.target_critics):
                assert np.allclose(target, 0.005 * np.float64(new) + 0.995 * np.float64(old), atol=1e-7)
        state = after
    actor, alpha, targets, critics = zip(*moved, strict=True)
    assert actor == alpha == (True, False) * 3
    assert targets == (True, False, False) * 2 and all(critics)


def test_an_update_is_the_critics_step_and_then_that_of_the_policy():
    """The actor follows the new critics; the key is not needed."""
    args = replace(ARGS, q_lr=0.1)
    state, batch = make_state(sac_discrete, args, TASK), make_batch(task=TASK)
    after, _ = update(state, batch, KEY, jnp.int32(0), args)
    _, grads = critic_loss(state.critics.params, state, batch, args)
    critics = state.critics.apply_gradients(grads=grads)
    assert distance(critics.params, after.critics.params) < 1e-6
    _, grads = actor_loss(state.actor.params, state.replace(critics=after.critics), batch, args)
    assert distance(state.actor.apply_gradients(grads=grads).params, after.actor.params) < 1e-6
    other, _ = update(state, batch, jax.random.key(8), jnp.int32(0), args)
    assert not changed(after, other)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(alpha=0.0), "alpha 0 cannot be tuned"),
        (dict(alpha=11.0), "alpha 11.0 is not in .0.0001, alpha_max 10.0.; change it or alpha_max"),
        (dict(alpha=1e-5), "is not in .0.0001, alpha_max 10.0.; change it or alpha_max"),
        (dict(target_entropy_scale=1.0), r"target_entropy_scale must be in \[0, 1\)"),
        (dict(critic_reduce="max"), "critic_reduce must be min or mean; got 'max'"),
        (dict(batch_size=6000), "only 5000 transitions when learning starts, fewer than batch_size 6000"),
        (dict(learning_starts=50_000, total_timesteps=50_000), "learning would never start"),
        (dict(buffer_size=100), "batch_size 256 > buffer_size 100"),
    ],
)
def test_refused_arguments(given, words):
    with pytest.raises(UsageError, match=words) as caught:
        validate(sac_discrete.Args(env_id="CartPole-v1", **given))
    assert "\n" not in str(caught.value)


def test_arguments_that_are_taken():
    for given in (dict(), dict(alpha=0.0, autotune=False), dict(alpha=20.0, autotune=False)):
        validate(sac_discrete.Args(env_id="CartPole-v1", **given))


def test_samples_are_from_the_policy():
    state, obs = some_state(), np.random.default_rng(0).normal(size=3).astype(np.float32)
    policy = sac_discrete.policy(state)
    log_pi = log_softmax(mlp(state.actor.params, np.float64(obs[None])))[0]
    actions, log_probs = sample_action(policy, np.tile(obs, (40_000, 1)), KEY)
    found = np.bincount(actions, minlength=4) / 40_000
    assert np.abs(found - np.exp(log_pi)).max() < 4 * 0.5 / math.sqrt(40_000)
    assert np.allclose(log_probs, log_pi[actions], rtol=0, atol=1e-5)
    one, log_prob = sample_action(policy, obs, KEY)
    assert one.shape == log_prob.shape == () and jnp.issubdtype(one.dtype, jnp.integer)
    assert act(policy, obs, KEY, False) == one and act(policy, obs, KEY, True) == log_pi.argmax()


LEARNER = replace(
    ARGS, hidden_dims=(), autotune=False, alpha=0.5, q_lr=3e-3, policy_lr=3e-3, batch_size=128, tau=0.05
)


def learned(args, rows, steps, task):
    """π and the smaller Q, as tables, and the state, after updates on transitions."""
    state = trained_on_rows(sac_discrete, args, rows, steps, make_state(sac_discrete, args, task))
    logits = table(state.actor.params)
    return np.exp(log_softmax(logits)), table(state.critics.params).min(axis=0), state


@pytest.mark.slow
@REDUCTIONS
@pytest.mark.parametrize("backup_entropy", [True, False])
def test_two_rooms(critic_reduce, backup_entropy):
    """More ways to succeed attract only entropy that is backed up."""
    mdp, find = two_rooms(8), tabular.optimal_policy if backup_entropy else tabular.bonus_policy
    args = replace(LEARNER, gamma=0.99, critic_reduce=critic_reduce, backup_entropy=backup_entropy)
    pi, _, _ = learned(args, all_rows(mdp), 4000, task_of(mdp))
    exact = find(mdp.P, mdp.R, 0.99, 0.5)
    assert exact[0, 4:].sum() == pytest.approx(0.7210 if backup_entropy else 0.3682, abs=1e-4)
    assert total_variation(pi, exact) < 0.005
    if backup_entropy:
        assert tabular.entropy(pi) == pytest.approx([1.9783, 0.5752, 2.0794], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("backup_entropy", [True, False])
def test_corridor(backup_entropy):
    mdp, find = corridor(4), tabular.optimal_policy if backup_entropy else tabular.bonus_policy
    args = replace(LEARNER, gamma=0.99, alpha=0.2, backup_entropy=backup_entropy)
    pi, _, _ = learned(args, all_rows(mdp), 8000, task_of(mdp))
    assert total_variation(pi, find(mdp.P, mdp.R, 0.99, 0.2)) < 0.05


@pytest.mark.slow
@REDUCTIONS
@pytest.mark.parametrize("end_probability", [0, 0.1])
def test_random_mdp(critic_reduce, end_probability):
    """The optimum of the frequencies of 20,000 transitions."""
    mdp = random_mdp(0, 5, 3, end_probability)
    rows = sample_rows(mdp, 20_000)
    pi, Q, _ = learned(replace(LEARNER, critic_reduce=critic_reduce), rows, 8000, task_of(mdp))
    exact, exact_Q, _ = tabular.soft_optimum(*frequencies(rows), 0.9, 0.5)
    assert total_variation(pi, exact) < 0.05
    assert np.abs(Q - exact_Q).max() < 0.05 * np.abs(exact_Q).max()


@pytest.mark.slow
def test_the_temperature_that_is_learned_gives_the_entropy_asked_for():
    """Averaged over the states of the replay."""
    mdp = two_rooms(8)
    args = replace(LEARNER, gamma=0.99, autotune=True, alpha=0.2, target_entropy_scale=0.98)
    pi, _, state = learned(args, all_rows(mdp), 10_000, task_of(mdp))
    assert tabular.entropy(pi).mean() / math.log(8) == pytest.approx(0.98, abs=0.01)
    alpha = float(sac_discrete.temperature(state))
    assert alpha == pytest.approx(1.96, rel=0.15)
    assert total_variation(pi, tabular.optimal_policy(mdp.P, mdp.R, 0.99, alpha)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0])
def test_time_limit_does_not_cut_the_bootstrap(alpha):
    """Reward 1 for ever, three actions alike: Q is (1 + γ α log A)/(1 - γ), also at the limit of 50 steps."""
    args = replace(LEARNER, hidden_dims=(64,), alpha=alpha)
    new, obs = make_state(sac_discrete, args, Task(1, 3, True)), np.linspace(0, 1, 51)[:, None]

    def values(rows, steps):
        state = trained_on_rows(sac_discrete, args, rows, steps, new)
        return np.asarray(state.critics.apply_fn(state.critics.params, obs))

    rows = probe_rows("DiscreteConstantReward")
    assert np.allclose(values(rows, 3000), (1 + 0.9 * alpha * math.log(3)) / 0.1, rtol=0.05)
    assert np.allclose(values(rows.replace(terminated=np.ones_like(rows.reward)), 1500), 1, atol=0.05)


@pytest.mark.slow
def test_termination_cuts_the_bootstrap():
    """Reward 1 for three steps and the end: each step to come adds its reward and α log 3 of entropy."""
    args = replace(LEARNER, hidden_dims=(64,))
    new = make_state(sac_discrete, args, Task(1, 3, True))
    state = trained_on_rows(sac_discrete, args, probe_rows("DiscreteCounting"), 3000, new)
    middle = 1 + 0.9 * (1 + 0.5 * math.log(3))
    first = 1 + 0.9 * (middle + 0.5 * math.log(3))
    q = np.asarray(state.critics.apply_fn(state.critics.params, np.array([[0.0], [1.0], [2.0]])))
    assert np.allclose(q, np.array([[first], [middle], [1]]), atol=0.1)


@pytest.mark.slow
def test_credit_over_two_steps():
    """An action that pays a step later beats one that pays less at once."""
    pi, Q, _ = learned(replace(LEARNER, alpha=0.1), delayed_rows(), 4000, Task(3, 3, True))
    exact = np.array([0.3, 0.9 * tabular.soft_value(np.array([0, 0, 1.0]), 0.1)])
    assert pi[0].argmax() == 1 and pi[1].argmax() == 2
    assert np.allclose(Q[0, :2], exact, atol=0.05)

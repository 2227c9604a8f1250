"""Every formula of sql_discrete.py against float64 NumPy, and its fixed points against exact optima."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import sql_discrete, tabular
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.finite import corridor, random_mdp, two_rooms
from tests.support.contract import CASES, record_inputs
from tests.support.mdps import assert_close
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import every_q, finite_difference, make_batch
from tests.support.runs import record_actions, rows
from tests.support.tables import (
    all_rows,
    all_windows,
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
ARGS = sql_discrete.Args(hidden_dims=(16, 16), batch_size=8, alpha=0.3, n_critics=2, gamma=0.9)
KEY = jax.random.key(7)

soft_value = jax.jit(sql_discrete.soft_value, static_argnums=1)
double_value = jax.jit(sql_discrete.double_value, static_argnums=2)
targets = jax.jit(sql_discrete.bellman_target, static_argnums=2)
critic_loss = jax.jit(jax.value_and_grad(sql_discrete.critic_loss, has_aux=True), static_argnums=3)
update = jax.jit(sql_discrete.update, static_argnums=4)
act = jax.jit(sql_discrete.act, static_argnums=3)
sample_action = jax.jit(sql_discrete.sample_action)


@cache
def some_state(args=ARGS):
    """A state whose targets differ from its critics, as after some training."""
    state, other = (make_state(sql_discrete, args, TASK, seed) for seed in (0, 100))
    return state.replace(target_critics=other.critics.params)


def reference_value(q, args):
    """V, by the logarithm of the sum or the mean of exponentials."""
    if args.alpha == 0:
        return q.max(axis=-1)
    total = np.log(np.sum(np.exp(q / args.alpha), axis=-1)) - args.uniform_prior * math.log(q.shape[-1])
    return args.alpha * total


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("alpha", [0, 1e-3, 0.1, 2.5])
def test_soft_value(alpha, prior):
    """It stays finite where exp(Q/α) does not, and exceeds the greatest Q by at most α log A."""
    args, q = replace(ARGS, alpha=alpha, uniform_prior=prior), np.random.default_rng(0).normal(size=(9, 4))
    found = soft_value(jnp.float32(q), args)
    expected = tabular.soft_value(q, alpha) - prior * alpha * math.log(4)
    assert np.allclose(found, expected, rtol=0, atol=1e-6)
    excess = found + prior * alpha * math.log(4) - np.float32(q).max(axis=-1)
    assert (excess > -1e-6).all() and (excess < alpha * math.log(4) + 1e-6).all()
    ties = soft_value(jnp.full((1, 4), 1e4), args)
    assert ties == pytest.approx(1e4 + (not prior) * alpha * math.log(4), rel=1e-6)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("alpha", [0, 0.1, 2.5])
def test_double_value(alpha, prior):
    """E_π [Q̄ - α log π] of the other's policy: `soft_value` at most, and equal if both differ by a constant;
    without entropy the Q̄ of the other's best action."""
    args, rng = replace(ARGS, alpha=alpha, uniform_prior=prior), np.random.default_rng(0)
    q, online_q = rng.normal(size=(2, 50, 4))
    pi = tabular.boltzmann(online_q, alpha)
    expected = np.sum(pi * q, axis=-1) + alpha * (tabular.entropy(pi) - prior * math.log(4))
    found = double_value(jnp.float32(q), jnp.float32(online_q), args)
    value = soft_value(jnp.float32(q), args)
    assert np.allclose(found, expected, rtol=0, atol=1e-5)
    assert (found <= value + 1e-5).all() and (found < value - 0.05).any()
    shifted = double_value(jnp.float32(q), jnp.float32(q + 3), args)
    assert np.allclose(shifted, value, rtol=0, atol=1e-5)


def reference_target(state, steps, row, args):
    """y of one window, as a sum: rewards, α log π of the actions on the way, the value where it ends."""
    q = every_q(state.target_critics, steps.obs[row]).min(axis=0)
    next_q = every_q(state.target_critics, steps.next_obs[row]).min(axis=0)
    online_q = every_q(state.critics.params, steps.next_obs[row]).min(axis=0)
    prior = args.uniform_prior * math.log(q.shape[-1])
    total, discount = 0.0, 1.0
    for k in range(args.n_steps):
        action = steps.action[row, k]
        if args.alpha:
            weights = np.exp(q[k] / args.alpha)
            log_prob = args.alpha * (math.log(weights[action] / weights.sum()) + prior)
        else:
            log_prob = q[k, action] - q[k].max()
        if k > 0 and args.n_step_target == "path":
            total -= discount * log_prob
        bonus = max(log_prob, -args.munchausen_clip) if args.munchausen_clip else log_prob
        total += discount * (steps.reward[row, k] + args.munchausen * bonus)
        discount *= args.gamma
        if steps.terminated[row, k]:
            return total
        if steps.truncated[row, k] or k == args.n_steps - 1:
            break
    value = reference_value(next_q[k], args)
    if args.double:
        pi = tabular.boltzmann(online_q[k], args.alpha)
        value = pi @ next_q[k] + args.alpha * (tabular.entropy(pi[None])[0] - prior)
    return total + discount * value


def make_windows(count, length, seed=0):
    """Random windows that terminate and are truncated anywhere, also at once."""
    rng, shape = np.random.default_rng(seed), (count, length)
    batch = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), make_batch(count * length, seed, 0, TASK))
    terminated, truncated = (np.float32(rng.random(shape) < 0.25) for _ in range(2))
    return batch.replace(terminated=terminated, truncated=truncated)


@pytest.mark.parametrize(
    "given",
    [
        dict(),
        dict(alpha=0),
        dict(uniform_prior=True),
        dict(double=True),
        dict(double=True, alpha=0),
        dict(double=True, uniform_prior=True),
        dict(munchausen=0.9, munchausen_clip=0.4),
        dict(munchausen=0.9, munchausen_clip=0.4, uniform_prior=True),
    ],
    ids=lambda given: " ".join(given) or "plain",
)
@pytest.mark.parametrize(("n_steps", "n_step_target"), [(1, "path"), (4, "path"), (4, "uncorrected")])
def test_targets(given, n_steps, n_step_target):
    """A termination ends the window without a value, a truncation with one."""
    args = replace(ARGS, n_steps=n_steps, n_step_target=n_step_target, **given)
    state, steps = some_state(replace(ARGS, alpha=args.alpha)), make_windows(40, n_steps)
    expected = [reference_target(state, steps, row, args) for row in range(40)]
    assert np.allclose(targets(state, steps, args), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("n_critics", "n_steps"), [(1, 1), (2, 3)])
def test_critic_loss_gradient_and_metrics(n_critics, n_steps):
    """Of the first action of a window, with the target held fixed."""
    args = replace(ARGS, n_critics=n_critics, n_steps=n_steps)
    state, steps = some_state(args), make_windows(8, n_steps)
    batch = steps if n_steps > 1 else jax.tree.map(lambda x: x[:, 0], steps)
    y = np.array([reference_target(state, steps, row, args) for row in range(8)])
    obs, action = steps.obs[:, 0], steps.action[:, 0]

    def reference(params):
        q = every_q(params, obs)[:, np.arange(8), action]
        return 0.5 * ((q - y) ** 2).mean(axis=1).sum()

    params = state.critics.params
    (loss, metrics), grads = critic_loss(params, state, batch, args)
    assert loss == pytest.approx(reference(params), rel=1e-5)
    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (n_critics - 1, 3))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-5)
    q = every_q(params, obs)
    taken = q[:, np.arange(8), action]
    pi = tabular.boltzmann(q.min(axis=0), args.alpha)
    for i in range(n_critics):
        assert metrics[f"losses/qf{i + 1}_loss"] == pytest.approx(
            0.5 * ((taken[i] - y) ** 2).mean(), rel=1e-4
        )
        assert metrics[f"losses/qf{i + 1}_values"] == pytest.approx(taken[i].mean(), rel=1e-4)
    assert metrics["losses/entropy"] == pytest.approx(tabular.entropy(pi).mean(), rel=1e-5)
    assert len(metrics) == 2 * n_critics + 1
    hard = jax.eval_shape(lambda: sql_discrete.critic_loss(params, state, batch, replace(args, alpha=0)))
    assert "losses/entropy" not in hard[1]


def test_no_gradient_enters_the_targets():
    """The loss is flat in the target critics; and in the critics as far as the double value has them."""
    args = replace(ARGS, double=True, munchausen=0.5)
    state, batch = some_state(), make_batch(task=TASK)

    def of_targets(target, online):
        other = state.replace(target_critics=target, critics=state.critics.replace(params=online))
        return sql_discrete.critic_loss(state.critics.params, other, batch, args)[0]

    flat = jax.jit(jax.grad(of_targets, (0, 1)))(state.target_critics, state.critics.params)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


def test_hard_targets_are_the_limit_of_soft_ones():
    """At α = 10⁻³ they are higher by 10⁻³ log A per value at most."""
    steps, soft = make_windows(40, 1), replace(ARGS, alpha=1e-3)
    hard = replace(ARGS, alpha=0.0)
    excess = targets(some_state(soft), steps, soft) - targets(some_state(hard), steps, hard)
    assert (excess > -1e-6).all() and (excess < 1e-3 * math.log(4) + 1e-6).all()


# fixed points: the expectation of `targets` over all that can happen, repeated in float64


def iterate(mdp, args, behaviour=None, times=400):
    """Q after `times` steps of Q ← E y, as `targets` has y."""
    shape = mdp.R.shape
    with jax.enable_x64(True):
        windows = all_windows(
            mdp, np.full(shape, 1 / shape[1]) if behaviour is None else behaviour, args.n_steps
        )
        steps = jax.tree.map(lambda x: np.float64(x) if x.dtype == np.float32 else x, windows.steps)
        state = sql_discrete.init(jax.random.key(0), task_of(mdp), replace(args, hidden_dims=(), n_critics=1))

        def step(Q, _):
            params = as_table(state.critics.params, Q)
            both = state.replace(target_critics=params, critics=state.critics.replace(params=params))
            y = sql_discrete.bellman_target(both, steps, args)
            total = jax.ops.segment_sum(windows.probability * y, windows.first, math.prod(shape))
            return total.reshape(shape), None

        Q = jax.jit(lambda Q: jax.lax.scan(step, Q, None, length=times)[0])(jnp.zeros(shape))
        assert Q.dtype == jnp.float64
        return np.asarray(Q)


MDPS = [random_mdp(seed, 5, 3) for seed in range(3)]


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0])
@pytest.mark.parametrize("double", [False, True])
def test_one_step_targets_iterate_to_the_optimum(alpha, double):
    for mdp in MDPS:
        args = replace(ARGS, alpha=alpha, double=double)
        exact = tabular.soft_optimum(mdp.P, mdp.R, 0.9, alpha)[1]
        assert_close(iterate(mdp, args), exact, atol=1e-10)


def test_values_of_the_start():
    expected = {0.5: 12.0578, 0.1: 10.5790, 0: 10.4629}
    for alpha, value in expected.items():
        Q = iterate(MDPS[0], replace(ARGS, alpha=alpha))
        assert MDPS[0].start @ tabular.soft_value(Q, alpha) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("n_steps", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("alpha", [0.5, 0])
def test_path_consistent_targets_iterate_to_the_optimum_whatever_policy_acts(alpha, n_steps):
    """Uniform, the optimum, or a random one."""
    mdp, args = MDPS[0], replace(ARGS, alpha=alpha, n_steps=n_steps)
    pi, exact, _ = tabular.soft_optimum(mdp.P, mdp.R, 0.9, alpha)
    for behaviour in (None, pi, np.random.default_rng(0).dirichlet(np.ones(3), size=5)):
        assert_close(iterate(mdp, args, behaviour), exact, atol=1e-9)


@pytest.mark.parametrize(
    ("n_steps", "uniform", "optimal"),
    [(2, 5.04, 1.43), pytest.param(3, 6.73, 1.87, marks=pytest.mark.slow)],
)
def test_uncorrected_targets_iterate_elsewhere(n_steps, uniform, optimal):
    """Entropies on the way are missing, so that the optimum itself as behaviour does not help."""
    mdp, args = MDPS[0], replace(ARGS, alpha=0.5, n_steps=n_steps, n_step_target="uncorrected")
    pi, exact, _ = tabular.soft_optimum(mdp.P, mdp.R, 0.9, 0.5)
    for behaviour, error in ((np.full_like(pi, 1 / 3), uniform), (pi, optimal)):
        found = iterate(mdp, args, behaviour)
        expected = tabular.soft_value(found, 0.5)
        for k in range(n_steps):
            Q = mdp.R + 0.9 * mdp.P @ expected
            expected = np.sum(behaviour * Q, axis=-1) if k < n_steps - 1 else Q
        assert_close(found, expected, atol=1e-10)
        assert np.abs(found - exact).max() == pytest.approx(error, abs=6e-3)


def test_path_target_of_the_optimum_is_the_optimum_along_every_sequence():
    """On a deterministic corridor, at Q = Q*, sample by sample; the uncorrected one is not."""
    mdp, alpha = corridor(5), 0.5
    _, exact, V = tabular.soft_optimum(mdp.P, mdp.R, 0.9, alpha)
    assert V[0] == pytest.approx(tabular.soft_value(exact, alpha)[0])
    rng, one_hot = np.random.default_rng(0), all_rows(mdp)
    rows = np.zeros((200, 4), int)
    states = rng.integers(0, len(V), 200)
    for k in range(4):
        rows[:, k] = states * 8 + rng.integers(0, 8, 200)
        states = np.where(one_hot.terminated[rows[:, k]] > 0, 0, one_hot.next_obs[rows[:, k]].argmax(-1))
    steps = jax.tree.map(lambda x: x[rows], one_hot)
    steps = steps.replace(truncated=np.zeros_like(steps.terminated))
    errors = []
    for kind in ("path", "uncorrected"):
        args = replace(ARGS, alpha=alpha, hidden_dims=(), n_steps=4, n_step_target=kind)
        state = make_state(sql_discrete, args, task_of(mdp))
        state = state.replace(target_critics=as_table(state.target_critics, exact))
        errors.append(np.abs(targets(state, steps, args) - exact.ravel()[rows[:, 0]]).max())
    assert errors[0] < 1e-5 and errors[1] > 1


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("m", [0.5, 0.9])
def test_munchausen_iterates_to_the_soft_optimum_at_a_lower_temperature(m, prior):
    """At (1 - m) α: π is exp(Q/α)/Z, and its Q* is (1 - m) Q + m V."""
    alpha = 0.5
    for mdp in MDPS:
        args = replace(ARGS, alpha=alpha, munchausen=m, uniform_prior=prior)
        Q = iterate(mdp, args, times=6000)
        V = tabular.soft_value(Q, alpha) - prior * alpha * math.log(3)
        pi, exact, _ = tabular.soft_optimum(mdp.P, mdp.R, 0.9, (1 - m) * alpha)
        exact = exact - prior * 0.9 * (1 - m) * alpha * math.log(3) / 0.1
        assert_close(tabular.boltzmann(Q, alpha), pi, atol=1e-6)
        assert_close((1 - m) * Q + m * V[:, None], exact, atol=1e-6)


def test_munchausen_is_path_consistent_too():
    """With several steps and any behaviour the fixed point is that of one."""
    args = replace(ARGS, alpha=0.5, munchausen=0.5)
    one, two = (iterate(MDPS[0], replace(args, n_steps=n_steps), times=2000) for n_steps in (1, 2))
    assert_close(two, one, atol=1e-8)


def test_a_clip_of_munchausen_changes_the_fixed_point_if_it_is_reached():
    plain, loose, tight = (
        iterate(MDPS[0], replace(ARGS, alpha=0.5, munchausen=0.5, munchausen_clip=clip), times=1500)
        for clip in (None, 100, 0.3)
    )
    assert_close(loose, plain, atol=1e-10)
    assert np.abs(tight - plain).max() > 0.05


def test_uniform_prior_shifts_values_and_leaves_the_policy():
    """Without ends Q falls by γ α log A/(1 - γ)."""
    args = replace(ARGS, alpha=0.5)
    plain, prior = (iterate(MDPS[1], replace(args, uniform_prior=uniform)) for uniform in (False, True))
    assert_close(prior, plain - 0.9 * 0.5 * math.log(3) / 0.1, atol=1e-9)
    assert_close(tabular.boltzmann(prior, 0.5), tabular.boltzmann(plain, 0.5), atol=1e-10)


def test_limit_of_no_entropy():
    """max (Q*_α - Q*_0), never negative, within γ α log A/(1 - γ)."""
    hard = iterate(MDPS[0], replace(ARGS, alpha=0))
    for alpha, expected in ((1, 4.85), (0.1, 0.1205), (0.01, 6.09e-3), (1e-3, 9.7e-8)):
        gain = iterate(MDPS[0], replace(ARGS, alpha=alpha)) - hard
        assert gain.max() == pytest.approx(expected, rel=5e-3) and gain.min() > -1e-10
        assert gain.max() <= 0.9 * alpha * math.log(3) / 0.1


LEARNER = replace(
    ARGS, hidden_dims=(), n_critics=1, q_lr=3e-3, batch_size=128, tau=1.0, target_network_frequency=100
)


def learned(mdp_rows, alpha, gamma, steps, task, **given):
    """Q, as a table, after updates on transitions."""
    args = replace(LEARNER, alpha=alpha, gamma=gamma, **given)
    state = trained_on_rows(sql_discrete, args, mdp_rows, steps, make_state(sql_discrete, args, task))
    return table(state.critics.params).min(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0.1, 0])
def test_table_reaches_the_optimum(alpha):
    """That of the frequencies of 20,000 transitions; half of the tolerance is for sampling."""
    rows = sample_rows(MDPS[0], 20_000)
    pi, exact, _ = tabular.soft_optimum(*frequencies(rows), 0.9, alpha)
    Q = learned(rows, alpha, 0.9, 10_000, task_of(MDPS[0]))
    assert np.abs(Q - exact).max() < 0.05 * np.abs(exact).max()
    assert total_variation(tabular.boltzmann(Q, alpha), pi) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("alpha", "value"), [(0.5, 2.3811), (0.1, 1.1340), (0, 0.99)])
def test_two_rooms(alpha, value):
    mdp = two_rooms(8)
    pi, exact, V = tabular.soft_optimum(mdp.P, mdp.R, 0.99, alpha)
    assert V[0] == pytest.approx(value, abs=1e-4)
    Q = learned(all_rows(mdp), alpha, 0.99, 5000, task_of(mdp))
    assert np.abs(Q - exact).max() < 2e-3
    assert alpha == 0 or total_variation(tabular.boltzmann(Q, alpha), pi) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("given", [dict(double=True), dict(n_critics=2), dict(tau=0.02)], ids=str)
def test_variants_reach_the_optimum_too(given):
    mdp = corridor(3)
    _, exact, _ = tabular.soft_optimum(mdp.P, mdp.R, 0.9, 0.5)
    frequency = 1 if "tau" in given else 100
    Q = learned(all_rows(mdp), 0.5, 0.9, 4000, task_of(mdp), **given, target_network_frequency=frequency)
    assert np.abs(Q - exact).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0])
def test_time_limit_does_not_cut_the_bootstrap(alpha):
    """Reward 1 for ever, three actions alike: Q is (1 + γ α log A)/(1 - γ), also at the limit of 50 steps."""
    args = replace(LEARNER, hidden_dims=(64,), alpha=alpha)
    rows = probe_rows("DiscreteConstantReward")
    assert rows.truncated.sum() == 12 and not rows.terminated.any()
    new = make_state(sql_discrete, args, Task(1, 3, True))
    state = trained_on_rows(sql_discrete, args, rows, 8000, new)
    q = sql_discrete.policy(state)(np.linspace(0, 1, 51)[:, None])
    assert np.allclose(q, (1 + 0.9 * alpha * math.log(3)) / 0.1, rtol=0.05)
    ends = trained_on_rows(sql_discrete, args, rows.replace(terminated=np.ones_like(rows.reward)), 1500, new)
    assert np.allclose(sql_discrete.policy(ends)(np.linspace(0, 1, 51)[:, None]), 1, atol=0.05)


@pytest.mark.slow
def test_termination_cuts_the_bootstrap():
    """Reward 1 for three steps and the end: each step to come adds its reward and α log 3 of entropy."""
    args = replace(LEARNER, hidden_dims=(64,), alpha=0.5)
    rows = probe_rows("DiscreteCounting")
    state = trained_on_rows(sql_discrete, args, rows, 4000, make_state(sql_discrete, args, Task(1, 3, True)))
    last, later = 1, 0.5 * math.log(3)
    middle = 1 + 0.9 * (last + later)
    first = 1 + 0.9 * (middle + later)
    q = sql_discrete.policy(state)(np.array([[0.0], [1.0], [2.0]]))
    assert np.allclose(q, np.array([[first], [middle], [last]]), atol=0.1)


@pytest.mark.slow
def test_credit_over_two_steps():
    """An action that pays a step later beats one that pays less at once."""
    Q = learned(delayed_rows(), 0.1, 0.9, 4000, Task(3, 3, True))
    assert Q[0].argmax() == 1 and Q[1].argmax() == 2
    exact = np.array([0.3, 0.9 * tabular.soft_value(np.array([0, 0, 1.0]), 0.1)])
    assert np.allclose(Q[0, :2], exact, atol=0.02)


# soft Q-learning is a policy gradient (Schulman et al. 2017, https://arxiv.org/abs/1704.06440)


def test_critic_gradient_is_that_of_policy_and_value():
    """Over actions of softmax(Q/α), which the batch has in these proportions: -α ∇(E_π y + α H) of the policy
    plus ∇½ (V - V̂)² of the value."""
    alpha, counts = 0.7, np.array([[4, 2, 1, 1], [1, 5, 1, 1], [2, 2, 2, 2]])
    rng, offsets = np.random.default_rng(0), np.array([[0.3], [-1.2], [2.0]])
    Q = alpha * np.log(counts / 8) + offsets
    states, actions = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    reward, one_hot = rng.normal(size=(3, 4)), np.eye(3, dtype=np.float32)
    batch = Transition(
        one_hot[states],
        actions.astype(np.int32),
        np.float32(reward[states, actions]),
        one_hot[(states + actions) % 3],
        np.float32((states + actions) % 2),
    )
    args = replace(ARGS, alpha=alpha, hidden_dims=(), n_critics=1)
    state = make_state(sql_discrete, args, Task(3, 4, True))
    params = as_table(state.critics.params, Q)
    _, grads = critic_loss(params, state, batch, args)

    index = np.add.outer(np.arange(3), np.arange(4))
    V = tabular.soft_value(table(state.target_critics)[0], alpha)
    y = reward + 0.9 * (1 - index % 2) * V[index % 3]
    with jax.enable_x64(True):

        def objective(Q):
            log_prob = jax.nn.log_softmax(Q / alpha)
            gain = jnp.sum(jnp.exp(log_prob) * (y - alpha * log_prob), axis=-1)
            value = alpha * jax.nn.logsumexp(Q / alpha, axis=-1)
            return jnp.mean(-alpha * gain + (value - jax.lax.stop_gradient(gain)) ** 2 / 2)

        expected = np.asarray(jax.grad(objective)(jnp.array(Q)))
    layer = grads["params"]["Dense_0"]
    assert np.abs(expected).max() > 0.1
    assert np.allclose(layer["kernel"][0], expected, rtol=0, atol=1e-5)
    assert np.allclose(layer["bias"][0], expected.sum(axis=0), rtol=0, atol=1e-5)


def test_samples_are_from_the_boltzmann_policy_of_the_smallest_critic():
    state, obs = some_state(), np.random.default_rng(0).normal(size=3).astype(np.float32)
    policy = sql_discrete.policy(state)
    q = every_q(state.critics.params, obs[None])[:, 0].min(axis=0)
    pi = tabular.boltzmann(q, 0.3)
    actions, log_probs = sample_action(policy, np.tile(obs, (40_000, 1)), KEY)
    found = np.bincount(actions, minlength=4) / 40_000
    assert np.abs(found - pi).max() < 4 * 0.5 / math.sqrt(40_000)
    assert np.allclose(log_probs, np.log(pi)[actions], rtol=0, atol=1e-5)
    one, log_prob = sample_action(policy, obs, KEY)
    assert one.shape == log_prob.shape == () and jnp.issubdtype(one.dtype, jnp.integer)
    assert act(policy, obs, KEY, False) == one and act(policy, obs, KEY, True) == q.argmax()


def test_without_entropy_the_policy_is_greedy():
    policy = sql_discrete.policy(some_state(replace(ARGS, alpha=0.0)))
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    best = np.asarray(policy(obs)).argmax(axis=-1)
    for deterministic in (True, False):
        for key in (0, 1):
            assert np.array_equal(act(policy, obs, jax.random.key(key), deterministic), best)


def test_share_of_uniform_actions():
    given = dict(start_e=1.0, end_e=0.05, exploration_fraction=0.5, total_timesteps=1000)
    args = replace(ARGS, **given)
    found = [float(sql_discrete.epsilon(step, args)) for step in (0, 250, 499, 500, 750, 1000)]
    assert found == pytest.approx([1, 0.525, 0.0519, 0.05, 0.05, 0.05])
    assert args.length_is_fixed and not ARGS.length_is_fixed
    assert not replace(ARGS, start_e=0.1, end_e=0.1).length_is_fixed
    assert float(sql_discrete.epsilon(jnp.int32(300), ARGS)) == 0


def test_init():
    """Weights and biases within 1/√fan_in."""
    state = make_state(sql_discrete, sql_discrete.Args(n_critics=2), Task(16, 6, True))
    kernels = state.critics.params["params"]["Dense_0"]["kernel"]
    assert kernels.shape == (2, 16, 256) and 0.24 < jnp.abs(kernels).max() <= 0.25
    assert not np.allclose(kernels[0], kernels[1])
    assert state.critics.params["params"]["Dense_2"]["bias"].shape == (2, 6)


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_targets_move_when_their_turn_comes(tau):
    args = replace(ARGS, target_network_frequency=3, tau=tau, q_lr=0.1)
    state = make_state(sql_discrete, args, TASK)
    for index in range(1, 7):
        after, _ = update(state, make_batch(task=TASK), KEY, jnp.int32(index), args)
        weight = tau if index in (3, 6) else 0
        for target, new, old in leaves(after.target_critics, after.critics.params, state.target_critics):
            if weight in (0, 1):  # a copy, or nothing: exactly
                assert np.array_equal(target, new if weight else old)
            else:
                assert np.allclose(target, weight * new + (1 - weight) * old, rtol=1e-6, atol=1e-7)
        assert changed(state.critics.params, after.critics.params)
        state = after


def test_two_equal_critics_are_one():
    args = replace(ARGS, n_critics=1)
    one = some_state(args)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (one.critics.params, one.target_critics))
    two = make_state(sql_discrete, ARGS, TASK)
    two = two.replace(critics=two.critics.replace(params=twice[0]), target_critics=twice[1])
    for index in range(3):
        batch = make_batch(seed=index, task=TASK)
        one, _ = update(one, batch, KEY, jnp.int32(index), args)
        two, _ = update(two, batch, KEY, jnp.int32(index), ARGS)
    for i in range(2):
        assert (
            distance(jax.tree.map(lambda x, i=i: x[i : i + 1], two.critics.params), one.critics.params) < 1e-6
        )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(alpha=0.0), "nothing explores: alpha 0 is greedy; add --start-e 1 --end-e 0.05"),
        (dict(alpha=0.0, start_e=1.0), "nothing explores"),
        (dict(alpha=0.0, end_e=0.05, munchausen=0.9), "munchausen needs log π"),
        (dict(alpha=1e-9), "alpha must be 0 or at least 1e-6; got 1e-09"),
        (dict(alpha=-1.0), "alpha must be a finite number >= 0"),
        (dict(n_steps=1001), "n_steps 1001 > 1000 transitions of the replay"),
        (dict(n_steps=201, buffer_size=200), "n_steps 201 > 200 transitions of the replay"),
        (dict(n_step_target="retrace"), "n_step_target must be path or uncorrected; got 'retrace'"),
        (dict(munchausen=1.0), r"munchausen must be in \[0, 1\)"),
        (dict(munchausen_clip=0.0), "munchausen_clip must be"),
        (dict(munchausen_clip=1.0), "munchausen_clip needs munchausen"),
        (dict(n_step_target="uncorrected"), "n_step_target needs n_steps > 1"),
        (dict(start_e=1.5), r"start_e must be in \[0, 1\]"),
        (dict(train_frequency=0), "train_frequency must be an integer"),
        (dict(learning_starts=10), "only 10 transitions when learning starts, fewer than batch_size 128"),
        (dict(learning_starts=50_000, total_timesteps=50_000), "learning would never start"),
        (dict(buffer_size=100), "batch_size 128 > buffer_size 100"),
    ],
)
def test_refused_arguments(given, words):
    with pytest.raises(UsageError, match=words) as caught:
        validate(sql_discrete.Args(env_id="CartPole-v1", **given))
    assert "\n" not in str(caught.value)


def test_arguments_that_are_taken():
    for given in (
        dict(),
        dict(alpha=0.0, start_e=1.0, end_e=0.05),
        dict(alpha=1e-6),
        dict(n_steps=1000),
        dict(alpha=0.03, munchausen=0.9, munchausen_clip=1.0),
    ):
        validate(sql_discrete.Args(env_id="CartPole-v1", **given))


@pytest.mark.slow
def test_windows_of_a_run(tmp_path, monkeypatch):
    """Rows that follow each other, also where the ring has wrapped."""
    case = next(case for case in CASES if case.name == "sql_discrete")
    args = case.args(
        **dict(n_steps=3, train_frequency=4, target_network_frequency=6, num_seeds=1, eval_episodes=0),
        run_dir=str(tmp_path / "run"),
    )
    inputs = record_inputs(case, monkeypatch, args)
    ended = 0
    for steps in inputs.data:
        assert steps.obs.shape == (1, 16, 3, 4)
        ends = np.maximum(steps.terminated, steps.truncated)[:, :, :2] > 0
        follows = (steps.next_obs[:, :, :2] == steps.obs[:, :, 1:]).all(axis=-1)
        assert np.array_equal(follows, ~ends)
        ended += ends.sum()
    assert ended > 0


@pytest.mark.slow
def test_the_share_of_uniform_actions_falls_as_scheduled(tmp_path, monkeypatch):
    """Beside a policy that always chooses 1, from which half of the uniform actions differ; recorded too."""
    actions = record_actions(monkeypatch)
    monkeypatch.setattr(sql_discrete, "update", lambda state, *rest: (state, {}))
    monkeypatch.setattr(sql_discrete, "act", lambda policy, obs, key, deterministic: jnp.int32(1))
    case = next(case for case in CASES if case.name == "sql_discrete")
    given = dict(alpha=0.0, start_e=0.9, end_e=0.1, exploration_fraction=0.5, total_timesteps=4000)
    given |= dict(learning_starts=16, num_seeds=1, eval_episodes=0, checkpoint_frequency=0)
    sql_discrete.train(case.args(**given, run_dir=str(tmp_path / "run")))
    differ = np.array(actions)[:, 0] != 1
    for part, share in ((differ[:1000], 0.35), (differ[1000:2000], 0.15), (differ[2000:], 0.05)):
        assert part.mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(part)))
    record = {row["global_step"]: row for row in rows(tmp_path / "run" / "seed-1" / "metrics.jsonl")}
    found = [record[step]["charts/epsilon"] for step in (1000, 4000)]
    assert found == pytest.approx([0.9 - 0.8 * 999 / 2000, 0.1], rel=1e-5)

"""Every formula of fitted_q.py against float64 NumPy, its siblings and exact optima."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cleanrl_maxent import fitted_q, sql_discrete, tabular
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.finite import random_mdp
from tests.support.contract import CASES
from tests.support.pytrees import changed, distance
from tests.support.references import every_q, finite_difference, make_batch
from tests.support.runs import (
    differences,
    digests,
    killed_in,
    record_actions,
    rows,
    start,
    train_until_stopped,
)
from tests.support.tables import (
    as_table,
    delayed_rows,
    frequencies,
    make_state,
    probe_rows,
    sample_rows,
    table,
    trained_on_rows,
)

TASK = Task(3, 4, discrete=True)
ARGS = fitted_q.Args(hidden_dims=(16, 16), batch_size=8, updates_per_iteration=5, alpha=0.3, gamma=0.9)
KEY = jax.random.key(7)
ALPHAS = pytest.mark.parametrize("alpha", [0.3, 0])

critic_loss = jax.jit(jax.value_and_grad(fitted_q.critic_loss, has_aux=True), static_argnums=3)
update = jax.jit(fitted_q.update, static_argnums=4)


@cache
def some_state(args=ARGS):
    """A state whose critics, targets and first critics are all different."""
    state, other, third = (make_state(fitted_q, args, TASK, seed) for seed in (0, 100, 200))
    return state.replace(target_critics=other.critics.params, untrained=third.critics.params)


def make_batches(count=5, size=8, seed=0):
    batch = make_batch(count * size, seed, task=TASK)
    return jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), batch)


@ALPHAS
@pytest.mark.parametrize("prior", [False, True])
def test_critic_loss_gradient_and_metrics(alpha, prior):
    """Against targets of the iteration before, with the minimum of both critics."""
    args = replace(ARGS, alpha=alpha, uniform_prior=prior)
    state, batch = some_state(args), make_batch(task=TASK)
    value = tabular.soft_value(every_q(state.target_critics, batch.next_obs).min(axis=0), alpha)
    y = batch.reward + 0.9 * (1 - batch.terminated) * (value - prior * alpha * math.log(4))

    def residuals(params):
        return 0.5 * (every_q(params, batch.obs)[:, np.arange(8), batch.action] - y) ** 2

    params = state.critics.params
    (loss, metrics), grads = critic_loss(params, state, batch, args)
    assert loss == pytest.approx(residuals(params).mean(axis=1).sum(), rel=1e-5)
    assert metrics["losses/qf2_loss"] == pytest.approx(residuals(params)[1].mean(), rel=1e-4)
    q = every_q(params, batch.obs)
    assert metrics["losses/qf1_values"] == pytest.approx(q[0, np.arange(8), batch.action].mean(), rel=1e-4)
    assert len(metrics) == 4
    for path, index in [(("Dense_0", "kernel"), (0, 1, 2)), (("Dense_2", "bias"), (1, 3))]:
        expected = finite_difference(lambda p: residuals(p).mean(axis=1).sum(), params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_no_gradient_enters_the_targets():
    state, batch = some_state(), make_batch(task=TASK)

    def of_target(target):
        return fitted_q.critic_loss(state.critics.params, state.replace(target_critics=target), batch, ARGS)[
            0
        ]

    flat = jax.jit(jax.grad(of_target))(state.target_critics)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


@ALPHAS
@pytest.mark.parametrize("reinitialize", [False, True])
def test_an_iteration_is_gradient_steps_against_fixed_targets(alpha, reinitialize):
    """From the critics before, or from the first ones with a fresh optimiser."""
    args = replace(ARGS, alpha=alpha, reinitialize=reinitialize, q_lr=0.01)
    state, batches = some_state(args), make_batches()
    state, _ = update(state, make_batches(seed=1), KEY, 0, args)
    after, metrics = update(state, batches, KEY, 1, args)
    frozen = state.replace(target_critics=state.critics.params)
    params, optimiser = state.critics.params, state.critics.opt_state
    if reinitialize:
        params, optimiser = state.untrained, state.critics.tx.init(state.untrained)
    for i in range(5):
        batch = jax.tree.map(lambda x, i=i: x[i], batches)
        (_, last), grads = critic_loss(params, frozen, batch, args)
        changes, optimiser = state.critics.tx.update(grads, optimiser, params)
        params = optax.apply_updates(params, changes)
    assert distance(params, after.critics.params) < 1e-5
    assert not changed(after.target_critics, state.critics.params)
    assert not changed(after.untrained, state.untrained)
    assert metrics.keys() == last.keys()
    assert all(metrics[name] == pytest.approx(float(last[name]), rel=1e-3, abs=1e-5) for name in last)


@pytest.mark.parametrize("given", [dict(), dict(alpha=0.0), dict(uniform_prior=True)], ids=str)
def test_it_is_q_learning_whose_targets_are_copied_once_an_iteration(given):
    """sql_discrete.py with as many updates per target update, on the same batches."""
    args = replace(ARGS, q_lr=0.01, **given)
    shared = dict(hidden_dims=(16, 16), gamma=0.9, q_lr=0.01, n_critics=2, tau=1.0, end_e=0.1)
    other_args = sql_discrete.Args(**shared, **(dict(alpha=0.3) | given), target_network_frequency=5)
    state, other = (
        make_state(module, of_module, TASK)
        for module, of_module in ((fitted_q, args), (sql_discrete, other_args))
    )
    assert distance(state.critics.params, other.critics.params) == 0

    @jax.jit
    def learn(state, batches, index):
        def step(state, given):
            return sql_discrete.update(state, given[0], KEY, given[1], other_args)[0], None

        return jax.lax.scan(step, state, (batches, index))[0]

    for iteration in range(6):
        batches = make_batches(seed=iteration)
        state, _ = update(state, batches, KEY, iteration, args)
        other = learn(other, batches, 5 * iteration + 1 + jnp.arange(5))
        assert distance(state.critics.params, other.critics.params) < 1e-5
        assert distance(state.critics.params, other.target_critics) < 1e-5


# tables: an iteration that fits exactly is one of value iteration on the frequencies of the data

DATA = sample_rows(random_mdp(0, 5, 3), 3000)


@cache
def exact_iterates(alpha, prior=False, count=120):
    """Q after each iteration, `(iteration, S, A)`, by gradient descent on all data until it fits."""
    args = replace(ARGS, alpha=alpha, hidden_dims=(), n_critics=1, uniform_prior=prior)
    state = make_state(fitted_q, args, Task(5, 3, True))
    descent = optax.sgd(4.0)
    zero = as_table(state.critics.params, 0.0)
    critics = state.critics.replace(params=zero, tx=descent, opt_state=descent.init(zero))
    batches = jax.tree.map(lambda x: jnp.broadcast_to(x, (150, *x.shape)), DATA)

    @jax.jit
    def learn(state):
        def step(state, index):
            state = fitted_q.update(state, batches, KEY, index, args)[0]
            layer = state.critics.params["params"]["Dense_0"]
            return state, (layer["kernel"] + layer["bias"][:, None])[0]

        return jax.lax.scan(step, state, jnp.arange(count))[1]

    return np.asarray(learn(state.replace(critics=critics)))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0])
def test_iterates_are_those_of_value_iteration_on_frequencies(alpha):
    """Every one of them; they approach the optimum by γ each."""
    P, R = frequencies(DATA)
    found, Q = exact_iterates(alpha), np.zeros((5, 3))
    optimum = tabular.soft_optimum(P, R, 0.9, alpha)[1]
    for k, iterate in enumerate(found):
        Q = R + 0.9 * P @ tabular.soft_value(Q, alpha)
        assert np.abs(iterate - Q).max() < 1e-4, k
        bound = 0.9 ** (k + 1) * np.abs(optimum).max()
        assert np.abs(iterate - optimum).max() <= bound + 1e-4
    assert np.abs(found[-1] - optimum).max() < 1e-3
    batch = (DATA.obs.argmax(-1), DATA.action, DATA.reward, DATA.next_obs.argmax(-1), DATA.terminated)
    regressed = tabular.fitted_q_iteration(np.eye(15).reshape(5, 3, 15), batch, 0.9, alpha, 120)
    assert np.abs(found[-1] - regressed).max() < 1e-4


@pytest.mark.slow
def test_uniform_prior_leaves_the_policy():
    """Without ends."""
    plain, prior = exact_iterates(0.5)[-1], exact_iterates(0.5, prior=True)[-1]
    difference = tabular.boltzmann(plain, 0.5) - tabular.boltzmann(prior, 0.5)
    assert np.abs(difference).max() < 1e-4
    assert plain - prior == pytest.approx(0.9 * 0.5 * math.log(3) / 0.1, abs=1e-3)


@pytest.mark.parametrize(("gamma", "weight"), [(0.8, 0.01), (0.9, 24195)])
@pytest.mark.parametrize("alpha", [0.5, 0])
def test_divergence(gamma, weight, alpha):
    """Features 1 and 2, both states lead to the second: w ← 1.2 γ w + 4·10⁻⁴, an MDP of one action."""
    args = replace(ARGS, gamma=gamma, alpha=alpha, n_critics=1)
    state = make_state(fitted_q, args, Task(1, 1, True))
    params, descent = {"w": jnp.zeros(1)}, optax.sgd(0.4)
    critics = state.critics.replace(
        apply_fn=lambda params, obs: (params["w"] * obs)[None],
        params=params,
        tx=descent,
        opt_state=descent.init(params),
    )
    features, both = np.array([[1.0], [2.0]], np.float32), np.zeros(2, np.float32)
    batch = Transition(
        features, np.zeros(2, np.int32), np.float32([0, 0.001]), np.full((2, 1), 2.0, np.float32), both
    )
    batches = jax.tree.map(lambda x: jnp.broadcast_to(x, (20, *x.shape)), batch)

    @jax.jit
    def learn(state):
        def step(state, index):
            return fitted_q.update(state, batches, KEY, index, args)[0], None

        return jax.lax.scan(step, state, jnp.arange(200))[0]

    state = learn(state.replace(critics=critics, target_critics=params, untrained=params))
    tolerance = 3e-2 if gamma < 5 / 6 else 1e-3
    assert state.critics.params["w"][0] == pytest.approx(weight, rel=tolerance)


@pytest.mark.parametrize(
    ("given", "largest"),
    [(dict(alpha=0.0), 30), (dict(), 30 + 3 * math.log(4)), (dict(uniform_prior=True), 30)],
    ids=["hard", "soft", "prior"],
)
def test_a_warning_when_no_return_can_be_as_large(given, largest, capsys):
    """Once |Q| of a seed exceeds twice its largest reward, and entropy, of every step over 1 - γ."""
    args = replace(ARGS, seed=4, num_seeds=2, **given)
    rewards = np.float32([[9] * 8, [-3, *[1] * 7]])  # of seed 4, and of seed 5
    rows = jax.tree.map(lambda x: np.stack([x, x]), make_batch(task=TASK)).replace(reward=rewards)
    for sign in (1, -1):
        for factor, warned in ((1.98, False), (2.02, True)):
            losses = {"losses/best_values": np.float32([0, sign * factor * largest])}
            assert fitted_q.warn_of_divergence(Replay(rows), losses, 4, args) == warned
            values = f"|Q| is {factor * largest:.1f} on average, but no |return| exceeds {largest:.1f}"
            assert (f"Q of seed 5 is diverging: {values}" in "".join(capsys.readouterr())) == warned
    nothing = Replay(rows.replace(reward=0 * rewards))
    hard, losses = replace(args, alpha=0.0), {"losses/best_values": np.float32([0.1, 0.1])}
    assert not fitted_q.warn_of_divergence(nothing, losses, 4, hard)


def test_a_diverging_run_warns_once(tmp_path, monkeypatch, capsys):
    """Every fit adds 10,000 to Q of one action of two, on data that the run collects or is given."""
    original = fitted_q.update

    def enlarge(leaf):
        is_last_bias = leaf.ndim == 2 and leaf.shape[-1] == 2  # (critic, action)
        return leaf + jnp.array([1e4, 0]) if is_last_bias else leaf

    def update(*given):
        state, metrics = original(*given)
        params = jax.tree.map(enlarge, state.critics.params)
        return state.replace(critics=state.critics.replace(params=params)), metrics

    monkeypatch.setattr(fitted_q, "update", update)
    small = dict(total_timesteps=200, iterations=1, updates_per_iteration=1, batch_size=4, eval_episodes=0)
    args = fitted_q.Args(env_id="CartPole-v1", collect_steps=100, **small, run_dir=str(tmp_path / "run"))
    fitted_q.train(args)
    assert capsys.readouterr().err.count(" is diverging: |Q| is ") == 1
    offline = replace(args, collect_steps=200, dataset=args.run_dir, run_dir=str(tmp_path / "offline"))
    fitted_q.train(offline)
    assert capsys.readouterr().err.count(" is diverging: |Q| is ") == 1


LEARNER = replace(ARGS, hidden_dims=(64,), batch_size=64, updates_per_iteration=40, q_lr=3e-3, n_critics=2)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0])
def test_time_limit_does_not_cut_the_bootstrap(alpha):
    """Reward 1 for ever, three actions alike: Q is (1 + γ α log A)/(1 - γ), also at the limit of 50 steps."""
    args, obs = replace(LEARNER, alpha=alpha), np.linspace(0, 1, 51)[:, None]
    new = make_state(fitted_q, args, Task(1, 3, True))

    def values(rows, iterations):
        return np.asarray(fitted_q.policy(trained_on_rows(fitted_q, args, rows, iterations, new))(obs))

    rows = probe_rows("DiscreteConstantReward")
    assert np.allclose(values(rows, 80), (1 + 0.9 * alpha * math.log(3)) / 0.1, rtol=0.05)
    assert np.allclose(values(rows.replace(terminated=np.ones_like(rows.reward)), 30), 1, atol=0.05)


@pytest.mark.slow
def test_termination_cuts_the_bootstrap():
    """Reward 1 for three steps and the end: each step to come adds its reward and α log 3 of entropy."""
    args = replace(LEARNER, alpha=0.5)
    new = make_state(fitted_q, args, Task(1, 3, True))
    state = trained_on_rows(fitted_q, args, probe_rows("DiscreteCounting"), 60, new)
    middle = 1 + 0.9 * (1 + 0.5 * math.log(3))
    first = 1 + 0.9 * (middle + 0.5 * math.log(3))
    q = fitted_q.policy(state)(np.array([[0.0], [1.0], [2.0]]))
    assert np.allclose(q, np.array([[first], [middle], [1]]), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("reinitialize", [False, True])
def test_credit_over_two_steps(reinitialize):
    """An action that pays a step later beats one that pays less at once; also if every iteration starts anew,
    with enough steps to fit."""
    steps = dict(updates_per_iteration=800, q_lr=1e-2) if reinitialize else {}
    args = replace(LEARNER, hidden_dims=(), alpha=0.1, reinitialize=reinitialize, **steps)
    new = make_state(fitted_q, args, Task(3, 3, True))
    state = trained_on_rows(fitted_q, args, delayed_rows(), 6 if reinitialize else 60, new)
    Q = table(state.critics.params).min(axis=0)
    exact = np.array([0.3, 0.9 * tabular.soft_value(np.array([0, 0, 1.0]), 0.1)])
    assert Q[0].argmax() == 1 and Q[1].argmax() == 2
    assert np.allclose(Q[0, :2], exact, atol=0.03)


def test_actions():
    """Samples of exp(Q/α)/Z of the smallest critic, the best one if deterministic or without entropy."""
    state, obs = some_state(), np.random.default_rng(0).normal(size=3).astype(np.float32)
    q = every_q(state.critics.params, obs[None])[:, 0].min(axis=0)
    pi, policy = tabular.boltzmann(q, 0.3), fitted_q.policy(state)
    actions, log_probs = jax.jit(fitted_q.sample_action)(policy, np.tile(obs, (40_000, 1)), KEY)
    assert np.abs(np.bincount(actions, minlength=4) / 40_000 - pi).max() < 4 * 0.5 / math.sqrt(40_000)
    assert np.allclose(log_probs, np.log(pi)[actions], rtol=0, atol=1e-5)
    assert fitted_q.act(policy, obs, KEY, True) == q.argmax()
    hard = fitted_q.policy(some_state(replace(ARGS, alpha=0.0)))
    assert all(fitted_q.act(hard, obs, jax.random.key(k), False) == q.argmax() for k in range(5))


def test_init():
    """Weights within 1/√fan_in; all three sets of parameters are the same."""
    state = make_state(fitted_q, fitted_q.Args(), Task(16, 6, True))
    kernels = state.critics.params["params"]["Dense_0"]["kernel"]
    assert kernels.shape == (2, 16, 256) and 0.24 < jnp.abs(kernels).max() <= 0.25
    assert not changed(state.critics.params, state.target_critics)
    assert not changed(state.critics.params, state.untrained)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(collect_steps=30_000), "collect_steps 30000 > total_timesteps 20000"),
        (dict(alpha=1e-9), "alpha must be 0 or at least 1e-6; got 1e-09"),
        (dict(epsilon=1.5), r"epsilon must be in \[0, 1\]"),
        (dict(dataset=""), "dataset is empty"),
        (dict(iterations=0), "iterations must be an integer"),
        (dict(updates_per_iteration=0), "updates_per_iteration must be an integer"),
    ],
)
def test_refused_arguments(given, words):
    with pytest.raises(UsageError, match=words) as caught:
        validate(fitted_q.Args(env_id="CartPole-v1", **given))
    assert "\n" not in str(caught.value)


def test_arguments_that_are_taken():
    for given in (dict(), dict(alpha=0.1), dict(collect_steps=20_000), dict(dataset="x", total_timesteps=9)):
        validate(fitted_q.Args(env_id="CartPole-v1", **given))


CASE = next(case for case in CASES if case.name == "fitted_q")
GROWING = dict(total_timesteps=350, collect_steps=100, iterations=3, updates_per_iteration=4, batch_size=16)
SHARED = dict(eval_episodes=0, checkpoint_frequency=0)


def fits_of(monkeypatch, args):
    """The batches of every iteration of a run of one seed that learns nothing."""
    seen = []

    def update(state, batches, key, index, args):
        jax.debug.callback(lambda *given: seen.append(jax.tree.map(np.asarray, given)), batches)
        return state, {}

    monkeypatch.setattr(fitted_q, "update", update)
    fitted_q.train(args)
    jax.effects_barrier()
    return [batches for (batches,) in seen]


def test_fits_have_all_data_so_far(tmp_path, monkeypatch):
    """After every 100 steps and at the end, three iterations on rows of all of them, the last one too."""
    taken, step = [], fitted_q.store
    args = CASE.args(**GROWING | SHARED | dict(batch_size=512), run_dir=str(tmp_path / "run"))

    def note(replays, transition, index):
        taken.append((int(index), np.asarray(transition.obs)[0]))
        return step(replays, transition, index)

    monkeypatch.setattr(fitted_q, "store", note)
    fits = fits_of(monkeypatch, args)
    assert len(fits) == 4 * 3 and fits[0].obs.shape == (4, 512, 4)
    rows = dict(taken)
    assert sorted(rows) == list(range(350))
    for number, batches in enumerate(fits):
        count = min(100 * (number // 3 + 1), 350)
        expected = {rows[index].tobytes() for index in range(count)}
        found = {row.tobytes() for row in batches.obs.reshape(-1, 4)}
        assert found <= expected and len(found) > 0.98 * len(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "count"),
    [
        (dict(total_timesteps=200, collect_steps=200), 200),
        (dict(total_timesteps=200, collect_steps=100), 40),
        (dict(total_timesteps=150, collect_steps=100), 40),
    ],
    ids=["one fit", "two fits", "the second one shorter"],
)
def test_iterations_by_default(tmp_path, monkeypatch, given, count):
    """200 iterations if there is only one fit, else 20 of each."""
    given = given | SHARED | dict(iterations=None, updates_per_iteration=1, batch_size=4)
    args = CASE.args(**given, run_dir=str(tmp_path / "run"))
    assert len(fits_of(monkeypatch, args)) == count


def test_a_single_fit_is_recorded_however_many_data_it_has(tmp_path):
    """Rows of losses come at multiples of 100 steps, and at the end of a run that cannot be extended."""
    few = dict(total_timesteps=130, collect_steps=130, iterations=1, updates_per_iteration=2, batch_size=4)
    fitted_q.train(CASE.args(**few, **SHARED, run_dir=str(tmp_path)))
    (path,) = tmp_path.glob("seed-*/metrics.jsonl")
    assert [row["global_step"] for row in rows(path) if "losses/qf1_loss" in row] == [130]


@pytest.mark.slow
@pytest.mark.parametrize("at", [100, 101, 250, 349])
def test_a_run_stopped_while_its_data_grow_resumes_exactly(tmp_path, monkeypatch, at):
    """At a fit, just after it, and between two."""
    args = CASE.args(**GROWING, eval_episodes=1, eval_frequency=120, run_dir=str(tmp_path / "whole"))
    fitted_q.train(args)
    args = replace(args, run_dir=str(tmp_path / "run"))
    train_until_stopped(args, monkeypatch, fitted_q, at)
    fitted_q.train(args)
    assert differences(digests(tmp_path / "whole"), digests(tmp_path / "run")) == []


@pytest.mark.slow
def test_a_run_killed_while_its_data_grow_resumes_exactly(tmp_path):
    """By SIGKILL in a step between two fits, after a checkpoint that is between two fits as well."""
    words = "--env-id CartPole-v1 --hidden-dims 8 --checkpoint-frequency 130 --eval-episodes 0".split()
    for name, value in GROWING.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    assert start("fitted_q", words, tmp_path / "whole").wait(300) == 0
    point = "cleanrl_maxent.common.env.seeds:SeedEnvs.step_wait:283"
    assert start("fitted_q", words, tmp_path / "run", point).wait(300) == -9
    assert "train" in killed_in(tmp_path / "run")
    assert start("fitted_q", words, tmp_path / "run").wait(300) == 0
    assert "resumed at step 260" in (tmp_path / "run.log").read_text()
    assert differences(digests(tmp_path / "whole"), digests(tmp_path / "run")) == []


@pytest.mark.parametrize(("given", "share"), [({}, 0.1), (dict(alpha=0.3), 0.0), (dict(epsilon=0.4), 0.4)])
def test_share_of_uniform_actions(given, share, tmp_path, monkeypatch):
    """Beside a policy that always chooses 1; half of the uniform actions differ from it."""
    actions = record_actions(monkeypatch)
    monkeypatch.setattr(fitted_q, "update", lambda state, *rest: (state, {}))
    monkeypatch.setattr(fitted_q, "act", lambda policy, obs, key, deterministic: jnp.int32(1))
    case = next(case for case in CASES if case.name == "fitted_q")
    few = dict(total_timesteps=2_100, collect_steps=100, iterations=1, updates_per_iteration=1, batch_size=4)
    few |= dict(alpha=0.0, eval_episodes=0, checkpoint_frequency=0)
    fitted_q.train(case.args(**few | given, run_dir=str(tmp_path / "run")))
    error = 4 * math.sqrt(share / 2 * (1 - share / 2) / 2_000)
    assert np.mean(np.array(actions[100:]) != 1) == pytest.approx(share / 2, abs=error)

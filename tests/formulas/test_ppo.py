"""ppo.py: its clipped and penalised losses against float64 NumPy, and how the penalty adapts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from benchmarks.studies.corridor import corridor
from cleanrl_maxent import maxent_pg, ppo, tabular
from cleanrl_maxent.common.cli import validate
from cleanrl_maxent.common.data import Statistics
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.environments.finite import two_rooms
from tests.support.pytrees import distance
from tests.support.rollouts import (
    KINDS,
    double,
    flat,
    float64,
    make_args,
    make_rollout,
    make_state,
    moved,
    numeric_gradient,
    on_host,
    reference_entropy,
    reference_kl,
    reference_log_prob,
    reference_value,
    with_optimiser,
)

make_samples = on_host(jax.jit(ppo.make_samples, static_argnums=2))
actor_loss = jax.jit(jax.value_and_grad(ppo.actor_loss, has_aux=True), static_argnums=3)
update = jax.jit(ppo.update, static_argnums=4)


def ratio_loss(ratios, advantage, args):
    """The loss as a function of the probability ratios alone."""

    def apply(params, obs):
        del obs
        return SimpleNamespace(log_prob=lambda action: jnp.log(params), entropy=lambda: jnp.zeros(()))

    old = SimpleNamespace(log_prob=lambda action: jnp.zeros(()))
    state = SimpleNamespace(actor=SimpleNamespace(apply_fn=apply), kl_coef=0.0)
    batch = SimpleNamespace(obs=None, action=None, old=old, advantage=advantage)
    return ppo.actor_loss(ratios, state, batch, args)[0]


RATIOS = [0.5, 0.79, 0.81, 1, 1.19, 1.21, 1.5]


@pytest.mark.parametrize(("advantage", "kept"), [(1.0, [1, 1, 1, 1, 1, 0, 0]), (-1.0, [0, 0, 1, 1, 1, 1, 1])])
def test_the_clip_stops_only_gradients_that_would_widen_a_gain(advantage, kept):
    """The pessimistic side keeps its gradient, and at a ratio of 1 it is whole; without a clip all are."""
    ratios = jnp.array(RATIOS)
    gradient = len(RATIOS) * jax.grad(ratio_loss)(ratios, advantage, make_args(ppo, clip_coef=0.2))
    assert np.allclose(gradient, -advantage * np.array(kept), atol=1e-6)
    gradient = len(RATIOS) * jax.grad(ratio_loss)(ratios, advantage, make_args(ppo, clip_coef=0.0))
    assert np.allclose(gradient, -advantage, atol=1e-6)


LOSSES = {
    "clip": dict(clip_coef=0.2, kl_coef=0.0, ent_coef=0.0),
    "penalty": dict(clip_coef=0.0, kl_coef=2.0, ent_coef=0.0),
    "all": dict(clip_coef=0.1, kl_coef=0.5, ent_coef=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
@KINDS
@float64()
def test_loss_and_gradient(name, task):
    """Away from the policy that sampled; ratios are of whole actions, the divergence is KL(old ‖ new)."""
    args = make_args(ppo, **LOSSES[name])
    state, rollout = double((make_state(ppo, args, task), make_rollout(ppo, args, task)))
    samples = make_samples(state, rollout, args)
    old, beta = state.actor.params, 0.7 * args.kl_coef  # has been adapted
    params = jax.tree.map(lambda leaf: 0.8 * leaf + 0.05, old)

    def ratio(params):
        return np.exp(
            reference_log_prob(params, samples.obs, samples.action)
            - reference_log_prob(old, samples.obs, samples.action)
        )

    def loss(params):
        rho = ratio(params)
        clipped = np.clip(rho, 1 - args.clip_coef, 1 + args.clip_coef) if args.clip_coef else rho
        surrogate = np.minimum(rho * samples.advantage, clipped * samples.advantage)
        divergence = reference_kl(old, params, samples.obs)
        return -np.mean(
            surrogate - beta * divergence + args.ent_coef * reference_entropy(params, samples.obs)
        )

    given = state.replace(kl_coef=jnp.array(beta)), samples, args
    (found, metrics), grads = actor_loss(params, *given)
    assert float(found) == pytest.approx(loss(params), rel=1e-12)
    np.testing.assert_allclose(flat(grads), numeric_gradient(loss, params), rtol=0, atol=1e-8)
    rho = ratio(params)
    share = (np.abs(rho - 1) > args.clip_coef).mean() if args.clip_coef else 0
    assert metrics["losses/clipfrac"] == pytest.approx(share) and (share > 0) == (args.clip_coef > 0)
    assert metrics["losses/approx_kl"] == pytest.approx((rho - 1 - np.log(rho)).mean(), rel=1e-9)
    entropy = reference_entropy(params, samples.obs).mean()
    assert metrics["losses/entropy"] == pytest.approx(entropy, rel=1e-9)


@float64()
def test_approximate_divergence_is_an_estimate_of_the_exact_one():
    """N(0, 1) and N(0.1, 1.1), over 100,000 quantiles of the first, by which it is KL(old ‖ new)."""
    args, count = make_args(ppo, hidden_dims=()), 100_000
    state = make_state(ppo, args, Task(1, 1))
    head = {"kernel": jnp.zeros((1, 1)), "bias": jnp.array([0.1])}
    params = {"params": {"log_std": jnp.log(jnp.array([1.1])), "mean": head}}
    action = norm.ppf((np.arange(count) + 0.5) / count)[:, None]
    rows = jnp.zeros((count, 1))
    batch = ppo.Samples(rows, jnp.array(action), ppo.Gaussian(rows, rows), rows[:, 0], rows[:, 0])
    _, metrics = ppo.actor_loss(params, state, batch, args)
    new = ppo.Gaussian(jnp.array([0.1]), jnp.log(jnp.array([1.1])))
    exact = float(ppo.Gaussian(jnp.zeros(1), jnp.zeros(1)).kl(new))
    assert exact == pytest.approx(0.012666, abs=5e-7)
    assert metrics["losses/approx_kl"] == pytest.approx(exact, abs=2e-5)


def adapted(divergence, coefficient, target):
    """The penalty's coefficient after a rollout whose policy moved so far, and what was measured."""
    args = make_args(ppo, kl_coef=1.0, kl_target=target)
    state = make_state(ppo, args).replace(kl_coef=jnp.float32(coefficient))
    old = SimpleNamespace(kl=lambda new: jnp.full(5, divergence, jnp.float32))
    samples = SimpleNamespace(old=old, obs=jnp.zeros((5, 3)))
    after, metrics = ppo.adapt_kl_coef(state, samples, args)
    assert metrics["losses/kl"] == pytest.approx(divergence)
    assert metrics["losses/kl_coef"] == pytest.approx(coefficient)
    return float(after.kl_coef)


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(0.0, 0.5), (0.5, 0.5), (0.66, 0.5), (0.67, 1), (1, 1), (1.5, 1), (1.51, 2), (9, 2)],
)
def test_penalty_is_halved_below_two_thirds_of_the_target_and_doubled_above_three_halves(ratio, factor):
    """At exactly 3/2 it stays; without a target it is fixed."""
    target = 0.01171875  # of which 3/2 is exact in float32
    assert adapted(ratio * target, 0.8, target) == pytest.approx(0.8 * factor)
    assert adapted(ratio * target, 0.8, 0.0) == pytest.approx(0.8)


def test_penalty_at_two_thirds_of_the_target_stays():
    target = 0.01171875
    assert adapted(target / 1.5, 0.8, target) == pytest.approx(0.8)


def test_penalty_is_bounded():
    assert adapted(1.0, 9e3, 0.01) == pytest.approx(1e4) and adapted(0.0, 1.5e-4, 0.01) == pytest.approx(1e-4)


def test_the_divergence_is_0_if_nothing_moved():
    """Also where statistics scale the observations."""
    args, statistics = make_args(ppo), Statistics(jnp.arange(3.0), jnp.full(3, 0.25), jnp.float32(5))
    state = make_state(ppo, args).replace(observations=statistics)
    samples = make_samples(state, make_rollout(ppo, args), args)
    samples = samples.replace(old=state.actor.apply_fn(state.actor.params, samples.obs))
    assert abs(ppo.adapt_kl_coef(state, samples, args)[1]["losses/kl"]) < 1e-6


def test_a_target_needs_a_penalty_to_adapt():
    with pytest.raises(
        UsageError, match="kl_target adapts kl_coef, which must start above 0; add --kl-coef 1"
    ):
        validate(ppo.Args(kl_target=0.01))
    validate(ppo.Args(kl_target=0.01, kl_coef=1.0))


@float64()
def test_two_passes_over_the_whole_rollout():
    """Ratios, divergences and advantages are of the policy and values before the first of them; the penalty
    adapts to the divergence after the last, for the next rollout."""
    args = make_args(
        ppo,
        **dict(update_epochs=2, num_minibatches=1, clip_coef=0.1, kl_coef=2.0, kl_target=1e-4, ent_coef=0.1),
    )
    state, rollout = double((make_state(ppo, args), make_rollout(ppo, args)))
    state, rate = with_optimiser(state, optax.sgd(0.3)), 0.3
    samples = make_samples(state, rollout, args)
    after, metrics = update(state, rollout, jax.random.key(0), 0, args)
    old = state.actor.params
    old_log_prob = reference_log_prob(old, samples.obs, samples.action)

    def of_actor(params):
        rho = np.exp(reference_log_prob(params, samples.obs, samples.action) - old_log_prob)
        surrogate = np.minimum(rho * samples.advantage, np.clip(rho, 0.9, 1.1) * samples.advantage)
        penalty = 2.0 * reference_kl(old, params, samples.obs)
        return -np.mean(surrogate - penalty + 0.1 * reference_entropy(params, samples.obs))

    def of_critic(params):
        return 0.5 * np.mean((reference_value(params, samples.obs) - samples.value_target) ** 2)

    for name, loss in (("actor", of_actor), ("critic", of_critic)):
        params = jax.device_get(getattr(state, name).params)
        for _ in range(2):
            gradient = numeric_gradient(loss, params)
            params = moved(params, -rate * gradient)
        assert distance(getattr(after, name).params, params) < 1e-9, name
        if name == "actor":
            divergence = reference_kl(old, params, samples.obs).mean()
    assert metrics["losses/kl"] == pytest.approx(divergence, rel=1e-6) and divergence > 1.5e-4
    assert metrics["losses/kl_coef"] == 2 and after.kl_coef == 4


def test_learning_rate_falls_to_zero_at_the_end():
    """Over all gradient steps: four rollouts of 24 steps fit into 100."""
    args = make_args(ppo, anneal_lr=True, total_timesteps=100)
    assert args.gradient_steps == 4 * args.update_epochs * args.num_minibatches
    state, moves = make_state(ppo, args), []
    for seed in range(5):
        after, _ = update(state, make_rollout(ppo, args, seed=seed), jax.random.key(seed), seed, args)
        moves.append(distance(after.actor.params, state.actor.params))
        state = after
    # compiled, the last rate is 0 but for rounding
    assert moves[0] > moves[3] > 0 and moves[4] < 1e-6 * moves[3]


ADAM = pytest.mark.parametrize("algorithm", [ppo, maxent_pg], ids=["ppo", "maxent_pg"])


@pytest.mark.parametrize("anneal", [True, False])
@ADAM
def test_optimisers_of_actor_and_critic(algorithm, anneal):
    """Gradients of norm 5 in one leaf and 1e-4 in another: each network's are cut to their largest norm, Adam
    has ε = 1e-5, and the rate falls linearly to 0 over all gradient steps, or stays."""
    args = make_args(algorithm, anneal_lr=anneal, total_timesteps=24, learning_rate=0.01, max_grad_norm=0.5)
    steps, start = args.gradient_steps, make_state(algorithm, args)
    for name in ("actor", "critic"):
        network = getattr(start, name)
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.zeros_like, network.params))
        leaves[:2] = (leaf.at[(0,) * leaf.ndim].set(g) for leaf, g in zip(leaves[:2], (5, 1e-4), strict=True))
        grads = jax.tree.unflatten(structure, leaves)
        moves = []
        for _ in range(steps):
            after = network.apply_gradients(grads=grads)
            change = jax.tree.map(lambda new, old: new - old, after.params, network.params)
            moves.append([-leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(change)[:2]])
            network = after
        rates = 0.01 * (1 - anneal * np.arange(steps) / steps)
        for column, clipped in enumerate((0.5, 1e-5)):
            expected = rates * clipped / (clipped + 1e-5)
            assert np.allclose(np.array(moves)[:, column], expected, rtol=2e-2, atol=2e-6), (name, column)


@ADAM
def test_both_networks_see_every_row_once_in_every_pass_in_a_new_order(algorithm, monkeypatch):
    """The same minibatches, whose rows are told apart by their value targets."""
    args = make_args(algorithm, update_epochs=2, num_minibatches=3)
    state, seen = make_state(algorithm, args), {"actor_loss": [], "critic_loss": []}
    rollout = jax.tree.map(jnp.asarray, make_rollout(algorithm, args))
    for name, batches in seen.items():

        def note(params, state, batch, *rest, batches=batches):
            jax.debug.callback(lambda rows: batches.append(np.asarray(rows)), batch.value_target)
            return 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params)), {}

        monkeypatch.setattr(algorithm, name, note)
    for index in range(2):
        algorithm.update(state, rollout, jax.random.key(index), index, args)
    jax.effects_barrier()
    assert all(np.array_equal(*pair) for pair in zip(*seen.values(), strict=True))
    orders = np.reshape(seen["actor_loss"], (4, 24))
    assert len({order.tobytes() for order in orders}) == 4
    assert (np.sort(orders) == np.sort(orders[0])).all()


def test_ratios_beyond_float32_leave_finite_gradients():
    """A clipped sample has the gradient 0, however large its ratio is."""

    def apply(log_ratio, obs):
        return SimpleNamespace(log_prob=lambda action: log_ratio, entropy=lambda: jnp.zeros(()))

    old = SimpleNamespace(log_prob=lambda action: jnp.zeros(()))
    state = SimpleNamespace(actor=SimpleNamespace(apply_fn=apply), kl_coef=0.0)
    batch = SimpleNamespace(obs=None, action=None, old=old, advantage=1.0)
    args = make_args(ppo, clip_coef=0.2)
    gradient = jax.grad(lambda x: ppo.actor_loss(x, state, batch, args)[0])(jnp.array([0.0, 160.0, 200.0]))
    assert np.isfinite(gradient).all() and not gradient[1:].any()


@pytest.mark.slow
def test_two_rooms(tmp_path):
    """An entropy bonus is not the maximum-entropy objective: PPO prefers the room that its optimum does."""
    P, R, _ = two_rooms()
    expected = tabular.bonus_policy(P, R, 0.99, 0.5)[0, 4:].sum()
    assert expected == pytest.approx(0.3682, abs=1e-4)
    assert tabular.optimal_policy(P, R, 0.99, 0.5)[0, 4:].sum() == pytest.approx(0.7210, abs=1e-4)
    args = ppo.Args(
        **dict(env_id="cleanrl_maxent/TwoRooms-v0", ent_coef=0.5, total_timesteps=50_000, hidden_dims=(32,)),
        **dict(num_envs=32, num_steps=32, num_minibatches=2, learning_rate=3e-3, norm_adv=False),
        **dict(normalize_observation=False, normalize_reward=False, eval_episodes=0, checkpoint_frequency=0),
        run_dir=str(tmp_path / "run"),
    )
    ppo.train(args)
    pi = corridor.probabilities(tmp_path / "run")
    assert pi[0, 4:].sum() == pytest.approx(expected, abs=0.03)

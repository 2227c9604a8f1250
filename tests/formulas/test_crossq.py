"""Every formula of crossq.py against float64 NumPy, four rows by hand, and sac.py; and a known optimum."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cleanrl_maxent import crossq, load_policy, sac
from cleanrl_maxent.common.run.run import Run
from tests.support.pytrees import changed, distance, leaves
from tests.support.references import ACTION_DIM, OBS_DIM, TASK, finite_difference, make_batch, trained_on
from tests.support.runs import small_args

MOMENTUM, WARMUP = 0.9, 4  # of the normalisation, and its updates before r and d count
ARGS = crossq.Args(
    hidden_dims=(16, 16),
    critic_hidden_dims=(16, 16),
    batch_size=8,
    alpha=0.3,
    policy_lr=2e-3,
    bn_momentum=MOMENTUM,
    bn_warmup=WARMUP,
)
KEY = jax.random.key(7)

critic_loss = jax.jit(jax.value_and_grad(crossq.critic_loss, has_aux=True), static_argnums=4)
actor_loss = jax.jit(jax.value_and_grad(crossq.actor_loss, has_aux=True))
update = jax.jit(crossq.update, static_argnums=(3, 4))


def init(module, args):
    """A new state of one seed, compiled."""
    return jax.jit(lambda: module.init(jax.random.key(0), TASK, args))()


@cache
def make_state(updates=15):
    """A state after `updates` updates of the critics and a third as many of the actor."""
    state = init(crossq, ARGS)
    for index in range(updates):
        state, _ = update(state, make_batch(64, seed=index), jax.random.key(index), index % 3, ARGS)
    return state


def correction(stats, x):
    """r and d of a layer; 1 and 0 during the warm-up."""
    if stats["batches"] < WARMUP:
        return 1.0, 0.0
    std, of_batch = np.sqrt(stats["var"] + 1e-3), np.sqrt(x.var(axis=0) + 1e-3)
    return np.clip(of_batch / std, 1 / 3, 3), np.clip((x.mean(axis=0) - stats["mean"]) / std, -5, 5)


def dense(layer, stats, x, training, r, d):
    """What a layer returns before its ReLU."""
    mean, var = (x.mean(axis=0), x.var(axis=0)) if training else (stats["mean"], stats["var"])
    normalization = layer["BatchRenorm_0"]
    y = ((x - mean) / np.sqrt(var + 1e-3) * r + d) * normalization["scale"] + normalization["bias"]
    return y @ layer["kernel"] + layer["bias"]


def reference(params, stats, x, training, fixed=None):
    """A network in float64.

    r and d come from the activations under `fixed`, so that differences in `params` do not move them.
    """
    params, stats, fixed = jax.tree.map(np.float64, (params, stats, fixed or params))
    x = x_fixed = np.float64(x)
    for name in sorted(params):
        layer_stats = stats[name]["BatchRenorm_0"]
        r, d = correction(layer_stats, x_fixed) if training else (1.0, 0.0)
        x = dense(params[name], layer_stats, x, training, r, d)
        x_fixed = dense(fixed[name], layer_stats, x_fixed, training, r, d)
        if name != max(params):
            x, x_fixed = np.maximum(x, 0), np.maximum(x_fixed, 0)
    return x


def reference_q(params, stats, obs, action, training, fixed=None):
    """Both critics, `(2, batch)`."""
    x = np.concatenate([obs, action], axis=-1)
    both = [jax.tree.map(lambda leaf, i=i: leaf[i], (params, stats, fixed or params)) for i in range(2)]
    return np.stack([reference(params, stats, x, training, fixed)[:, 0] for params, stats, fixed in both])


def reference_sample(params, stats, obs, key, training, fixed=None):
    """Sample and log-density with the textbook Jacobian log(1 - a²)."""
    out = reference(params, stats, obs, training, fixed)
    mean, log_std = out[:, :ACTION_DIM], np.clip(out[:, ACTION_DIM:], -20, 2)
    noise = np.float64(jax.random.normal(key, mean.shape))
    action = np.tanh(mean + np.exp(log_std) * noise)
    density = np.exp(-0.5 * noise**2 - log_std) / math.sqrt(2 * math.pi) / (1 - action**2)
    return action, np.log(density).sum(axis=-1)


def normalize(x, training=True, batches=0, **values):
    """Normalised `x` of one feature, its running statistics afterwards, and the gradient of Σ y²."""
    layer = crossq.BatchRenorm(momentum=0.99, warmup=10)
    params = {"scale": jnp.array([values.get("scale", 1.0)]), "bias": jnp.array([values.get("bias", 0.0)])}
    mean, var = jnp.array([values.get("mean", 0.0)]), jnp.array([values.get("var", 1.0)])
    stats = {"mean": mean, "var": var, "batches": jnp.int32(batches)}

    def total(x):
        variables = {"params": params, "batch_stats": stats}
        (slope, offset), moved = layer.apply(variables, x, training, mutable=["batch_stats"])
        y = slope * x + offset
        return (y**2 * jnp.array([[1.0], [2], [3], [4]])).sum(), (y, moved["batch_stats"])

    (_, (y, moved)), grad = jax.value_and_grad(total, has_aux=True)(jnp.array(x, jnp.float32)[:, None])
    return np.float64(y[:, 0]), jax.tree.map(np.float64, moved), np.float64(grad[:, 0])


ROWS = np.array([1.0, 3.0, 5.0, 7.0])  # mean 4, variance 5


def test_batch_normalisation_of_four_rows():
    y, stats, _ = normalize(ROWS, scale=2.0, bias=0.5)
    assert np.allclose(y, np.array([-6, -2, 2, 6]) / math.sqrt(5.001) + 0.5, atol=1e-6)
    assert np.allclose([stats["mean"][0], stats["var"][0], stats["batches"]], [0.04, 1.04, 1], atol=1e-6)


def test_evaluation_normalises_by_running_statistics_and_leaves_them():
    y, stats, _ = normalize(ROWS, training=False, mean=1.0, var=3.999, scale=2.0, bias=0.5)
    assert np.allclose(y, [0.5, 2.5, 4.5, 6.5], atol=1e-6)
    assert np.allclose([stats["mean"][0], stats["var"][0], stats["batches"]], [1, 3.999, 0])


def test_after_the_warm_up_the_batch_is_brought_close_to_the_running_statistics():
    """Within the limits it is what evaluation does; beyond them r is in [1/3, 3] and d in [-5, 5]."""
    within = dict(mean=1.0, var=3.999)
    assert np.allclose(normalize(ROWS, batches=10, **within)[0], (ROWS - 1) / 2, atol=1e-5)
    assert np.allclose(normalize(ROWS, batches=9, **within)[0], (ROWS - 4) / math.sqrt(5.001), atol=1e-5)
    narrow = normalize(ROWS, batches=10, mean=0.0, var=0.0)[0]  # std 0.0316: r would be 70.7, d 126
    assert np.allclose(narrow, 3 * (ROWS - 4) / math.sqrt(5.001) + 5, atol=1e-5)
    wide = normalize(ROWS, batches=10, mean=1e3, var=1e4)[0]  # std 100: r would be 0.022, d -9.96
    assert np.allclose(wide, (ROWS - 4) / math.sqrt(5.001) / 3 - 5, atol=1e-5)


@pytest.mark.parametrize("batches", [0, 10])
def test_gradients_pass_through_the_batch_statistics_but_not_through_the_correction(batches):
    """Central differences in float64, with r and d as they are at the rows."""
    mean, var = (2.0, 2.999) if batches else (0.0, 1.0)
    r, d = (math.sqrt(5.001 / 3), 2 / math.sqrt(3)) if batches else (1.0, 0.0)

    def total(x):
        y = (x - x.mean()) / np.sqrt(x.var() + 1e-3) * r + d
        return (y**2 * np.array([1, 2, 3, 4])).sum()

    steps = 1e-5 * np.eye(4)
    expected = [(total(ROWS + step) - total(ROWS - step)) / 2e-5 for step in steps]
    assert np.allclose(normalize(ROWS, batches=batches, mean=mean, var=var)[2], expected, atol=1e-4)


BEFORE_AND_AFTER = pytest.mark.parametrize("updates", [3, 15], ids=["in the warm-up", "after it"])


def target(state, batch):
    """y = r + γ(1 - d)[min Q(s', a') - α log π(a'|s')], Q from the joint batch, π by running statistics."""
    actor, critics = state.actor, state.critics
    next_action, log_prob = reference_sample(actor.params, actor.batch_stats, batch.next_obs, KEY, False)
    joint = np.concatenate([batch.obs, batch.next_obs]), np.concatenate([batch.action, next_action])
    next_q = reference_q(critics.params, critics.batch_stats, *joint, True)[:, len(batch.obs) :]
    alpha = float(crossq.temperature(state))
    return batch.reward + 0.99 * (1 - batch.terminated) * (next_q.min(axis=0) - alpha * log_prob), joint


@BEFORE_AND_AFTER
def test_critic_loss_metrics_and_gradient(updates):
    """The gradient is that of the first half's residual alone, through statistics of the joint batch."""
    state, batch = make_state(updates), make_batch()
    y, joint = target(state, batch)
    stats = state.critics.batch_stats

    def residuals(variables):
        q = reference_q(variables["params"], stats, *joint, True, state.critics.params)[:, : len(batch.obs)]
        return 0.5 * ((q - y) ** 2).mean(axis=1)

    (loss, (metrics, _)), grads = critic_loss(state.critics.params, state, batch, KEY, ARGS)
    variables = {"params": state.critics.params}
    expected = residuals(variables)
    assert loss == pytest.approx(expected.sum(), rel=1e-4)
    assert metrics["losses/qf1_loss"] == pytest.approx(expected[0], rel=1e-4)
    q = reference_q(state.critics.params, stats, *joint, True)[:, : len(batch.obs)]
    assert metrics["losses/qf2_values"] == pytest.approx(q[1].mean(), rel=1e-5)
    for path, index in [
        (("NormalizedLinear_0", "kernel"), (0, 1, 2)),
        (("NormalizedLinear_1", "kernel"), (1, 3, 4)),
        (("NormalizedLinear_2", "bias"), (1, 0)),
    ]:
        found = grads[path[0]][path[1]][index]
        derivative = finite_difference(lambda v: residuals(v).sum(), variables, path, index)
        assert found == pytest.approx(derivative, rel=1e-4, abs=1e-6)


def test_the_joint_batch_moves_the_running_statistics():
    state, batch = make_state(), make_batch()
    _, joint = target(state, batch)
    x = np.concatenate(joint, axis=-1)
    before = state.critics.batch_stats["NormalizedLinear_0"]["BatchRenorm_0"]
    (_, (_, stats)), _ = critic_loss(state.critics.params, state, batch, KEY, ARGS)
    after = stats["NormalizedLinear_0"]["BatchRenorm_0"]
    assert np.allclose(after["mean"], MOMENTUM * before["mean"] + (1 - MOMENTUM) * x.mean(axis=0), atol=1e-5)
    assert np.allclose(after["var"], MOMENTUM * before["var"] + (1 - MOMENTUM) * x.var(axis=0), atol=1e-5)
    assert after["batches"].tolist() == (before["batches"] + 1).tolist() == [16, 16]


@BEFORE_AND_AFTER
def test_actor_loss_metrics_and_gradient(updates):
    """The actor by statistics of the batch, the critics by their running ones."""
    state, batch = make_state(updates), make_batch()
    critics, alpha = state.critics, float(crossq.temperature(state))

    def losses(variables):
        stats, fixed = state.actor.batch_stats, state.actor.params
        sample = reference_sample(variables["params"], stats, batch.obs, KEY, True, fixed)
        q = reference_q(critics.params, critics.batch_stats, batch.obs, sample[0], False)
        return (alpha * sample[1] - q.min(axis=0)).mean(), -sample[1].mean()

    (loss, (metrics, stats)), grads = actor_loss(state.actor.params, state, batch, KEY)
    variables = {"params": state.actor.params}
    expected, entropy = losses(variables)
    assert loss == pytest.approx(expected, abs=1e-6) and changed(stats, state.actor.batch_stats)
    assert metrics["losses/entropy"] == pytest.approx(entropy, abs=1e-6)
    for path, index in [(("NormalizedLinear_0", "kernel"), (0, 1)), (("NormalizedLinear_2", "bias"), (3,))]:
        derivative = finite_difference(lambda v: losses(v)[0], variables, path, index)
        assert grads[path[0]][path[1]][index] == pytest.approx(derivative, rel=1e-4, abs=1e-6)


def test_alpha_loss_and_gradient():
    """α (H - H̄), whose derivative in log α is itself."""
    (loss, metrics), grads = jax.value_and_grad(crossq.alpha_loss, has_aux=True)(
        {"log_alpha": jnp.log(0.3)}, entropy=1.5, target_entropy=-2.0
    )
    assert loss == metrics["losses/alpha_loss"] == pytest.approx(0.3 * 3.5)
    assert grads["log_alpha"] == pytest.approx(0.3 * 3.5)


def test_no_gradient_enters_the_target():
    """The critics' loss is flat in the temperature and in the rewards' share of the target."""
    state, batch = make_state(), make_batch()

    def of_others(alpha, reward):
        other = state.replace(alpha=state.alpha.replace(params=alpha))
        return crossq.critic_loss(state.critics.params, other, batch.replace(reward=reward), KEY, ARGS)[0]

    flat = jax.jit(jax.grad(of_others, (0, 1)))(state.alpha.params, batch.reward)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


def renamed(params):
    """Parameters of a network of crossq.py as those of sac.py's."""
    names = {name: name.replace("NormalizedLinear", "Dense") for name in params}
    layers = {names[name]: {key: layer[key] for key in ("kernel", "bias")} for name, layer in params.items()}
    return {"params": layers}


def keep_normalization(adam):
    """The optimiser, for all parameters but the scales and biases of the normalisation."""

    def is_normalization(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "BatchRenorm_0" in str(path), params)

    return optax.chain(adam, optax.masked(optax.set_to_zero(), is_normalization))


def begin(network, params, tx):
    """A network at parameters, with an optimiser that has made no step."""
    return network.replace(params=params, tx=tx, opt_state=tx.init(params))


def test_with_frozen_statistics_it_is_soft_actor_critic_without_targets(monkeypatch):
    """Mean 0 and variance 1 in training too; the targets of sac.py are copies of its critics at all times.

    The first update is equal to the bit; later ones differ by rounding, as gradients are summed over 16 rows
    here and over 8 there.
    """
    of_layer = crossq.BatchRenorm.__call__
    monkeypatch.setattr(crossq, "EPSILON", 0.0)
    monkeypatch.setattr(crossq.BatchRenorm, "__call__", lambda self, x, training: of_layer(self, x, False))
    sac_args = sac.Args(hidden_dims=(16, 16), alpha=0.3, policy_lr=2e-3, tau=1.0, policy_frequency=3)
    state, other = init(crossq, ARGS), init(sac, sac_args)
    tx, first = optax.adam(1e-3, b1=0.5), {}
    for name in ("actor", "critics"):
        network, first[name] = getattr(state, name), renamed(getattr(state, name).params)
        state = state.replace(**{name: begin(network, network.params, keep_normalization(tx))})
        other = other.replace(**{name: begin(getattr(other, name), first[name], tx)})
    other = other.replace(target_critics=first["critics"])
    ours, theirs = (jax.jit(module.update, static_argnums=(3, 4)) for module in (crossq, sac))
    for index in range(7):
        batch, key, kind = make_batch(seed=index), jax.random.key(index), 3 * (index % 3 == 0) or 1
        state, metrics = ours(state, batch, key, kind, ARGS)
        other, expected = theirs(other, batch, key, kind, sac_args)
        assert metrics.keys() == expected.keys()
        pairs = [(metrics, expected)]
        pairs += [(renamed(getattr(state, name).params), getattr(other, name).params) for name in first]
        assert all(distance(*pair) <= (1e-6 if index else 0) for pair in pairs), index
    assert distance(renamed(state.actor.params), first["actor"]) > 1e-3


def test_init():
    """Also the authors' constants of the normalisation, and widths of the actor's and the critics' own."""
    args = crossq.Args()
    assert (args.bn_momentum, args.bn_warmup) == (0.99, 100_000)
    state = init(crossq, args)
    assert all((layer["bias"] == 0).all() for layer in state.critics.params.values())
    for width, name in ((OBS_DIM + ACTION_DIM, "NormalizedLinear_0"), (256, "NormalizedLinear_1")):
        layer = state.critics.params[name]
        assert np.std(layer["kernel"]) == pytest.approx(1 / math.sqrt(width), rel=0.05)
        assert layer["bias"].shape == (2, 256) and (layer["bias"] == 0).all()
        stats, normalization = state.critics.batch_stats[name]["BatchRenorm_0"], layer["BatchRenorm_0"]
        for leaf, value in ((stats["mean"], 0), (stats["var"], 1), (normalization["scale"], 1)):
            assert leaf.shape == (2, width) and (leaf == value).all()
    assert float(crossq.temperature(init(crossq, ARGS))) == pytest.approx(0.3)
    args = crossq.Args(hidden_dims=(4,), critic_hidden_dims=(5, 6))
    state = jax.eval_shape(lambda: crossq.init(KEY, TASK, args))
    assert state.actor.params["NormalizedLinear_0"]["kernel"].shape == (OBS_DIM, 4)
    assert state.critics.params["NormalizedLinear_1"]["kernel"].shape == (2, 5, 6)


def check_first_step(before, after, grads, rate):
    """Adam's first step is the sign of the gradient times the rate; half of the gradient is its momentum."""
    for grad, momentum in leaves(grads, after.opt_state[0].mu):
        assert np.allclose(momentum, 0.5 * grad, rtol=1e-3, atol=1e-6)
    assert distance(before.params, after.params) == pytest.approx(rate, rel=1e-2)


def test_actor_and_temperature_move_in_every_third_update_and_the_critics_in_all():
    """Parameters and statistics, each with the momentum of its Adam."""
    state, moved = init(crossq, ARGS), []
    for index in range(6):
        after, _ = update(state, make_batch(), KEY, 3 * (index % 3 == 0) or 1, ARGS)
        pairs = [(state.actor.params, after.actor.params), (state.actor.batch_stats, after.actor.batch_stats)]
        pairs += [(state.alpha.params, after.alpha.params), (state.critics.params, after.critics.params)]
        pairs.append((state.critics.batch_stats, after.critics.batch_stats))
        moved.append([changed(*pair) for pair in pairs])
        if index == 0:
            keys, batch = jax.random.split(KEY), make_batch()
            grads = critic_loss(state.critics.params, state, batch, keys[0], ARGS)[1]
            check_first_step(state.critics, after.critics, grads, ARGS.q_lr)
            grads = actor_loss(state.actor.params, state.replace(critics=after.critics), batch, keys[1])[1]
            check_first_step(state.actor, after.actor, grads, ARGS.policy_lr)
        state = after
    *policy, critics, statistics = zip(*moved, strict=True)
    assert all(found == (True, False, False) * 2 for found in policy)
    assert all(critics) and all(statistics)
    counts = (state.actor.batch_stats, 2), (state.critics.batch_stats, 6)
    for stats, expected in counts:
        assert (stats["NormalizedLinear_1"]["BatchRenorm_0"]["batches"] == expected).all()


def test_the_statistics_that_are_evaluated_and_loaded_are_the_trained_ones(monkeypatch, tmp_path):
    states, evaluated, make_policy, evaluate = [], [], crossq.policy, Run.evaluate

    def policy(state):
        states.append(state)
        return make_policy(state)

    def record(self, evaluation, step, policy, *rest):
        evaluated.append(policy)
        return evaluate(self, evaluation, step, policy, *rest)

    monkeypatch.setattr(crossq, "policy", policy)
    monkeypatch.setattr(Run, "evaluate", record)
    args = small_args(crossq, num_seeds=2, total_timesteps=330, run_dir=str(tmp_path / "run"))
    crossq.train(args)
    trained = states[-1].actor.variables  # leaves (seed, ...)
    assert not changed(evaluated[-1].args[0], trained)
    loaded, obs = load_policy(tmp_path / "run", seed=2), np.array([[0.3, -0.9, 2.0], [1.0, 0.1, -5.0]])
    of_seed = jax.tree.map(lambda leaf: leaf[1], trained)
    assert not changed(loaded.parameters.args[0], of_seed)
    stats = of_seed["batch_stats"]
    assert (stats["NormalizedLinear_0"]["BatchRenorm_0"]["mean"] != 0).all()
    mean = reference(of_seed["params"], stats, obs, training=False)[:, :1]
    assert np.allclose(loaded(obs), 2 * np.tanh(mean), atol=1e-4)  # Pendulum's bounds are ±2


@pytest.mark.slow
def test_termination_cuts_the_bootstrap():
    """Reward 1 for three steps and the end: Q is 1 + γ + γ², 1 + γ, 1, on average over actions.

    At single actions it can be more than 0.1 off (0.108 on one processor): statistics differ between batches.
    """
    args = crossq.Args(critic_hidden_dims=(64,), autotune=False, alpha=0.0, gamma=0.9)
    state, rows = trained_on(crossq, args, "tests.support.probes:Counting-v0")
    q = state.critics.apply_fn(state.critics.variables, rows.obs, rows.action)
    for count, expected in enumerate([2.71, 1.9, 1.0]):
        of_count = q[:, rows.obs[:, 0] == count]
        assert np.allclose(of_count.mean(axis=1), expected, atol=0.1)


def test_the_standard_deviation_is_clipped():
    actor = init(crossq, replace(ARGS, hidden_dims=())).actor
    bias = jnp.array([1.0, 2.0, -30.0, 3.0])
    layer = actor.params["NormalizedLinear_0"] | {"kernel": jnp.zeros((OBS_DIM, 4)), "bias": bias}
    variables = {"params": {"NormalizedLinear_0": layer}, "batch_stats": actor.batch_stats}
    mean, log_std = actor.apply_fn(variables, jnp.zeros(OBS_DIM))
    assert mean.tolist() == [1, 2] and log_std.tolist() == [-20, 2]

"""ddpg.py and td3.py: every formula against float64 NumPy or a closed form, and probes with known values."""

import math
from functools import cache

import envs as probes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import differences, digests
from test_resume import PENDULUM, interrupted
from test_sac import ACTION_DIM, OBS_DIM, finite_difference, make_batch, mlp, reference_q

from cleanrl_maxent import ddpg, td3
from cleanrl_maxent.common.arguments import UsageError, validate
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.replay import Replay, Transition

ALGORITHMS = pytest.mark.parametrize("algorithm", [ddpg, td3], ids=["ddpg", "td3"])
SMALL = dict(hidden_dims=(16, 16), batch_size=8)


@cache
def make_state(algorithm, args):
    """A state whose targets differ from its networks, as after some training."""
    init = jax.jit(lambda seed: algorithm.init(jax.random.key(seed), OBS_DIM, ACTION_DIM, args))
    state, other = init(0), init(100)
    if algorithm is ddpg:
        return state.replace(target_actor=other.actor.params, target_critic=other.critic.params)
    return state.replace(target_actor=other.actor.params, target_critics=other.critics.params)


@cache
def compiled_update(algorithm, args):
    return jax.jit(lambda state, batch, key, index: algorithm.update(state, batch, key, index, args)[0])


def one_update(algorithm, state, batch, args):
    return compiled_update(algorithm, args)(state, batch, jax.random.key(1), 0)


def critics(state):
    return state.critic if hasattr(state, "critic") else state.critics


def target_critics(state):
    return state.target_critic if hasattr(state, "critic") else state.target_critics


def reference_mu(params, obs):
    return np.tanh(mlp(params, np.float64(obs)))


def reference_losses(algorithm, params, target_params, target_actor, batch, key, args):
    """Mean squared residuals in NumPy, one for each critic: y = r + γ(1 - d) min Q̄(s', μ̄(s') + ε)."""
    next_action = reference_mu(target_actor, batch.next_obs)
    if algorithm is td3:
        noise = args.policy_noise * np.float64(jax.random.normal(key, batch.action.shape))
        next_action = np.clip(next_action + np.clip(noise, -args.noise_clip, args.noise_clip), -1, 1)
        next_q = reference_q(target_params, batch.next_obs, next_action).min(axis=0)
        q = reference_q(params, batch.obs, batch.action)
    else:
        next_q = mlp(target_params, np.concatenate([batch.next_obs, next_action], -1))[:, 0]
        q = mlp(params, np.concatenate([batch.obs, batch.action], -1))[:, 0][None]
    y = batch.reward + args.gamma * (1 - batch.terminated) * next_q
    return ((q - y) ** 2).mean(axis=1)


def critic_loss(algorithm, params, state, batch, key, args):
    given = (params, state, batch, key, args) if algorithm is td3 else (params, state, batch, args)
    return algorithm.critic_loss(*given)


@ALGORITHMS
def test_critic_loss_and_gradient(algorithm):
    """A large noise, so that the clip at c = 0.5 is met."""
    args = algorithm.Args(**SMALL, **({"policy_noise": 0.6} if algorithm is td3 else {}))
    state, batch, key = make_state(algorithm, args), make_batch(), jax.random.key(7)
    params, target_params = critics(state).params, target_critics(state)
    loss, metrics = critic_loss(algorithm, params, state, batch, key, args)

    def reference(params):
        return reference_losses(algorithm, params, target_params, state.target_actor, batch, key, args).sum()

    assert loss == pytest.approx(reference(params), rel=1e-5)
    assert loss == pytest.approx(
        float(sum(value for name, value in metrics.items() if name.endswith("_loss"))), rel=1e-6
    )
    grads = jax.grad(lambda params: critic_loss(algorithm, params, state, batch, key, args)[0])(params)
    first = (0,) if algorithm is td3 else ()
    for path, index in [(("Dense_0", "kernel"), (*first, 1, 2)), (("Dense_2", "bias"), (*first, 0))]:
        expected = finite_difference(reference, params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@ALGORITHMS
def test_actor_loss_and_gradient(algorithm):
    """The first critic alone; the gradient is the deterministic policy gradient."""
    args = algorithm.Args(**SMALL)
    state, batch = make_state(algorithm, args), make_batch()
    params = critics(state).params
    first = jax.tree.map(lambda leaf: leaf[0], params) if algorithm is td3 else params

    def reference(params):
        action = reference_mu(params, batch.obs)
        return -mlp(first, np.concatenate([batch.obs, action], -1))[:, 0].mean()

    loss, _ = algorithm.actor_loss(state.actor.params, state, batch)
    assert loss == pytest.approx(reference(state.actor.params), rel=1e-5)
    grads = jax.grad(algorithm.actor_loss, has_aux=True)(state.actor.params, state, batch)[0]
    for path, index in [(("Dense_0", "kernel"), (0, 1)), (("Dense_2", "bias"), (1,))]:
        expected = finite_difference(reference, state.actor.params, path, index)
        assert grads["params"][path[0]][path[1]][index] == pytest.approx(expected, rel=2e-3, abs=1e-6)


@ALGORITHMS
def test_no_gradient_where_none_belongs(algorithm):
    """The critic loss is flat in the actor and in all targets."""
    args = algorithm.Args(**SMALL)
    state, batch, key = make_state(algorithm, args), make_batch(), jax.random.key(7)
    name = "target_critic" if algorithm is ddpg else "target_critics"

    def of_others(actor, target_actor, target):
        changed = {"actor": state.actor.replace(params=actor), "target_actor": target_actor, name: target}
        params = critics(state).params
        return critic_loss(algorithm, params, state.replace(**changed), batch, key, args)[0]

    others = (state.actor.params, state.target_actor, target_critics(state))
    flat = jax.grad(of_others, (0, 1, 2))(*others)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(flat))


def test_smoothing_noise_is_clipped_and_differs_per_row_and_dimension():
    """Critics that note the actions they are asked about; μ̄ is 0.8 in one dimension, 0 in the other."""
    args, seen = td3.Args(batch_size=4096, policy_noise=0.4), []

    def note(params, obs, action):
        seen.append(np.asarray(action))
        return params["zero"] * action[:, 0]

    state = td3.init(jax.random.key(0), OBS_DIM, ACTION_DIM, args)
    state = state.replace(
        actor=state.actor.replace(
            apply_fn=lambda params, obs: jnp.tile(jnp.array([0.8, 0.0]), (len(obs), 1))
        ),
        critics=state.critics.replace(apply_fn=note),
        target_critics={"zero": jnp.zeros(2)},
    )
    td3.critic_loss({"zero": jnp.zeros(2)}, state, make_batch(4096), jax.random.key(3), args)
    next_action = seen[0]
    assert next_action[:, 0].max() == 1 and next_action[:, 0].min() == pytest.approx(0.3)
    noise = next_action[:, 1]
    assert np.abs(noise).max() == 0.5
    beyond = math.erfc(0.5 / 0.4 / math.sqrt(2))
    assert (np.abs(noise) == 0.5).mean() == pytest.approx(beyond, abs=0.02)
    inside = (np.abs(noise) < 0.5) & (np.abs(next_action[:, 0] - 0.55) < 0.24)
    assert abs(np.corrcoef(next_action[inside].T)[0, 1]) < 0.06
    assert np.unique(noise[np.abs(noise) < 0.5]).size > 0.99 * (np.abs(noise) < 0.5).sum()


@ALGORITHMS
def test_target_action_is_that_of_the_target_policy(algorithm):
    args = algorithm.Args(**SMALL)
    state, batch, key = make_state(algorithm, args), make_batch(terminated=0.0), jax.random.key(7)
    params = critics(state).params
    online = state.replace(actor=state.actor.replace(params=state.target_actor))
    target = state.replace(target_actor=state.actor.params)
    loss = [critic_loss(algorithm, params, s, batch, key, args)[0] for s in (state, online, target)]
    assert loss[0] == loss[1] and loss[0] != loss[2]


@ALGORITHMS
def test_init(algorithm):
    state = algorithm.init(jax.random.key(0), 17, 6, algorithm.Args())
    for target, learned in [
        (state.target_actor, state.actor.params),
        (target_critics(state), critics(state).params),
    ]:
        for a, b in zip(*map(jax.tree.leaves, (target, learned)), strict=True):
            assert np.array_equal(a, b)
    for params, fan_in in [(state.actor.params, (17, 256, 256)), (critics(state).params, (23, 256, 256))]:
        for (name, layer), inputs in zip(sorted(params["params"].items()), fan_in, strict=True):
            for kind, leaf in layer.items():
                assert np.abs(leaf).max() <= 1 / math.sqrt(inputs), (name, kind)
            assert np.std(layer["kernel"]) == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.15), name
    kernel = critics(state).params["params"]["Dense_0"]["kernel"]
    assert kernel.shape[-2:] == (23, 256)
    assert algorithm is ddpg or not np.allclose(kernel[0], kernel[1])


def changed(before, after):
    leaves = zip(*map(jax.tree.leaves, (before, after)), strict=True)
    return any(not np.array_equal(a, b) for a, b in leaves)


@ALGORITHMS
def test_delay_counts_updates_and_compiles_once(algorithm):
    """Actor and all targets every second update in TD3, every time in DDPG; critics always."""
    args = algorithm.Args(**SMALL)
    state, moved, update = make_state(algorithm, args), [], compiled_update(algorithm, args)
    for index in range(6):
        after = update(state, make_batch(), jax.random.key(1), index)
        moved.append(
            (
                changed(state.actor.params, after.actor.params),
                changed(state.target_actor, after.target_actor),
                changed(target_critics(state), target_critics(after)),
                changed(critics(state).params, critics(after).params),
            )
        )
        if algorithm is td3:  # the loss recorded is that of the actor's last step
            assert changed(state.policy_metrics, after.policy_metrics) == moved[-1][0]
        state = after
    policy = [True, False] * 3 if algorithm is td3 else [True] * 6
    assert moved == [(turn, turn, turn, True) for turn in policy] and update._cache_size() == 1


@ALGORITHMS
def test_targets_move_by_tau_towards_the_new_networks(algorithm):
    args = algorithm.Args(**SMALL)
    before, batch = make_state(algorithm, args), make_batch()
    after = one_update(algorithm, before, batch, args)
    for leaves in (
        (before.target_actor, after.actor.params, after.target_actor),
        (target_critics(before), critics(after).params, target_critics(after)),
    ):
        for old, new, target in zip(*map(jax.tree.leaves, leaves), strict=True):
            assert np.allclose(target, 0.005 * np.float64(new) + 0.995 * np.float64(old), atol=1e-7)


@ALGORITHMS
def test_the_actor_steps_against_the_new_critic(algorithm):
    """Gradient descent of the actor by 1, after a critic's step that is large."""
    args = algorithm.Args(**SMALL, learning_rate=0.1)
    state, batch, descent = make_state(algorithm, args), make_batch(), optax.sgd(1.0)
    actor = state.actor.replace(tx=descent, opt_state=descent.init(state.actor.params))
    state = state.replace(actor=actor)
    after = one_update(algorithm, state, batch, args)

    def descended(state):
        grads = jax.grad(algorithm.actor_loss, has_aux=True)(state.actor.params, state, batch)[0]
        return state.actor.apply_gradients(grads=grads).params

    def distance(params):
        pairs = zip(*map(jax.tree.leaves, (params, after.actor.params)), strict=True)
        return max(float(jnp.abs(a - b).max()) for a, b in pairs)

    name = "critic" if algorithm is ddpg else "critics"
    assert distance(descended(state.replace(**{name: critics(after)}))) < 1e-5
    assert distance(descended(state)) > 1e-3


def test_the_smoothing_noise_comes_from_the_key():
    args = td3.Args(**SMALL)
    state, update = make_state(td3, args), compiled_update(td3, args)
    one, same, other = (update(state, make_batch(), jax.random.key(k), 0) for k in (1, 1, 2))
    assert changed(one.critics.params, other.critics.params)
    assert not changed(one.critics.params, same.critics.params)


@ALGORITHMS
def test_one_seed_alone_equals_that_seed_among_four(algorithm):
    args = algorithm.Args(**SMALL)
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    state = jax.jit(jax.vmap(lambda key: algorithm.init(key, OBS_DIM, ACTION_DIM, args)))(keys)
    replay = Replay(jax.tree.map(lambda *rows: jnp.stack(rows), *[make_batch(64, seed) for seed in range(4)]))

    def batch_and_key(replay, key, index):
        sample_key, update_key = jax.random.split(jax.random.fold_in(key, index))
        return replay.sample(sample_key, args.batch_size, 64), update_key

    def step(state, replay, key, index):
        return algorithm.update(state, *batch_and_key(replay, key, index), index, args)[0]

    together = jax.jit(jax.vmap(step, (0, 0, 0, None)))
    alone, sample = compiled_update(algorithm, args), jax.jit(batch_and_key)
    single, rows = jax.tree.map(lambda leaf: leaf[2], (state, replay))
    for index in range(200):
        state = together(state, replay, keys, index)
        single = alone(single, *sample(rows, keys[2], index), index)
        if index in (0, 199):
            tolerance = 1e-6 if index == 0 else 1e-3
            among = jax.tree.map(lambda leaf: leaf[2], state)
            for a, b in zip(*map(jax.tree.leaves, (among, single)), strict=True):
                assert np.allclose(a, b, rtol=0, atol=tolerance * max(1, float(jnp.abs(b).max())))


# ---- exploration


@ALGORITHMS
@pytest.mark.parametrize(
    ("theta", "sigma", "dt", "std", "correlation_time"),
    [(0.15, 0.2, 1.0, 0.380, 6.2), (0.15, 0.3, 1.0, 0.569, 6.2), (0.15, 0.2, 0.01, 0.365, 666)],
)
def test_ornstein_uhlenbeck(algorithm, theta, sigma, dt, std, correlation_time):
    """Stationary deviation, and steps until the autocorrelation has fallen to 1/e, of 512 chains."""
    args = algorithm.Args(noise="ou", ou_theta=theta, ou_sigma=sigma, ou_dt=dt)

    def step(noise, key):
        noise = algorithm.next_noise(noise, key, args)
        return noise, noise

    keys = jax.random.split(jax.random.key(0), 8_000)
    chains = np.asarray(jax.jit(lambda: jax.lax.scan(step, jnp.zeros(512), keys)[1])(), np.float64)
    assert chains[0].std() == pytest.approx(sigma * math.sqrt(dt), rel=0.15)  # it starts at 0
    late = chains[4_000:]
    assert late.std() == pytest.approx(std, rel=0.03)
    decay = (late[1:] * late[:-1]).mean() / (late[:-1] ** 2).mean()
    assert -1 / math.log(decay) == pytest.approx(correlation_time, rel=0.03)


@ALGORITHMS
def test_gaussian_noise_is_fresh_at_every_step(algorithm):
    args = algorithm.Args(exploration_noise=0.1)
    keys = jax.random.split(jax.random.key(0), 4_000)
    noise = jax.vmap(lambda key: algorithm.next_noise(jnp.full(2, 5.0), key, args))(keys)
    assert np.std(noise) == pytest.approx(0.1, rel=0.03) and abs(np.mean(noise)) < 0.005
    assert abs(np.corrcoef(np.asarray(noise).T)[0, 1]) < 0.06


LENGTHS = (20, 25, 40, 50)  # of the episodes of four copies of Echo


@ALGORITHMS
def test_exploration(algorithm, tmp_path, monkeypatch):
    """Bounds ±0.4 and [-1, 3], an actor that does not learn: noise in half-ranges, clipped, anew in every
    episode of every copy, of its own for every seed and dimension."""
    probes.Echo.actions, asked, original = [], [], SeedEnvs.step
    monkeypatch.setattr(probes.Echo, "lengths", iter(LENGTHS))

    def step(self, action):
        asked.append(np.array(action))
        return original(self, action)

    monkeypatch.setattr(SeedEnvs, "step", step)
    algorithm.train(
        algorithm.Args(
            env_id="Echo-v0",
            num_seeds=4,
            total_timesteps=1_200,
            learning_starts=200,
            learning_rate=1e-12,
            batch_size=8,
            hidden_dims=(8,),
            noise="ou",
            ou_sigma=0.3,
            eval_episodes=0,
            env_reset="restart",
            run_dir=str(tmp_path / "run"),
        )
    )
    asked = np.array(asked)  # (step, seed, dim)
    assert np.abs(asked).max() == 1 and np.allclose(
        np.array(probes.Echo.actions).reshape(asked.shape), asked * [0.4, 2] + [0, 1], atol=1e-6
    )
    noise = asked[200:] - np.median(asked[200:], axis=0)
    first = np.concatenate([noise[::length, seed].ravel() for seed, length in enumerate(LENGTHS)])
    assert first.std() == pytest.approx(0.3, rel=0.15)
    others = [(seed, t) for seed in range(4) for t in range(1000) if t % LENGTHS[seed] > 14]
    at_reset = [noise[t, seed] for seed, t in others if any(t % length == 0 for length in LENGTHS)]
    assert np.std(at_reset) == pytest.approx(0.55, rel=0.15)
    rows = noise.reshape(1000, 8)
    fresh = rows[1:] - 0.85 * rows[:-1]
    inside = (np.abs(asked[201:]) < 1).all((1, 2)) & (np.abs(asked[200:-1]) < 1).all((1, 2))
    corr = np.corrcoef(fresh[inside].T)
    assert np.abs(corr - np.eye(8)).max() < 0.25


def test_target_actions_are_smoothed_in_half_ranges(tmp_path, monkeypatch):
    """Bounds ±0.4 and [-1, 3], an actor that does not learn: noise up to ±0.5 in either dimension, around one
    action; and learned from are actions in [-1, 1]."""
    seen, original = {"next": [], "stored": []}, td3.critic_loss

    def critic_loss(params, state, batch, key, args):
        names = iter(seen)  # target critics are asked first

        def noted(critic, obs, action, apply=state.critics.apply_fn):
            jax.debug.callback(seen[next(names)].append, action)
            return apply(critic, obs, action)

        noting = state.replace(critics=state.critics.replace(apply_fn=noted))
        return original(params, noting, batch, key, args)

    monkeypatch.setattr(td3, "critic_loss", critic_loss)
    args = dict(env_id="Echo-v0", total_timesteps=300, learning_starts=200, learning_rate=1e-12)
    args |= dict(batch_size=8, hidden_dims=(8,), policy_noise=0.4, eval_episodes=0)
    td3.train(td3.Args(**args, run_dir=str(tmp_path / "run")))
    jax.effects_barrier()
    smoothed, stored = (np.concatenate([np.asarray(rows) for rows in seen[name]]) for name in seen)
    assert smoothed.shape == stored.shape == (800, 2)
    assert np.ptp(smoothed, axis=0) == pytest.approx(1, abs=1e-6)
    assert np.abs(stored).max() <= 1 and np.abs(stored).max(axis=0) == pytest.approx(1, abs=0.1)


@ALGORITHMS
def test_a_restarted_episode_starts_without_noise(algorithm, tmp_path, monkeypatch):
    """`--env-reset restart` begins a new episode on resume; the noise starts from 0 there."""
    args = PENDULUM | dict(noise="ou", env_reset="restart")
    interrupted(args, tmp_path / "run", monkeypatch, 300, algorithm)
    seen, original = [], algorithm.next_noise

    def next_noise(noise, key, args):
        jax.debug.callback(seen.append, noise)
        return original(noise, key, args)

    monkeypatch.setattr(algorithm, "next_noise", next_noise)
    algorithm.train(algorithm.Args(**args, run_dir=str(tmp_path / "run")))
    jax.effects_barrier()
    assert np.asarray(seen[0])[0] == 0 != np.asarray(seen[1])[0]


@ALGORITHMS
def test_updates_are_counted_from_where_learning_starts(algorithm, tmp_path, monkeypatch):
    seen, original = [], algorithm.update

    def update(state, batch, key, index, args):
        jax.debug.callback(seen.append, index)
        return original(state, batch, key, index, args)

    monkeypatch.setattr(algorithm, "update", update)
    args = PENDULUM | dict(total_timesteps=116, learning_starts=111, eval_episodes=0)
    algorithm.train(algorithm.Args(**args, run_dir=str(tmp_path / "run")))
    jax.effects_barrier()
    assert sorted(map(int, seen)) == [0, 1, 2, 3, 4]


def test_noise_that_diverges_is_refused():
    with pytest.raises(UsageError, match="noise diverges"):
        validate(td3.Args(noise="ou", ou_theta=2.5))
    validate(td3.Args(ou_theta=2.5))


# ---- probes


@ALGORITHMS
@pytest.mark.parametrize(
    ("env_id", "value"),
    [("ConstantReward-v0", lambda obs: np.full(len(obs), 10.0)), ("Counting-v0", lambda obs: VALUES[obs])],
    ids=["constant reward, a time limit does not cut the bootstrap", "termination cuts it"],
)
def test_values_of_a_probe(algorithm, env_id, value):
    """Reward 1 for ever: Q is 1/(1 - γ) = 10. Reward 1 for three steps: 1 + γ + γ², 1 + γ, 1."""
    args = algorithm.Args(hidden_dims=(64,), gamma=0.9, learning_rate=3e-3, tau=0.05)
    state, rows = probes.trained_on(algorithm, args, env_id)
    params, obs = critics(state).params, np.asarray(rows.obs)
    first = jax.tree.map(lambda leaf: leaf[0], params) if algorithm is td3 else params
    q = critics(state).apply_fn(first, obs, rows.action)
    assert np.allclose(q, value(obs[:, 0].astype(int)), atol=0.5 if env_id == "ConstantReward-v0" else 0.1)


VALUES = np.array([2.71, 1.9, 1.0])


def trained(algorithm, make_batch, steps=3000):
    """The state after updates on batches of 256 that `make_batch(key)` makes."""
    args = algorithm.Args(hidden_dims=(64, 64), learning_rate=1e-3, gamma=0.9, tau=0.02)

    def step(state, index):
        batch_key, key = jax.random.split(jax.random.fold_in(jax.random.key(5), index))
        return algorithm.update(state, make_batch(batch_key), key, index, args)[0], None

    state = algorithm.init(jax.random.key(0), 2, 1, args)
    return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[0])(state)


@ALGORITHMS
def test_reward_that_depends_on_the_action(algorithm):
    """Reward -(a - 0.3)², and the episode ends: μ is 0.3."""

    def batch(key):
        action = jax.random.uniform(key, (256, 1), minval=-1, maxval=1)
        obs = jnp.zeros((256, 2))
        return Transition(obs, action, -((action[:, 0] - 0.3) ** 2), obs, jnp.ones(256))

    state = trained(algorithm, batch)
    assert float(algorithm.act(state.actor.params, jnp.zeros(2))[0]) == pytest.approx(0.3, abs=0.05)


@ALGORITHMS
def test_credit_over_two_steps(algorithm):
    """The first action is seen a step later, where it is paid -(a + 0.4)²: only the bootstrap can tell."""

    def batch(key):
        action_key, seen_key = jax.random.split(key)
        action = jax.random.uniform(action_key, (256, 1), minval=-1, maxval=1)
        seen = jax.random.uniform(seen_key, (256,), minval=-1, maxval=1)
        first = jnp.arange(256) < 128
        obs = jnp.stack([jnp.where(first, 0.0, 1.0), jnp.where(first, 0.0, seen)], axis=1)
        next_obs = jnp.stack([jnp.ones(256), jnp.where(first, action[:, 0], 0.0)], axis=1)
        reward = jnp.where(first, 0.0, -((seen + 0.4) ** 2))
        return Transition(obs, action, reward, next_obs, jnp.where(first, 0.0, 1.0))

    state = trained(algorithm, batch)
    assert float(algorithm.act(state.actor.params, jnp.zeros(2))[0]) == pytest.approx(-0.4, abs=0.1)


# ---- whole runs


@ALGORITHMS
def test_resume_is_exact_with_noise_that_remembers(algorithm, tmp_path, monkeypatch):
    args = PENDULUM | dict(noise="ou", num_seeds=2)
    algorithm.train(algorithm.Args(**args, run_dir=str(tmp_path / "reference")))
    run = tmp_path / "run"
    for at in (230, 61):
        interrupted(args, run, monkeypatch, at, algorithm)
    algorithm.train(algorithm.Args(**args, run_dir=str(run)))
    assert differences(digests(tmp_path / "reference"), digests(run)) == []

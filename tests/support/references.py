"""Batches, networks and derivatives in float64 NumPy, to compare an algorithm's functions with."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.env.task import Task

OBS_DIM, ACTION_DIM = 3, 2
TASK = Task(OBS_DIM, ACTION_DIM)


def make_batch(size=8, seed=0, terminated=None, task=TASK):
    """Random transitions of a task, some of which terminate, or none or all of them."""
    rng = np.random.default_rng(seed)
    flags = rng.integers(0, 2, size) if terminated is None else np.full(size, terminated)
    obs = rng.normal(size=(size, task.obs_dim)).astype(np.float32)
    if task.discrete:
        action = rng.integers(0, task.action_dim, size).astype(np.int32)
    else:
        action = rng.uniform(-1, 1, (size, task.action_dim)).astype(np.float32)
    return Transition(
        obs=obs,
        action=action,
        reward=rng.normal(size=size).astype(np.float32),
        next_obs=rng.normal(size=(size, task.obs_dim)).astype(np.float32),
        terminated=flags.astype(np.float32),
    )


def layers(params):
    """Kernels and biases in float64, first layer to last."""
    named = params["params"]
    return [(np.float64(named[k]["kernel"]), np.float64(named[k]["bias"])) for k in sorted(named)]


def mlp(params, x):
    """A network of dense layers with ReLU between them."""
    *hidden, last = layers(params)
    for kernel, bias in hidden:
        x = np.maximum(x @ kernel + bias, 0)
    return x @ last[0] + last[1]


def reference_q(stacked, obs, action):
    """Both critics in NumPy, `(2, batch)`."""
    x = np.concatenate([obs, action], axis=-1)
    return np.stack([mlp(jax.tree.map(lambda p, i=i: p[i], stacked), x)[:, 0] for i in range(2)])


def finite_difference(reference, params, path, index, h=1e-5):
    """Central difference of a float64 function of the parameters along one of their entries."""

    def at(step):
        copied = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
        leaf = copied["params"][path[0]][path[1]]
        leaf[index] += step
        return reference(copied)

    return (at(h) - at(-h)) / (2 * h)


def transition_after(envs, action):
    """The transition of one step of `SeedEnvs`."""
    envs.step(action)
    return envs.transition


def trained_on(algorithm, args, env_id):
    """The state after 3,000 updates on 600 transitions of uniform actions, and these, `(600,)`."""
    envs, rng = SeedEnvs(env_id, [1]), np.random.default_rng(0)
    rows = [transition_after(envs, rng.uniform(-1, 1, (1, 1)).astype(np.float32)) for _ in range(600)]
    replay = Replay(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows))

    def step(state, index):
        sample_key, key = jax.random.split(jax.random.fold_in(jax.random.key(0), index))
        return algorithm.update(state, replay.sample(sample_key, 128, 600), key, index, args)[0], None

    state = algorithm.init(jax.random.key(0), envs.task, args)
    return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(3000))[0])(state), replay.rows


def assert_close(among, alone, tolerance=1e-5):
    """Two pytrees are equal but for rounding, relative to the largest entry of each leaf."""
    for a, b in zip(*map(jax.tree.leaves, (among, alone)), strict=True):
        assert np.allclose(a, b, rtol=0, atol=tolerance * max(1, float(jnp.abs(b).max())))


def reference_sample(params, obs, key):
    """Sample of a squashed Gaussian, and its log-density with the textbook Jacobian log(1 - a²)."""
    out = mlp(params, np.float64(obs))
    mean, log_std = np.split(out, 2, axis=-1)
    noise = np.float64(jax.random.normal(key, mean.shape))
    std = np.exp(np.clip(log_std, -20, 2))
    action = np.tanh(mean + std * noise)
    density = np.exp(-0.5 * noise**2) / (std * math.sqrt(2 * math.pi)) / (1 - action**2)
    return action, np.log(density).sum(-1)


def every_q(stacked, obs):
    """Every critic, `(n_critics, ..., action_dim)`, of parameters that are stacked on axis 0."""
    count = len(jax.tree.leaves(stacked)[0])
    return np.stack([mlp(jax.tree.map(lambda p, i=i: p[i], stacked), np.float64(obs)) for i in range(count)])

"""Rollouts and states of the on-policy algorithms, and their policies in float64 NumPy."""

from contextlib import contextmanager
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.train_state import TrainState
from jax.flatten_util import ravel_pytree

import cleanrl_maxent
from cleanrl_maxent.common.data import Transition
from cleanrl_maxent.common.env.task import Task

BOX, DISCRETE = Task(3, 2), Task(3, 4, discrete=True)
KINDS = pytest.mark.parametrize("task", [BOX, DISCRETE], ids=["continuous", "discrete"])
SMALL = dict(
    **dict(num_envs=4, num_steps=6, num_minibatches=2, update_epochs=2, hidden_dims=(4,)),
    **dict(normalize_observation=False, normalize_reward=False, norm_adv=False, anneal_lr=False),
)


@contextmanager
def float64():
    """What a test computes with this as its decorator is in float64, if its inputs are."""
    with jax.enable_x64(True):
        yield


def double(tree):
    """Arrays of JAX, those of floats in float64."""

    def convert(x):
        return jnp.asarray(x, float if jnp.issubdtype(x.dtype, jnp.floating) else None)

    return jax.tree.map(convert, tree)


def make_args(algorithm, **given):
    """Arguments of small rollouts that are taken as they are; what an algorithm does not have is left out."""
    known = {field.name for field in fields(algorithm.Args)}
    of_all = {field.name for module in cleanrl_maxent.algorithms().values() for field in fields(module.Args)}
    assert given.keys() <= of_all, "no algorithm has such a flag"
    return algorithm.Args(**{name: value for name, value in (SMALL | given).items() if name in known})


def new_state(algorithm, args, task=BOX):
    """As `init` makes it; not compiled, since the algorithms share every operation of it."""
    with jax.enable_x64(False):
        return jax.tree.map(jnp.asarray, algorithm.init(jax.random.key(0), task, args))


def make_state(algorithm, args, task=BOX):
    """A new state but for larger weights in the heads, so that the policy differs between states."""
    state = new_state(algorithm, args, task)

    def enlarge(path, leaf):
        return 50 * leaf if {"mean", "logits"} & {entry.key for entry in path} else leaf

    params = jax.tree_util.tree_map_with_path(enlarge, state.actor.params)
    return state.replace(actor=state.actor.replace(params=params))


def make_rollout(algorithm, args, task=BOX, seed=0):
    """Random steps with both kinds of ending; actions reach beyond ±1, and some episodes began earlier."""
    rng, shape = np.random.default_rng(seed), (args.num_steps, args.num_envs)
    obs, next_obs = rng.normal(size=(2, *shape, task.obs_dim)).astype(np.float32)
    if task.discrete:
        action = rng.integers(0, task.action_dim, shape).astype(np.int32)
    else:
        action = rng.normal(scale=1.5, size=(*shape, task.action_dim)).astype(np.float32)
    reward = rng.normal(size=shape).astype(np.float32)
    terminated, truncated = (rng.random((2, *shape)) < 0.2).astype(np.float32)
    ended = np.maximum(terminated, truncated)
    next_obs[:-1] = np.where(ended[:-1, :, None], next_obs[:-1], obs[1:])
    elapsed = [rng.integers(0, 2, args.num_envs)]
    for row in ended[:-1]:
        elapsed.append(np.where(row, 0, elapsed[-1] + 1))
    transition = Transition(obs, action, reward, next_obs, terminated)
    return rollout_of(algorithm, transition, ended, np.stack(elapsed))


def rollout_of(algorithm, transition, ended, elapsed):
    """A rollout of an algorithm, whose samples are the actions if it keeps them."""
    kept = {field.name for field in fields(algorithm.Rollout)}
    samples = {"u": transition.action} if "u" in kept else {}
    return algorithm.Rollout(transition=transition, ended=ended, elapsed=elapsed, **samples)


def tabular_state(algorithm, args, logits, values):
    """A state whose policy and critic are tables, for one-hot observations; without hidden layers."""
    task = Task(*np.shape(logits), discrete=True)
    state = new_state(algorithm, args, task)
    head = {"kernel": jnp.asarray(logits), "bias": jnp.zeros(task.action_dim)}
    value = {"kernel": jnp.asarray(values)[:, None], "bias": jnp.zeros(1)}
    return state.replace(
        actor=state.actor.replace(params={"params": {"logits": head}}),
        critic=state.critic.replace(params={"params": {"Dense_0": value}}),
    )


def with_optimiser(state, tx):
    """The state with other optimisers of actor and critic, as new."""
    actor, critic = (
        TrainState.create(apply_fn=old.apply_fn, params=old.params, tx=tx)
        for old in (state.actor, state.critic)
    )
    return state.replace(actor=actor, critic=critic)


def on_host(function):
    """A function whose results are NumPy's arrays."""
    return lambda *given: jax.device_get(function(*given))


def flat(tree):
    """All numbers of a pytree, as NumPy's."""
    return np.asarray(ravel_pytree(tree)[0])


def moved(params, step):
    """Parameters after a flat step, as NumPy's."""
    leaves, structure = jax.tree.flatten(params)
    pieces = np.split(step, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [np.asarray(leaf) + x.reshape(leaf.shape) for leaf, x in zip(leaves, pieces, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def numeric_gradient(function, params, h=1e-5):
    """Central differences of a float64 function of parameters along each of them, in the order of `flat`."""
    start = jax.tree.map(np.float64, params)
    steps = h * np.eye(sum(leaf.size for leaf in jax.tree.leaves(params)))
    return np.array(
        [(function(moved(start, step)) - function(moved(start, -step))) / (2 * h) for step in steps]
    )


def dense(layer, x):
    """A dense layer."""
    return x @ layer["kernel"] + layer["bias"]


def hidden(named, obs, count):
    """What the first layers return."""
    x = np.float64(obs)
    for number in range(count):
        x = np.tanh(dense(named[f"Dense_{number}"], x))
    return x


def reference_value(params, obs):
    """V(s), `(n,)`."""
    named = jax.tree.map(np.float64, params["params"])
    last = len(named) - 1
    return dense(named[f"Dense_{last}"], hidden(named, obs, last))[:, 0]


def reference_head(params, obs):
    """log π of every action, `(n, action_dim)`; or mean and std, likewise."""
    named = jax.tree.map(np.float64, params["params"])
    x = hidden(named, obs, sum(name.startswith("Dense") for name in named))
    if "logits" in named:
        logits = dense(named["logits"], x)
        return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)),)
    mean = dense(named["mean"], x)
    return mean, np.broadcast_to(np.exp(named["log_std"]), mean.shape)


def reference_log_prob(params, obs, action):
    """log π(a|s), `(n,)`."""
    head, action = reference_head(params, obs), np.asarray(action)
    if len(head) == 1:
        return head[0][np.arange(len(action)), action]
    mean, std = head
    return np.log(np.exp(-0.5 * ((action - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))).sum(-1)


def reference_entropy(params, obs):
    """Entropy of π(·|s), `(n,)`."""
    head = reference_head(params, obs)
    if len(head) == 1:
        return -(np.exp(head[0]) * head[0]).sum(-1)
    return 0.5 * np.log(2 * np.pi * np.e * head[1] ** 2).sum(-1)


def reference_kl(params, other, obs):
    """KL(π ‖ π_other) in each state, `(n,)`."""
    head, other = reference_head(params, obs), reference_head(other, obs)
    if len(head) == 1:
        return (np.exp(head[0]) * (head[0] - other[0])).sum(-1)
    (mean, std), (other_mean, other_std) = head, other
    squares = (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2)
    return (np.log(other_std / std) + squares - 0.5).sum(-1)


def advantages_by_definition(reward, value, next_value, terminated, ended, discount, decay):
    """Σ_l (γλ)^l δ_{t+l} until the episode or the rollout ends, step by step."""
    found = np.zeros(reward.shape)
    for start, env in np.ndindex(reward.shape):
        for t in range(start, len(reward)):
            bootstrap = 0 if terminated[t, env] else discount * next_value[t, env]
            residual = reward[t, env] + bootstrap - value[t, env]
            found[start, env] += (discount * decay) ** (t - start) * residual
            if ended[t, env]:
                break
    return found


def rmsprop(gradient, squares, rate, largest):
    """A step and the new mean square (Mnih et al. 2016, section 4), after the gradient's norm is bounded."""
    gradient = gradient * min(1, largest / np.linalg.norm(gradient))
    squares = 0.99 * squares + 0.01 * gradient**2
    return -rate * gradient / np.sqrt(squares + 1e-5), squares

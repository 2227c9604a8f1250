"""Finite MDPs as transitions, and networks without hidden layers: tables, on one-hot observations."""

from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Discrete

from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.make import EnvChoice
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.environments.finite import MDP
from tests.support.probes import ConstantReward, Counting, register
from tests.support.references import transition_after


def task_of(mdp):
    """The task of playing a finite MDP."""
    num_states, num_actions = mdp.R.shape
    return Task(num_states, num_actions, discrete=True)


def make_rows(mdp, states, actions, next_states):
    """Transitions of an MDP, one-hot and float32; next state number S is the end of the episode."""
    one_hot = np.eye(len(mdp.R), dtype=np.float32)
    ended = next_states == len(mdp.R)
    return Transition(
        obs=one_hot[states],
        action=actions.astype(np.int32),
        reward=np.float32(mdp.R[states, actions]),
        next_obs=one_hot[np.where(ended, states, next_states)],
        terminated=np.float32(ended),
    )


def sample_rows(mdp, count, seed=0):
    """Transitions from states and actions drawn uniformly."""
    rng = np.random.default_rng(seed)
    states, actions = (rng.integers(size, size=count) for size in mdp.R.shape)
    cumulative = np.cumsum(mdp.P, axis=-1)[states, actions]
    return make_rows(mdp, states, actions, (cumulative <= rng.random((count, 1))).sum(axis=-1))


def all_rows(mdp):
    """One transition from every state with every action, of a deterministic MDP."""
    states, actions = (index.ravel() for index in np.indices(mdp.R.shape))
    ends = 1 - mdp.P.sum(axis=-1, keepdims=True)
    return make_rows(mdp, states, actions, np.append(mdp.P, ends, axis=-1)[states, actions].argmax(axis=-1))


def frequencies(rows):
    """P `(S, A, S)` and R `(S, A)` by the frequencies in one-hot transitions."""
    states, following = rows.obs.argmax(axis=-1), rows.next_obs.argmax(axis=-1)
    shape = rows.obs.shape[-1], rows.action.max() + 1
    counts, P, R = np.zeros(shape), np.zeros((*shape, shape[0])), np.zeros(shape)
    np.add.at(counts, (states, rows.action), 1)
    np.add.at(P, (states, rows.action, following), 1 - np.float64(rows.terminated))
    np.add.at(R, (states, rows.action), np.float64(rows.reward))
    return P / counts[..., None], R / counts


class Windows(NamedTuple):
    """Everything that can happen in n steps."""

    steps: Transition  # leaves (window, n, ...)
    first: np.ndarray  # number of the first state and action among all pairs, (window,)
    probability: np.ndarray  # given these, (window,)


def all_windows(mdp, behaviour, length):
    """All windows of an MDP without ends; `behaviour`, `(S, A)`, chooses the actions after the first."""
    num_states, num_actions = mdp.R.shape
    numbers = np.array(list(product(*[range(num_states), range(num_actions)] * length, range(num_states))))
    states, actions, following = numbers[:, 0:-1:2], numbers[:, 1::2], numbers[:, 2::2]
    chances = mdp.P[states, actions, following]
    chances[:, 1:] *= behaviour[states, actions][:, 1:]
    steps = make_rows(mdp, states, actions, following)
    steps = steps.replace(truncated=np.zeros_like(steps.terminated), reward=mdp.R[states, actions])
    return Windows(steps, states[:, 0] * num_actions + actions[:, 0], chances.prod(axis=-1))


def as_table(params, values):
    """Parameters like `params`, of one dense layer, whose outputs at one-hot observations are `values`.

    `values`: `(S, A)`, or `(n, S, A)` for stacked networks.
    """
    kernel, bias = (params["params"]["Dense_0"][name] for name in ("kernel", "bias"))
    layer = {"kernel": jnp.broadcast_to(jnp.asarray(values), kernel.shape), "bias": jnp.zeros_like(bias)}
    return {"params": {"Dense_0": layer}}


def table(params):
    """The outputs of a dense layer at one-hot observations, `(..., S, A)`, in float64."""
    layer = jax.tree.map(np.float64, params["params"]["Dense_0"])
    return layer["kernel"] + layer["bias"][..., None, :]


def trained_on_rows(algorithm, args, rows, steps, state):
    """The state after updates on minibatches of `rows`."""
    replay, count = Replay(jax.tree.map(jnp.asarray, rows)), len(rows.reward)
    shape = (args.batch_size,)
    if hasattr(args, "updates_per_iteration"):
        shape = args.updates_per_iteration, args.batch_size

    @partial(jax.jit, donate_argnums=0)
    def learn(state):
        def step(state, index):
            sample_key, key = jax.random.split(jax.random.fold_in(jax.random.key(0), index))
            batch = replay.sample(sample_key, int(np.prod(shape)), count)
            batch = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)
            return algorithm.update(state, batch, key, index, args)[0], None

        return jax.lax.scan(step, state, jnp.arange(steps))[0]

    return learn(jax.tree.map(jnp.copy, state))


def make_state(algorithm, args, task, seed=0):
    """A new state, compiled."""
    return jax.jit(lambda key: algorithm.init(key, task, args))(jax.random.key(seed))


def total_variation(pi, other):
    """Of the policies in each state; the largest."""
    return np.abs(pi - other).sum(axis=-1).max() / 2


class DiscreteConstantReward(ConstantReward):
    action_space = Discrete(3)


class DiscreteCounting(Counting):
    action_space = Discrete(3)


register("DiscreteConstantReward-v0", entry_point=DiscreteConstantReward, max_episode_steps=50)
register("DiscreteCounting-v0", entry_point=DiscreteCounting, disable_env_checker=True)


def probe_rows(name, count=600):
    """Transitions of uniform actions in a probe, `(transition, ...)`."""
    envs, rng = SeedEnvs(EnvChoice(f"{name}-v0", ("Discrete",)), [1]), np.random.default_rng(0)
    actions = rng.integers(0, 3, (count, 1)).astype(np.int32)
    rows = [transition_after(envs, action) for action in actions]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def delayed_rows(count=600):
    """One-hot: action 0 of state 0 is paid .3 at once, action 1 leads to state 1, where action 2 pays 1, and
    action 2 to state 2, where every one costs 1."""
    rng = np.random.default_rng(0)
    states, actions = rng.integers(0, 3, count), rng.integers(0, 3, count)
    P = np.zeros((3, 3, 3))
    P[0, 1, 1] = P[0, 2, 2] = 1
    R = np.array([[0.3, 0, 0], [0, 0, 1], [-1, -1, -1]])
    ends = P[states, actions].sum(axis=-1) == 0
    following = np.where(ends, 3, P[states, actions].argmax(axis=-1))
    return make_rows(MDP(P, R, np.eye(3)[0]), states, actions, following)

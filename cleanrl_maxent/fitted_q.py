"""Fitted Q-iteration: Q is fitted to its own Bellman targets, frozen in each iteration, on all data so far.

Ernst et al., "Tree-Based Batch Mode Reinforcement Learning", 2005,
https://www.jmlr.org/papers/v6/ernst05a.html; with a neural network Riedmiller, "Neural Fitted Q Iteration",
2005, https://doi.org/10.1007/11564096_32. The data grow by `--collect-steps` between fits, or are those of an
earlier run, `--dataset`. Deliberate deviations, with reasons in docs/algorithms/:
  - an iteration is a fixed number of Adam steps, and its target uses the smaller of two critics;
  - with `--alpha` > 0 the soft value of sql_discrete.py replaces the maximum.

    python cleanrl_maxent/fitted_q.py --env-id CartPole-v1
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.train_state import TrainState
from jax.tree_util import Partial

from cleanrl_maxent.common.cli import RunArgs, run_from_command_line
from cleanrl_maxent.common.data import create_replays, store
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.output import warn
from cleanrl_maxent.common.ranges import Count, Decay, Discount, Magnitude, Rate, Widths
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start
from cleanrl_maxent.common.run.transitions import read_transitions, recorded_length


@dataclass(frozen=True)
class Args(RunArgs):
    """Fitted Q-iteration, hard or soft (Ernst et al., 2005)."""

    action_spaces: ClassVar = ("Discrete",)

    env_id: str = "CartPole-v1"  # Gymnasium id, or my_module:Id-v0
    total_timesteps: Count = 20_000  # environment steps per seed; with a dataset, as many as it has
    dataset: str | None = None  # run whose transitions are the only data; None: play
    collect_steps: Count = 2_000  # environment steps between fits; uniform actions before the first
    iterations: Count | None = None  # iterations per fit; None: 20, or 200 if there is only one fit
    updates_per_iteration: Count = 200  # gradient steps of an iteration
    batch_size: Count = 256  # transitions per gradient step
    gamma: Discount = 0.99  # discount per step
    q_lr: Rate = 1e-3  # Adam, critics
    reinitialize: bool = False  # start every iteration from the initial critics
    alpha: Magnitude = 0.0  # temperature, in reward per nat; 0: hard Q-iteration
    uniform_prior: bool = False  # subtract α log A from V; needs alpha > 0
    n_critics: Count = 2  # critics; the minimum of their values is used
    epsilon: Decay | None = None  # share of uniform actions; None: 0.1 if alpha is 0, else 0
    hidden_dims: Widths = (256, 256)  # widths of the hidden layers

    def check(self):
        super().check()
        require(self.dataset != "", "dataset is empty; name a run folder, or leave --dataset out")
        few = f"collect_steps {self.collect_steps} > total_timesteps {self.total_timesteps}; lower it"
        require(self.collect_steps <= self.total_timesteps or self.dataset, few)
        finite = self.alpha == 0 or self.alpha >= 1e-6
        require(finite, f"alpha must be 0 or at least 1e-6; got {self.alpha}")
        counts = self.alpha > 0 or not self.uniform_prior
        require(counts, "uniform_prior needs alpha > 0: a hard maximum counts no entropy; add --alpha 0.1")

    @property
    def single_fit(self):
        """Whether all data are available before the first fit, which is then the only one."""
        return self.dataset is not None or self.total_timesteps <= self.collect_steps

    @property
    def length_is_fixed(self):
        """More steps would move the last fit, or give it other iterations; a dataset has its own length."""
        return self.single_fit or self.total_timesteps % self.collect_steps > 0


def linear(x, features):
    """Dense layer; weights and biases are initialised from U(±1/√fan_in)."""
    bound = 1 / math.sqrt(x.shape[-1])
    uniform = Partial(jax.random.uniform, minval=-bound, maxval=bound)
    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)(x)


class Critic(nn.Module):
    """Q_θ(s, ·), `(..., action_dim)`."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, self.action_dim)


@struct.dataclass
class Policy:
    """What `act` needs: the critics with their parameters, and α."""

    critics: Partial
    alpha: float = struct.field(pytree_node=False)

    def __call__(self, obs):
        """The smallest Q of every action, `(..., action_dim)`."""
        return self.critics(obs).min(axis=0)


def policy(state):
    """What `act` needs."""
    return Policy(Partial(state.critics.apply_fn, state.critics.params), state.alpha)


def gather(values, action):
    """The value of each action that was taken, `(...)`; `values`: `(..., action_dim)`."""
    return jnp.take_along_axis(values, action[..., None], axis=-1).squeeze(-1)


def sample_action(policy, obs, key):
    """An action's number, `(...)`, from exp(Q/α)/Z, and its log π in nats."""
    logits = policy(obs) / policy.alpha
    action = jax.random.categorical(key, logits)
    return action, gather(nn.log_softmax(logits), action)


def act(policy, obs, key, deterministic):
    """An action's number, `(...)`: the best one if `deterministic` or if α is 0, else a sample."""
    greedy = deterministic or policy.alpha == 0
    return policy(obs).argmax(axis=-1) if greedy else sample_action(policy, obs, key)[0]


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    critics: TrainState  # n_critics, stacked on axis 0
    target_critics: dict  # of the iteration before
    untrained: dict  # initial parameters of the critics
    alpha: float = struct.field(pytree_node=False)  # in reward per nat


def init(key, task, args):
    """State of one seed; the key is consumed."""
    critic, obs = Critic(args.hidden_dims, task.action_dim), jnp.zeros(task.obs_dim)
    critic_keys = jax.random.split(key, args.n_critics)
    critic_params = jax.vmap(critic.init, (0, None))(critic_keys, obs)
    apply_critics = jax.vmap(critic.apply, (0, None))
    q_adam = optax.adam(args.q_lr)
    return State(
        critics=TrainState.create(apply_fn=apply_critics, params=critic_params, tx=q_adam),
        target_critics=jax.tree.map(jnp.copy, critic_params),
        untrained=jax.tree.map(jnp.copy, critic_params),
        alpha=args.alpha,
    )


def soft_value(q, args):
    """V = α log Σ_a exp(Q(a)/α), `(...)`, less α log A if `uniform_prior`; if α is 0, max Q."""
    if args.alpha == 0:
        return q.max(axis=-1)
    prior = math.log(q.shape[-1]) if args.uniform_prior else 0
    return args.alpha * (nn.logsumexp(q / args.alpha, axis=-1) - prior)


def bellman_target(state, batch, args):
    """y = r + γ (1 - terminated) V(s') of the critics of the iteration before, `(batch,)`."""
    next_q = state.critics.apply_fn(state.target_critics, batch.next_obs).min(axis=0)
    return batch.reward + args.gamma * (1 - batch.terminated) * soft_value(next_q, args)


def critic_loss(params, state, batch, args):
    """Half the mean squared error of the critics against their targets."""
    target = bellman_target(state, batch, args)
    q = state.critics.apply_fn(params, batch.obs)  # (n_critics, batch, action_dim)
    q = jax.vmap(gather, (0, None))(q, batch.action)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    metrics = {f"losses/qf{i + 1}_loss": losses[i] for i in range(args.n_critics)}
    return losses.sum(), metrics | {f"losses/qf{i + 1}_values": q[i].mean() for i in range(args.n_critics)}


def update(state, batches, key, index, args):
    """Iteration `index` of Q on one seed, a gradient step on each batch; `index` and the key are not used.

    `batches`: leaves `(updates_per_iteration, batch_size, ...)`. Returns the new state and scalar metrics,
    those of the last step.
    """
    state = state.replace(target_critics=state.critics.params)
    critics = state.critics
    if args.reinitialize:
        critics = critics.replace(params=state.untrained, opt_state=critics.tx.init(state.untrained))

    def step(critics, batch):
        grads, metrics = jax.grad(critic_loss, has_aux=True)(critics.params, state, batch, args)
        return critics.apply_gradients(grads=grads), metrics

    critics, metrics = jax.lax.scan(step, critics, batches)
    return state.replace(critics=critics), jax.tree.map(lambda x: x[-1], metrics)


def warn_of_divergence(replay, losses, num_actions, args):
    """Warns if |Q| of a seed is over twice the largest |soft return| possible; returns whether it did."""
    reward = np.asarray(jnp.abs(replay.rows.reward).max(axis=-1))  # (seed,)
    entropy = 0 if args.uniform_prior else math.log(num_actions)
    largest = (reward + args.alpha * entropy) / (1 - args.gamma)
    q = np.abs(losses["losses/best_values"])
    diverging = np.flatnonzero((q > 2 * largest) & (largest > 0))
    for index in diverging:
        values = f"|Q| is {q[index]:,.1f} on average, but no |return| exceeds {largest[index]:,.1f}"
        warn(f"Q of seed {args.seeds[index]} is diverging: {values}")
    return len(diverging) > 0


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    if args.dataset:
        length = recorded_length(args)  # of this run, if it resumes: it may not need its data any more
        data = None if length else read_transitions(args.dataset, args, envs.task)
        args = replace(args, total_timesteps=length or data.reward.shape[1])
    flags = "--num-seeds" if args.dataset else "--total-timesteps or --num-seeds"
    replay = create_replays(args.num_seeds, args.total_timesteps, envs.example, flags)
    evaluate = Evaluation(args, act, sample_action)
    iterations = args.iterations or (200 if args.single_fit else 20)
    default_epsilon = 0.0 if args.alpha else 0.1  # a hard policy does not explore by itself
    epsilon = default_epsilon if args.epsilon is None else args.epsilon

    def warm_up(key, step):
        key = jax.random.fold_in(key, step)
        return jax.random.randint(key, (), 0, envs.task.action_dim)

    def explore(policy, obs, key, step):
        act_key, uniform_key, choice_key = jax.random.split(jax.random.fold_in(key, step), 3)
        action = act(policy, obs, act_key, deterministic=False)
        uniform = jax.random.randint(uniform_key, (), 0, envs.task.action_dim)
        return jnp.where(jax.random.uniform(choice_key) < epsilon, uniform, action)

    def learn(state, replay, key, count, index):
        key = jax.random.fold_in(jax.random.fold_in(key, count), index)
        sample_key, update_key = jax.random.split(key)
        rows = replay.sample(sample_key, args.updates_per_iteration * args.batch_size, count)
        batches = jax.tree.map(lambda x: x.reshape(-1, args.batch_size, *x.shape[1:]), rows)
        state, metrics = update(state, batches, update_key, index, args)
        best_q = policy(state)(batches.obs[-1]).max(axis=-1)
        return state, metrics | {"losses/best_values": best_q.mean()}

    # vectorised: from here on all arrays lead with the axis (seed,)
    state = per_seed(init, shared=2, static_argnums=(1, 2))(keys.init, envs.task, args)
    warm_up = per_seed(warm_up, shared=1)
    explore = per_seed(explore, shared=1)
    learn = per_seed(learn, shared=2, donate_argnums=0)

    def fit(state, replay, count):
        for index in range(iterations):
            state, losses = learn(state, replay, keys.update, count, index)
        return state, losses

    with Run(args, envs) as run:
        first, state, kept = run.resume(state, None if args.dataset else replay)
        replay, losses, warned = kept or replay, {}, False
        if args.dataset and first < args.total_timesteps:
            # all data are there: one fit, then the evaluation at the last step
            first, data = args.total_timesteps, data or read_transitions(args.dataset, args, envs.task)
            replay = store(replay, data, np.arange(first))
            state, losses = fit(state, replay, first)
            warn_of_divergence(replay, losses, envs.task.action_dim, args)
            run.end_step(first, state, losses)
        for step in range(first, args.total_timesteps + 1):
            # comes first, so that a run resumed here repeats an evaluation that was interrupted
            if evaluate.due(step):
                run.evaluate(evaluate, step, policy(state), keys.evaluate, args.alpha)
            if step == args.total_timesteps:
                break
            if step < args.collect_steps:
                action = warm_up(keys.act, step)
            else:
                action = explore(policy(state), envs.obs, keys.act, step)
            envs.step_async(action)  # workers begin to step; without workers step_wait steps
            if step > 0:
                replay = store(replay, envs.transition, step - 1)  # of the step before
            episodes = envs.step_wait()
            count = step + 1
            if count % args.collect_steps == 0 or count == args.total_timesteps:
                replay = store(replay, envs.transition, step)
                state, losses = fit(state, replay, count)
                warned = warned or warn_of_divergence(replay, losses, envs.task.action_dim, args)
            run.end_step(count, state, losses, episodes)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

"""Asynchronous advantage actor-critic (A3C), with workers in a fixed order.

Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016, https://arxiv.org/abs/1602.01783.
Every worker has its own environment and copy of the parameters, acts with that copy (in `train`), computes
gradients with it and applies them to the shared parameters, which other workers have updated since
(`worker_update`): Algorithm S3.
Section and algorithm numbers are the paper's. Deliberate deviations, with reasons in docs/algorithms/:
  - workers take turns instead of running at their own speed, so that a run can be repeated bit for bit;
  - a time limit does not end the return, only the trace of advantages;
  - actor and critic are separate networks, each with its own RMSProp and its own gradient clipping;
  - observations are scaled by statistics of earlier rollouts, rewards by those of this rollout too.

    python cleanrl_maxent/a3c.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.train_state import TrainState
from jax.tree_util import Partial

from cleanrl_maxent.common.cli import RunArgs, run_from_command_line
from cleanrl_maxent.common.data import DiscountedReturns, Statistics, Transition
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.ranges import Count, Decay, Discount, Magnitude, Number, Rate, Widths
from cleanrl_maxent.common.rollouts import check_rollouts, split_seeds, stack_steps
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start


@dataclass(frozen=True)
class Args(RunArgs):
    """Asynchronous advantage actor-critic, workers in a fixed order (Mnih et al., 2016)."""

    action_spaces: ClassVar = ("Box", "Discrete")

    num_envs: Count = 16  # workers per seed, an environment each
    num_steps: Count = 5  # steps of each environment per rollout
    gamma: Discount = 0.99  # discount per step
    gae_lambda: Decay = 1.0  # λ of advantages; 1: returns of up to num_steps rewards
    ent_coef: Magnitude = 0.01  # β, entropy bonus, in advantage per nat
    norm_adv: bool = False  # normalise the advantages of each worker: mean 0, std 1
    learning_rate: Rate = 7e-4  # RMSProp, shared by all workers
    rmsprop: Literal["tensorflow", "pytorch"] = "tensorflow"  # whose version; PyTorch's takes larger steps
    anneal_lr: bool = True  # linearly to 0 at total_timesteps
    max_grad_norm: Rate = 0.5  # largest gradient norm, of each network
    log_std_init: Number = 0.0  # initial log std of actions in [-1, 1]
    normalize_observation: bool = True  # by mean and std, clipped to ±10
    normalize_reward: bool = True  # by the std of the return
    hidden_dims: Widths = (64, 64)  # widths of the hidden layers

    @property
    def steps_per_update(self):
        """Environment steps of a rollout."""
        return self.num_envs * self.num_steps

    @property
    def gradient_steps(self):
        """Gradient steps of the whole run, over which the learning rate is annealed."""
        return self.last_step // self.num_steps

    @property
    def length_is_fixed(self):
        """Annealing ends at total_timesteps: a longer run would have had other learning rates all along."""
        return self.anneal_lr


def linear(x, features, scale, name=None):
    """Dense layer, initialised with orthogonal weights times `scale` and zero biases."""
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)(x)


class Critic(nn.Module):
    """V(s): value of a state, `(...)`."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for dim in self.hidden_dims:
            x = nn.tanh(linear(x, dim, math.sqrt(2)))
        return linear(x, 1, 1.0).squeeze(-1)


@struct.dataclass
class Categorical:
    """Distribution of actions numbered from 0, `(...)`; log π and entropy in nats, `(...)`."""

    logits: jax.Array  # (..., action_dim)

    def sample(self, key):
        return jax.random.categorical(key, self.logits)

    def mode(self):
        return self.logits.argmax(axis=-1)

    def log_prob(self, action):
        return jnp.take_along_axis(nn.log_softmax(self.logits), action[..., None], axis=-1).squeeze(-1)

    def entropy(self):
        log_probs = nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


@struct.dataclass
class Gaussian:
    """Distribution of unbounded actions, `(..., action_dim)`; log π and entropy in nats, `(...)`."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key):
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self):
        return self.mean

    def log_prob(self, action):
        z = (action - self.mean) / jnp.exp(self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def entropy(self):
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(axis=-1)


class Actor(nn.Module):
    """π_θ: the distribution of actions in a state; a Gaussian's std is the same in all states."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    discrete: bool
    log_std_init: float

    @nn.compact
    def __call__(self, x):
        for dim in self.hidden_dims:
            x = nn.tanh(linear(x, dim, math.sqrt(2)))
        if self.discrete:
            return Categorical(linear(x, self.action_dim, 0.01, "logits"))
        mean = linear(x, self.action_dim, 0.01, "mean")
        log_std = self.param("log_std", nn.initializers.constant(self.log_std_init), (self.action_dim,))
        return Gaussian(mean, jnp.broadcast_to(log_std, mean.shape))


@struct.dataclass
class Policy:
    """What `act` needs: the actor with its parameters, and the statistics of its observations."""

    actor: Partial
    observations: Statistics

    def __call__(self, obs):
        """The distribution of actions at observations as the environment gives them."""
        return self.actor(self.observations.normalize(obs, 10))


def policy(state):
    """What `act` needs."""
    return Policy(Partial(state.actor.apply_fn, state.actor.params), state.observations)


def act(policy, obs, key, deterministic):
    """Action, `(..., action_dim)`, or its number, `(...)`; if `deterministic`, the mean or the likeliest."""
    pi = policy(obs)
    return pi.mode() if deterministic else pi.sample(key)


@struct.dataclass
class Worker:
    """A worker's own copy of the parameters, θ' and θ_v' of Algorithm S3."""

    actor: dict
    critic: dict


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    not_transferred: ClassVar = ("workers",)  # by --init-from, since they are copies of the shared networks

    actor: TrainState
    critic: TrainState
    workers: Worker  # (worker, ...)
    observations: Statistics  # of earlier rollouts
    returns: DiscountedReturns  # of unscaled rewards


def synchronize(state, args):
    """The state with a copy of the shared parameters in every worker, as before the first step."""
    params = Worker(state.actor.params, state.critic.params)
    return state.replace(workers=jax.tree.map(lambda x: jnp.stack([x] * args.num_envs), params))


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(args.hidden_dims, task.action_dim, task.discrete, args.log_std_init)
    critic, obs = Critic(args.hidden_dims), jnp.zeros(task.obs_dim)
    annealed = optax.linear_schedule(args.learning_rate, 0, args.gradient_steps)
    rate = annealed if args.anneal_lr else args.learning_rate
    # TensorFlow: ε inside the root, as in the paper, and a first mean square of 1; PyTorch: outside, and 0
    inside = args.rmsprop == "tensorflow"
    rmsprop = optax.rmsprop(rate, decay=0.99, eps=1e-5, initial_scale=float(inside), eps_in_sqrt=inside)
    rmsprop = optax.chain(optax.clip_by_global_norm(args.max_grad_norm), rmsprop)
    state = State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor.init(actor_key, obs), tx=rmsprop),
        critic=TrainState.create(apply_fn=critic.apply, params=critic.init(critic_key, obs), tx=rmsprop),
        workers=None,
        observations=Statistics.create(obs.shape),
        returns=DiscountedReturns.create(args.num_envs),
    )
    return synchronize(state, args)


def worker_state(state, worker):
    """The state as a worker sees it, with its own parameters in place of the shared ones."""
    actor = state.actor.replace(params=worker.actor)
    critic = state.critic.replace(params=worker.critic)
    return state.replace(actor=actor, critic=critic)


@struct.dataclass
class Rollout:
    """Steps of one seed's environments, `(num_steps, num_envs, ...)`."""

    transition: Transition
    ended: jax.Array  # 1 if the episode ended here, by termination or a time limit
    elapsed: jax.Array  # steps taken in the episode before this step


@struct.dataclass
class Samples:
    """What the losses need from a rollout, `(num_steps · num_envs, ...)`."""

    obs: jax.Array  # normalised
    action: jax.Array  # as it was sampled
    advantage: jax.Array
    value_target: jax.Array


def advantages(reward, value, next_value, terminated, ended, args):
    """Advantages, `(num_steps, num_envs)`: Σ (γλ)^l δ (arXiv 1506.02438, eq. 16); only terminal V is 0."""
    residual = reward + args.gamma * (1 - terminated) * next_value - value

    def step(advantage, row):
        residual, ended = row
        advantage = residual + args.gamma * args.gae_lambda * (1 - ended) * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(residual[0]), (residual, ended), reverse=True)[1]


def make_samples(state, rollout, args):
    """A row per step of a rollout; advantages and value targets use the critic before it learns from it."""
    steps = rollout.transition
    obs, next_obs = (state.observations.normalize(x, 10) for x in (steps.obs, steps.next_obs))
    reward = steps.reward / state.returns.std if args.normalize_reward else steps.reward
    value, next_value = (state.critic.apply_fn(state.critic.params, x) for x in (obs, next_obs))
    advantage = advantages(reward, value, next_value, steps.terminated, rollout.ended, args)
    value_target = advantage + value
    if args.norm_adv:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    samples = Samples(obs, steps.action, advantage, value_target)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)


def critic_loss(params, state, batch):
    """Half the mean squared error of V against its target, which is R of Algorithm S3 if λ = 1."""
    loss = 0.5 * jnp.mean((state.critic.apply_fn(params, batch.obs) - batch.value_target) ** 2)
    return loss, {"losses/value_loss": loss}


def actor_loss(params, state, batch, args):
    """Minus log π weighted by advantages R - V (Algorithm S3), minus the entropy bonus (sec. 4)."""
    pi = state.actor.apply_fn(params, batch.obs)
    entropy = pi.entropy()
    loss = -jnp.mean(pi.log_prob(batch.action) * batch.advantage + args.ent_coef * entropy)
    return loss, {"losses/actor_loss": loss, "losses/entropy": entropy.mean()}


def update(state, rollout, key, index, args):
    """Learns from rollout number `index` (from 0) of one seed; the key is not needed: nothing is sampled.

    Returns the new state and scalar metrics, measured before each gradient step; means if there are several.
    """
    reward, ended, elapsed = rollout.transition.reward, rollout.ended, rollout.elapsed
    state = state.replace(returns=state.returns.add(reward, ended, elapsed, args.gamma))

    def worker_update(state, inputs):
        worker, steps = inputs
        samples = make_samples(worker_state(state, worker), steps, args)  # num_envs is 1: (num_steps, ...)
        grads, metrics = jax.grad(actor_loss, has_aux=True)(worker.actor, state, samples, args)
        state = state.replace(actor=state.actor.apply_gradients(grads=grads))
        grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(worker.critic, state, samples)
        state = state.replace(critic=state.critic.apply_gradients(grads=grads))
        worker = Worker(state.actor.params, state.critic.params)
        return state, (worker, metrics | critic_metrics)

    steps = jax.tree.map(lambda x: jnp.expand_dims(x.swapaxes(0, 1), 2), rollout)  # (worker, step, 1, ...)
    state, (workers, metrics) = jax.lax.scan(worker_update, state, (state.workers, steps))
    state = state.replace(workers=workers)
    # the policy acts and learns with the same statistics; new ones take effect in the next rollout
    if args.normalize_observation:
        obs = rollout.transition.obs
        state = state.replace(observations=state.observations.add(obs.reshape(-1, obs.shape[-1])))
    metrics = jax.tree.map(jnp.mean, metrics)
    return state, metrics | {"losses/return_std": state.returns.std}


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args, copies=args.num_envs)
    check_rollouts(args.num_seeds, args.steps_per_update, envs.example, "--num-steps or --num-envs")
    evaluate = Evaluation(args, act)

    def explore(state, obs, key, step):
        def worker_action(worker, obs, key):
            return act(policy(worker_state(state, worker)), obs, key, deterministic=False)

        worker_keys = jax.random.split(jax.random.fold_in(key, step), args.num_envs)
        return jax.vmap(worker_action)(state.workers, obs, worker_keys)

    def learn(state, rollout, key, step, index):
        return update(state, rollout, jax.random.fold_in(key, step), index, args)

    # vectorised: from here on all arrays lead with the axis (seed,)
    state = per_seed(init, shared=2, static_argnums=(1, 2))(keys.init, envs.task, args)
    explore = per_seed(explore, shared=1)
    learn = per_seed(learn, shared=2, donate_argnums=0)

    with Run(args, envs) as run:
        first, state, _ = run.resume(state)
        if args.init_from and first == 0:  # only the shared networks were loaded
            state = per_seed(synchronize, shared=1, static_argnums=1)(state, args)
        for step in range(first, args.last_step + 1, args.steps_per_update):
            # comes first, so that a run resumed here repeats an evaluation that was interrupted
            if evaluate.due(step):
                run.evaluate(evaluate, step, policy(state), keys.evaluate)
            if step == args.last_step:
                break
            rollout, end = [], step + args.steps_per_update
            for env_step in range(step, end, args.num_envs):
                elapsed, obs = envs.elapsed, split_seeds(envs.obs, args.num_seeds)
                action = np.asarray(explore(state, obs, keys.act, env_step))
                episodes = envs.step(action.reshape(-1, *action.shape[2:]))
                run.record_episodes(env_step + args.num_envs, episodes)
                rollout.append(Rollout(envs.transition, envs.ended, elapsed))
            rollout, index = stack_steps(rollout, args.num_seeds), step // args.steps_per_update
            state, losses = learn(state, rollout, keys.update, step, index)
            run.end_step(end, state, losses)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

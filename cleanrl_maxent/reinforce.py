"""REINFORCE: the gradient of the return from whole episodes, Σ_t ∇log π(a_t|s_t) G_t, with a baseline.

Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", 1992,
https://doi.org/10.1007/BF00992696. Estimators of the gradient:
  - `--no-causality`: every score times the return of the whole episode, minus γ^t V(s_t) with the baseline;
  - `--no-baseline`: every score times the return from its step on, G_t;
  - by default: every score times G_t - V(s_t).
Those with G_t are unbiased only with the weights γ^t of `--gamma-power`; without, later states weigh more.
Deliberate deviations, with reasons in docs/algorithms/:
  - if the rollout or a time limit cuts an episode short, V of its last state replaces the rewards that would
    follow; without a baseline a time limit is an end, and steps whose episode the rollout cuts are left out;
  - with `--no-causality` so are steps whose episode began in an earlier rollout;
  - observations are scaled by statistics of earlier rollouts, rewards by those of this rollout too.

    python cleanrl_maxent/reinforce.py --env-id CartPole-v1 --num-steps 512
"""

import math
from dataclasses import dataclass
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
from cleanrl_maxent.common.data import DiscountedReturns, Statistics, Transition
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.ranges import Count, Discount, Number, Rate, Widths
from cleanrl_maxent.common.rollouts import check_rollouts, split_seeds, stack_steps
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start


@dataclass(frozen=True)
class Args(RunArgs):
    """REINFORCE with a baseline (Williams, 1992)."""

    action_spaces: ClassVar = ("Box", "Discrete")
    gae_lambda: ClassVar = 1.0  # advantages are sums of all rewards that follow

    num_envs: Count = 4  # environments per seed
    num_steps: Count = 1000  # steps of each environment per rollout, one episode or more
    gamma: Discount = 0.99  # discount per step
    gamma_power: bool = False  # weight step t by γ^t
    causality: bool = True  # leave out the rewards before an action
    baseline: bool = True  # subtract V
    update_epochs: Count = 10  # passes of the critic over each rollout
    num_minibatches: Count = 32  # gradient steps of the critic per pass
    norm_adv: bool = False  # normalise advantages: mean 0, std 1
    learning_rate: Rate = 1e-3  # Adam, actor, one step per rollout
    critic_lr: Rate = 1e-3  # Adam, critic
    max_grad_norm: Rate = 0.5  # largest gradient norm, of each network
    log_std_init: Number = 0.0  # initial log std of actions in [-1, 1]
    normalize_observation: bool = True  # by mean and std, clipped to ±10
    normalize_reward: bool = True  # by the std of the return
    hidden_dims: Widths = (64, 64)  # widths of the hidden layers

    def check(self):
        super().check()
        split = f"num_envs {self.num_envs} x num_steps {self.num_steps} into {self.num_minibatches}"
        even = self.steps_per_update % self.num_minibatches == 0
        require(even, f"cannot split {split} equal num_minibatches")
        once = self.causality or not self.gamma_power
        require(once, "gamma_power: the whole return is discounted already; add --no-gamma-power")

    @property
    def steps_per_update(self):
        """Environment steps of a rollout."""
        return self.num_envs * self.num_steps


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
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    critic: TrainState
    observations: Statistics  # of earlier rollouts
    returns: DiscountedReturns  # of unscaled rewards


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(args.hidden_dims, task.action_dim, task.discrete, args.log_std_init)
    critic, obs = Critic(args.hidden_dims), jnp.zeros(task.obs_dim)
    actor_adam, critic_adam = (
        optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(rate, eps=1e-5))
        for rate in (args.learning_rate, args.critic_lr)
    )
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor.init(actor_key, obs), tx=actor_adam),
        critic=TrainState.create(apply_fn=critic.apply, params=critic.init(critic_key, obs), tx=critic_adam),
        observations=Statistics.create(obs.shape),
        returns=DiscountedReturns.create(args.num_envs),
    )


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
    weight: jax.Array  # γ^t or 1, divided by the share of steps that count; 0 for the others


def advantages(reward, value, next_value, terminated, ended, args):
    """Advantages, `(num_steps, num_envs)`: Σ (γλ)^l δ (arXiv 1506.02438, eq. 16); only terminal V is 0."""
    residual = reward + args.gamma * (1 - terminated) * next_value - value

    def step(advantage, row):
        residual, ended = row
        advantage = residual + args.gamma * args.gae_lambda * (1 - ended) * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(residual[0]), (residual, ended), reverse=True)[1]


def past_rewards(reward, ended, args):
    """Σ_{k<t} γ^k r_k of the episode, `(num_steps, num_envs)`; meaningful if it began in this rollout."""

    def step(carry, row):
        past, discount = carry
        reward, ended = row
        total = past + discount * reward
        return (total * (1 - ended), jnp.where(ended, 1, args.gamma * discount)), past

    start = jnp.zeros_like(reward[0]), jnp.ones_like(reward[0])
    return jax.lax.scan(step, start, (reward, ended))[1]


def step_mask(rollout, args):
    """1 where the rollout has all that the estimator needs, else 0, `(num_steps, num_envs)`."""
    ends = jnp.flip(jax.lax.cummax(jnp.flip(rollout.ended, 0)), 0)
    begins = rollout.elapsed <= jnp.arange(args.num_steps)[:, None]
    mask = jnp.ones_like(ends) if args.baseline else ends
    return mask if args.causality else mask * begins


def make_samples(state, rollout, args):
    """A row per step of a rollout; advantages and value targets use the critic before it learns from it."""
    steps = rollout.transition
    obs, next_obs = (state.observations.normalize(x, 10) for x in (steps.obs, steps.next_obs))
    reward = steps.reward / state.returns.std if args.normalize_reward else steps.reward
    value, next_value = (state.critic.apply_fn(state.critic.params, x) for x in (obs, next_obs))
    if not args.baseline:
        value, next_value = jnp.zeros_like(value), jnp.zeros_like(next_value)
    advantage = advantages(reward, value, next_value, steps.terminated, rollout.ended, args)
    value_target = advantage + value
    if not args.causality:
        advantage = past_rewards(reward, rollout.ended, args) + args.gamma**rollout.elapsed * advantage
    weight = step_mask(rollout, args)
    weight = weight / jnp.maximum(weight.mean(), 1e-8)
    if args.norm_adv:
        advantage = advantage - (weight * advantage).mean()
        advantage = advantage / (jnp.sqrt((weight * advantage**2).mean()) + 1e-8)
    weight = weight * args.gamma**rollout.elapsed if args.gamma_power else weight
    samples = Samples(obs, steps.action, advantage, value_target, weight)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)


def critic_loss(params, state, batch):
    """Half the mean squared error of V against its target."""
    loss = 0.5 * jnp.mean((state.critic.apply_fn(params, batch.obs) - batch.value_target) ** 2)
    return loss, {"losses/value_loss": loss}


def actor_loss(params, state, batch):
    """Minus the weighted mean of log π Â; its gradient is minus the chosen estimate of ∇J, up to a factor."""
    pi = state.actor.apply_fn(params, batch.obs)
    loss = -jnp.mean(batch.weight * pi.log_prob(batch.action) * batch.advantage)
    return loss, {"losses/actor_loss": loss, "losses/entropy": pi.entropy().mean()}


def fit_critic(state, samples, key, args):
    """Fits V to a rollout in several passes of gradient steps; the key is consumed."""

    def step(critic, rows):
        batch = jax.tree.map(lambda x: x[rows], samples)
        grads, metrics = jax.grad(critic_loss, has_aux=True)(critic.params, state, batch)
        return critic.apply_gradients(grads=grads), metrics

    order = jnp.tile(jnp.arange(args.steps_per_update), (args.update_epochs, 1))
    order = jax.random.permutation(key, order, axis=1, independent=True)
    minibatches = order.reshape(args.update_epochs * args.num_minibatches, -1)
    critic, metrics = jax.lax.scan(step, state.critic, minibatches)
    return state.replace(critic=critic), jax.tree.map(jnp.mean, metrics)


def update(state, rollout, key, index, args):
    """Learns from rollout number `index` (from 0) of one seed; the key is consumed.

    Returns the new state and scalar metrics, measured before each gradient step; means if there are several.
    """
    reward, ended, elapsed = rollout.transition.reward, rollout.ended, rollout.elapsed
    state = state.replace(returns=state.returns.add(reward, ended, elapsed, args.gamma))
    samples = make_samples(state, rollout, args)
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, samples)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    state, critic_metrics = fit_critic(state, samples, key, args) if args.baseline else (state, {})
    # the policy acts and learns with the same statistics; new ones take effect in the next rollout
    if args.normalize_observation:
        obs = rollout.transition.obs
        state = state.replace(observations=state.observations.add(obs.reshape(-1, obs.shape[-1])))
    return state, metrics | critic_metrics | {"losses/return_std": state.returns.std}


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args, copies=args.num_envs)
    check_rollouts(args.num_seeds, args.steps_per_update, envs.example, "--num-steps or --num-envs")
    evaluate = Evaluation(args, act)

    def explore(policy, obs, key, step):
        return act(policy, obs, jax.random.fold_in(key, step), deterministic=False)

    def learn(state, rollout, key, step, index):
        return update(state, rollout, jax.random.fold_in(key, step), index, args)

    # vectorised: from here on all arrays lead with the axis (seed,)
    state = per_seed(init, shared=2, static_argnums=(1, 2))(keys.init, envs.task, args)
    explore = per_seed(explore, shared=1)
    learn = per_seed(learn, shared=2, donate_argnums=0)

    with Run(args, envs) as run:
        first, state, _ = run.resume(state)
        for step in range(first, args.last_step + 1, args.steps_per_update):
            # comes first, so that a run resumed here repeats an evaluation that was interrupted
            if evaluate.due(step):
                run.evaluate(evaluate, step, policy(state), keys.evaluate)
            if step == args.last_step:
                break
            rollout, end = [], step + args.steps_per_update
            for env_step in range(step, end, args.num_envs):
                elapsed, obs = envs.elapsed, split_seeds(envs.obs, args.num_seeds)
                action = np.asarray(explore(policy(state), obs, keys.act, env_step))
                episodes = envs.step(action.reshape(-1, *action.shape[2:]))
                run.record_episodes(env_step + args.num_envs, episodes)
                rollout.append(Rollout(envs.transition, envs.ended, elapsed))
            rollout, index = stack_steps(rollout, args.num_seeds), step // args.steps_per_update
            state, losses = learn(state, rollout, keys.update, step, index)
            run.end_step(end, state, losses)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

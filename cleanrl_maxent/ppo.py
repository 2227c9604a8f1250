"""Proximal policy optimisation: several epochs on each rollout, with the policy kept near the one that acted.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, https://arxiv.org/abs/1707.06347.
Equation and section numbers refer to it. Deliberate deviations, with reasons in docs/algorithms/:
  - a time limit does not end the return, only the trace of advantages;
  - actor and critic are separate networks, each with its own Adam and its own gradient clipping;
  - advantages are normalised over the rollout (in the authors' ppo2 over each minibatch);
  - observations are scaled by statistics of earlier rollouts, rewards by those of this rollout too.

    python cleanrl_maxent/ppo.py --env-id Hopper-v4
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
from cleanrl_maxent.common.ranges import Count, Decay, Discount, Magnitude, Number, Rate, Widths
from cleanrl_maxent.common.rollouts import check_rollouts, split_seeds, stack_steps
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start


@dataclass(frozen=True)
class Args(RunArgs):
    """Proximal policy optimisation (Schulman et al., 2017)."""

    action_spaces: ClassVar = ("Box", "Discrete")

    num_envs: Count = 8  # environments per seed
    num_steps: Count = 256  # steps of each environment per rollout
    gamma: Discount = 0.99  # discount per step
    gae_lambda: Decay = 0.95  # λ of generalised advantage estimation
    update_epochs: Count = 10  # passes over each rollout
    num_minibatches: Count = 32  # gradient steps per pass
    clip_coef: Magnitude = 0.2  # ε, clip of probability ratios; 0: none
    kl_coef: Magnitude = 0.0  # β, KL penalty, in advantage per nat
    kl_target: Magnitude = 0.0  # adapt β to this divergence, in nats; 0: β is fixed
    ent_coef: Magnitude = 0.0  # c₂, entropy bonus, in advantage per nat
    norm_adv: bool = True  # normalise advantages: mean 0, std 1
    learning_rate: Rate = 3e-4  # Adam, actor and critic
    anneal_lr: bool = True  # linearly to 0 at total_timesteps
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
        too_many = f"update_epochs {self.update_epochs} make more than 2147483647 gradient steps; lower it"
        require(self.gradient_steps < 2**31, too_many)
        adaptable = self.kl_coef > 0 or self.kl_target == 0
        require(adaptable, "kl_target adapts kl_coef, which must start above 0; add --kl-coef 1")
        within = 1e-4 <= self.kl_coef <= 1e4 or self.kl_target == 0
        require(within, f"kl_coef is adapted within [0.0001, 10000]; got {self.kl_coef}")

    @property
    def steps_per_update(self):
        """Environment steps of a rollout."""
        return self.num_envs * self.num_steps

    @property
    def gradient_steps(self):
        """Gradient steps of the whole run, over which the learning rate is annealed."""
        return self.last_step // self.steps_per_update * self.update_epochs * self.num_minibatches

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

    def kl(self, other):
        """KL(self ‖ other)."""
        log_probs = nn.log_softmax(self.logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - nn.log_softmax(other.logits)), axis=-1)


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

    def kl(self, other):
        """KL(self ‖ other)."""
        variance, other_variance = jnp.exp(2 * self.log_std), jnp.exp(2 * other.log_std)
        squares = (variance + (self.mean - other.mean) ** 2) / (2 * other_variance)
        return (other.log_std - self.log_std + squares - 0.5).sum(axis=-1)


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
    kl_coef: jax.Array  # β
    observations: Statistics  # of earlier rollouts
    returns: DiscountedReturns  # of unscaled rewards


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(args.hidden_dims, task.action_dim, task.discrete, args.log_std_init)
    critic, obs = Critic(args.hidden_dims), jnp.zeros(task.obs_dim)
    annealed = optax.linear_schedule(args.learning_rate, 0, args.gradient_steps)
    rate = annealed if args.anneal_lr else args.learning_rate
    adam = optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(rate, eps=1e-5))
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor.init(actor_key, obs), tx=adam),
        critic=TrainState.create(apply_fn=critic.apply, params=critic.init(critic_key, obs), tx=adam),
        kl_coef=jnp.float32(args.kl_coef),
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
    old: Categorical | Gaussian  # π_old, which sampled it
    advantage: jax.Array
    value_target: jax.Array


def advantages(reward, value, next_value, terminated, ended, args):
    """Advantages, `(num_steps, num_envs)`: Σ (γλ)^l δ (eqs. 11, 12); only terminal V is 0."""
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
    samples = Samples(obs, steps.action, policy(state).actor(obs), advantage, value_target)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)


def critic_loss(params, state, batch):
    """Half the mean squared error of V against V^targ, ½ L^VF of eq. 9."""
    loss = 0.5 * jnp.mean((state.critic.apply_fn(params, batch.obs) - batch.value_target) ** 2)
    return loss, {"losses/value_loss": loss}


def actor_loss(params, state, batch, args):
    """Minus the clipped surrogate (eq. 7), plus the penalty of eq. 8, minus the entropy bonus of eq. 9."""
    pi = state.actor.apply_fn(params, batch.obs)
    log_ratio = pi.log_prob(batch.action) - batch.old.log_prob(batch.action)
    ratio = jnp.exp(jnp.minimum(log_ratio, 80))  # finite, also in its gradient
    clipped = jnp.clip(ratio, 1 - args.clip_coef, 1 + args.clip_coef) if args.clip_coef else ratio
    surrogate = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    penalty = state.kl_coef * batch.old.kl(pi) if args.kl_coef else 0
    entropy = pi.entropy()
    loss = -jnp.mean(surrogate - penalty + args.ent_coef * entropy)
    return loss, {
        "losses/actor_loss": loss,
        "losses/entropy": entropy.mean(),
        "losses/approx_kl": jnp.mean(ratio - 1 - log_ratio),
        "losses/clipfrac": jnp.mean(ratio != clipped),
    }


def adapt_kl_coef(state, samples, args):
    """Halves or doubles β for the next rollout if the KL is below 2/3 or above 3/2 of its target (sec. 4)."""
    kl = samples.old.kl(policy(state).actor(samples.obs)).mean()
    metrics = {"losses/kl": kl, "losses/kl_coef": state.kl_coef}
    if args.kl_target:
        factor = jnp.where(kl < args.kl_target / 1.5, 0.5, jnp.where(kl > 1.5 * args.kl_target, 2, 1))
        state = state.replace(kl_coef=jnp.clip(factor * state.kl_coef, 1e-4, 1e4))
    return state, metrics


def update(state, rollout, key, index, args):
    """Learns from rollout number `index` (from 0) of one seed; the key is consumed.

    Returns the new state and scalar metrics, means over the gradient steps; `losses/kl` is taken after them.
    """
    reward, ended, elapsed = rollout.transition.reward, rollout.ended, rollout.elapsed
    state = state.replace(returns=state.returns.add(reward, ended, elapsed, args.gamma))
    samples = make_samples(state, rollout, args)

    def step(state, rows):
        batch = jax.tree.map(lambda x: x[rows], samples)
        grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch, args)
        state = state.replace(actor=state.actor.apply_gradients(grads=grads))
        grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critic.params, state, batch)
        return state.replace(critic=state.critic.apply_gradients(grads=grads)), metrics | critic_metrics

    order = jnp.tile(jnp.arange(args.steps_per_update), (args.update_epochs, 1))
    order = jax.random.permutation(key, order, axis=1, independent=True)
    minibatches = order.reshape(args.update_epochs * args.num_minibatches, -1)
    state, metrics = jax.lax.scan(step, state, minibatches)
    state, kl_metrics = adapt_kl_coef(state, samples, args)
    # the policy acts and learns with the same statistics; new ones take effect in the next rollout
    if args.normalize_observation:
        obs = rollout.transition.obs
        state = state.replace(observations=state.observations.add(obs.reshape(-1, obs.shape[-1])))
    metrics = jax.tree.map(jnp.mean, metrics) | kl_metrics
    return state, metrics | {"losses/return_std": state.returns.std}


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

"""Maximum-entropy policy gradient: an actor-critic whose reward is r - α log π.

Its gradient is derived in docs/algorithms/maxent_pg.md, whose equation numbers are used here.
Advantages: Schulman et al. 2016 (GAE), https://arxiv.org/abs/1506.02438. Several epochs on a rollout:
Schulman et al. 2017 (PPO), https://arxiv.org/abs/1707.06347. What is particular to this file:
  - `--backup-entropy`: the entropy of later states counts in values and advantages, as in the objective;
    `--no-backup-entropy`: a state's entropy is a bonus to that state alone, as in A3C and PPO;
  - the policy is a squashed Gaussian with a standard deviation for every state, or categorical;
  - `--gamma-power`: step t has the weight γ^t, as in the objective;
  - `--normalize-reward` scales r alone, so that α is in scaled reward per nat; `--norm-adv`
    normalises advantages, and divides α by their std.

    python cleanrl_maxent/maxent_pg.py --env-id Hopper-v4
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
    """Maximum-entropy policy gradient, actor-critic, with clipped surrogate."""

    action_spaces: ClassVar = ("Box", "Discrete")

    num_envs: Count = 8  # environments per seed
    num_steps: Count = 256  # steps of each environment per rollout
    gamma: Discount = 0.99  # discount per step
    gae_lambda: Decay = 0.95  # λ of generalised advantage estimation
    gamma_power: bool = False  # weight step t by γ^t
    update_epochs: Count = 10  # passes over each rollout
    num_minibatches: Count = 32  # gradient steps per pass
    clip_coef: Magnitude = 0.2  # clip of probability ratios; 0: none
    norm_adv: bool = True  # normalise advantages; divide α by their std
    learning_rate: Rate = 3e-4  # Adam, actor and critic
    anneal_lr: bool = True  # linearly to 0 at total_timesteps
    max_grad_norm: Rate = 0.5  # largest gradient norm, of each network
    alpha: Magnitude = 0.01  # temperature, in (scaled) reward per nat
    autotune: bool = False  # learn the temperature, within [1e-4, 1]
    alpha_lr: Rate = 3e-3  # Adam, temperature, once a rollout
    target_entropy_scale: Number = 0.5  # target is -scale * action_dim nats; scale * log A for A actions
    backup_entropy: bool = True  # count the entropy of later states
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
        tunable = self.alpha > 0 or not self.autotune
        require(tunable, "alpha 0 cannot be tuned (its logarithm is learned); add --no-autotune")
        within = 1e-4 <= self.alpha <= 1 or not self.autotune
        require(within, f"alpha is tuned within [0.0001, 1]; got {self.alpha}")
        require(self.target_entropy_scale > -math.log(2), "target_entropy_scale must be > -log 2")

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
    """V(s) of eq. 4, soft with backed-up entropy, else the plain value, `(...)`."""

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

    def action(self, u):
        return u

    def mode(self):
        return self.logits.argmax(axis=-1)

    def log_prob(self, action):
        return jnp.take_along_axis(nn.log_softmax(self.logits), action[..., None], axis=-1).squeeze(-1)

    def entropy(self, u):
        """Exact; the sample is not used."""
        log_probs = nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def entropy_unit(self):
        """What `--target-entropy-scale` multiplies, in nats: the largest entropy."""
        return math.log(self.logits.shape[-1])


@struct.dataclass
class TanhGaussian:
    """Distribution of actions tanh(u), `(..., action_dim)`, u Gaussian; log π, entropy in nats, `(...)`."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key):
        """u, before the squash, reparameterised."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def action(self, u):
        return jnp.tanh(u)

    def mode(self):
        return jnp.tanh(self.mean)

    def log_prob(self, u):
        z = (u - self.mean) / jnp.exp(self.log_std)
        log_normal = -0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh²u), written to stay finite for large |u|
        log_jacobian = 2 * (math.log(2) - u - nn.softplus(-2 * u))
        return (log_normal - log_jacobian).sum(axis=-1)

    def entropy(self, u):
        """Estimated from the sample u."""
        return -self.log_prob(u)

    def entropy_unit(self):
        """What `--target-entropy-scale` multiplies, in nats: minus the number of dimensions."""
        return -self.mean.shape[-1]


class Actor(nn.Module):
    """π: the distribution of actions in a state."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    discrete: bool

    @nn.compact
    def __call__(self, x):
        for dim in self.hidden_dims:
            x = nn.tanh(linear(x, dim, math.sqrt(2)))
        if self.discrete:
            return Categorical(linear(x, self.action_dim, 0.01, "logits"))
        mean, log_std = (linear(x, self.action_dim, 0.01, head) for head in ("mean", "log_std"))
        return TanhGaussian(mean, jnp.clip(log_std, -20, 2))


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


def sample_action(policy, obs, key):
    """Action in [-1, 1], `(..., action_dim)`, or its number, `(...)`; and its log π in nats, `(...)`."""
    pi = policy(obs)
    u = pi.sample(key)
    return pi.action(u), pi.log_prob(u)


def act(policy, obs, key, deterministic):
    """Action as in `sample_action`; if `deterministic`, tanh of the mean, or the likeliest number."""
    pi = policy(obs)
    return pi.mode() if deterministic else pi.action(pi.sample(key))


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    critic: TrainState
    alpha: TrainState  # its one parameter is log_alpha
    observations: Statistics  # of earlier rollouts
    returns: DiscountedReturns  # of unscaled rewards


def init(key, task, args):
    """State of one seed; the key is consumed. Raises UsageError if no policy has the target entropy."""
    reachable = args.target_entropy_scale < 1 or not (args.autotune and task.discrete)
    require(reachable, "target_entropy_scale must be < 1 for discrete actions: log A nats is the most")
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(args.hidden_dims, task.action_dim, task.discrete)
    critic, obs = Critic(args.hidden_dims), jnp.zeros(task.obs_dim)
    annealed = optax.linear_schedule(args.learning_rate, 0, args.gradient_steps)
    rate = annealed if args.anneal_lr else args.learning_rate
    adam = optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(rate, eps=1e-5))
    log_alpha = jnp.log(jnp.float32(max(args.alpha, 1e-37)))  # finite also if alpha is 0
    alpha_adam = optax.adam(args.alpha_lr)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor.init(actor_key, obs), tx=adam),
        critic=TrainState.create(apply_fn=critic.apply, params=critic.init(critic_key, obs), tx=adam),
        alpha=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=alpha_adam),
        observations=Statistics.create(obs.shape),
        returns=DiscountedReturns.create(args.num_envs),
    )


def temperature(state):
    """α of eq. 1, in reward per nat; in units of the scaled reward if rewards are scaled."""
    return jnp.exp(state.alpha.params["log_alpha"])


@struct.dataclass
class Rollout:
    """Steps of one seed's environments, `(num_steps, num_envs, ...)`."""

    transition: Transition
    u: jax.Array  # sampled actions, before tanh
    ended: jax.Array  # 1 if the episode ended here, by termination or a time limit
    elapsed: jax.Array  # steps taken in the episode before this step


@struct.dataclass
class Samples:
    """What the losses need from a rollout, `(num_steps · num_envs, ...)`."""

    obs: jax.Array  # normalised
    u: jax.Array  # sampled actions, before tanh
    log_prob: jax.Array  # of u, when it was drawn
    advantage: jax.Array
    value_target: jax.Array
    alpha: jax.Array  # in the units of the advantage
    weight: jax.Array  # γ^t, or 1


def advantages(reward, value, next_value, terminated, ended, args):
    """Advantages, `(num_steps, num_envs)`: Σ (γλ)^l δ (eq. 6); only terminal V is 0."""
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
    alpha, old_log_prob = temperature(state), policy(state).actor(obs).log_prob(rollout.u)
    soft_reward = reward - alpha * old_log_prob if args.backup_entropy else reward
    value, next_value = (state.critic.apply_fn(state.critic.params, x) for x in (obs, next_obs))
    advantage = advantages(soft_reward, value, next_value, steps.terminated, rollout.ended, args)
    value_target = advantage + value
    if args.backup_entropy:
        advantage += alpha * old_log_prob  # this step's entropy is left to actor_loss
    if args.norm_adv:
        std = advantage.std() + 1e-8
        advantage, alpha = (advantage - advantage.mean()) / std, alpha / std
    weight = args.gamma**rollout.elapsed if args.gamma_power else jnp.ones_like(reward)
    alpha = jnp.full_like(reward, alpha)
    samples = Samples(obs, rollout.u, old_log_prob, advantage, value_target, alpha, weight)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)


def critic_loss(params, state, batch):
    """Half the mean squared error of V against its target (eq. 7)."""
    loss = 0.5 * jnp.mean((state.critic.apply_fn(params, batch.obs) - batch.value_target) ** 2)
    return loss, {"losses/value_loss": loss}


def actor_loss(params, state, batch, key, args):
    """Minus the sum of the surrogate and α times the policy's entropy (eq. 8)."""
    pi = state.actor.apply_fn(params, batch.obs)
    log_ratio = pi.log_prob(batch.u) - batch.log_prob
    ratio = jnp.exp(jnp.minimum(log_ratio, 80))  # finite, also in its gradient
    clipped = jnp.clip(ratio, 1 - args.clip_coef, 1 + args.clip_coef) if args.clip_coef else ratio
    surrogate = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    entropy = pi.entropy(pi.sample(key))
    loss = -jnp.mean(batch.weight * (surrogate + batch.alpha * entropy))
    return loss, {
        "losses/actor_loss": loss,
        "losses/entropy": entropy.mean(),
        "losses/approx_kl": jnp.mean(ratio - 1 - log_ratio),
        "losses/clipfrac": jnp.mean(ratio != clipped),
    }


def alpha_loss(params, entropy, target_entropy):
    """Dual of the entropy constraint (arXiv 1812.05905, eq. 18): α falls while entropy exceeds its target."""
    alpha = jnp.exp(params["log_alpha"])
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": alpha}


def adapt_temperature(state, samples, args):
    """A step of the temperature if `autotune`, at the entropy of the policy in the rollout; and metrics."""
    target_entropy = args.target_entropy_scale * policy(state).actor(samples.obs).entropy_unit()
    entropy = -samples.log_prob.mean()
    grads, metrics = jax.grad(alpha_loss, has_aux=True)(state.alpha.params, entropy, target_entropy)
    if args.autotune:
        alpha = state.alpha.apply_gradients(grads=grads)
        log_alpha = jnp.clip(alpha.params["log_alpha"], math.log(1e-4), 0.0)
        state = state.replace(alpha=alpha.replace(params={"log_alpha": log_alpha}))
    return state, metrics


def update(state, rollout, key, index, args):
    """Learns from rollout number `index` (from 0) of one seed; the key is consumed.

    Returns the new state and scalar metrics, measured before each gradient step; means if there are several.
    """
    reward, ended, elapsed = rollout.transition.reward, rollout.ended, rollout.elapsed
    state = state.replace(returns=state.returns.add(reward, ended, elapsed, args.gamma))
    samples = make_samples(state, rollout, args)

    def step(state, inputs):
        rows, key = inputs
        batch = jax.tree.map(lambda x: x[rows], samples)
        grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch, key, args)
        state = state.replace(actor=state.actor.apply_gradients(grads=grads))
        grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critic.params, state, batch)
        return state.replace(critic=state.critic.apply_gradients(grads=grads)), metrics | critic_metrics

    order_key, noise_key = jax.random.split(key)
    order = jnp.tile(jnp.arange(args.steps_per_update), (args.update_epochs, 1))
    order = jax.random.permutation(order_key, order, axis=1, independent=True)
    minibatches = order.reshape(args.update_epochs * args.num_minibatches, -1)
    state, metrics = jax.lax.scan(step, state, (minibatches, jax.random.split(noise_key, len(minibatches))))
    state, alpha_metrics = adapt_temperature(state, samples, args)
    # the policy acts and learns with the same statistics; new ones take effect in the next rollout
    if args.normalize_observation:
        obs = rollout.transition.obs
        state = state.replace(observations=state.observations.add(obs.reshape(-1, obs.shape[-1])))
    metrics = jax.tree.map(jnp.mean, metrics) | alpha_metrics
    return state, metrics | {"losses/return_std": state.returns.std}


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args, copies=args.num_envs)
    check_rollouts(args.num_seeds, args.steps_per_update, envs.example, "--num-steps or --num-envs")
    evaluate = Evaluation(args, act, sample_action)

    def explore(policy, obs, key, step):
        pi = policy(obs)
        u = pi.sample(jax.random.fold_in(key, step))
        return u, pi.action(u)

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
                alpha = temperature(state) * (state.returns.std if args.normalize_reward else 1)
                run.evaluate(evaluate, step, policy(state), keys.evaluate, alpha)
            if step == args.last_step:
                break
            rollout, end = [], step + args.steps_per_update
            for env_step in range(step, end, args.num_envs):
                elapsed, obs = envs.elapsed, split_seeds(envs.obs, args.num_seeds)
                sampled = explore(policy(state), obs, keys.act, env_step)
                u, action = (np.asarray(x).reshape(-1, *x.shape[2:]) for x in sampled)
                episodes = envs.step(action)
                run.record_episodes(env_step + args.num_envs, episodes)
                rollout.append(Rollout(envs.transition, u, envs.ended, elapsed))
            rollout, index = stack_steps(rollout, args.num_seeds), step // args.steps_per_update
            state, losses = learn(state, rollout, keys.update, step, index)
            run.end_step(end, state, losses)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

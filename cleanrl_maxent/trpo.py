"""Trust region policy optimisation: a natural-gradient step within a bound on the KL divergence.

Schulman et al., "Trust Region Policy Optimization", 2015, https://arxiv.org/abs/1502.05477.
Equation numbers refer to it. Deliberate deviations, with reasons in docs/algorithms/:
  - a critic and GAE (Schulman et al. 2016, https://arxiv.org/abs/1506.02438) replace the paper's Q;
  - the Fisher matrix is damped, and estimated from all states instead of a tenth of them;
  - the line search evaluates all candidates at once;
  - a time limit does not end the return, only the trace of advantages;
  - observations are scaled by statistics of earlier rollouts, rewards by those of this rollout too.

    python cleanrl_maxent/trpo.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.train_state import TrainState
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from cleanrl_maxent.common.cli import RunArgs, run_from_command_line
from cleanrl_maxent.common.data import DiscountedReturns, Statistics, Transition
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.ranges import Count, Decay, Discount, Fraction, Magnitude, Number, Rate, Widths
from cleanrl_maxent.common.rollouts import check_rollouts, split_seeds, stack_steps
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start


@dataclass(frozen=True)
class Args(RunArgs):
    """Trust region policy optimisation (Schulman et al., 2015)."""

    action_spaces: ClassVar = ("Box", "Discrete")

    num_envs: Count = 8  # environments per seed
    num_steps: Count = 256  # steps of each environment per rollout
    gamma: Discount = 0.99  # discount per step
    gae_lambda: Decay = 0.97  # λ of generalised advantage estimation
    target_kl: Rate = 0.01  # δ, largest mean KL divergence of a step, in nats
    cg_iters: Count = 10  # iterations of conjugate gradient
    cg_damping: Magnitude = 0.1  # added to the diagonal of the Fisher matrix
    fisher_stride: Count = 1  # Fisher matrix from every k-th state
    line_search: bool = True  # shorten steps until L grows and KL ≤ δ; off: NPG
    backtrack_coef: Fraction = 0.8  # ratio of successive candidates' lengths
    backtrack_iters: Count = 10  # candidate steps
    update_epochs: Count = 10  # passes of the critic over each rollout
    num_minibatches: Count = 32  # gradient steps of the critic per pass
    norm_adv: bool = True  # normalise advantages: mean 0, std 1
    critic_lr: Rate = 1e-3  # Adam, critic
    log_std_init: Number = 0.0  # initial log std of actions in [-1, 1]
    normalize_observation: bool = True  # by mean and std, clipped to ±10
    normalize_reward: bool = True  # by the std of the return
    hidden_dims: Widths = (64, 64)  # widths of the hidden layers

    def check(self):
        super().check()
        split = f"num_envs {self.num_envs} x num_steps {self.num_steps} into {self.num_minibatches}"
        even = self.steps_per_update % self.num_minibatches == 0
        require(even, f"cannot split {split} equal num_minibatches")

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
    observations: Statistics  # of earlier rollouts
    returns: DiscountedReturns  # of unscaled rewards


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(args.hidden_dims, task.action_dim, task.discrete, args.log_std_init)
    critic, obs = Critic(args.hidden_dims), jnp.zeros(task.obs_dim)
    no_op, adam = optax.identity(), optax.adam(args.critic_lr, eps=1e-5)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor.init(actor_key, obs), tx=no_op),
        critic=TrainState.create(apply_fn=critic.apply, params=critic.init(critic_key, obs), tx=adam),
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
    samples = Samples(obs, steps.action, policy(state).actor(obs), advantage, value_target)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)


def critic_loss(params, state, batch):
    """Half the mean squared error of V against its target."""
    loss = 0.5 * jnp.mean((state.critic.apply_fn(params, batch.obs) - batch.value_target) ** 2)
    return loss, {"losses/value_loss": loss}


def surrogate(params, state, batch):
    """L(θ), the mean of π_θ/π_old Â: the objective of eq. 14."""
    pi = state.actor.apply_fn(params, batch.obs)
    ratio = jnp.exp(pi.log_prob(batch.action) - batch.old.log_prob(batch.action))
    return jnp.mean(ratio * batch.advantage)


def kl_divergence(params, state, batch):
    """Mean KL(π_old ‖ π_θ), the constraint of eq. 14, in nats."""
    return batch.old.kl(state.actor.apply_fn(params, batch.obs)).mean()


def fisher_vector_product(vector, state, batch, args):
    """(F + damping · I) v; F, the paper's A, is the Hessian of the divergence at θ_old (appendix C.1)."""
    theta, unravel = state.actor.params, ravel_pytree(state.actor.params)[1]
    gradient = jax.grad(kl_divergence)
    product = jax.jvp(lambda params: gradient(params, state, batch), (theta,), (unravel(vector),))[1]
    return ravel_pytree(product)[0] + args.cg_damping * vector


def conjugate_gradient(product, g, iterations):
    """x with product(x) ≈ g, for a symmetric positive definite product, and |product(x) - g|² / |g|²."""

    def step(carry, _):
        x, r, p, rr = carry
        z = product(p)
        alpha = rr / jnp.maximum(p @ z, 1e-20)
        x, r = x + alpha * p, r - alpha * z
        beta = r @ r / jnp.maximum(rr, 1e-20)
        return (x, r, r + beta * p, r @ r), None

    (x, _, _, rr), _ = jax.lax.scan(step, (jnp.zeros_like(g), g, g, g @ g), length=iterations)
    return x, rr / jnp.maximum(g @ g, 1e-20)


def natural_step(state, batch, args):
    """√(2δ / xᵀFx) x with x ≈ F⁻¹g, the step of appendix C, and |Fx - g|² / |g|²; F includes the damping.

    To second order the divergence is at most δ. The step, `(num_params,)`, is NaN if g = 0.
    """
    g = ravel_pytree(jax.grad(surrogate)(state.actor.params, state, batch))[0]
    subset = jax.tree.map(lambda x: x[:: args.fisher_stride], batch)
    product = partial(fisher_vector_product, state=state, batch=subset, args=args)
    g = g / jnp.maximum(jnp.abs(g).max(), 1e-30)  # its length does not matter, but must not underflow
    x, residual = conjugate_gradient(product, g, args.cg_iters)
    return jnp.sqrt(2 * args.target_kl / (x @ product(x))) * x, residual


def line_search(full_step, state, batch, args):
    """θ, a pytree, after the longest acceptable step, or θ_old if there is none; and metrics."""
    theta, unravel = ravel_pytree(state.actor.params)
    count = args.backtrack_iters if args.line_search else 1
    fractions = jnp.append(args.backtrack_coef ** jnp.arange(count), 0)
    # the last candidate is θ_old, even if the step is not finite
    candidates = (theta + fractions[:, None] * full_step).at[-1].set(theta)

    def evaluate(theta):
        return tuple(f(unravel(theta), state, batch) for f in (surrogate, kl_divergence))

    objective, kl = jax.vmap(evaluate)(candidates)
    gain = objective - objective[-1]
    accepted = jnp.isfinite(gain) & jnp.isfinite(kl)
    if args.line_search:
        accepted &= (gain > 0) & (kl <= args.target_kl)
    first = accepted.at[-1].set(True).argmax()  # θ_old always is
    metrics = {"losses/actor_loss": -gain[first], "losses/kl": kl[first]}
    return unravel(candidates[first]), metrics | {"losses/step_fraction": fractions[first]}


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

    Returns the new state and scalar metrics: of the step taken, and means over the steps of the critic.
    """
    reward, ended, elapsed = rollout.transition.reward, rollout.ended, rollout.elapsed
    state = state.replace(returns=state.returns.add(reward, ended, elapsed, args.gamma))
    samples = make_samples(state, rollout, args)
    full_step, residual = natural_step(state, samples, args)
    params, metrics = line_search(full_step, state, samples, args)
    metrics |= {"losses/entropy": samples.old.entropy().mean(), "losses/cg_residual": residual}
    state = state.replace(actor=state.actor.replace(params=params))
    state, critic_metrics = fit_critic(state, samples, key, args)
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

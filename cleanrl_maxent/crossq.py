"""CrossQ: Soft Actor-Critic with batch normalisation, and without target networks.

Bhatt et al., "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and
Simplicity", 2024, https://arxiv.org/abs/1902.05605. Equation numbers refer to the paper of Soft Actor-Critic,
https://arxiv.org/abs/1812.05905. Deliberate deviations, with reasons in docs/algorithms/:
  - critics are 256 wide instead of 2,048, so that a step costs about what one of Soft Actor-Critic does;
  - inside the agent actions lie in [-1, 1], and all quantities are in these units;
  - the temperature is learned through its logarithm, from the log-densities of the actor's loss;
  - the actor's first update comes with the critics' first, not with their third.

    python cleanrl_maxent/crossq.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training.train_state import TrainState
from jax.tree_util import Partial

from cleanrl_maxent.common.cli import RunArgs, run_from_command_line
from cleanrl_maxent.common.data import create_replays, store
from cleanrl_maxent.common.devices import per_seed
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.ranges import Count, Discount, Magnitude, Natural, Number, Rate, Widths
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start
from cleanrl_maxent.common.schedule import equivalent_index, every

EPSILON = 1e-3  # added to variances
R_MAX, D_MAX = 3, 5  # limits of the renormalisation's factor and shift


@dataclass(frozen=True)
class Args(RunArgs):
    """CrossQ (Bhatt et al., 2024): Soft Actor-Critic with batch normalisation, without target networks."""

    learning_starts: Natural = 5_000  # environment steps of uniform actions
    buffer_size: Count = 1_000_000  # transitions kept per seed
    batch_size: Count = 256  # transitions per update
    gamma: Discount = 0.99  # discount per step
    policy_lr: Rate = 1e-3  # Adam, actor and temperature
    q_lr: Rate = 1e-3  # Adam, critics
    adam_b1: Discount = 0.5  # Adam's momentum, actor and critics
    bn_momentum: Discount = 0.99  # weight of the old running statistics
    bn_warmup: Natural = 100_000  # updates of each network before renormalisation
    alpha: Magnitude = 1.0  # temperature, in reward per nat; the initial one if autotune
    autotune: bool = True  # learn the temperature
    target_entropy_scale: Number = 1.0  # target is -scale * action_dim nats
    policy_frequency: Count = 3  # critic updates per actor update
    hidden_dims: Widths = (256, 256)  # widths of the actor's hidden layers
    critic_hidden_dims: Widths = (256, 256)  # widths of the critics' hidden layers

    def check(self):
        super().check()
        starts, batch, total = self.learning_starts, self.batch_size, self.total_timesteps
        late = f"learning would never start: learning_starts {starts} >= total_timesteps {total}"
        require(starts < total, late)
        require(batch > 1, "a batch of one transition has no variance to normalise by; raise --batch-size")
        require(batch <= self.buffer_size, f"batch_size {batch} > buffer_size {self.buffer_size}")
        few = f"only {starts} transitions when learning starts, fewer than batch_size {batch}"
        require(batch <= starts, f"{few}; raise --learning-starts")
        tunable = self.alpha > 0 or not self.autotune
        require(tunable, "alpha 0 cannot be tuned (its logarithm is learned); add --no-autotune")
        require(self.target_entropy_scale > -math.log(2), "target_entropy_scale must be > -log 2")


class BatchRenorm(nn.Module):
    """Batch renormalisation (Ioffe, 2017, https://arxiv.org/abs/1702.03275), then a learned scale and bias.

    In training, features, `(batch, dim)`, are normalised by the statistics of their batch, which update the
    running ones; after `warmup` batches a factor r and a shift d bring them close to what the running ones
    would give. Outside training the running ones are used. Returns slope and offset of the whole, `(dim,)`.
    """

    momentum: float
    warmup: int

    @nn.compact
    def __call__(self, x, training):
        dim = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, dim)
        var = self.variable("batch_stats", "var", jnp.ones, dim)
        batches = self.variable("batch_stats", "batches", jnp.zeros, (), jnp.int32)
        scale = self.param("scale", nn.initializers.ones, (dim,))
        bias = self.param("bias", nn.initializers.zeros, (dim,))
        std = jnp.sqrt(var.value + EPSILON)
        if not training:
            slope = scale / std
            return slope, bias - slope * mean.value
        batch_mean = x.mean(axis=0)
        # stopped to save a backward pass: the variance's derivative in this mean is 0
        batch_var = jnp.mean((x - jax.lax.stop_gradient(batch_mean)) ** 2, axis=0)
        batch_std = jnp.sqrt(batch_var + EPSILON)
        r = jnp.clip(batch_std / std, 1 / R_MAX, R_MAX)
        d = jnp.clip((batch_mean - mean.value) / std, -D_MAX, D_MAX)
        warm = batches.value >= self.warmup
        r, d = jax.lax.stop_gradient((jnp.where(warm, r, 1), jnp.where(warm, d, 0)))
        mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
        var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        batches.value += 1
        slope = scale * r / batch_std
        return slope, bias + scale * d - slope * batch_mean


class NormalizedLinear(nn.Module):
    """Dense layer of normalised inputs; initial weights have variance 1/fan_in, initial biases are 0."""

    features: int
    momentum: float
    warmup: int

    @nn.compact
    def __call__(self, x, training):
        slope, offset = BatchRenorm(self.momentum, self.warmup)(x, training)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # (slope x + offset) W + b, without a pass over the batch for the normalisation
        return x @ (slope[:, None] * kernel) + (offset @ kernel + bias)


class Critic(nn.Module):
    """Q_θ(s, a), `(...)`."""

    hidden_dims: tuple[int, ...]
    momentum: float
    warmup: int

    @nn.compact
    def __call__(self, obs, action, training=False):
        linear = partial(NormalizedLinear, momentum=self.momentum, warmup=self.warmup)
        x = jnp.concatenate([obs, action], axis=-1)
        for dim in self.hidden_dims:
            x = nn.relu(linear(dim)(x, training))
        return linear(1)(x, training).squeeze(-1)


class Actor(nn.Module):
    """π_φ before the squash: mean and log standard deviation of a Gaussian, `(..., action_dim)` each."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    momentum: float
    warmup: int

    @nn.compact
    def __call__(self, obs, training=False):
        linear = partial(NormalizedLinear, momentum=self.momentum, warmup=self.warmup)
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(dim)(x, training))
        mean, log_std = jnp.split(linear(2 * self.action_dim)(x, training), 2, axis=-1)
        return mean, jnp.clip(log_std, -20, 2)


def policy(state):
    """What `act` needs: the actor with its parameters and statistics, a function that is also a pytree."""
    return Partial(state.actor.apply_fn, state.actor.variables)


def sample_squashed(mean, log_std, key):
    """Action tanh(u), `(..., action_dim)` (eq. 8), and its log-density in nats, `(...)` (appendix C)."""
    noise = jax.random.normal(key, mean.shape)
    u = mean + jnp.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh²u), written to stay finite for large |u|
    log_jacobian = 2 * (math.log(2) - u - nn.softplus(-2 * u))
    return jnp.tanh(u), (log_normal - log_jacobian).sum(axis=-1)


def sample_action(policy, obs, key):
    """Action in [-1, 1] and log-density in nats, `(...)`, of the actor with its running statistics."""
    return sample_squashed(*policy(obs), key)


def act(policy, obs, key, deterministic):
    """Action in [-1, 1], `(..., action_dim)`: tanh of the mean if `deterministic`, else a sample."""
    return jnp.tanh(policy(obs)[0]) if deterministic else sample_action(policy, obs, key)[0]


class Network(TrainState):
    """A network and the running statistics of its layers."""

    batch_stats: dict

    @property
    def variables(self):
        return {"params": self.params, "batch_stats": self.batch_stats}

    def apply_in_training(self, params, *inputs):
        """Outputs under the statistics of the batch `inputs`, and the running statistics after it."""
        variables = {"params": params, "batch_stats": self.batch_stats}
        outputs, moved = self.apply_fn(variables, *inputs, training=True, mutable=["batch_stats"])
        return outputs, moved["batch_stats"]


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: Network
    critics: Network  # two, stacked on axis 0
    alpha: TrainState  # its one parameter is log_alpha


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor = Actor(args.hidden_dims, task.action_dim, args.bn_momentum, args.bn_warmup)
    critic = Critic(args.critic_hidden_dims, args.bn_momentum, args.bn_warmup)
    obs, action = jnp.zeros(task.obs_dim), jnp.zeros(task.action_dim)
    critic_keys = jax.random.split(critic_key, 2)
    critic_variables = jax.vmap(critic.init, (0, None, None))(critic_keys, obs, action)

    def apply_critics(variables, obs, action, **mode):
        return jax.vmap(lambda member: critic.apply(member, obs, action, **mode))(variables)

    policy_adam, q_adam = (optax.adam(rate, b1=args.adam_b1) for rate in (args.policy_lr, args.q_lr))
    alpha_adam = optax.adam(args.policy_lr)  # with the usual momentum
    log_alpha = jnp.log(jnp.float32(max(args.alpha, 1e-37)))  # finite also if alpha is 0
    return State(
        actor=Network.create(apply_fn=actor.apply, **actor.init(actor_key, obs), tx=policy_adam),
        critics=Network.create(apply_fn=apply_critics, **critic_variables, tx=q_adam),
        alpha=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=alpha_adam),
    )


def temperature(state):
    """α of eq. 1, in reward per nat."""
    return jnp.exp(state.alpha.params["log_alpha"])


def critic_loss(params, state, batch, key, args):
    """Soft Bellman residual of both critics (eq. 5); V as in eq. 3, with the smaller critic, not a target.

    Both Q(s, a) and Q(s', a') come from one pass, normalised by the statistics of the joint batch.
    """
    next_action, next_log_prob = sample_action(policy(state), batch.next_obs, key)
    obs, action = jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, next_action])
    joint_q, batch_stats = state.critics.apply_in_training(params, obs, action)
    q, next_q = jnp.split(joint_q, 2, axis=-1)  # (2, batch) each
    next_value = next_q.min(axis=0) - temperature(state) * next_log_prob
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    metrics = {
        "losses/qf1_loss": losses[0],
        "losses/qf2_loss": losses[1],
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[1].mean(),
    }
    return losses.sum(), (metrics, batch_stats)


def actor_loss(params, state, batch, key):
    """α KL(π_φ ‖ exp(Q/α)/Z) up to a constant in φ (eq. 9), where Q is the smaller critic.

    The actor normalises by the statistics of the batch, the critics by their running ones.
    """
    (mean, log_std), batch_stats = state.actor.apply_in_training(params, batch.obs)
    action, log_prob = sample_squashed(mean, log_std, key)
    q = state.critics.apply_fn(state.critics.variables, batch.obs, action).min(axis=0)
    loss = jnp.mean(temperature(state) * log_prob - q)
    return loss, ({"losses/actor_loss": loss, "losses/entropy": -log_prob.mean()}, batch_stats)


def alpha_loss(params, entropy, target_entropy):
    """Dual of the entropy constraint (eq. 18): α falls while the entropy exceeds its target."""
    alpha = jnp.exp(params["log_alpha"])
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": alpha}


def improve_policy(state, batch, key, args):
    """One step of the actor, then one of the temperature, at the entropy before the actor's step."""
    grads, (metrics, stats) = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch, key)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads, batch_stats=stats))
    entropy, target_entropy = metrics["losses/entropy"], -args.target_entropy_scale * batch.action.shape[-1]
    grads, alpha_metrics = jax.grad(alpha_loss, has_aux=True)(state.alpha.params, entropy, target_entropy)
    if args.autotune:
        state = state.replace(alpha=state.alpha.apply_gradients(grads=grads))
    return state, metrics | alpha_metrics


def update(state, batch, key, index, args):
    """One gradient step on one seed; the key is consumed.

    `index`: the update's number from 0, or its `equivalent_index`; it decides which delayed steps are due.
    Returns the new state and metrics, scalars measured before each step.
    """
    key, actor_key = jax.random.split(key)
    params = state.critics.params
    grads, (metrics, stats) = jax.grad(critic_loss, has_aux=True)(params, state, batch, key, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads, batch_stats=stats))
    state, policy_metrics = every(args.policy_frequency, index, improve_policy, state, batch, actor_key, args)
    return state, metrics | policy_metrics


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    replay = create_replays(args.num_seeds, args.buffer_size, envs.example, "--buffer-size or --num-seeds")
    evaluate = Evaluation(args, act, sample_action)

    def warm_up(key, step):
        key = jax.random.fold_in(key, step)
        return jax.random.uniform(key, (envs.task.action_dim,), minval=-1, maxval=1)

    def explore(policy, obs, key, step):
        return act(policy, obs, jax.random.fold_in(key, step), deterministic=False)

    def learn(state, replay, key, step, index):
        sample_key, update_key = jax.random.split(jax.random.fold_in(key, step))
        batch = replay.sample(sample_key, args.batch_size, step)
        return update(state, batch, update_key, index, args)

    # vectorised: from here on all arrays lead with the axis (seed,)
    state = per_seed(init, shared=2, static_argnums=(1, 2))(keys.init, envs.task, args)
    warm_up = per_seed(warm_up, shared=1)
    explore = per_seed(explore, shared=1)
    learn = per_seed(learn, shared=2, static_argnums=4, donate_argnums=0)

    with Run(args, envs) as run:
        first, state, replay = run.resume(state, replay)
        losses = {}
        for step in range(first, args.total_timesteps + 1):
            # comes first, so that a run resumed here repeats an evaluation that was interrupted
            if evaluate.due(step):
                run.evaluate(evaluate, step, policy(state), keys.evaluate, temperature(state))
            if step == args.total_timesteps:
                break
            if step < args.learning_starts:
                action = warm_up(keys.act, step)
            else:
                action = explore(policy(state), envs.obs, keys.act, step)
            envs.step_async(action)  # workers begin to step; without workers step_wait steps
            if step > 0:
                replay = store(replay, envs.transition, step - 1)  # of the step before
            if step >= args.learning_starts:
                # steps with the same delayed updates share an index, and so a compiled program
                index = equivalent_index(step - args.learning_starts, args.policy_frequency)
                state, losses = learn(state, replay, keys.update, step, index)
            # the update just dispatched runs while the environments step
            episodes = envs.step_wait()
            run.end_step(step + 1, state, losses, episodes)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

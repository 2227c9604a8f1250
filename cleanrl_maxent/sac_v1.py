"""Soft Actor-Critic as first published: a value network V, and a temperature set by the scale of rewards.

Haarnoja et al., "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a
Stochastic Actor", 2018, https://arxiv.org/abs/1801.01290. Equation numbers refer to it. Deliberate
deviations, with reasons in docs/algorithms/:
  - inside the agent actions lie in [-1, 1], and all quantities are in these units;
  - the target of V starts as a copy of V.

    python cleanrl_maxent/sac_v1.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass

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
from cleanrl_maxent.common.ranges import Count, Discount, Magnitude, Natural, Rate, Share, Widths
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start
from cleanrl_maxent.common.schedule import equivalent_index, every

# reward scale c by environment, any version, of the published experiments (docs/algorithms/sac_v1.md); else 1
REWARD_SCALES = dict(Hopper=5, Walker2d=5, HalfCheetah=5, Ant=5, Humanoid=20, HumanoidStandup=100)


@dataclass(frozen=True)
class Args(RunArgs):
    """Soft Actor-Critic with a value network (Haarnoja et al., 2018a)."""

    learning_starts: Natural = 10_000  # environment steps of uniform actions
    buffer_size: Count = 1_000_000  # transitions kept per seed
    batch_size: Count = 256  # transitions per update
    gamma: Discount = 0.99  # discount per step
    tau: Share = 0.005  # weight of new parameters in the target
    policy_lr: Rate = 3e-4  # Adam, actor
    q_lr: Rate = 3e-4  # Adam, critics
    v_lr: Rate = 3e-4  # Adam, value network
    alpha: Magnitude = 1.0  # temperature, in scaled reward per nat; alpha / reward_scale in reward per nat
    # reward factor; None: 5 on Hopper, Walker2d, HalfCheetah, Ant, 20 Humanoid, 100 HumanoidStandup, else 1
    reward_scale: Rate | None = None
    target_network_frequency: Count = 1  # critic updates per target update
    hidden_dims: Widths = (256, 256)  # widths of the hidden layers

    def check(self):
        super().check()
        starts, batch, total = self.learning_starts, self.batch_size, self.total_timesteps
        late = f"learning would never start: learning_starts {starts} >= total_timesteps {total}"
        require(starts < total, late)
        require(batch <= self.buffer_size, f"batch_size {batch} > buffer_size {self.buffer_size}")
        few = f"only {starts} transitions when learning starts, fewer than batch_size {batch}"
        require(batch <= starts, f"{few}; raise --learning-starts")


def reward_scale(args):
    """c of the target c r + γ V(s'): `--reward-scale`, or that of the environment."""
    if args.reward_scale is not None:
        return args.reward_scale
    name = args.env_id.rpartition(":")[2].rpartition("-v")[0]  # without module and version
    return float(REWARD_SCALES.get(name, 1))


def linear(x, features):
    """Dense layer; weights are initialised from U(±√(6 / (fan_in + fan_out))), Glorot's, biases with 0."""
    return nn.Dense(features, kernel_init=nn.initializers.glorot_uniform())(x)


class Value(nn.Module):
    """V_ψ(s), `(...)`."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, 1).squeeze(-1)


class Critic(nn.Module):
    """Q_θ(s, a), `(...)`."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, 1).squeeze(-1)


class Actor(nn.Module):
    """π_φ before the squash: mean and log standard deviation of a Gaussian, `(..., action_dim)` each."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        mean, log_std = jnp.split(linear(x, 2 * self.action_dim), 2, axis=-1)
        return mean, jnp.clip(log_std, -20, 2)


def policy(state):
    """What `act` needs: the actor with its parameters, a function that is also a pytree."""
    return Partial(state.actor.apply_fn, state.actor.params)


def sample_action(policy, obs, key):
    """Action tanh(u), `(..., action_dim)` (eq. 11), and its log-density in nats, `(...)` (appendix C)."""
    mean, log_std = policy(obs)
    noise = jax.random.normal(key, mean.shape)
    u = mean + jnp.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh²u), written to stay finite for large |u|
    log_jacobian = 2 * (math.log(2) - u - nn.softplus(-2 * u))
    return jnp.tanh(u), (log_normal - log_jacobian).sum(axis=-1)


def act(policy, obs, key, deterministic):
    """Action in [-1, 1], `(..., action_dim)`: tanh of the mean if `deterministic`, else a sample."""
    return jnp.tanh(policy(obs)[0]) if deterministic else sample_action(policy, obs, key)[0]


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    critics: TrainState  # two, stacked on axis 0
    value: TrainState
    target_value: dict


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    actor, critic = Actor(args.hidden_dims, task.action_dim), Critic(args.hidden_dims)
    value = Value(args.hidden_dims)
    obs, action = jnp.zeros(task.obs_dim), jnp.zeros(task.action_dim)
    actor_params, value_params = actor.init(actor_key, obs), value.init(value_key, obs)
    critic_keys = jax.random.split(critic_key, 2)
    critic_params = jax.vmap(critic.init, (0, None, None))(critic_keys, obs, action)
    apply_critics = jax.vmap(critic.apply, (0, None, None))
    policy_adam, q_adam = optax.adam(args.policy_lr), optax.adam(args.q_lr)
    v_adam = optax.adam(args.v_lr)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=policy_adam),
        critics=TrainState.create(apply_fn=apply_critics, params=critic_params, tx=q_adam),
        value=TrainState.create(apply_fn=value.apply, params=value_params, tx=v_adam),
        target_value=jax.tree.map(jnp.copy, value_params),
    )


def value_loss(params, state, batch, key, args):
    """Squared residual of V against E[Q - α log π] (eq. 5), with the smaller critic and a fresh action."""
    action, log_prob = sample_action(policy(state), batch.obs, key)
    q = state.critics.apply_fn(state.critics.params, batch.obs, action).min(axis=0)
    target = q - args.alpha * log_prob
    value = state.value.apply_fn(params, batch.obs)
    loss = 0.5 * jnp.mean((value - jax.lax.stop_gradient(target)) ** 2)
    return loss, {"losses/value_loss": loss, "losses/values": value.mean()}


def critic_loss(params, state, batch, args):
    """Soft Bellman residual of both critics (eq. 7) against c r + γ V(s') (eq. 8), V the target network."""
    next_value = state.value.apply_fn(state.target_value, batch.next_obs)
    target = reward_scale(args) * batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = state.critics.apply_fn(params, batch.obs, batch.action)  # (2, batch)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    return losses.sum(), {
        "losses/qf1_loss": losses[0],
        "losses/qf2_loss": losses[1],
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[1].mean(),
    }


def actor_loss(params, state, batch, key, args):
    """α KL(π_φ ‖ exp(Q/α)/Z) up to a constant in φ (eqs. 10, 12), where Q is the smaller critic."""
    action, log_prob = sample_action(Partial(state.actor.apply_fn, params), batch.obs, key)
    q = state.critics.apply_fn(state.critics.params, batch.obs, action).min(axis=0)
    loss = jnp.mean(args.alpha * log_prob - q)
    return loss, {"losses/actor_loss": loss, "losses/entropy": -log_prob.mean()}


def move_targets(state, args):
    """Moves the target a fraction τ of the way to the network."""
    target_value = optax.incremental_update(state.value.params, state.target_value, args.tau)
    return state.replace(target_value=target_value), {}


def update(state, batch, key, index, args):
    """One gradient step of Algorithm 1 on one seed; the key is consumed.

    `index`: the update's number from 0, or its `equivalent_index`; it decides which delayed steps are due.
    Returns the new state and metrics, scalars measured before each step.
    """
    value_key, actor_key = jax.random.split(key)
    params = state.value.params
    grads, value_metrics = jax.grad(value_loss, has_aux=True)(params, state, batch, value_key, args)
    state = state.replace(value=state.value.apply_gradients(grads=grads))
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics.params, state, batch, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    params = state.actor.params
    grads, policy_metrics = jax.grad(actor_loss, has_aux=True)(params, state, batch, actor_key, args)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    state, _ = every(args.target_network_frequency, index, move_targets, state, args)
    return state, value_metrics | metrics | policy_metrics


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    replay = create_replays(args.num_seeds, args.buffer_size, envs.example, "--buffer-size or --num-seeds")
    evaluate = Evaluation(args, act, sample_action)
    temperature = args.alpha / reward_scale(args)  # in reward per nat

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
                run.evaluate(evaluate, step, policy(state), keys.evaluate, temperature)
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
                index = equivalent_index(step - args.learning_starts, args.target_network_frequency)
                state, losses = learn(state, replay, keys.update, step, index)
            # the update just dispatched runs while the environments step
            episodes = envs.step_wait()
            run.end_step(step + 1, state, losses, episodes)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

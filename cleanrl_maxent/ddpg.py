"""Deep Deterministic Policy Gradient: Q-learning with a deterministic actor and target networks.

Lillicrap et al., "Continuous control with deep reinforcement learning", 2016, https://arxiv.org/abs/1509.02971.
Equation and section numbers refer to it. Deliberate deviations, with reasons in docs/algorithms/:
  - inside the agent actions lie in [-1, 1], and all quantities are in these units;
  - networks and settings are those of TD3's code: no batch normalisation, no weight decay;
  - weights and biases are drawn from U(±1/√fan_in) in the last layers too, not from U(±3e-3).

    python cleanrl_maxent/ddpg.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Args(RunArgs):
    """Deep Deterministic Policy Gradient (Lillicrap et al., 2016), with the settings of TD3's code."""

    learning_starts: Natural = 25_000  # environment steps of uniform actions
    buffer_size: Count = 1_000_000  # transitions kept per seed
    batch_size: Count = 256  # transitions per update
    gamma: Discount = 0.99  # discount per step
    tau: Share = 0.005  # weight of new parameters in targets
    learning_rate: Rate = 3e-4  # Adam, every network
    noise: Literal["gaussian", "ou"] = "gaussian"  # exploration; ou: Ornstein-Uhlenbeck
    exploration_noise: Magnitude = 0.1  # gaussian: std, actions in [-1, 1]
    ou_theta: Magnitude = 0.15  # ou: pull towards 0, per unit of time
    ou_sigma: Magnitude = 0.2  # ou: std added in a unit of time, actions in [-1, 1]
    ou_dt: Rate = 1.0  # ou: time per step
    hidden_dims: Widths = (256, 256)  # widths of the hidden layers

    def check(self):
        super().check()
        starts, batch, total = self.learning_starts, self.batch_size, self.total_timesteps
        late = f"learning would never start: learning_starts {starts} >= total_timesteps {total}"
        require(starts < total, late)
        require(batch <= self.buffer_size, f"batch_size {batch} > buffer_size {self.buffer_size}")
        few = f"only {starts} transitions when learning starts, fewer than batch_size {batch}"
        require(batch <= starts, f"{few}; raise --learning-starts")
        holds = self.noise == "gaussian" or 0 < self.ou_theta * self.ou_dt < 2
        require(holds, f"noise diverges unless 0 < ou_theta * ou_dt < 2; got {self.ou_theta} * {self.ou_dt}")


def linear(x, features):
    """Dense layer; weights and biases are initialised from U(±1/√fan_in)."""
    bound = 1 / math.sqrt(x.shape[-1])
    uniform = Partial(jax.random.uniform, minval=-bound, maxval=bound)
    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)(x)


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
    """μ_φ(s): the action, in [-1, 1], `(..., action_dim)`."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return jnp.tanh(linear(x, self.action_dim))


def policy(state):
    """What `act` needs: the actor with its parameters, a function that is also a pytree."""
    return Partial(state.actor.apply_fn, state.actor.params)


def next_noise(noise, elapsed, key, args):
    """Noise of the next action, `(action_dim,)`; Ornstein-Uhlenbeck's starts from 0 in every episode."""
    noise, normal = jnp.where(elapsed == 0, 0, noise), jax.random.normal(key, noise.shape)
    if args.noise == "gaussian":
        return args.exploration_noise * normal
    return noise - args.ou_theta * noise * args.ou_dt + args.ou_sigma * math.sqrt(args.ou_dt) * normal


def act(policy, obs, key, deterministic):
    """Action in [-1, 1], `(..., action_dim)`: μ(s); `key` and `deterministic` are ignored."""
    return policy(obs)


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    target_actor: dict
    critic: TrainState
    target_critic: dict
    noise: jax.Array  # exploration noise, (action_dim,)


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, task.action_dim), Critic(args.hidden_dims)
    obs, action = jnp.zeros(task.obs_dim), jnp.zeros(task.action_dim)
    actor_params = actor.init(actor_key, obs)
    critic_params = critic.init(critic_key, obs, action)
    policy_adam = q_adam = optax.adam(args.learning_rate)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=policy_adam),
        target_actor=jax.tree.map(jnp.copy, actor_params),
        critic=TrainState.create(apply_fn=critic.apply, params=critic_params, tx=q_adam),
        target_critic=jax.tree.map(jnp.copy, critic_params),
        noise=jnp.zeros(task.action_dim),
    )


def critic_loss(params, state, batch, args):
    """Mean squared Bellman residual (eq. 4) against y of eq. 5, from the target networks of Algorithm 1."""
    next_action = state.actor.apply_fn(state.target_actor, batch.next_obs)
    next_value = state.critic.apply_fn(state.target_critic, batch.next_obs, next_action)  # (batch,)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = state.critic.apply_fn(params, batch.obs, batch.action)  # (batch,)
    loss = jnp.mean((q - jax.lax.stop_gradient(target)) ** 2)
    return loss, {"losses/qf1_loss": loss, "losses/qf1_values": q.mean()}


def actor_loss(params, state, batch):
    """Minus the value of the actor's actions; its gradient is the deterministic policy gradient (eq. 6)."""
    action = state.actor.apply_fn(params, batch.obs)
    q = state.critic.apply_fn(state.critic.params, batch.obs, action)
    loss = -q.mean()
    return loss, {"losses/actor_loss": loss}


def improve_policy(state, batch, args):
    """One step of the actor, then one of all targets."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    return move_targets(state, args), metrics


def move_targets(state, args):
    """Moves the targets a fraction τ of the way to the networks."""
    target_actor = optax.incremental_update(state.actor.params, state.target_actor, args.tau)
    target_critic = optax.incremental_update(state.critic.params, state.target_critic, args.tau)
    return state.replace(target_actor=target_actor, target_critic=target_critic)


def update(state, batch, key, index, args):
    """One gradient step of Algorithm 1 on one seed; the key is not needed: nothing is sampled.

    Returns the new state and metrics, scalars measured before each step.
    """
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critic.params, state, batch, args)
    state = state.replace(critic=state.critic.apply_gradients(grads=grads))
    state, policy_metrics = improve_policy(state, batch, args)
    return state, metrics | policy_metrics


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    replay = create_replays(args.num_seeds, args.buffer_size, envs.example, "--buffer-size or --num-seeds")
    evaluate = Evaluation(args, act)

    def warm_up(key, step):
        key = jax.random.fold_in(key, step)
        return jax.random.uniform(key, (envs.task.action_dim,), minval=-1, maxval=1)

    def explore(policy, obs, noise, elapsed, key, step):
        noise = next_noise(noise, elapsed, jax.random.fold_in(key, step), args)
        return jnp.clip(act(policy, obs, key, deterministic=True) + noise, -1, 1), noise

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
                run.evaluate(evaluate, step, policy(state), keys.evaluate)
            if step == args.total_timesteps:
                break
            if step < args.learning_starts:
                action = warm_up(keys.act, step)
            else:
                action, noise = explore(policy(state), envs.obs, state.noise, envs.elapsed, keys.act, step)
                state = state.replace(noise=noise)
            envs.step_async(action)  # workers begin to step; without workers step_wait steps
            if step > 0:
                replay = store(replay, envs.transition, step - 1)  # of the step before
            if step >= args.learning_starts:
                index = 0  # all updates are alike
                state, losses = learn(state, replay, keys.update, step, index)
            # the update just dispatched runs while the environments step
            episodes = envs.step_wait()
            run.end_step(step + 1, state, losses, episodes)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

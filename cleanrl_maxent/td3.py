"""Twin Delayed DDPG: two critics, delayed policy and targets, smoothed target actions.

Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", 2018,
https://arxiv.org/abs/1802.09477.
Numbers in this file refer to it. Deliberate deviations, with their reasons on the page in docs/:
  - inside the agent actions lie in [-1, 1]; noises are in these units;
  - networks, learning rates, batch, warm-up and noise are those of the code that Fujimoto et al. keep;
  - weights and biases start as U(±1/√fan_in), as in most published curves.

    python cleanrl_maxent/td3.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.train_state import TrainState

from cleanrl_maxent.common.arguments import Integer, RunArgs, run_from_command_line, validate
from cleanrl_maxent.common.devices import check_memory, seed_sharding, set_up_device
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.replay import Replay, replay_bytes
from cleanrl_maxent.common.runs import Run


@dataclass(frozen=True)
class Args(RunArgs):
    """Twin Delayed DDPG (Fujimoto et al., 2018)."""

    exp_name: str = "td3"  # part of the run folder's name
    learning_starts: Integer = 25_000  # environment steps of uniform actions
    buffer_size: Integer = 1_000_000  # transitions kept of each seed
    batch_size: Integer = 256  # transitions of an update
    gamma: float = 0.99  # discount per step
    tau: float = 0.005  # weight of new parameters in targets
    learning_rate: float = 3e-4  # Adam, every network
    noise: Literal["gaussian", "ou"] = "gaussian"  # exploration; ou: Ornstein-Uhlenbeck
    exploration_noise: float = 0.1  # gaussian: deviation, half-ranges
    ou_theta: float = 0.15  # ou: pull towards 0, per unit of time
    ou_sigma: float = 0.2  # ou: deviation added in a unit of time, half-ranges
    ou_dt: float = 1.0  # ou: time that a step takes
    policy_noise: float = 0.2  # on target actions: deviation, half-ranges
    noise_clip: float = 0.5  # on target actions: largest, half-ranges
    policy_frequency: Integer = 2  # critic updates per update of actor and targets
    hidden_dims: tuple[int, ...] = (256, 256)  # widths of the hidden layers


def linear(x, features):
    """Dense layer whose weights and biases start as U(±1/√fan_in)."""
    bound = 1 / math.sqrt(x.shape[-1])

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)(x)


class Critic(nn.Module):
    """Q_θ(s, a): value of an action, `(...)`."""

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


def act(params, obs, key=None, deterministic=True):
    """Action in [-1, 1], `(..., action_dim)`: μ(s), whatever `key` and `deterministic`.

    The actor's widths are those of `params`, layer by layer.
    """
    *hidden_dims, action_dim = (layer["bias"].shape[-1] for layer in params["params"].values())
    return Actor(tuple(hidden_dims), action_dim).apply(params, obs)


def next_noise(noise, key, args):
    """Exploration noise of Algorithm 1 after `noise`, `(action_dim,)`; an episode starts from 0."""
    normal = jax.random.normal(key, noise.shape)
    if args.noise == "gaussian":
        return args.exploration_noise * normal
    return noise - args.ou_theta * noise * args.ou_dt + args.ou_sigma * math.sqrt(args.ou_dt) * normal


@struct.dataclass
class State:
    """Everything learned, for one seed, and where its exploration noise is."""

    actor: TrainState
    target_actor: dict
    critics: TrainState  # two, stacked on axis 0
    target_critics: dict
    noise: jax.Array  # (action_dim,)
    policy_metrics: dict  # of the actor's last step


def init(key, obs_dim, action_dim, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, action_dim), Critic(args.hidden_dims)
    obs, action = jnp.zeros(obs_dim), jnp.zeros(action_dim)
    actor_params = actor.init(actor_key, obs)
    critic_params = jax.vmap(critic.init, (0, None, None))(jax.random.split(critic_key), obs, action)
    adam = optax.adam(args.learning_rate)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=adam),
        target_actor=jax.tree.map(jnp.copy, actor_params),
        critics=TrainState.create(apply_fn=critic.apply, params=critic_params, tx=adam),
        target_critics=jax.tree.map(jnp.copy, critic_params),
        noise=jnp.zeros(action_dim),
        policy_metrics={"losses/actor_loss": jnp.float32(0)},
    )


def critic_loss(params, state, batch, key, args):
    """Mean squared Bellman residual of both critics against one target: the smaller target critic (sec. 4.2)
    at a smoothed target action (sec. 5.3)."""
    both_critics = jax.vmap(state.critics.apply_fn, (0, None, None))
    noise = args.policy_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -args.noise_clip, args.noise_clip)
    next_action = jnp.clip(state.actor.apply_fn(state.target_actor, batch.next_obs) + noise, -1, 1)
    next_q = both_critics(state.target_critics, batch.next_obs, next_action).min(axis=0)  # (batch,)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_q
    q = both_critics(params, batch.obs, batch.action)  # (2, batch)
    losses = jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    return losses.sum(), {
        "losses/qf1_loss": losses[0],
        "losses/qf2_loss": losses[1],
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[1].mean(),
    }


def actor_loss(params, state, batch):
    """Minus the value of the actor's actions by the first critic (Algorithm 1)."""
    action = state.actor.apply_fn(params, batch.obs)
    first_critic = jax.tree.map(lambda leaf: leaf[0], state.critics.params)
    q = state.critics.apply_fn(first_critic, batch.obs, action)
    loss = -q.mean()
    return loss, {"losses/actor_loss": loss}


def improve_policy(state, batch, args):
    """A step of the actor, then of the targets."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    target_actor = optax.incremental_update(state.actor.params, state.target_actor, args.tau)
    target_critics = optax.incremental_update(state.critics.params, state.target_critics, args.tau)
    state = state.replace(target_actor=target_actor, target_critics=target_critics)
    return state.replace(policy_metrics=metrics), metrics


def update(state, batch, key, index, args):
    """One gradient step of Algorithm 1 on one seed: number `index` (from 0), with a `key` of its own.

    Returns the new state, and metrics from before each step, scalars.
    """
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics.params, state, batch, key, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    state, policy_metrics = jax.lax.cond(
        index % args.policy_frequency == 0,
        lambda state: improve_policy(state, batch, args),
        lambda state: (state, state.policy_metrics),  # a delay (sec. 5.2)
        state,
    )
    return state, metrics | policy_metrics


def train(args):
    """Trains the seeds side by side and returns what `result.json` holds.

    Goes on with the run in `run_dir` where there is one. Raises UsageError for bad input, before anything
    is written; NonFiniteError; OSError where the disk fails; Stopped after a signal; and Finished where
    `run_dir` holds all that is asked for.
    """
    validate(args)
    set_up_device(args.device, args.run_dir)
    envs = SeedEnvs(args.env_id, args.seeds, args.env_reset)
    obs_dim, action_dim = envs.obs_dim, envs.action_dim
    needed = replay_bytes(args.num_seeds, args.buffer_size, obs_dim, action_dim)
    check_memory(needed, f"replay of {args.num_seeds} x {args.buffer_size} transitions")
    evaluate = Evaluation(args, act, policies=("eval",))

    def explore(key, step):
        return jax.random.uniform(jax.random.fold_in(key, step), (action_dim,), minval=-1, maxval=1)

    def behave(params, obs, noise, key, step):
        noise = next_noise(noise, jax.random.fold_in(key, step), args)
        return jnp.clip(act(params, obs) + noise, -1, 1), noise

    def learn(state, replay, key, step):
        sample_key, update_key = jax.random.split(jax.random.fold_in(key, step))
        batch = replay.sample(sample_key, args.batch_size, step)
        return update(state, batch, update_key, step - args.learning_starts, args)

    # every seed: its own keys, state, replay; from here on all arrays lead with the axis (seed,)
    sharding = seed_sharding(args.num_seeds)
    seeds = jax.device_put(np.array(args.seeds), sharding)
    streams = jax.vmap(lambda seed: tuple(jax.random.split(jax.random.key(seed), 4)))
    init_keys, act_keys, update_keys, eval_keys = jax.jit(streams)(seeds)
    state = jax.jit(jax.vmap(lambda key: init(key, obs_dim, action_dim, args)))(init_keys)
    create = jax.vmap(lambda _: Replay.create(args.buffer_size, obs_dim, action_dim))
    replay = jax.jit(create, out_shardings=sharding)(seeds)
    explore = jax.jit(jax.vmap(explore, (0, None)))
    behave = jax.jit(jax.vmap(behave, (0, 0, 0, 0, None)))
    store = jax.jit(jax.vmap(Replay.store, (0, 0, None)), donate_argnums=0)
    learn = jax.jit(jax.vmap(learn, (0, 0, 0, None)), donate_argnums=0)

    with Run(args, "td3") as run:
        start, state, replay = run.resume(envs, state, replay)
        if args.env_reset == "restart":  # a resumed run begins new episodes
            state = state.replace(noise=0 * state.noise)
        losses = {}
        for step in range(start, args.total_timesteps + 1):
            # first of all, so that a run resumed here makes up for an evaluation cut short
            if evaluate.due(step):
                run.record_evaluation(step, evaluate(step, state.actor.params, eval_keys))
            if step == args.total_timesteps:
                break
            if step < args.learning_starts:
                action = explore(act_keys, step)
            else:
                action, noise = behave(state.actor.params, envs.obs, state.noise, act_keys, step)
                state = state.replace(noise=noise)
            if step > 0:
                replay = store(replay, envs.transition, step - 1)
            if step >= args.learning_starts:
                state, losses = learn(state, replay, update_keys, step)
            # waits for the action, not for the update just dispatched: that hides behind the environments
            episodes = envs.step(np.asarray(action))
            for episode in episodes:
                state = state.replace(noise=state.noise.at[episode.index].set(0))
            run.record_episodes(step + 1, episodes)
            run.record_losses(step + 1, losses)
            run.checkpoint(step + 1, envs, state)
        run.save_policy(state.actor.params)
        return run.finish()


if __name__ == "__main__":
    run_from_command_line(Args, train)

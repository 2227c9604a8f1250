"""Soft Actor-Critic with two critics and a learned temperature.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, https://arxiv.org/abs/1812.05905.
Equation numbers refer to it. Deliberate deviations, with their reasons in docs/sac.md:
  - inside the agent actions lie in [-1, 1]; log-densities and entropies (nats) refer to these units;
  - weights and biases start as U(±1/√fan_in) instead of Glorot, as in most published curves;
  - the temperature is learned through its logarithm, from the log-densities of the actor's loss.

    python cleanrl_maxent/sac.py --env-id Hopper-v4
"""

import math
from dataclasses import dataclass

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
    """Soft Actor-Critic (Haarnoja et al., 2018) with a learned temperature."""

    exp_name: str = "sac"  # part of the run folder's name
    learning_starts: Integer = 10_000  # environment steps of uniform actions
    buffer_size: Integer = 1_000_000  # transitions kept of each seed
    batch_size: Integer = 256  # transitions of an update
    gamma: float = 0.99  # discount per step
    tau: float = 0.005  # weight of new parameters in targets
    policy_lr: float = 3e-4  # Adam, actor and temperature
    q_lr: float = 3e-4  # Adam, critics
    alpha: float = 1.0  # temperature, in reward per nat; where it starts if autotune
    autotune: bool = True  # learn the temperature
    target_entropy_scale: float = 1.0  # target is -scale * action_dim nats
    policy_frequency: Integer = 1  # critic updates per actor update
    target_network_frequency: Integer = 1  # critic updates per target update
    hidden_dims: tuple[int, ...] = (256, 256)  # widths of the hidden layers


def linear(x, features):
    """Dense layer whose weights and biases start as U(±1/√fan_in)."""
    bound = 1 / math.sqrt(x.shape[-1])

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)(x)


class Critic(nn.Module):
    """Q_θ(s, a): soft value of an action, `(...)`."""

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


def gaussian(params, obs):
    """Mean and log standard deviation; the actor's widths are those of `params`, layer by layer."""
    *hidden_dims, heads = (layer["bias"].shape[-1] for layer in params["params"].values())
    return Actor(tuple(hidden_dims), heads // 2).apply(params, obs)


def sample_action(params, obs, key):
    """Reparameterised action tanh(u) (eq. 8) and its log-density in nats (appendix C)."""
    mean, log_std = gaussian(params, obs)
    noise = jax.random.normal(key, mean.shape)
    u = mean + jnp.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh²u), written to stay finite for large |u|
    log_jacobian = 2 * (math.log(2) - u - nn.softplus(-2 * u))
    return jnp.tanh(u), (log_normal - log_jacobian).sum(axis=-1)


def act(params, obs, key, deterministic):
    """Action in [-1, 1], `(..., action_dim)`: tanh of the mean if `deterministic`, else a sample."""
    if deterministic:
        return jnp.tanh(gaussian(params, obs)[0])
    return sample_action(params, obs, key)[0]


@struct.dataclass
class State:
    """Everything learned, for one seed; two critics are stacked on axis 0."""

    actor: TrainState
    critics: TrainState
    target_critics: dict
    alpha: TrainState  # its one parameter is log_alpha
    policy_metrics: dict  # of the last step of actor and temperature


def init(key, obs_dim, action_dim, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, action_dim), Critic(args.hidden_dims)
    obs, action = jnp.zeros(obs_dim), jnp.zeros(action_dim)
    actor_params = actor.init(actor_key, obs)
    critic_params = jax.vmap(critic.init, (0, None, None))(jax.random.split(critic_key), obs, action)
    both_critics = jax.vmap(critic.apply, (0, None, None))
    policy_adam, q_adam = optax.adam(args.policy_lr), optax.adam(args.q_lr)
    log_alpha = jnp.log(jnp.float32(max(args.alpha, 1e-37)))  # finite also where alpha is 0
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=policy_adam),
        critics=TrainState.create(apply_fn=both_critics, params=critic_params, tx=q_adam),
        target_critics=jax.tree.map(jnp.copy, critic_params),
        alpha=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=policy_adam),
        policy_metrics={
            f"losses/{name}": jnp.float32(0) for name in ("actor_loss", "entropy", "alpha_loss", "alpha")
        },
    )


def temperature(state):
    """α of eq. 1, in reward per nat."""
    return jnp.exp(state.alpha.params["log_alpha"])


def critic_loss(params, state, batch, key, args):
    """Soft Bellman residual of both critics (eq. 5), with V of eq. 3 from the smaller target."""
    next_action, next_log_prob = sample_action(state.actor.params, batch.next_obs, key)
    next_q = state.critics.apply_fn(state.target_critics, batch.next_obs, next_action)  # (2, batch)
    next_value = next_q.min(axis=0) - temperature(state) * next_log_prob
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = state.critics.apply_fn(params, batch.obs, batch.action)  # (2, batch)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    return losses.sum(), {
        "losses/qf1_loss": losses[0],
        "losses/qf2_loss": losses[1],
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[1].mean(),
    }


def actor_loss(params, state, batch, key):
    """α times the KL of the policy from exp(Q/α)/Z, up to a term without φ (eq. 9); Q: smaller critic."""
    action, log_prob = sample_action(params, batch.obs, key)
    q = state.critics.apply_fn(state.critics.params, batch.obs, action).min(axis=0)
    loss = jnp.mean(temperature(state) * log_prob - q)
    return loss, {"losses/actor_loss": loss, "losses/entropy": -log_prob.mean()}


def alpha_loss(params, entropy, target_entropy):
    """Dual of the entropy constraint (eq. 18): α falls while the entropy exceeds its target."""
    alpha = jnp.exp(params["log_alpha"])
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": alpha}


def improve_policy(state, batch, key, target_entropy, args):
    """A step of the actor, then of the temperature at the entropy that the actor had."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch, key)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    params, entropy = state.alpha.params, metrics["losses/entropy"]
    grads, alpha_metrics = jax.grad(alpha_loss, has_aux=True)(params, entropy, target_entropy)
    if args.autotune:
        state = state.replace(alpha=state.alpha.apply_gradients(grads=grads))
    metrics |= alpha_metrics
    return state.replace(policy_metrics=metrics), metrics


def update(state, batch, key, index, args):
    """Gradient step number `index` (from 0) of Algorithm 1 on one seed; the key is consumed.

    Returns the new state, and metrics from before each step, scalars.
    """
    next_action_key, action_key = jax.random.split(key)
    params = state.critics.params
    grads, metrics = jax.grad(critic_loss, has_aux=True)(params, state, batch, next_action_key, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    # actor and temperature, against the new critics
    target_entropy = -args.target_entropy_scale * batch.action.shape[-1]
    state, policy_metrics = jax.lax.cond(  # a branch costs 3%; of a plain True XLA leaves none
        args.policy_frequency == 1 or index % args.policy_frequency == 0,
        lambda state: improve_policy(state, batch, action_key, target_entropy, args),
        lambda state: (state, state.policy_metrics),
        state,
    )
    tau = jnp.where(index % args.target_network_frequency == 0, args.tau, 0.0)
    target_critics = optax.incremental_update(state.critics.params, state.target_critics, tau)
    return state.replace(target_critics=target_critics), metrics | policy_metrics


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
    evaluate = Evaluation(args, act, sample_action)

    def explore(key, step):
        return jax.random.uniform(jax.random.fold_in(key, step), (action_dim,), minval=-1, maxval=1)

    def behave(params, obs, key, step):
        return act(params, obs, jax.random.fold_in(key, step), False)

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
    behave = jax.jit(jax.vmap(behave, (0, 0, 0, None)))
    store = jax.jit(jax.vmap(Replay.store, (0, 0, None)), donate_argnums=0)
    learn = jax.jit(jax.vmap(learn, (0, 0, 0, None)), donate_argnums=0)

    with Run(args, "sac") as run:
        start, state, replay = run.resume(envs, state, replay)
        losses = {}
        for step in range(start, args.total_timesteps + 1):
            # first of all, so that a run resumed here makes up for an evaluation cut short
            if evaluate.due(step):
                metrics = evaluate(step, state.actor.params, eval_keys, temperature(state))
                run.record_evaluation(step, metrics)
            if step == args.total_timesteps:
                break
            if step < args.learning_starts:
                action = explore(act_keys, step)
            else:
                action = behave(state.actor.params, envs.obs, act_keys, step)
            if step > 0:
                replay = store(replay, envs.transition, step - 1)
            if step >= args.learning_starts:
                state, losses = learn(state, replay, update_keys, step)
            # waits for the action, not for the update just dispatched: that hides behind the environments
            episodes = envs.step(np.asarray(action))
            run.record_episodes(step + 1, episodes)
            run.record_losses(step + 1, losses)
            run.checkpoint(step + 1, envs, state)
        run.save_policy(state.actor.params)
        return run.finish()


if __name__ == "__main__":
    run_from_command_line(Args, train)

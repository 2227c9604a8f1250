"""Soft Q-learning: a critic of the soft optimum, and a network that samples from exp(Q/α).

Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", 2017, https://arxiv.org/abs/1702.08165.
Equation numbers refer to it. Deliberate deviations, with their reasons in docs/sql.md:
  - inside the agent actions lie in [-1, 1]; proposals and densities refer to these units;
  - actions end in tanh; Stein's particles and scores are taken before it, where the fixed point is exp(Q/α);
    `--svgd-space action` takes them after it, as does the code that Haarnoja et al. published;
  - the reward is multiplied by c and α is 1, as in that code; the paper has α alone;
  - samples explore by themselves, as in that code: no Ornstein-Uhlenbeck noise is added;
  - the kernel's width is their code's: the median over log of the number of fixed particles;
  - weights and biases start as U(±1/√fan_in) instead of Glorot, as in the sibling files.

    python cleanrl_maxent/sql.py --env-id Hopper-v4
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

# c, by environment whatever its version: the published example's (docs/sql.md); 1 elsewhere
REWARD_SCALES = dict(Swimmer=30, Hopper=30, HalfCheetah=30, Walker2d=10, Ant=300, Humanoid=100)


@dataclass(frozen=True)
class Args(RunArgs):
    """Soft Q-learning (Haarnoja et al., 2017)."""

    exp_name: str = "sql"  # part of the run folder's name
    learning_starts: Integer = 5_000  # environment steps of uniform actions
    buffer_size: Integer = 1_000_000  # transitions kept of each seed
    batch_size: Integer = 256  # transitions of an update
    gamma: float = 0.99  # discount per step
    tau: float = 1.0  # weight of new parameters in targets
    policy_lr: float = 3e-4  # Adam, sampler
    q_lr: float = 3e-4  # Adam, critics
    alpha: float = 1.0  # temperature, in scaled reward per nat; alpha / reward_scale in reward per nat
    # c, times the reward; None: 30 on Swimmer, Hopper, HalfCheetah, 10 Walker2d, 300 Ant, 100 Humanoid,
    # 1 elsewhere
    reward_scale: float | None = None
    n_critics: Integer = 1  # critics; the smallest value counts
    value_particles: Integer = 16  # uniform actions for the soft value
    svgd_particles: Integer = 16  # actions of the sampler per state
    update_ratio: float = 0.5  # share of svgd_particles that moves, rounded down
    svgd_space: Literal["raw", "action"] = "raw"  # particles before tanh, or after
    target_network_frequency: Integer = 1_000  # critic updates per target update
    hidden_dims: tuple[int, ...] = (128, 128)  # widths of the hidden layers

    @property
    def moved_particles(self):
        """Particles of a state that are moved."""
        return int(self.update_ratio * self.svgd_particles)

    @property
    def fixed_particles(self):
        """The others, which are fixed."""
        return self.svgd_particles - self.moved_particles


def reward_scale(args):
    """c of the target c r + γ V(s'): `--reward-scale`, or that of the environment."""
    if args.reward_scale is not None:
        return args.reward_scale
    name = args.env_id.rpartition(":")[2].rpartition("-v")[0]  # without module and version
    return float(REWARD_SCALES.get(name, 1))


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
    """f_φ(ξ; s): a sample before the squash, `(..., action_dim)`, from Gaussian noise of the same shape."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs, noise):
        x = jnp.concatenate([obs, noise], axis=-1)
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, self.action_dim)


def sample(params, obs, key):
    """u = f(ξ; s), `(..., action_dim)`; the sampler's widths are those of `params`, layer by layer."""
    *hidden_dims, action_dim = (layer["bias"].shape[-1] for layer in params["params"].values())
    noise = jax.random.normal(key, (*obs.shape[:-1], action_dim))
    return Actor(tuple(hidden_dims), action_dim).apply(params, obs, noise)


def act(params, obs, key, deterministic):
    """Action in [-1, 1], `(..., action_dim)`: tanh of a sample, also where `deterministic`."""
    return jnp.tanh(sample(params, obs, key))


@struct.dataclass
class State:
    """Everything learned, for one seed; critics are stacked on axis 0."""

    actor: TrainState
    critics: TrainState
    target_critics: dict


def init(key, obs_dim, action_dim, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, action_dim), Critic(args.hidden_dims)
    obs, action = jnp.zeros(obs_dim), jnp.zeros(action_dim)
    actor_params = actor.init(actor_key, obs, action)
    critic_keys = jax.random.split(critic_key, args.n_critics)
    critic_params = jax.vmap(critic.init, (0, None, None))(critic_keys, obs, action)
    all_critics = jax.vmap(critic.apply, (0, None, None))
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=optax.adam(args.policy_lr)),
        critics=TrainState.create(apply_fn=all_critics, params=critic_params, tx=optax.adam(args.q_lr)),
        target_critics=jax.tree.map(jnp.copy, critic_params),
    )


def repeat(obs, count):
    """Every state `count` times, `(batch, count, obs_dim)`."""
    return jnp.broadcast_to(obs[:, None], (len(obs), count, obs.shape[-1]))


def soft_value(state, obs, action_dim, key, args):
    """V(s) = α log ∫ exp(Q(s, a)/α) da of the targets, `(batch,)`: eq. 10 with uniform actions."""
    shape = (len(obs), args.value_particles, action_dim)
    action = jax.random.uniform(key, shape, minval=-1, maxval=1)
    obs = repeat(obs, args.value_particles)
    q = state.critics.apply_fn(state.target_critics, obs, action).min(axis=0)
    log_mean = nn.logsumexp(q / args.alpha, axis=-1) - math.log(args.value_particles)
    return args.alpha * (log_mean + action_dim * math.log(2))  # actions fill a volume of 2^action_dim


def critic_loss(params, state, batch, key, args):
    """Soft Bellman residual of the critics (eq. 11), with the soft value of the target critics."""
    action_dim = batch.action.shape[-1]
    next_value = soft_value(state, batch.next_obs, action_dim, key, args)
    target = reward_scale(args) * batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = state.critics.apply_fn(params, batch.obs, batch.action)  # (n_critics, batch)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    metrics = {f"losses/qf{i + 1}_loss": losses[i] for i in range(args.n_critics)}
    return losses.sum(), metrics | {f"losses/qf{i + 1}_values": q[i].mean() for i in range(args.n_critics)}


def sample_particles(params, obs, key, count, args):
    """Samples for each state, `(batch, count, action_dim)`, in the space of `--svgd-space`."""
    u = sample(params, repeat(obs, count), key)
    return u if args.svgd_space == "raw" else jnp.tanh(u)


def log_density(particles, obs, state, args):
    """log p of particles, `(batch, count)`, up to a constant: of exp(Q/α)/Z (eq. 12) times Π(1 - a²).

    Before tanh that factor is the Jacobian, so that actions follow exp(Q/α)/Z. After tanh, as in the
    published code, it changes what they follow to exp(Q/α) Π(1 - a²).
    """
    if args.svgd_space == "raw":
        action = jnp.tanh(particles)
        # log(1 - tanh²u), written to stay finite for large |u|
        log_jacobian = 2 * (math.log(2) - particles - nn.softplus(-2 * particles))
    else:
        action = particles
        log_jacobian = jnp.log(1 - particles**2 + 1e-6)
    obs = repeat(obs, particles.shape[1])
    q = state.critics.apply_fn(state.critics.params, obs, action).min(axis=0)
    return q / args.alpha + log_jacobian.sum(axis=-1)


def stein_direction(fixed, moved, score):
    """Δf/α of eq. 13 for the `moved` particles of one state, `(moved, action_dim)`.

    `score`: ∇ log p at the `fixed` particles; both `(fixed, action_dim)`. κ(x, y) = exp(-‖x - y‖²/h), with
    the width h = the lower median of ‖x - y‖² over the log of the number of fixed particles, at least 1e-3.
    """
    difference = fixed[:, None] - moved  # (fixed, moved, D)
    squared = jnp.sum(difference**2, axis=-1)
    # floats >= 0 sort as their bits do as integers, and XLA sorts integers several times as fast on a CPU
    bits = jnp.sort(squared.ravel().astype(jnp.float32).view(jnp.int32))
    median = bits[(squared.size - 1) // 2].view(jnp.float32)
    width = jnp.maximum(median / math.log(len(fixed)), 1e-3)
    kernel = jnp.exp(-squared / width)[..., None]
    repulsion = -2 * difference * kernel / width  # the gradient of the kernel in the fixed particle
    return jnp.mean(kernel * score[:, None] + repulsion, axis=0)


def actor_loss(params, state, batch, key, args):
    """Minus ⟨Δf/α, f_φ(ξ; s)⟩ with Δf held constant: by eq. 14 a step down it lowers the KL of eq. 12.

    The fixed samples estimate the mean of eq. 13; the moved ones are drawn apart, so that none repels itself.
    """
    fixed_key, moved_key = jax.random.split(key)
    fixed = sample_particles(state.actor.params, batch.obs, fixed_key, args.fixed_particles, args)
    moved = sample_particles(params, batch.obs, moved_key, args.moved_particles, args)
    score = jax.grad(lambda fixed: log_density(fixed, batch.obs, state, args).sum())(fixed)
    direction = jax.vmap(stein_direction)(fixed, jax.lax.stop_gradient(moved), score)
    loss = -jnp.mean(jnp.sum(direction * moved, axis=-1))
    return loss, {"losses/actor_loss": loss}


def update(state, batch, key, index, args):
    """Gradient step number `index` (from 0) of Algorithm 1 on one seed; the key is consumed.

    Returns the new state, and metrics from before each step, scalars.
    """
    value_key, noise_key = jax.random.split(key)
    params = state.critics.params
    grads, metrics = jax.grad(critic_loss, has_aux=True)(params, state, batch, value_key, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    # the sampler, towards the new critics
    params = state.actor.params
    grads, policy_metrics = jax.grad(actor_loss, has_aux=True)(params, state, batch, noise_key, args)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
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
    # about the largest array of an update: a layer over all particles, or pairs of fixed and moved ones
    count = max(args.n_critics * max(args.value_particles, args.fixed_particles), args.svgd_particles)
    floats = args.batch_size * max(count * max(args.hidden_dims), args.moved_particles * args.fixed_particles)
    flags = "--batch-size, --num-seeds, --n-critics, --value-particles or --svgd-particles"
    check_memory(4 * args.num_seeds * floats, "an update with so many particles", flags)
    evaluate = Evaluation(args, act, policies=("eval_stochastic",))

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

    with Run(args, "sql") as run:
        start, state, replay = run.resume(envs, state, replay)
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

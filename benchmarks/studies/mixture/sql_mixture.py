"""Soft Q-learning with a soft value from other proposals: half uniform, half near the sampler's own actions.

A copy of cleanrl_maxent/sql.py with another `soft_value`, its helpers `target_energy` and `mixture_value`,
and one more rule in `check`.

Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", 2017, https://arxiv.org/abs/1702.08165.
Equation and section numbers refer to it. Deliberate deviations, with reasons in docs/algorithms/:
  - inside the agent actions lie in [-1, 1], and all quantities are in these units;
  - actions end in tanh; Stein's particles and scores are taken before it, where the fixed point is exp(Q/α);
    `--svgd-space action` takes them after it, as does the code that Haarnoja et al. published;
  - the reward is multiplied by c and α is 1, as in that code; the paper has α alone;
  - samples explore by themselves, as in that code: no Ornstein-Uhlenbeck noise is added;
  - the kernel's width is their code's: the median over log of the number of fixed particles;
  - weights and biases are drawn from U(±1/√fan_in), PyTorch's default.

    python benchmarks/studies/mixture/sql_mixture.py --env-id HalfCheetah-v4 --total-timesteps 100000
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
from cleanrl_maxent.common.devices import check_memory, per_seed
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.ranges import Count, Discount, Fraction, Magnitude, Natural, Rate, Share, Widths
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start
from cleanrl_maxent.common.schedule import equivalent_index, every

# reward scale c by environment, any version, of the published example (docs/algorithms/sql.md); else 1
REWARD_SCALES = dict(Swimmer=30, Hopper=30, HalfCheetah=30, Walker2d=10, Ant=300, Humanoid=100)


@dataclass(frozen=True)
class Args(RunArgs):
    """Soft Q-learning (Haarnoja et al., 2017) with a mixture of proposals."""

    learning_starts: Natural = 5_000  # environment steps of uniform actions
    buffer_size: Count = 1_000_000  # transitions kept per seed
    batch_size: Count = 256  # transitions per update
    gamma: Discount = 0.99  # discount per step
    tau: Share = 1.0  # weight of new parameters in targets
    policy_lr: Rate = 3e-4  # Adam, actor
    q_lr: Rate = 3e-4  # Adam, critics
    alpha: Magnitude = 1.0  # temperature, in scaled reward per nat; alpha / reward_scale in reward per nat
    # reward factor; None: 30 on Swimmer, Hopper, HalfCheetah, 10 Walker2d, 300 Ant, 100 Humanoid, else 1
    reward_scale: Rate | None = None
    n_critics: Count = 1  # critics; the minimum of their values is used
    value_particles: Count = 16  # proposals for the soft value, an even number
    svgd_particles: Count = 16  # actions of the sampler per state
    update_ratio: Fraction = 0.5  # share of svgd_particles that moves, rounded down
    svgd_space: Literal["raw", "action"] = "raw"  # particles before tanh, or after
    target_network_frequency: Count = 1_000  # critic updates per target update
    hidden_dims: Widths = (128, 128)  # widths of the hidden layers

    def check(self):
        super().check()
        starts, batch, total = self.learning_starts, self.batch_size, self.total_timesteps
        late = f"learning would never start: learning_starts {starts} >= total_timesteps {total}"
        require(starts < total, late)
        require(batch <= self.buffer_size, f"batch_size {batch} > buffer_size {self.buffer_size}")
        few = f"only {starts} transitions when learning starts, fewer than batch_size {batch}"
        require(batch <= starts, f"{few}; raise --learning-starts")
        moved, fixed = self.particles
        split = f"update_ratio {self.update_ratio} moves {moved} of svgd_particles {self.svgd_particles}"
        require(moved >= 1 and fixed >= 2, f"{split}, leaves {fixed}; at least 1 and 2 are needed")
        require(self.alpha >= 1e-6, f"alpha, a divisor, must be at least 1e-6; got {self.alpha}")
        even = f"value_particles must be even, half of each kind; got {self.value_particles}"
        require(self.value_particles % 2 == 0, even)

    @property
    def particles(self):
        """How many particles of a state move, and how many are fixed."""
        moved = math.floor(round(self.update_ratio * self.svgd_particles, 9))  # 0.29 * 100 is 28.999…
        return moved, self.svgd_particles - moved


def reward_scale(args):
    """c of the target c r + γ V(s'): `--reward-scale`, or that of the environment."""
    if args.reward_scale is not None:
        return args.reward_scale
    name = args.env_id.rpartition(":")[2].rpartition("-v")[0]  # without module and version
    return float(REWARD_SCALES.get(name, 1))


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
    """f_φ(ξ; s): a sample before the squash, `(..., action_dim)`, from Gaussian noise ξ of the same shape."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs, key):
        noise = jax.random.normal(key, (*obs.shape[:-1], self.action_dim))
        x = jnp.concatenate([obs, noise], axis=-1)
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, self.action_dim)


def policy(state):
    """What `act` needs: the actor with its parameters, a function that is also a pytree."""
    return Partial(state.actor.apply_fn, state.actor.params)


def act(policy, obs, key, deterministic):
    """Action in [-1, 1], `(..., action_dim)`: tanh of a sample, also if `deterministic`."""
    return jnp.tanh(policy(obs, key))


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    critics: TrainState  # n_critics, stacked on axis 0
    target_critics: dict


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, task.action_dim), Critic(args.hidden_dims)
    obs, action = jnp.zeros(task.obs_dim), jnp.zeros(task.action_dim)
    actor_params = actor.init(actor_key, obs, actor_key)  # any key: parameters do not depend on ξ
    critic_keys = jax.random.split(critic_key, args.n_critics)
    critic_params = jax.vmap(critic.init, (0, None, None))(critic_keys, obs, action)
    apply_critics = jax.vmap(critic.apply, (0, None, None))
    policy_adam, q_adam = optax.adam(args.policy_lr), optax.adam(args.q_lr)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=policy_adam),
        critics=TrainState.create(apply_fn=apply_critics, params=critic_params, tx=q_adam),
        target_critics=jax.tree.map(jnp.copy, critic_params),
    )


def repeat(obs, count):
    """Every state `count` times, `(batch, count, obs_dim)`."""
    return jnp.broadcast_to(obs[:, None], (len(obs), count, obs.shape[-1]))


def target_energy(state, obs, args):
    """Q/α of the targets as a function of actions `(batch, count, action_dim)` in `obs`: `(batch, count)`."""

    def energy(action):
        rows = repeat(obs, action.shape[1])
        return state.critics.apply_fn(state.target_critics, rows, action).min(axis=0) / args.alpha

    return energy


def mixture_value(energy, samples, key, count):
    """log ∫ exp(Q/α) da, `(batch,)`, from proposals half uniform and half of a squashed Gaussian.

    The Gaussian has the mean and 1.5 times the standard deviation of the sampler's `samples` before tanh,
    `(batch, K, action_dim)`; each proposal is weighted by the density of the mixture.
    """
    uniform_key, normal_key = jax.random.split(key)
    mean, std = samples.mean(axis=1, keepdims=True), 1.5 * samples.std(axis=1, keepdims=True) + 1e-3
    shape = (len(samples), count // 2, samples.shape[-1])
    uniform = jnp.arctanh(jax.random.uniform(uniform_key, shape, minval=-1 + 1e-6, maxval=1 - 1e-6))
    u = jnp.concatenate([uniform, mean + std * jax.random.normal(normal_key, shape)], axis=1)
    log_jacobian = (2 * (math.log(2) - u - nn.softplus(-2 * u))).sum(axis=-1)
    log_normal = -0.5 * ((u - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    log_density = jnp.logaddexp(log_normal.sum(axis=-1) - log_jacobian, -shape[-1] * math.log(2))
    weights = energy(jnp.tanh(u)) - log_density + math.log(2)
    return nn.logsumexp(weights, axis=1) - math.log(2 * (count // 2))


def soft_value(state, obs, action_dim, key, args):
    """V(s) = α log ∫ exp(Q(s, a)/α) da of the targets, `(batch,)`: eq. 10 with the mixture of proposals.

    Its Gaussian is fitted to as many samples of the sampler as there are proposals.
    """
    samples_key, key = jax.random.split(key)
    samples = policy(state)(repeat(obs, args.value_particles), samples_key)
    return args.alpha * mixture_value(target_energy(state, obs, args), samples, key, args.value_particles)


def critic_loss(params, state, batch, key, args):
    """Soft Bellman residual of the critics (eq. 11), with the soft value of the target critics."""
    next_value = soft_value(state, batch.next_obs, batch.action.shape[-1], key, args)
    target = reward_scale(args) * batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = state.critics.apply_fn(params, batch.obs, batch.action)  # (n_critics, batch)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    metrics = {f"losses/qf{i + 1}_loss": losses[i] for i in range(args.n_critics)}
    return losses.sum(), metrics | {f"losses/qf{i + 1}_values": q[i].mean() for i in range(args.n_critics)}


def sample_particles(policy, obs, key, count, args):
    """Samples for each state, `(batch, count, action_dim)`, in the space of `--svgd-space`."""
    u = policy(repeat(obs, count), key)
    return u if args.svgd_space == "raw" else jnp.tanh(u)


def log_density(particles, obs, state, args):
    """Log-density of particles, `(batch, count)`, up to a constant: exp(Q/α)/Z (eq. 12) times Π(1 - a²).

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


def lower_median(squared):
    """The median of numbers >= 0, the lower one of an even count; a scalar."""
    # floats >= 0 sort as their bits do as integers, and XLA sorts integers several times as fast on a CPU
    bits = jnp.sort(squared.ravel().astype(jnp.float32).view(jnp.int32))
    return bits[(squared.size - 1) // 2].view(jnp.float32)


def stein_direction(fixed, moved, score):
    """Δf/α of eq. 13 for the `moved` particles of one state, `(moved, action_dim)`.

    `score`: ∇ log p at the `fixed` particles; both `(fixed, action_dim)`. κ(x, y) = exp(-‖x - y‖²/h), where h
    is the lower median of ‖x - y‖² divided by the log of the number of fixed particles, at least 1e-3.
    """
    difference = fixed[:, None] - moved  # (fixed, moved, D)
    squared = jnp.sum(difference**2, axis=-1)
    width = jnp.maximum(lower_median(squared) / math.log(len(fixed)), 1e-3)
    kernel = jnp.exp(-squared / width)[..., None]
    repulsion = -2 * difference * kernel / width  # the gradient of the kernel in the fixed particle
    return jnp.mean(kernel * score[:, None] + repulsion, axis=0)


def actor_loss(params, state, batch, key, args):
    """Minus ⟨Δf/α, f_φ(ξ; s)⟩ with Δf held constant: by eq. 14, descending it lowers the KL of eq. 12.

    The fixed samples estimate the mean of eq. 13; the moved ones are drawn separately, so none repels itself.
    """
    (n_moved, n_fixed), (fixed_key, moved_key) = args.particles, jax.random.split(key)
    fixed = sample_particles(policy(state), batch.obs, fixed_key, n_fixed, args)
    moved = sample_particles(Partial(state.actor.apply_fn, params), batch.obs, moved_key, n_moved, args)
    score = jax.grad(lambda u: log_density(u, batch.obs, state, args).sum())(fixed)
    direction = jax.vmap(stein_direction)(fixed, jax.lax.stop_gradient(moved), score)
    loss = -jnp.mean(jnp.sum(direction * moved, axis=-1))
    return loss, {"losses/actor_loss": loss}


def move_targets(state, args):
    """Moves the targets a fraction τ of the way to the networks."""
    target_critics = optax.incremental_update(state.critics.params, state.target_critics, args.tau)
    return state.replace(target_critics=target_critics), {}


def update(state, batch, key, index, args):
    """One gradient step of Algorithm 1 on one seed; the key is consumed.

    `index`: the update's number from 0, or its `equivalent_index`; it decides which delayed steps are due.
    Returns the new state and metrics, scalars measured before each step.
    """
    key, actor_key = jax.random.split(key)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics.params, state, batch, key, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    params = state.actor.params
    grads, policy_metrics = jax.grad(actor_loss, has_aux=True)(params, state, batch, actor_key, args)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    state, _ = every(args.target_network_frequency, index, move_targets, state, args)
    return state, metrics | policy_metrics


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    replay = create_replays(args.num_seeds, args.buffer_size, envs.example, "--buffer-size or --num-seeds")
    # about the largest array of an update: a layer over all particles, or pairs of fixed and moved ones
    moved, fixed = args.particles
    rows = max(args.n_critics * max(args.value_particles, fixed), args.svgd_particles)
    floats = args.num_seeds * args.batch_size * max(rows * max(args.hidden_dims), moved * fixed)
    flags = "--batch-size, --num-seeds, --n-critics, --value-particles or --svgd-particles"
    check_memory(4 * floats, "an update with so many particles", flags, args.num_seeds)
    evaluate = Evaluation(args, act)

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
                run.evaluate(evaluate, step, policy(state), keys.evaluate)
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

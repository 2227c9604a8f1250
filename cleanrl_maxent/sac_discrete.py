"""Soft Actor-Critic with finitely many actions, over which every expectation is a sum.

Christodoulou, "Soft Actor-Critic for Discrete Action Settings", 2019, https://arxiv.org/abs/1910.07207.
Equation numbers refer to it. Deliberate deviations, with reasons in docs/algorithms/:
  - the temperature is learned through its logarithm, and stays within [1e-4, alpha_max];
  - the target entropy is half the largest one, not 0.98 of it; batches, widths and targets are as in sac.py.
Variant: `--no-backup-entropy`, no entropy in the critics' target, Asad et al. 2025, https://arxiv.org/abs/2509.09838.

    python cleanrl_maxent/sac_discrete.py --env-id CartPole-v1 --total-timesteps 50000
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

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


@dataclass(frozen=True)
class Args(RunArgs):
    """Soft Actor-Critic with finitely many actions (Christodoulou, 2019)."""

    action_spaces: ClassVar = ("Discrete",)

    env_id: str = "CartPole-v1"  # Gymnasium id, or my_module:Id-v0
    learning_starts: Natural = 5_000  # environment steps of uniform actions
    buffer_size: Count = 100_000  # transitions kept per seed
    batch_size: Count = 256  # transitions per update
    gamma: Discount = 0.99  # discount per step
    tau: Share = 0.005  # weight of new parameters in targets
    policy_lr: Rate = 3e-4  # Adam, actor and temperature
    q_lr: Rate = 3e-4  # Adam, critics
    alpha: Magnitude = 0.2  # temperature, in reward per nat; the initial one if autotune
    autotune: bool = True  # learn the temperature
    alpha_max: Rate = 10.0  # largest temperature that is learned, in reward per nat
    target_entropy_scale: Discount = 0.5  # κ: target is κ log A nats, for A actions
    backup_entropy: bool = True  # count the entropy of later states
    critic_reduce: Literal["min", "mean"] = "min"  # how the two critics are combined
    train_frequency: Count = 1  # environment steps per update
    policy_frequency: Count = 1  # critic updates per actor update
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
        tunable = self.alpha > 0 or not self.autotune
        require(tunable, "alpha 0 cannot be tuned (its logarithm is learned); add --no-autotune")
        within = 1e-4 <= self.alpha <= self.alpha_max or not self.autotune
        advice = "change it or alpha_max, or add --no-autotune"
        require(within, f"alpha {self.alpha} is not in [0.0001, alpha_max {self.alpha_max}]; {advice}")


def linear(x, features):
    """Dense layer; weights and biases are initialised from U(±1/√fan_in)."""
    bound = 1 / math.sqrt(x.shape[-1])
    uniform = Partial(jax.random.uniform, minval=-bound, maxval=bound)
    return nn.Dense(features, kernel_init=uniform, bias_init=uniform)(x)


class Critic(nn.Module):
    """Q_θ(s, ·), `(..., action_dim)`."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, self.action_dim)


class Actor(nn.Module):
    """π_φ(·|s): logits of the actions, `(..., action_dim)`."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.relu(linear(x, dim))
        return linear(x, self.action_dim)


def policy(state):
    """What `act` needs: the actor with its parameters, a function that is also a pytree."""
    return Partial(state.actor.apply_fn, state.actor.params)


def gather(values, action):
    """The value of each action that was taken, `(...)`; `values`: `(..., action_dim)`."""
    return jnp.take_along_axis(values, action[..., None], axis=-1).squeeze(-1)


def sample_action(policy, obs, key):
    """An action's number, `(...)`, and its log π in nats."""
    logits = policy(obs)
    action = jax.random.categorical(key, logits)
    return action, gather(nn.log_softmax(logits), action)


def act(policy, obs, key, deterministic):
    """An action's number, `(...)`: the likeliest if `deterministic`, else a sample."""
    return policy(obs).argmax(axis=-1) if deterministic else sample_action(policy, obs, key)[0]


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    critics: TrainState  # two, stacked on axis 0
    target_critics: dict
    alpha: TrainState  # its one parameter is log_alpha


def init(key, task, args):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, task.action_dim), Critic(args.hidden_dims, task.action_dim)
    obs = jnp.zeros(task.obs_dim)
    actor_params = actor.init(actor_key, obs)
    critic_keys = jax.random.split(critic_key, 2)
    critic_params = jax.vmap(critic.init, (0, None))(critic_keys, obs)
    apply_critics = jax.vmap(critic.apply, (0, None))
    policy_adam, q_adam = optax.adam(args.policy_lr), optax.adam(args.q_lr)
    log_alpha = jnp.log(jnp.float32(max(args.alpha, 1e-37)))  # finite also if alpha is 0
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor_params, tx=policy_adam),
        critics=TrainState.create(apply_fn=apply_critics, params=critic_params, tx=q_adam),
        target_critics=jax.tree.map(jnp.copy, critic_params),
        alpha=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=policy_adam),
    )


def temperature(state):
    """α, in reward per nat."""
    return jnp.exp(state.alpha.params["log_alpha"])


def reduce_critics(q, args):
    """The smaller of the two critics' values, or their mean; `q`: `(2, ...)`."""
    return q.min(axis=0) if args.critic_reduce == "min" else q.mean(axis=0)


def critic_loss(params, state, batch, args):
    """Soft Bellman residual of the critics; V as in eq. 10, without -α log π if not `backup_entropy`."""
    next_log_prob = nn.log_softmax(policy(state)(batch.next_obs))
    next_q = reduce_critics(state.critics.apply_fn(state.target_critics, batch.next_obs), args)
    soft_q = next_q - temperature(state) * next_log_prob if args.backup_entropy else next_q
    next_value = jnp.sum(jnp.exp(next_log_prob) * soft_q, axis=-1)
    target = batch.reward + args.gamma * (1 - batch.terminated) * next_value
    q = jax.vmap(gather, (0, None))(state.critics.apply_fn(params, batch.obs), batch.action)  # (2, batch)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    return losses.sum(), {
        "losses/qf1_loss": losses[0],
        "losses/qf2_loss": losses[1],
        "losses/qf1_values": q[0].mean(),
        "losses/qf2_values": q[1].mean(),
    }


def actor_loss(params, state, batch, args):
    """Mean of π(s)ᵀ (α log π(s) - Q(s)) over states (eq. 12)."""
    log_prob = nn.log_softmax(state.actor.apply_fn(params, batch.obs))
    q = reduce_critics(state.critics.apply_fn(state.critics.params, batch.obs), args)
    loss = jnp.mean(jnp.sum(jnp.exp(log_prob) * (temperature(state) * log_prob - q), axis=-1))
    entropy = -jnp.sum(jnp.exp(log_prob) * log_prob, axis=-1).mean()
    return loss, {"losses/actor_loss": loss, "losses/entropy": entropy}


def alpha_loss(params, entropy, target_entropy):
    """Dual of the entropy constraint (eq. 11): α falls while the entropy exceeds its target."""
    alpha = jnp.exp(params["log_alpha"])
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": alpha}


def improve_policy(state, batch, args):
    """One step of the actor, then one of the temperature, at the entropy before the actor's step."""
    grads, metrics = jax.grad(actor_loss, has_aux=True)(state.actor.params, state, batch, args)
    state = state.replace(actor=state.actor.apply_gradients(grads=grads))
    num_actions = policy(state)(batch.obs).shape[-1]
    entropy, target_entropy = metrics["losses/entropy"], args.target_entropy_scale * math.log(num_actions)
    grads, alpha_metrics = jax.grad(alpha_loss, has_aux=True)(state.alpha.params, entropy, target_entropy)
    if args.autotune:
        alpha = state.alpha.apply_gradients(grads=grads)
        log_alpha = jnp.clip(alpha.params["log_alpha"], math.log(1e-4), math.log(args.alpha_max))
        state = state.replace(alpha=alpha.replace(params={"log_alpha": log_alpha}))
    return state, metrics | alpha_metrics


def move_targets(state, args):
    """Moves the targets a fraction τ of the way to the networks."""
    target_critics = optax.incremental_update(state.critics.params, state.target_critics, args.tau)
    return state.replace(target_critics=target_critics), {}


def update(state, batch, key, index, args):
    """One gradient step of Algorithm 1 on one seed; the key is not needed: nothing is sampled.

    `index`: the update's number from 0, or its `equivalent_index`; it decides which delayed steps are due.
    Returns the new state and metrics, scalars measured before each step.
    """
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics.params, state, batch, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    state, policy_metrics = every(args.policy_frequency, index, improve_policy, state, batch, args)
    state, _ = every(args.target_network_frequency, index, move_targets, state, args)
    return state, metrics | policy_metrics


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    replay = create_replays(args.num_seeds, args.buffer_size, envs.example, "--buffer-size or --num-seeds")
    evaluate = Evaluation(args, act, sample_action)
    frequencies = args.policy_frequency, args.target_network_frequency

    def warm_up(key, step):
        key = jax.random.fold_in(key, step)
        return jax.random.randint(key, (), 0, envs.task.action_dim)

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
            since = step - args.learning_starts
            if since >= 0 and since % args.train_frequency == 0:
                # steps with the same delayed updates share an index, and so a compiled program
                index = equivalent_index(since // args.train_frequency, *frequencies)
                state, losses = learn(state, replay, keys.update, step, index)
            # the update just dispatched runs while the environments step
            episodes = envs.step_wait()
            run.end_step(step + 1, state, losses, episodes)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

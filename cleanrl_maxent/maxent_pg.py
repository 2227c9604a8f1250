"""Maximum-entropy policy gradient: an actor-critic whose reward is r - α log π.

Its gradient is derived in docs/maxent_pg.md, whose equation numbers are used here. Advantages: Schulman et
al. 2016 (GAE), https://arxiv.org/abs/1506.02438. Several epochs of a rollout: Schulman et al. 2017 (PPO),
https://arxiv.org/abs/1707.06347. What is particular to this file:
  - `--backup-entropy`: the entropy of later states counts in values and advantages, as the objective has it;
    `--no-backup-entropy`: a state's entropy is a bonus to that state alone, as in A3C and PPO;
  - the policy is a squashed Gaussian with a deviation for every state, or categorical;
  - a time limit does not end the return, only the trace of advantages;
  - `--normalize-reward` scales r alone, so that α is in scaled reward per nat; `--norm-adv` scales advantages
    and α alike.

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

from cleanrl_maxent.common.arguments import Integer, RunArgs, run_from_command_line, validate
from cleanrl_maxent.common.devices import check_memory, seed_sharding, set_up_device
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.evaluation import Evaluation
from cleanrl_maxent.common.replay import Transition, replay_bytes
from cleanrl_maxent.common.runs import Run


@dataclass(frozen=True)
class Args(RunArgs):
    """Maximum-entropy policy gradient, actor-critic, with clipped surrogate."""

    takes_discrete: ClassVar[bool] = True

    exp_name: str = "maxent_pg"  # part of the run folder's name
    num_envs: Integer = 8  # environments of each seed
    num_steps: Integer = 256  # steps of each in a rollout
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # decay of the trace of advantages
    gamma_power: bool = False  # weigh step t by γ^t
    update_epochs: Integer = 10  # passes over a rollout
    num_minibatches: Integer = 32  # gradient steps of a pass
    clip_coef: float = 0.2  # of probability ratios; 0: no clip
    norm_adv: bool = True  # scale advantages and α alike
    learning_rate: float = 3e-4  # Adam, actor and critic
    anneal_lr: bool = True  # linearly to 0 at total_timesteps
    max_grad_norm: float = 0.5  # of actor and critic, each
    alpha: float = 0.01  # temperature, in scaled reward per nat
    autotune: bool = False  # learn it, within [1e-4, 1]
    alpha_lr: float = 3e-3  # Adam, temperature, once a rollout
    target_entropy_scale: float = 0.5  # of -action_dim or of log n, in nats
    backup_entropy: bool = True  # count the entropy of later states
    normalize_observation: bool = True  # by mean and deviation, clipped to ±10
    normalize_reward: bool = True  # by the deviation of the return
    hidden_dims: tuple[int, ...] = (64, 64)  # widths of the hidden layers

    @property
    def stride(self):
        """Environment steps of a rollout."""
        return self.num_envs * self.num_steps


def linear(x, features, scale, name=None):
    """Dense layer with orthogonal weights times `scale`, without bias at the start."""
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)(x)


class Critic(nn.Module):
    """V_ψ(s): soft value of a state with backed-up entropy, else the plain one, `(...)`."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.tanh(linear(x, dim, math.sqrt(2)))
        return linear(x, 1, 1.0).squeeze(-1)


class Actor(nn.Module):
    """π_φ: logits of actions, or mean and log standard deviation before the squash, `(..., action_dim)`."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    discrete: bool

    @nn.compact
    def __call__(self, obs):
        x = obs
        for dim in self.hidden_dims:
            x = nn.tanh(linear(x, dim, math.sqrt(2)))
        if self.discrete:
            return linear(x, self.action_dim, 0.01, "logits")
        mean, log_std = (linear(x, self.action_dim, 0.01, head) for head in ("mean", "log_std"))
        return mean, jnp.clip(log_std, -20, 2)


def is_discrete(params):
    """True where `params` are those of a categorical policy."""
    return "logits" in params["params"]


def heads(params, obs):
    """The actor's output; its widths are those of `params`, layer by layer."""
    layers = params["params"]
    hidden_dims = tuple(layers[name]["bias"].shape[-1] for name in layers if name.startswith("Dense"))
    action_dim = layers["logits" if is_discrete(params) else "mean"]["bias"].shape[-1]
    return Actor(hidden_dims, action_dim, is_discrete(params)).apply(params, obs)


def draw(params, obs, key):
    """A sample u before the squash and its action tanh(u), `(..., action_dim)`; or twice a number."""
    if is_discrete(params):
        number = jax.random.categorical(key, heads(params, obs))
        return number, number
    mean, log_std = heads(params, obs)
    u = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    return u, jnp.tanh(u)


def log_prob(params, obs, u):
    """log π of a sample, in nats, `(...)`; of tanh(u), as a density of the action, where it is squashed."""
    if is_discrete(params):
        log_probs = nn.log_softmax(heads(params, obs))
        return jnp.take_along_axis(log_probs, u[..., None], axis=-1).squeeze(-1)
    mean, log_std = heads(params, obs)
    log_normal = -0.5 * ((u - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh²u), written to stay finite for large |u|
    log_jacobian = 2 * (math.log(2) - u - nn.softplus(-2 * u))
    return (log_normal - log_jacobian).sum(axis=-1)


def policy_entropy(params, obs, key):
    """H(π(·|s)) in nats, `(...)`: exact where discrete, else of one reparameterised sample."""
    if is_discrete(params):
        log_probs = nn.log_softmax(heads(params, obs))
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return -log_prob(params, obs, draw(params, obs, key)[0])


@struct.dataclass
class Statistics:
    """Mean and variance of the rows so far, and their number; with none, nothing is normalised."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def add_rows(statistics, rows):
    """Statistics with `rows` besides, `(n, ...)` (Chan et al. 1979)."""
    count, total = statistics.count, statistics.count + len(rows)
    difference = rows.mean(axis=0) - statistics.mean
    squares = count * statistics.var + len(rows) * rows.var(axis=0)
    squares += difference**2 * count * len(rows) / total
    mean = statistics.mean + difference * len(rows) / total
    return Statistics(mean=mean, var=squares / total, count=total)


def normalized(statistics, obs):
    """Observations less their mean, over their deviation, clipped to ±10."""
    scaled = jnp.clip((obs - statistics.mean) / jnp.sqrt(statistics.var + 1e-8), -10, 10)
    return jnp.where(statistics.count > 0, scaled, obs)


def sample_action(policy, obs, key):
    """Action in [-1, 1], `(..., action_dim)`, or its number, `(...)`; and its log π in nats, `(...)`."""
    params, obs = policy["actor"], normalized(policy["observations"], obs)
    u, action = draw(params, obs, key)
    return action, log_prob(params, obs, u)


def act(policy, obs, key, deterministic):
    """Action as of `sample_action`; if `deterministic`, tanh of the mean, or the likeliest number."""
    params, obs = policy["actor"], normalized(policy["observations"], obs)
    if not deterministic:
        return draw(params, obs, key)[1]
    return heads(params, obs).argmax(axis=-1) if is_discrete(params) else jnp.tanh(heads(params, obs)[0])


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    actor: TrainState
    critic: TrainState
    alpha: TrainState  # its one parameter is log_alpha
    observations: Statistics  # of the rollouts before
    returns: Statistics  # of the plain discounted return so far, at every step
    running_return: jax.Array  # in each environment, (num_envs,)


def init(key, obs_dim, action_dim, args, discrete=False):
    """State of one seed; the key is consumed."""
    actor_key, critic_key = jax.random.split(key)
    actor, critic = Actor(args.hidden_dims, action_dim, discrete), Critic(args.hidden_dims)
    obs = jnp.zeros(obs_dim)
    steps = args.last_step // args.stride * args.update_epochs * args.num_minibatches
    rate = optax.linear_schedule(args.learning_rate, 0, steps) if args.anneal_lr else args.learning_rate
    adam = optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(rate, eps=1e-5))
    log_alpha = jnp.log(jnp.float32(max(args.alpha, 1e-37)))  # finite also where alpha is 0
    alpha_adam = optax.adam(args.alpha_lr)
    return State(
        actor=TrainState.create(apply_fn=actor.apply, params=actor.init(actor_key, obs), tx=adam),
        critic=TrainState.create(apply_fn=critic.apply, params=critic.init(critic_key, obs), tx=adam),
        alpha=TrainState.create(apply_fn=None, params={"log_alpha": log_alpha}, tx=alpha_adam),
        observations=Statistics(jnp.zeros(obs_dim), jnp.ones(obs_dim), jnp.zeros(())),
        returns=Statistics(jnp.zeros(()), jnp.ones(()), jnp.zeros(())),
        running_return=jnp.zeros(args.num_envs),
    )


def policy_of(state):
    """What `act` needs."""
    return {"actor": state.actor.params, "observations": state.observations}


def temperature(state):
    """α of eq. 1, in reward per nat; in units of the scaled reward where rewards are scaled."""
    return jnp.exp(state.alpha.params["log_alpha"])


def return_deviation(state):
    """Deviation of the discounted return, by which rewards are divided."""
    return jnp.sqrt(state.returns.var + 1e-8)


@struct.dataclass
class Rollout:
    """Steps of one seed's environments, `(num_steps, num_envs, ...)`."""

    transition: Transition
    u: jax.Array  # of `draw`
    ended: jax.Array  # the episode: terminated, or truncated by a time limit
    elapsed: jax.Array  # steps of the episode before this one


@struct.dataclass
class Samples:
    """What the losses need of a rollout, `(num_steps · num_envs, ...)`."""

    obs: jax.Array  # normalised
    u: jax.Array
    log_prob: jax.Array  # of u, when it was drawn
    advantage: jax.Array
    value_target: jax.Array
    weight: jax.Array  # γ^t, or 1


def track_returns(state, rollout, args):
    """The state with the deviation of discounted returns brought up to this rollout."""

    def step(running_return, row):
        reward, ended = row
        running_return = args.gamma * running_return + reward
        return running_return * (1 - ended), running_return

    rows = rollout.transition.reward, rollout.ended
    running_return, returns = jax.lax.scan(step, state.running_return, rows)
    return state.replace(running_return=running_return, returns=add_rows(state.returns, returns.ravel()))


def advantages(reward, value, next_value, terminated, ended, args):
    """Σ (γλ)^l δ over the rest of the episode (eq. 6); only a terminal state is without value."""
    residual = reward + args.gamma * (1 - terminated) * next_value - value

    def step(advantage, row):
        residual, ended = row
        advantage = residual + args.gamma * args.gae_lambda * (1 - ended) * advantage
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(residual[0]), (residual, ended), reverse=True)[1]


def to_samples(state, rollout, args):
    """Samples of a rollout, and the temperature in the units of their advantages."""
    made = rollout.transition
    obs, next_obs = (normalized(state.observations, x) for x in (made.obs, made.next_obs))
    reward = made.reward
    if args.normalize_reward:
        reward = reward / return_deviation(state)
    alpha, old_log_prob = temperature(state), log_prob(state.actor.params, obs, rollout.u)
    soft_reward = reward - alpha * old_log_prob if args.backup_entropy else reward
    value, next_value = (state.critic.apply_fn(state.critic.params, x) for x in (obs, next_obs))
    advantage = advantages(soft_reward, value, next_value, made.terminated, rollout.ended, args)
    value_target = advantage + value
    if args.backup_entropy:
        advantage += alpha * old_log_prob  # this step's entropy is left to actor_loss
    if args.norm_adv:
        deviation = advantage.std() + 1e-8
        advantage, alpha = (advantage - advantage.mean()) / deviation, alpha / deviation
    weight = args.gamma**rollout.elapsed if args.gamma_power else jnp.ones_like(reward)
    samples = Samples(obs, rollout.u, old_log_prob, advantage, value_target, weight)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples), alpha


def critic_loss(params, state, batch):
    """Half the mean square of V less its target (eq. 7)."""
    loss = 0.5 * jnp.mean((state.critic.apply_fn(params, batch.obs) - batch.value_target) ** 2)
    return loss, {"losses/value_loss": loss}


def actor_loss(params, batch, alpha, key, args):
    """Minus the surrogate, and α times the policy's own entropy (eq. 8)."""
    ratio = jnp.exp(log_prob(params, batch.obs, batch.u) - batch.log_prob)
    clipped = jnp.clip(ratio, 1 - args.clip_coef, 1 + args.clip_coef) if args.clip_coef else ratio
    surrogate = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    entropy = policy_entropy(params, batch.obs, key)
    loss = -jnp.mean(batch.weight * (surrogate + alpha * entropy))
    return loss, {
        "losses/actor_loss": loss,
        "losses/entropy": entropy.mean(),
        "losses/approx_kl": jnp.mean(ratio - 1 - jnp.log(ratio)),
        "losses/clipfrac": jnp.mean(ratio != clipped),
    }


def alpha_loss(params, entropy, target_entropy):
    """Dual of the entropy constraint (Haarnoja et al. 2018, eq. 18)."""
    alpha = jnp.exp(params["log_alpha"])
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha_loss": loss, "losses/alpha": alpha}


def improve_temperature(state, entropy, args):
    """A step of the temperature, at the entropy that the policy had in the rollout."""
    params = state.actor.params
    head = params["params"]["logits" if is_discrete(params) else "mean"]["bias"]
    target_entropy = args.target_entropy_scale * (math.log(head.size) if is_discrete(params) else -head.size)
    grads, metrics = jax.grad(alpha_loss, has_aux=True)(state.alpha.params, entropy, target_entropy)
    if args.autotune:
        alpha = state.alpha.apply_gradients(grads=grads)
        log_alpha = jnp.clip(alpha.params["log_alpha"], math.log(1e-4), 0.0)
        state = state.replace(alpha=alpha.replace(params={"log_alpha": log_alpha}))
    return state, metrics


def update(state, rollout, key, args):
    """Learns from one rollout of one seed; the key is consumed.

    Returns the new state, and metrics from before each gradient step, their means, scalars.
    """
    state = track_returns(state, rollout, args)
    samples, alpha = to_samples(state, rollout, args)

    def step(state, given):
        rows, key = given
        batch = jax.tree.map(lambda x: x[rows], samples)
        grads, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critic.params, state, batch)
        state = state.replace(critic=state.critic.apply_gradients(grads=grads))
        params = state.actor.params
        grads, metrics = jax.grad(actor_loss, has_aux=True)(params, batch, alpha, key, args)
        return state.replace(actor=state.actor.apply_gradients(grads=grads)), critic_metrics | metrics

    order_key, noise_key = jax.random.split(key)
    order = jnp.tile(jnp.arange(args.stride), (args.update_epochs, 1))
    order = jax.random.permutation(order_key, order, axis=1, independent=True)
    minibatches = order.reshape(args.update_epochs * args.num_minibatches, -1)
    state, metrics = jax.lax.scan(step, state, (minibatches, jax.random.split(noise_key, len(minibatches))))
    state, alpha_metrics = improve_temperature(state, -samples.log_prob.mean(), args)
    # the policy acts and learns on the same statistics: new ones are for the next rollout
    if args.normalize_observation:
        obs = rollout.transition.obs
        state = state.replace(observations=add_rows(state.observations, obs.reshape(-1, obs.shape[-1])))
    metrics = jax.tree.map(jnp.mean, metrics) | alpha_metrics
    return state, metrics | {"losses/return_deviation": return_deviation(state)}


def train(args):
    """Trains the seeds side by side and returns what `result.json` holds.

    Goes on with the run in `run_dir` where there is one. Raises UsageError for bad input, before anything
    is written; NonFiniteError; OSError where the disk fails; Stopped after a signal; and Finished where
    `run_dir` holds all that is asked for.
    """
    validate(args)
    set_up_device(args.device, args.run_dir)
    envs = SeedEnvs(args.env_id, args.seeds, args.env_reset, args.num_envs, args.takes_discrete)
    obs_dim, action_dim = envs.obs_dim, envs.action_dim
    needed = 2 * replay_bytes(args.num_seeds, args.stride, obs_dim, action_dim)
    check_memory(needed, f"rollout of {args.num_seeds} x {args.stride} steps", "--num-steps or --num-envs")
    evaluate = Evaluation(args, act, sample_action)

    def behave(policy, obs, key, step):
        obs = normalized(policy["observations"], obs)
        return draw(policy["actor"], obs, jax.random.fold_in(key, step))

    def learn(state, rollout, key, step):
        return update(state, rollout, jax.random.fold_in(key, step), args)

    # every seed: its own keys and state; from here on all arrays lead with the axis (seed,)
    sharding = seed_sharding(args.num_seeds)
    seeds = jax.device_put(np.array(args.seeds), sharding)
    streams = jax.vmap(lambda seed: tuple(jax.random.split(jax.random.key(seed), 4)))
    init_keys, act_keys, update_keys, eval_keys = jax.jit(streams)(seeds)
    state = jax.jit(jax.vmap(lambda key: init(key, obs_dim, action_dim, args, envs.discrete)))(init_keys)
    behave = jax.jit(jax.vmap(behave, (0, 0, 0, None)))
    learn = jax.jit(jax.vmap(learn, (0, 0, 0, None)), donate_argnums=0)

    def by_seed(*steps):  # each (seed · env, ...) -> (seed, step, env, ...)
        rows = np.stack(steps, axis=1)
        return rows.reshape(args.num_seeds, args.num_envs, *rows.shape[1:]).swapaxes(1, 2)

    with Run(args, "maxent_pg") as run:
        start, state, _ = run.resume(envs, state)
        if args.env_reset == "restart":  # a resumed run begins new episodes
            state = state.replace(running_return=0 * state.running_return)
        for step in range(start, args.last_step + 1, args.stride):
            # first of all, so that a run resumed here makes up for an evaluation cut short
            if evaluate.due(step):
                alpha = temperature(state) * (return_deviation(state) if args.normalize_reward else 1)
                run.record_evaluation(step, evaluate(step, policy_of(state), eval_keys, alpha))
            if step == args.last_step:
                break
            policy, rollout = policy_of(state), []
            for now in range(step, step + args.stride, args.num_envs):
                obs, elapsed = envs.obs.reshape(args.num_seeds, args.num_envs, obs_dim), envs.elapsed
                drawn = map(np.asarray, behave(policy, obs, act_keys, now))
                u, action = (x.reshape(-1, *x.shape[2:]) for x in drawn)
                episodes = envs.step(action)
                run.record_episodes(now + args.num_envs, episodes)
                rollout.append(Rollout(envs.transition, u, envs.ended, elapsed))
            state, losses = learn(state, jax.tree.map(by_seed, *rollout), update_keys, step)
            run.record_losses(step + args.stride, losses)
            run.checkpoint(step + args.stride, envs, state)
        run.save_policy(policy_of(state))
        return run.finish()


if __name__ == "__main__":
    run_from_command_line(Args, train)

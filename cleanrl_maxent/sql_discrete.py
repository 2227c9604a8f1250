"""Soft Q-learning with finitely many actions, where V(s) = α log Σ_a exp(Q(s, a)/α) and π are closed forms.

Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", 2017, https://arxiv.org/abs/1702.08165.
Equation numbers refer to it; its integrals are sums here. Variants by flags:
  - `--alpha 0` with `--start-e`, `--end-e`: DQN, Mnih et al. 2015, https://doi.org/10.1038/nature14236;
  - `--double`: van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461;
  - `--n-steps`: returns of n steps, path-consistent: Nachum et al. 2017, https://arxiv.org/abs/1702.08892;
  - `--munchausen`: the reward gains m α log π: Vieillard et al. 2020, https://arxiv.org/abs/2007.14430.

    python cleanrl_maxent/sql_discrete.py --env-id CartPole-v1 --total-timesteps 50000
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
from cleanrl_maxent.common.ranges import Count, Decay, Discount, Magnitude, Natural, Rate, Share, Widths
from cleanrl_maxent.common.run.run import Run
from cleanrl_maxent.common.run.start import start
from cleanrl_maxent.common.schedule import equivalent_index, every


@dataclass(frozen=True)
class Args(RunArgs):
    """Soft Q-learning with finitely many actions; DQN with --alpha 0."""

    action_spaces: ClassVar = ("Discrete",)

    env_id: str = "CartPole-v1"  # Gymnasium id, or my_module:Id-v0
    learning_starts: Natural = 1_000  # environment steps of uniform actions
    buffer_size: Count = 100_000  # transitions kept per seed
    batch_size: Count = 128  # transitions per update
    gamma: Discount = 0.99  # discount per step
    tau: Share = 0.005  # weight of new parameters in targets
    q_lr: Rate = 1e-3  # Adam, critics
    alpha: Magnitude = 0.1  # temperature, in reward per nat; 0: DQN
    uniform_prior: bool = False  # subtract α log A from V; needs alpha > 0
    n_critics: Count = 1  # critics; the minimum of their values is used
    double: bool = False  # critics choose the next action, targets evaluate it
    n_steps: Count = 1  # rewards summed in a target
    n_step_target: Literal["path", "uncorrected"] = "path"  # subtract α log π along the path, or not
    munchausen: Discount = 0.0  # m, share of α log π in the reward
    munchausen_clip: Rate | None = None  # α log π is clipped below at -this; None: no bound
    start_e: Decay = 0.0  # share of uniform actions at the start
    end_e: Decay = 0.0  # the same at the end
    exploration_fraction: Share = 0.5  # share of the run until end_e is reached
    train_frequency: Count = 1  # environment steps per update
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
        longest = min(starts, self.buffer_size)
        require(self.n_steps <= longest, f"n_steps {self.n_steps} > {longest} transitions of the replay")
        explores = self.alpha > 0 or self.end_e > 0
        require(explores, "nothing explores: alpha 0 is greedy; add --start-e 1 --end-e 0.05")
        finite = self.alpha == 0 or self.alpha >= 1e-6
        require(finite, f"alpha must be 0 or at least 1e-6; got {self.alpha}")
        counts = self.alpha > 0 or not self.uniform_prior
        require(counts, "uniform_prior needs alpha > 0: a hard maximum counts no entropy; add --alpha 0.1")
        clips = self.munchausen > 0 or self.munchausen_clip is None
        require(clips, "munchausen_clip needs munchausen; add --munchausen 0.9")
        several = self.n_steps > 1 or self.n_step_target == "path"
        require(several, "n_step_target needs n_steps > 1; add --n-steps 3")
        soft = self.alpha > 0 or self.munchausen == 0
        require(soft, "munchausen needs log π, which alpha 0 does not have; add --alpha 0.03")

    @property
    def length_is_fixed(self):
        """The share of uniform actions depends on total_timesteps."""
        return self.start_e != self.end_e


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


@struct.dataclass
class Policy:
    """What `act` needs: the critics with their parameters, and α."""

    critics: Partial
    alpha: float = struct.field(pytree_node=False)

    def __call__(self, obs):
        """The smallest Q of every action, `(..., action_dim)`."""
        return self.critics(obs).min(axis=0)


def policy(state):
    """What `act` needs."""
    return Policy(Partial(state.critics.apply_fn, state.critics.params), state.alpha)


def gather(values, action):
    """The value of each action that was taken, `(...)`; `values`: `(..., action_dim)`."""
    return jnp.take_along_axis(values, action[..., None], axis=-1).squeeze(-1)


def sample_action(policy, obs, key):
    """An action's number, `(...)`, from exp(Q/α)/Z, and its log π in nats."""
    logits = policy(obs) / policy.alpha
    action = jax.random.categorical(key, logits)
    return action, gather(nn.log_softmax(logits), action)


def act(policy, obs, key, deterministic):
    """An action's number, `(...)`: the best one if `deterministic` or if α is 0, else a sample."""
    greedy = deterministic or policy.alpha == 0
    return policy(obs).argmax(axis=-1) if greedy else sample_action(policy, obs, key)[0]


@struct.dataclass
class State:
    """Everything learned, for one seed."""

    critics: TrainState  # n_critics, stacked on axis 0
    target_critics: dict
    alpha: float = struct.field(pytree_node=False)  # in reward per nat


def init(key, task, args):
    """State of one seed; the key is consumed."""
    critic, obs = Critic(args.hidden_dims, task.action_dim), jnp.zeros(task.obs_dim)
    critic_keys = jax.random.split(key, args.n_critics)
    critic_params = jax.vmap(critic.init, (0, None))(critic_keys, obs)
    apply_critics = jax.vmap(critic.apply, (0, None))
    q_adam = optax.adam(args.q_lr)
    return State(
        critics=TrainState.create(apply_fn=apply_critics, params=critic_params, tx=q_adam),
        target_critics=jax.tree.map(jnp.copy, critic_params),
        alpha=args.alpha,
    )


def soft_value(q, args):
    """V = α log Σ_a exp(Q(a)/α), `(...)` (eq. 5), less α log A if `uniform_prior`; if α is 0, max Q."""
    if args.alpha == 0:
        return q.max(axis=-1)
    prior = math.log(q.shape[-1]) if args.uniform_prior else 0
    return args.alpha * (nn.logsumexp(q / args.alpha, axis=-1) - prior)


def double_value(q, online_q, args):
    """Soft value under `q` of `online_q`'s policy, Boltzmann or (α = 0) greedy: ≤ `soft_value(q)`."""
    if args.alpha == 0:
        return gather(q, online_q.argmax(axis=-1))
    log_prob = nn.log_softmax(online_q / args.alpha)
    prior = math.log(q.shape[-1]) if args.uniform_prior else 0
    return jnp.sum(jnp.exp(log_prob) * (q - args.alpha * (log_prob + prior)), axis=-1)


def bellman_target(state, steps, args):
    """y of the first of n consecutive steps, `(batch,)`; `steps`: leaves `(batch, n, ...)`.

    From last to first, y_k = r_k + γ (1 - terminated) [y_{k+1} - α log π(a_{k+1}|s_{k+1})], with V(s'_k) in
    the brackets where the episode or the window ends. With this log π, which `--n-step-target uncorrected`
    leaves out, the fixed point is Q* whatever policy acted.
    """
    obs, next_obs = steps.obs, steps.next_obs
    q, next_q = (state.critics.apply_fn(state.target_critics, x).min(axis=0) for x in (obs, next_obs))
    next_value = soft_value(next_q, args)
    if args.double:
        next_value = double_value(next_q, policy(state)(next_obs), args)
    # Q - V is α log π, plus α log A with a uniform prior; if α is 0, minus the action's gap
    advantage = gather(q, steps.action) - soft_value(q, args)
    bonus = jnp.maximum(advantage, -args.munchausen_clip) if args.munchausen_clip else advantage
    reward = steps.reward + args.munchausen * bonus if args.munchausen else steps.reward
    later = next_value[:, -1]
    for k in reversed(range(args.n_steps)):
        target = reward[:, k] + args.gamma * (1 - steps.terminated[:, k]) * later
        if k > 0:
            inside = target - advantage[:, k] if args.n_step_target == "path" else target
            ended = jnp.maximum(steps.terminated, steps.truncated)[:, k - 1]
            later = jnp.where(ended, next_value[:, k - 1], inside)
    return target


def policy_entropy(q, args):
    """Mean entropy of exp(Q/α)/Z in nats; `q`: `(batch, action_dim)`."""
    log_prob = nn.log_softmax(q / args.alpha)
    return -jnp.sum(jnp.exp(log_prob) * log_prob, axis=-1).mean()


def critic_loss(params, state, batch, args):
    """Soft Bellman residual (eq. 11) with `bellman_target`; `batch`: `(batch, ...)`, or `(batch, n, ...)`."""
    steps = batch if args.n_steps > 1 else jax.tree.map(lambda x: x[:, None], batch)
    target = bellman_target(state, steps, args)
    first = jax.tree.map(lambda x: x[:, 0], steps)
    q = state.critics.apply_fn(params, first.obs)  # (n_critics, batch, action_dim)
    metrics = {"losses/entropy": policy_entropy(q.min(axis=0), args)} if args.alpha else {}
    q = jax.vmap(gather, (0, None))(q, first.action)
    losses = 0.5 * jnp.mean((q - jax.lax.stop_gradient(target)) ** 2, axis=-1)
    metrics |= {f"losses/qf{i + 1}_loss": losses[i] for i in range(args.n_critics)}
    return losses.sum(), metrics | {f"losses/qf{i + 1}_values": q[i].mean() for i in range(args.n_critics)}


def move_targets(state, args):
    """Moves the targets a fraction τ of the way to the networks."""
    target_critics = optax.incremental_update(state.critics.params, state.target_critics, args.tau)
    return state.replace(target_critics=target_critics), {}


def update(state, batch, key, index, args):
    """One gradient step on one seed; the key is not needed: nothing is sampled.

    `index`: the update's number from 0, or its `equivalent_index`; it decides which delayed steps are due.
    Returns the new state and metrics, scalars measured before each step.
    """
    grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics.params, state, batch, args)
    state = state.replace(critics=state.critics.apply_gradients(grads=grads))
    state, _ = every(args.target_network_frequency, index, move_targets, state, args)
    return state, metrics


def epsilon(step, args):
    """Share of uniform actions at a step."""
    progress = jnp.minimum(step / (args.exploration_fraction * args.total_timesteps), 1)
    return args.start_e + progress * (args.end_e - args.start_e)


def train(args):
    """Trains all seeds side by side; returns the run's `Result`. Raises as `start` and `Run` do."""
    envs, keys = start(args)
    replay = create_replays(args.num_seeds, args.buffer_size, envs.example, "--buffer-size or --num-seeds")
    evaluate = Evaluation(args, act, sample_action)
    temperature = (1 - args.munchausen) * args.alpha  # of the optimum that is learned

    def warm_up(key, step):
        key = jax.random.fold_in(key, step)
        return jax.random.randint(key, (), 0, envs.task.action_dim)

    def explore(policy, obs, key, step):
        act_key, uniform_key, choice_key = jax.random.split(jax.random.fold_in(key, step), 3)
        action = act(policy, obs, act_key, deterministic=False)
        uniform = jax.random.randint(uniform_key, (), 0, envs.task.action_dim)
        return jnp.where(jax.random.uniform(choice_key) < epsilon(step, args), uniform, action)

    def learn(state, replay, key, step, index):
        sample_key, update_key = jax.random.split(jax.random.fold_in(key, step))
        if args.n_steps == 1:
            batch = replay.sample(sample_key, args.batch_size, step)
        else:
            batch = replay.sample_sequences(sample_key, args.batch_size, step, args.n_steps)
        state, metrics = update(state, batch, update_key, index, args)
        if args.start_e or args.end_e:
            metrics |= {"charts/epsilon": epsilon(step, args)}
        return state, metrics

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
            since = step - args.learning_starts
            if since >= 0 and since % args.train_frequency == 0:
                # steps with the same delayed updates share an index, and so a compiled program
                index = equivalent_index(since // args.train_frequency, args.target_network_frequency)
                state, losses = learn(state, replay, keys.update, step, index)
            # the update just dispatched runs while the environments step
            episodes = envs.step_wait()
            run.end_step(step + 1, state, losses, episodes)
        return run.finish(policy(state))


if __name__ == "__main__":
    run_from_command_line(Args, train)

"""Evaluation: whole episodes on environments of their own, in one mode or both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.make import EVALUATION, environment_seed, make_env, scale_action
from cleanrl_maxent.common.env.restore import RestorableEnv
from cleanrl_maxent.common.signals import stop_if_asked

MODES = ("eval", "eval_stochastic")  # deterministically, by samples


class Episodes(NamedTuple):
    """What was played; each array is `(seed, mode, episode)`."""

    returns: np.ndarray  # undiscounted
    lengths: np.ndarray  # steps
    neg_log_probs: np.ndarray  # sums of -log π over the episode, nats; 0 if the policy has no density


def policy_modes(act: Callable, policy: Any, obs_dim: int) -> tuple[str, ...]:
    """The modes of MODES in which a policy of one seed can be played.

    A deterministic action is one that does not depend on the key, a sampled action one that does.
    """

    def depends_on_key(deterministic: bool) -> bool:
        obs = jnp.zeros((1, obs_dim))
        traced = jax.make_jaxpr(lambda key: act(policy, obs, key, deterministic))(jax.random.key(0))
        (key,) = traced.jaxpr.invars
        return any(value is key for equation in traced.eqns for value in equation.invars)

    has = {"eval": not depends_on_key(True), "eval_stochastic": depends_on_key(False)}
    return tuple(mode for mode in MODES if has[mode])


class Evaluation:
    """Plays `--eval-episodes` episodes per seed and mode, all at the same time.

    What an evaluation does depends on the parameters, the seed and the step alone, never on an
    earlier evaluation. Every episode is played to its end and counts once.
    """

    def __init__(self, args: RunArgs, act: Callable, sample_action: Callable | None = None):
        """`act(policy, obs, key, deterministic)` gives the actions of one seed, in [-1, 1] or integers.

        `sample_action(policy, obs, key)`, if the policy has a density, gives sampled actions and
        their log-densities in nats; without it, `act` samples. `obs`:
        `(episode, obs_dim)`, actions `(episode, action_dim)` or `(episode,)`, log-densities `(episode,)`.
        """
        self.args, self.act, self.sample_action = args, act, sample_action
        self.modes: tuple[str, ...] = ()  # known from the first policy on
        self.envs: list[RestorableEnv] = []

    def make_envs(self, policy: Any) -> None:
        """Makes the environments: seeds x modes x episodes. `policy`: leading axis `(seed,)`."""
        args = self.args

        def make() -> RestorableEnv:
            return RestorableEnv(lambda: make_env(args.env_id, args.action_spaces), args.env_reset == "fresh")

        first = make()
        obs_dim = first.observation_space.shape[0]  # pyright: ignore[reportOptionalSubscript]
        self.modes = policy_modes(self.act, jax.tree.map(lambda leaf: leaf[0], policy), obs_dim)
        count = args.num_seeds * len(self.modes) * args.eval_episodes
        self.envs = [first, *(make() for _ in range(count - 1))]
        self.actions = jax.jit(jax.vmap(self.seed_actions, in_axes=(0, 0, 0, None)))

    def mode_actions(self, mode: str, policy, obs: jax.Array, key: jax.Array):
        """Actions of one seed in one mode and their log-densities; `obs` is `(episode, obs_dim)`."""
        if mode == "eval_stochastic" and self.sample_action:
            return self.sample_action(policy, obs, key)
        return self.act(policy, obs, key, mode == "eval"), jnp.zeros(len(obs))

    def seed_actions(self, policy, obs: jax.Array, key: jax.Array, step: int):
        """The same in all modes; `obs` is `(mode, episode, obs_dim)`."""
        key = jax.random.fold_in(key, step)
        pairs = [
            self.mode_actions(mode, policy, rows, key) for mode, rows in zip(self.modes, obs, strict=True)
        ]
        actions, log_probs = zip(*pairs, strict=True)
        return jnp.stack(actions), jnp.stack(log_probs)

    def due(self, steps: int) -> bool:
        """True at multiples of `--eval-frequency`, or at the first update after one, and at the last step."""
        at = self.args.crosses_multiple_of(self.args.eval_frequency, steps) or steps == self.args.last_step
        return bool(at and steps and self.args.eval_episodes)

    def __call__(self, steps: int, policy, keys: jax.Array, temperature=0.0) -> list[dict[str, float]]:
        """Metrics of each seed after `steps` environment steps.

        `policy`: leading axis `(seed,)`. `temperature`: `(seed,)`, in reward per nat, α of
        `eval/soft_return`, the mean of Σ r − α log π over the stochastic episodes. Raises Stopped.
        """
        returns, lengths, neg_log_probs = self.play(steps, policy, keys)
        soft = returns + np.reshape(temperature, (-1, 1, 1)) * neg_log_probs
        return [self.metrics(*of_seed) for of_seed in zip(returns, lengths, soft, strict=True)]

    def play(
        self,
        steps: int,
        policy,
        keys: jax.Array,
        played: Callable[[int, str], bool] = lambda seed, mode: True,
    ) -> Episodes:
        """The episodes of the evaluation after `steps` environment steps.

        `policy` and `keys` have every seed, leading axis `(seed,)`, also if `played(seed, mode)` leaves some
        out: what the others do is then the same to the bit. The arrays of those left out hold zeros.
        Raises Stopped, NonFiniteError.
        """
        if not self.envs:
            self.make_envs(policy)
        seeds, episodes = self.args.seeds, self.args.eval_episodes
        shape = (len(seeds), len(self.modes), episodes)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, steps)
        resets = [
            environment_seed(seed, EVALUATION, steps, mode, episode)
            for seed in seeds
            for mode in map(MODES.index, self.modes)
            for episode in range(episodes)
        ]
        obs = np.stack([env.reset(seed=s)[0] for env, s in zip(self.envs, resets, strict=True)])
        running = np.repeat([played(seed, mode) for seed in seeds for mode in self.modes], episodes)
        returns, lengths, neg_log_probs = (np.zeros(len(self.envs)) for _ in range(3))
        while running.any():
            stop_if_asked()
            step = int(lengths.max())
            action, log_prob = map(np.asarray, self.actions(policy, obs.reshape(*shape, -1), keys, step))
            action, log_prob = action.reshape(len(self.envs), *action.shape[3:]), log_prob.ravel()
            check_finite(steps, seeds, evaluation_action=action)
            for i in np.flatnonzero(running):
                env = self.envs[i]
                obs[i], reward, terminated, truncated, _ = env.step(scale_action(action[i], env.action_space))
                returns[i] += reward
                neg_log_probs[i] -= log_prob[i]
                lengths[i] += 1
                running[i] = not (terminated or truncated)
        check_finite(steps, seeds, evaluation_return=returns)
        return Episodes(*(values.reshape(shape) for values in (returns, lengths, neg_log_probs)))

    def metrics(self, returns: np.ndarray, lengths: np.ndarray, soft: np.ndarray) -> dict[str, float]:
        """Means and standard deviations over episodes; every array is `(mode, episode)`."""
        row = {}
        for mode, name in enumerate(self.modes):
            row[f"{name}/return_mean"] = float(returns[mode].mean())
            row[f"{name}/return_std"] = float(returns[mode].std())
            row[f"{name}/length"] = float(lengths[mode].mean())
        if self.sample_action and "eval_stochastic" in self.modes:
            row["eval/soft_return"] = float(soft[self.modes.index("eval_stochastic")].mean())
        return row

"""Evaluation: whole episodes on environments of their own, in one mode or both."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.make import EVALUATION, environment_seed, make_env, scale_action
from cleanrl_maxent.common.env.restore import RestorableEnv
from cleanrl_maxent.common.signals import stop_if_asked

MODES = ("eval", "eval_stochastic")


class Evaluation:
    """Plays `--eval-episodes` episodes per seed and mode, all at the same time.

    What an evaluation does depends on the parameters, the seed and the step alone, never on an
    earlier evaluation. Every episode is played to its end and counts once.
    """

    def __init__(
        self,
        args: RunArgs,
        act: Callable,
        sample_action: Callable | None = None,
        modes: tuple[str, ...] = MODES,
    ):
        """`act(policy, obs, key, deterministic)` gives the actions of one seed, in [-1, 1] or integers.

        `sample_action(policy, obs, key)`, if the policy has a density, gives sampled actions and
        their log-densities in nats; without it, `act` samples. `obs`:
        `(episode, obs_dim)`, actions `(episode, action_dim)` or `(episode,)`, log-densities `(episode,)`.
        `modes`: how the policy is played: deterministically, "eval", by samples, "eval_stochastic", or both.
        """
        self.args, self.modes = args, modes
        self.has_density = sample_action is not None and "eval_stochastic" in modes
        episodes, fresh = args.eval_episodes, args.env_reset == "fresh"
        self.envs = [
            RestorableEnv(lambda: make_env(args.env_id, args.action_spaces), fresh)
            for _ in range(args.num_seeds * len(modes) * episodes)
        ]

        def mode_actions(mode, policy, obs, key):
            if mode == "eval_stochastic" and sample_action:
                return sample_action(policy, obs, key)
            return act(policy, obs, key, mode == "eval"), jnp.zeros(episodes)

        def seed_actions(policy, obs, key, step):  # obs: (mode, episode, obs_dim)
            key = jax.random.fold_in(key, step)
            pairs = [mode_actions(mode, policy, rows, key) for mode, rows in zip(modes, obs, strict=True)]
            actions, log_probs = zip(*pairs, strict=True)
            return jnp.stack(actions), jnp.stack(log_probs)

        self.actions = jax.jit(jax.vmap(seed_actions, in_axes=(0, 0, 0, None)))

    def due(self, steps: int) -> bool:
        """True at multiples of `--eval-frequency`, or at the first update after one, and at the last step."""
        at = self.args.crosses_multiple_of(self.args.eval_frequency, steps) or steps == self.args.last_step
        return bool(at and steps and self.envs)

    def __call__(self, steps: int, policy, keys: jax.Array, temperature=0.0) -> list[dict[str, float]]:
        """Metrics of each seed after `steps` environment steps.

        `policy`: leading axis `(seed,)`. `temperature`: `(seed,)`, in reward per nat, α of
        `eval/soft_return`, the mean of Σ r − α log π over the stochastic episodes. Raises Stopped.
        """
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
        running = np.ones(len(self.envs), bool)
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
        soft = returns.reshape(shape) + np.reshape(temperature, (-1, 1, 1)) * neg_log_probs.reshape(shape)
        tables = (returns.reshape(shape), lengths.reshape(shape), soft)
        return [self.metrics(*of_seed) for of_seed in zip(*tables, strict=True)]

    def metrics(self, returns: np.ndarray, lengths: np.ndarray, soft: np.ndarray) -> dict[str, float]:
        """Means and standard deviations over episodes; every array is `(mode, episode)`."""
        row = {}
        for mode, name in enumerate(self.modes):
            row[f"{name}/return_mean"] = float(returns[mode].mean())
            row[f"{name}/return_std"] = float(returns[mode].std())
            row[f"{name}/length"] = float(lengths[mode].mean())
        if self.has_density:
            row["eval/soft_return"] = float(soft[self.modes.index("eval_stochastic")].mean())
        return row

"""Evaluation: whole episodes on environments of their own, deterministic and stochastic."""

from collections.abc import Callable

import jax
import numpy as np

from cleanrl_maxent.common.arguments import RunArgs
from cleanrl_maxent.common.envs import EVALUATION, check_finite, environment_seed, make_env, scale_action
from cleanrl_maxent.common.replayable import Replayable
from cleanrl_maxent.common.signals import stop_if_asked


class Evaluation:
    """Plays `--eval-episodes` episodes per seed and policy, all at the same time.

    What an evaluation does depends on the parameters, the seed and the step alone, never on an
    earlier evaluation. Every episode is played to its end and counts once.
    """

    def __init__(self, args: RunArgs, act: Callable, sample_action: Callable | None = None):
        """`act(params, obs, key, deterministic)` gives the actions of one seed, in [-1, 1].

        `sample_action(params, obs, key)`, where the policy has a density, gives sampled actions and
        their log-densities in nats; the stochastic policy is `act` without it. `obs`:
        `(episode, obs_dim)`, actions `(episode, action_dim)`, log-densities `(episode,)`.
        """
        self.args, self.has_density = args, sample_action is not None
        episodes = args.eval_episodes
        fresh = args.env_reset == "fresh"
        self.envs = [
            Replayable(lambda: make_env(args.env_id), fresh) for _ in range(args.num_seeds * 2 * episodes)
        ]

        def both(params, obs, key, step):  # obs: (2, episode, obs_dim)
            key = jax.random.fold_in(key, step)
            mean = act(params, obs[0], key, True)
            if sample_action is None:
                return mean, act(params, obs[1], key, False), np.zeros(episodes, np.float32)
            return mean, *sample_action(params, obs[1], key)

        self.actions = jax.jit(jax.vmap(both, in_axes=(0, 0, 0, None)))

    def due(self, steps: int) -> bool:
        """True at multiples of `--eval-frequency` and at the last step."""
        at = steps % self.args.eval_frequency == 0 or steps == self.args.total_timesteps
        return bool(at and steps and self.envs)

    def __call__(self, steps: int, params, keys: jax.Array, alpha=0.0) -> list[dict[str, float]]:
        """Metrics of each seed after `steps` environment steps.

        `params`: the policies, leading axis `(seed,)`. `alpha`: `(seed,)` temperatures, for
        `eval/soft_return`, the mean of Σ r − α log π over the stochastic episodes. Raises Stopped.
        """
        seeds, episodes = self.args.seeds, self.args.eval_episodes
        shape = (len(seeds), 2, episodes)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, steps)
        resets = [
            environment_seed(seed, EVALUATION, steps, policy, episode)
            for seed in seeds
            for policy in range(2)
            for episode in range(episodes)
        ]
        obs = np.stack([env.reset(seed=s)[0] for env, s in zip(self.envs, resets, strict=True)])
        running = np.ones(len(self.envs), bool)
        returns, lengths, neg_log_probs = (np.zeros(len(self.envs)) for _ in range(3))
        while running.any():
            stop_if_asked()
            step = int(lengths.max())
            mean, sample, log_prob = self.actions(params, obs.reshape(*shape, -1), keys, step)
            action = np.stack([mean, sample], axis=1).reshape(len(self.envs), -1)
            check_finite(steps, seeds, evaluation_action=action)
            neg_log_prob = np.stack([np.zeros_like(log_prob), -np.asarray(log_prob)], axis=1).ravel()
            for i in np.flatnonzero(running):
                env = self.envs[i]
                scaled = scale_action(action[i], env.action_space)
                obs[i], reward, terminated, truncated, _ = env.step(scaled)
                returns[i] += reward
                neg_log_probs[i] += neg_log_prob[i]
                lengths[i] += 1
                running[i] = not (terminated or truncated)
        check_finite(steps, seeds, evaluation_return=returns)
        soft = returns.reshape(shape) + np.reshape(alpha, (-1, 1, 1)) * neg_log_probs.reshape(shape)
        return [
            self.metrics(returns.reshape(shape)[k], lengths.reshape(shape)[k], soft[k])
            for k in range(len(seeds))
        ]

    def metrics(self, returns: np.ndarray, lengths: np.ndarray, soft: np.ndarray) -> dict[str, float]:
        """Means and standard deviations over episodes; every array is `(2, episode)`."""
        row = {}
        for policy, name in enumerate(("eval", "eval_stochastic")):
            row[f"{name}/return_mean"] = float(returns[policy].mean())
            row[f"{name}/return_std"] = float(returns[policy].std())
            row[f"{name}/length"] = float(lengths[policy].mean())
        if self.has_density:
            row["eval/soft_return"] = float(soft[1].mean())
        return row

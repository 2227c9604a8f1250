"""Evaluation: whole episodes on environments of their own, of one policy or of both."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cleanrl_maxent.common.arguments import RunArgs
from cleanrl_maxent.common.envs import EVALUATION, check_finite, environment_seed, make_env, scale_action
from cleanrl_maxent.common.replayable import Replayable
from cleanrl_maxent.common.signals import stop_if_asked

POLICIES = ("eval", "eval_stochastic")


class Evaluation:
    """Plays `--eval-episodes` episodes per seed and policy, all at the same time.

    What an evaluation does depends on the parameters, the seed and the step alone, never on an
    earlier evaluation. Every episode is played to its end and counts once.
    """

    def __init__(
        self,
        args: RunArgs,
        act: Callable,
        sample_action: Callable | None = None,
        policies: tuple[str, ...] = POLICIES,
    ):
        """`act(params, obs, key, deterministic)` gives the actions of one seed, in [-1, 1] or integers.

        `sample_action(params, obs, key)`, where the policy has a density, gives sampled actions and
        their log-densities in nats; the stochastic policy is `act` without it. `obs`:
        `(episode, obs_dim)`, actions `(episode, action_dim)` or `(episode,)`, log-densities `(episode,)`.
        `policies`: those that there are, the deterministic "eval", the "eval_stochastic", or both.
        """
        self.args, self.policies = args, policies
        self.has_density = sample_action is not None and "eval_stochastic" in policies
        episodes, fresh = args.eval_episodes, args.env_reset == "fresh"
        self.envs = [
            Replayable(lambda: make_env(args.env_id, args.takes_discrete), fresh)
            for _ in range(args.num_seeds * len(policies) * episodes)
        ]

        def of_policy(policy, params, obs, key):
            if policy == "eval_stochastic" and sample_action:
                return sample_action(params, obs, key)
            return act(params, obs, key, policy == "eval"), jnp.zeros(episodes)

        def of_seed(params, obs, key, step):  # obs: (policy, episode, obs_dim)
            key = jax.random.fold_in(key, step)
            pairs = [of_policy(name, params, rows, key) for name, rows in zip(policies, obs, strict=True)]
            actions, log_probs = zip(*pairs, strict=True)
            return jnp.stack(actions), jnp.stack(log_probs)

        self.actions = jax.jit(jax.vmap(of_seed, in_axes=(0, 0, 0, None)))

    def due(self, steps: int) -> bool:
        """True at multiples of `--eval-frequency`, or the first boundary after, and at the last step."""
        at = self.args.passes(steps, self.args.eval_frequency) or steps == self.args.last_step
        return bool(at and steps and self.envs)

    def __call__(self, steps: int, params, keys: jax.Array, alpha=0.0) -> list[dict[str, float]]:
        """Metrics of each seed after `steps` environment steps.

        `params`: the policies, leading axis `(seed,)`. `alpha`: `(seed,)` temperatures, for
        `eval/soft_return`, the mean of Σ r − α log π over the stochastic episodes. Raises Stopped.
        """
        seeds, episodes = self.args.seeds, self.args.eval_episodes
        shape = (len(seeds), len(self.policies), episodes)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, steps)
        resets = [
            environment_seed(seed, EVALUATION, steps, policy, episode)
            for seed in seeds
            for policy in map(POLICIES.index, self.policies)
            for episode in range(episodes)
        ]
        obs = np.stack([env.reset(seed=s)[0] for env, s in zip(self.envs, resets, strict=True)])
        running = np.ones(len(self.envs), bool)
        returns, lengths, neg_log_probs = (np.zeros(len(self.envs)) for _ in range(3))
        while running.any():
            stop_if_asked()
            step = int(lengths.max())
            action, log_prob = map(np.asarray, self.actions(params, obs.reshape(*shape, -1), keys, step))
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
        soft = returns.reshape(shape) + np.reshape(alpha, (-1, 1, 1)) * neg_log_probs.reshape(shape)
        tables = (returns.reshape(shape), lengths.reshape(shape), soft)
        return [self.metrics(*of_seed) for of_seed in zip(*tables, strict=True)]

    def metrics(self, returns: np.ndarray, lengths: np.ndarray, soft: np.ndarray) -> dict[str, float]:
        """Means and standard deviations over episodes; every array is `(policy, episode)`."""
        row = {}
        for policy, name in enumerate(self.policies):
            row[f"{name}/return_mean"] = float(returns[policy].mean())
            row[f"{name}/return_std"] = float(returns[policy].std())
            row[f"{name}/length"] = float(lengths[policy].mean())
        if self.has_density:
            row["eval/soft_return"] = float(soft[self.policies.index("eval_stochastic")].mean())
        return row

"""Evaluation: whole episodes on environments of their own, in one mode or both."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.devices import recorded_settings
from cleanrl_maxent.common.env.batch import Batch, locating
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.make import (
    EVALUATION,
    chosen_env,
    environment_seed,
    longest_episode,
    scale_action,
)
from cleanrl_maxent.common.env.pool import Pool
from cleanrl_maxent.common.signals import stop_if_asked

EVERY = 5_000  # environment steps between the evaluations of one seed
MODES = ("eval", "eval_stochastic")
MODE_NAMES = {"eval": "deterministic", "eval_stochastic": "sampled"}  # how actions are chosen


class Episodes(NamedTuple):
    """The episodes played; each array is `(seed, mode, episode)`."""

    returns: np.ndarray  # undiscounted
    lengths: np.ndarray  # steps
    neg_log_probs: np.ndarray  # sum of -log π over the episode, nats; 0 if the policy has no density


def default_frequency(args: RunArgs) -> int:
    """Environment steps between evaluations: a function of the arguments alone, never of the clock.

    EVERY times the number of seeds: several seeds train in little more time than one, but their evaluation
    takes that many times as long. At most ten times the steps of the longest evaluation, so that evaluations
    take less than a tenth of the time even if updates were free. Never less than EVERY.
    """
    frequency, longest = EVERY * args.num_seeds, longest_episode(chosen_env(args))
    if longest is not None:
        frequency = min(frequency, 10 * len(MODES) * args.eval_episodes * longest)
    return max(EVERY, frequency)


def with_frequency(args: RunArgs) -> RunArgs:
    """`args` with `eval_frequency` filled in: that of the run in `run_dir`, else the default."""
    if args.eval_frequency is not None:
        return args
    recorded = recorded_settings(args.run_dir).get("args")
    given = recorded.get("eval_frequency") if isinstance(recorded, dict) else None
    return replace(args, eval_frequency=given if type(given) is int else default_frequency(args))


def episode_seed(seed: int, steps: int, mode: str, episode: int) -> int:
    """Seed of the reset of an episode of the evaluation after `steps` environment steps."""
    return environment_seed(seed, EVALUATION, steps, MODES.index(mode), episode)


def policy_modes(act: Callable, policy: Any, obs_dim: int) -> tuple[str, ...]:
    """The MODES of one seed's policy.

    It has "eval" if its deterministic action does not depend on the key, and "eval_stochastic" if its sampled
    action does.
    """

    def depends_on_key(deterministic: bool) -> bool:
        obs = jnp.zeros((1, obs_dim))
        traced = jax.make_jaxpr(lambda key: act(policy, obs, key, deterministic))(jax.random.key(0)).jaxpr
        # what is computed from the key but not returned does not count
        _, (is_used,) = dce_jaxpr(traced, [True] * len(traced.outvars))
        return is_used

    has = {"eval": not depends_on_key(True), "eval_stochastic": depends_on_key(False)}
    return tuple(mode for mode in MODES if has[mode])


class Evaluation:
    """Plays `--eval-episodes` episodes per seed and mode, all at the same time.

    An evaluation depends only on the parameters, the seed and the step, never on an earlier evaluation.
    Every episode is played to its end and counts once.
    """

    def __init__(self, args: RunArgs, act: Callable, sample_action: Callable | None = None):
        """`act(policy, obs, key, deterministic)` gives the actions of a seed, ±1 at the bounds, or integers.

        `sample_action(policy, obs, key)`, if the policy has a density, gives sampled actions and their
        log-densities in nats; without it, `act` samples. Shapes: `obs` `(episode, obs_dim)`, actions
        `(episode, action_dim)` or `(episode,)`, log-densities `(episode,)`.
        """
        self.args, self.act, self.sample_action = with_frequency(args), act, sample_action
        self.pool = Pool(chosen_env(args), args.env_reset)  # where the environments live; a run sets its own
        self.modes: tuple[str, ...] = ()  # set with the first policy

    def prepare(self, policy: Any) -> None:
        """Finds the policy's modes and compiles its actions. `policy`: leading axis `(seed,)`."""
        # a row for each seed, mode and episode; those that are never played are not made
        count = self.args.num_seeds * len(MODES) * self.args.eval_episodes
        self.batch: Batch = self.pool.batch(count, autoreset=False)
        self.batch.make([0])
        self.obs_dim: int = self.batch.spaces.observation.shape[0]  # pyright: ignore[reportOptionalSubscript]
        self.modes = policy_modes(self.act, jax.tree.map(lambda leaf: leaf[0], policy), self.obs_dim)
        self.actions = jax.jit(jax.vmap(self.seed_actions, in_axes=(0, 0, 0, None)))

    def mode_actions(self, mode: str, policy, obs: jax.Array, key: jax.Array):
        """Actions of one seed in one mode and their log-densities; `obs` is `(episode, obs_dim)`."""
        if mode == "eval_stochastic" and self.sample_action:
            return self.sample_action(policy, obs, key)
        return self.act(policy, obs, key, mode == "eval"), jnp.zeros(len(obs))

    def seed_actions(self, policy, obs: jax.Array, key: jax.Array, step: int):
        """`mode_actions` in all modes; `obs` is `(mode, episode, obs_dim)`."""
        key = jax.random.fold_in(key, step)
        pairs = [
            self.mode_actions(mode, policy, rows, key) for mode, rows in zip(self.modes, obs, strict=True)
        ]
        actions, log_probs = zip(*pairs, strict=True)
        return jnp.stack(actions), jnp.stack(log_probs)

    def due(self, steps: int) -> bool:
        """True at the first update at or after a multiple of `--eval-frequency`, and at the last step."""
        frequency, last = self.args.eval_frequency, self.args.last_step
        at = self.args.crosses_multiple_of(frequency or last, steps) or steps == last
        return bool(at and steps and self.args.eval_episodes)

    def __call__(self, steps: int, policy, keys: jax.Array, temperature=0.0) -> list[dict[str, float]]:
        """Metrics of each seed after `steps` environment steps.

        `policy`: leading axis `(seed,)`. `temperature`: `(seed,)`, in reward per nat, α of
        `eval/soft_return`, the mean of Σ r − α log π over the stochastic episodes. Raises as `play`.
        """
        returns, lengths, neg_log_probs = self.play(steps, policy, keys)
        soft = returns + np.reshape(temperature, (-1, 1, 1)) * neg_log_probs
        check_finite(steps, self.args.seeds, evaluation_soft_return=soft)
        return [self.metrics(*of_seed) for of_seed in zip(returns, lengths, soft, strict=True)]

    def play(
        self,
        steps: int,
        policy,
        keys: jax.Array,
        played: Callable[[int, str], bool] = lambda seed, mode: True,
    ) -> Episodes:
        """The episodes of the evaluation after `steps` environment steps.

        `policy`, `keys`: leading axis `(seed,)`, for every seed even if `played(seed, mode)` leaves some
        out, so that the others stay bit-identical. Results of episodes that are not played are zeros.
        Raises Stopped, NonFiniteError, EnvironmentFailed, and UsageError for an episode that seems endless.
        """
        if not self.modes:
            self.prepare(policy)
        seeds, episodes = self.args.seeds, self.args.eval_episodes
        shape = (len(seeds), len(self.modes), episodes)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, steps)
        resets = [
            episode_seed(seed, steps, mode, episode)
            for seed in seeds
            for mode in self.modes
            for episode in range(episodes)
        ]
        rows = self.batch.rows.part(slice(len(resets)))
        rows.running[:] = np.repeat([played(seed, mode) for seed in seeds for mode in self.modes], episodes)
        rows.seed[:], rows.obs[:] = resets, 0
        returns, lengths, neg_log_probs = (np.zeros(len(resets)) for _ in range(3))
        with self.locating(steps):
            self.batch.reset()
        while rows.running.any():
            stop_if_asked()
            step, running = int(lengths.max()), rows.running.copy()
            obs = rows.obs.reshape(*shape, self.obs_dim)
            action, log_prob = map(np.asarray, self.actions(policy, obs, keys, step))
            action = action.reshape(len(resets), *action.shape[3:])
            check_finite(steps, seeds, evaluation_action=action)
            rows.action[:] = scale_action(action, self.batch.spaces.action)
            with self.locating(steps):
                self.batch.step_async()
                self.batch.step_wait()
            returns[running] += rows.reward[running]
            neg_log_probs[running] -= log_prob.ravel()[running]
            lengths[running] += 1
        check_finite(steps, seeds, evaluation_return=returns)
        return Episodes(*(values.reshape(shape) for values in (returns, lengths, neg_log_probs)))

    def locating(self, steps: int) -> AbstractContextManager[None]:
        """Adds step and seed to the exceptions of an evaluation."""
        episodes = len(self.modes) * self.args.eval_episodes
        where = f"evaluation at step {steps}"
        return locating(self.args.env_id, where, lambda row: self.args.seeds[row // episodes])

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

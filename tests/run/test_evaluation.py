"""Evaluation: whole episodes, each counted once, and the soft return."""

import jax
import numpy as np
import pytest

from cleanrl_maxent import sac
from cleanrl_maxent.common.env.make import EVALUATION, environment_seed, make_env, scale_action
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.evaluation import Evaluation


@pytest.mark.slow
def test_whole_episodes_of_unequal_length_count_once():
    """Sixteen Hopper episodes, each equal to the one that a single environment plays."""
    args = sac.Args(env_id="Hopper-v4", eval_episodes=8, hidden_dims=(8,))
    state = jax.vmap(lambda key: sac.init(key, Task(11, 3), args))(jax.random.split(jax.random.key(0), 1))
    evaluate = Evaluation(args, sac.act, sac.sample_action)
    keys = jax.random.split(jax.random.key(1), 1)
    first, again = (evaluate(5000, sac.policy(state), keys, np.ones(1))[0] for _ in range(2))
    assert first == again and first != evaluate(10_000, sac.policy(state), keys, np.ones(1))[0]

    act = jax.jit(sac.act, static_argnums=3)
    env, policy = make_env("Hopper-v4"), jax.tree.map(lambda leaf: leaf[0], sac.policy(state))
    returns = []
    for episode in range(8):
        obs, total, over = env.reset(seed=environment_seed(1, EVALUATION, 5000, 0, episode))[0], 0.0, False
        while not over:
            action = np.asarray(act(policy, obs, None, True))
            obs, reward, terminated, truncated, _ = env.step(scale_action(action, env.action_space))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert first["eval/return_mean"] == pytest.approx(np.mean(returns), rel=1e-3)
    assert first["eval/return_std"] == pytest.approx(np.std(returns), rel=1e-2)


def test_soft_return_adds_alpha_times_entropy():
    args = sac.Args(env_id="Pendulum-v1", eval_episodes=2, hidden_dims=(8,))
    state = jax.vmap(lambda key: sac.init(key, Task(3, 1), args))(jax.random.split(jax.random.key(0), 1))
    evaluate = Evaluation(args, sac.act, sac.sample_action)
    keys = jax.random.split(jax.random.key(1), 1)
    plain, soft = (evaluate(1, sac.policy(state), keys, np.full(1, alpha))[0] for alpha in (0.0, 2.0))
    assert plain["eval/soft_return"] == pytest.approx(plain["eval_stochastic/return_mean"], rel=1e-6)
    entropy = (soft["eval/soft_return"] - plain["eval/soft_return"]) / 2 / 200
    assert -1.0 < entropy < 0.6931  # nats a step; log 2 bounds it

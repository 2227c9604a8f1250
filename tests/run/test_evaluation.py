"""Evaluation: whole episodes, each counted once; the soft return; how often, and what it costs."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cleanrl_maxent import ppo, sac
from cleanrl_maxent.common import signals
from cleanrl_maxent.common.env.make import EVALUATION, environment_seed, make_env, scale_action
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import NonFiniteError, Stopped, UsageError
from cleanrl_maxent.common.evaluation import Evaluation, default_frequency, policy_modes
from cleanrl_maxent.common.run.run import Run
from tests.support import probes
from tests.support.runs import SMALL, rows, small_args, train


def uniform(policy, obs, key, deterministic):
    """Echo's actions: zeros, or uniform."""
    return jnp.zeros((len(obs), 2)) if deterministic else jax.random.uniform(key, (len(obs), 2), minval=-1)


@pytest.mark.slow
def test_whole_episodes_of_unequal_length_count_once():
    """Mean and std of eight Hopper episodes are those of episodes that one environment plays alone."""
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


def test_soft_return_adds_alpha_times_minus_log_prob():
    """Half a nat in each of 200 steps, at α = 2."""

    def act(policy, obs, key, deterministic):
        shape = len(obs), 1
        return jnp.zeros(shape) if deterministic else jnp.tanh(jax.random.normal(key, shape))

    def sample_action(policy, obs, key):
        return act(policy, obs, key, False), jnp.full(len(obs), -0.5)

    evaluate = Evaluation(sac.Args(env_id="Pendulum-v1", eval_episodes=2), act, sample_action)
    keys = jax.random.split(jax.random.key(1), 1)
    row = evaluate(1, jnp.zeros(1), keys, np.full(1, 2.0))[0]
    assert row["eval/soft_return"] - row["eval_stochastic/return_mean"] == pytest.approx(200, abs=1e-2)


def test_soft_returns_of_seeds_and_of_episodes_of_unequal_length(monkeypatch):
    """Each seed has its own α, and an episode that is over adds no more nats."""
    monkeypatch.setattr(probes.Echo, "lengths", iter(range(3, 99)))

    def sample_action(policy, obs, key):
        return uniform(policy, obs, key, False), jnp.full(len(obs), -0.5)

    args = sac.Args(env_id="Echo-v0", num_seeds=2, eval_episodes=2)
    keys, alpha = jax.random.split(jax.random.key(0), 2), np.array([1.0, 3.0])
    rows = Evaluation(args, uniform, sample_action)(1, jnp.zeros(2), keys, alpha)
    nats = [row["eval_stochastic/length"] / 2 for row in rows]
    assert nats[0] != nats[1]
    assert [row["eval/soft_return"] for row in rows] == pytest.approx(list(alpha * nats))


def test_an_episode_that_has_ended_is_not_stepped(monkeypatch):
    """Episodes of 3, 4, … steps, side by side: as many steps as their lengths add up to."""
    monkeypatch.setattr(probes.Echo, "lengths", iter(range(3, 99)))
    monkeypatch.setattr(probes.Echo, "actions", stepped := [])
    args = sac.Args(env_id="Echo-v0", eval_episodes=3, num_seeds=2, hidden_dims=(8,))
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(lambda key: sac.init(key, Task(1, 2), args))(keys)
    played = Evaluation(args, sac.act, sac.sample_action).play(1, sac.policy(state), keys)
    assert sorted(played.lengths.ravel()) == list(range(3, 15)) and len(stepped) == played.lengths.sum()
    # Echo always shows the same observation, so without a new key in every step samples would repeat
    assert len({tuple(action) for action in stepped}) > played.lengths[:, 1].sum()


@pytest.mark.parametrize(
    ("given", "frequency"),
    [
        ({}, 5_000),
        (dict(eval_episodes=100), 5_000),
        (dict(num_seeds=4), 20_000),
        (dict(num_seeds=16), 80_000),
        (dict(num_seeds=64), 200_000),  # 10 × 2 policies × 10 episodes × 1,000 steps
        (dict(num_seeds=64, eval_episodes=5), 100_000),
        (dict(num_seeds=64, max_episode_steps=100), 20_000),
        (dict(num_seeds=64, env_id="Pendulum-v1"), 40_000),
        (dict(num_seeds=64, env_id="Point-v0"), 320_000),  # no time limit
        (dict(num_seeds=64, total_timesteps=10**7, seed=3), 200_000),
        (dict(num_seeds=64, eval_episodes=0), 5_000),
    ],
)
def test_many_seeds_are_evaluated_less_often(given, frequency):
    assert default_frequency(sac.Args(**given)) == frequency
    assert Evaluation(sac.Args(**given), sac.act).args.eval_frequency == frequency
    assert Evaluation(sac.Args(**given, eval_frequency=70), sac.act).args.eval_frequency == 70


def evaluated_at(folder):
    """The steps of a run's evaluations."""
    return [
        row["global_step"] for row in rows(folder / "seed-1" / "metrics.jsonl") if "eval/return_mean" in row
    ]


def test_the_frequency_is_said_and_recorded(tmp_path, capsys):
    given = SMALL | dict(num_seeds=2, total_timesteps=150, eval_episodes=2)
    del given["eval_frequency"]
    train(given, tmp_path / "run")
    assert "evaluates every 8,000 steps (--eval-frequency)" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["args"]["eval_frequency"] == 8_000 and evaluated_at(tmp_path / "run") == [150]
    with pytest.raises(UsageError, match="was started with eval_frequency=8000; you gave 70"):
        train(given | dict(eval_frequency=70), tmp_path / "run")


def test_a_resumed_run_keeps_its_frequency_and_adds_up_its_evaluations(tmp_path, monkeypatch, capsys):
    """Also where the default is another one; the share of the time is that of all its processes."""
    end_step, run = Run.end_step, tmp_path / "run"

    def stop(self, steps, *given):
        if steps == 100:
            signals.received.append(signals.SIGNALS[0])
        end_step(self, steps, *given)

    given = SMALL | dict(total_timesteps=200)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "end_step", stop)
        with pytest.raises(Stopped):
            train(given | dict(eval_frequency=60), run)
        signals.received.clear()
    del given["eval_frequency"]
    result = train(given, run)
    assert evaluated_at(run) == [60, 120, 180, 200]
    timed = [row["evaluation_seconds"] for row in rows(run / "timing.jsonl") if "evaluation_seconds" in row]
    assert len(timed) == 4 and result["evaluation_seconds"] == pytest.approx(sum(timed), abs=0.01)
    share = re.search(r"done: 200 steps in .* s, evaluation (\d+)% of it", capsys.readouterr().out)
    assert share and int(share[1]) == pytest.approx(100 * sum(timed) / result["seconds"], abs=1)


def test_a_policy_without_a_density_is_sampled_anew_in_every_evaluation(monkeypatch):
    """The deterministic action is one; no sampled one comes twice, though Echo shows one observation."""
    monkeypatch.setattr(probes.Echo, "actions", stepped := [])

    evaluation = Evaluation(sac.Args(env_id="Echo-v0", eval_episodes=2), uniform)
    for steps in (1, 2):
        played = evaluation.play(steps, jnp.zeros(1), jax.random.split(jax.random.key(0), 1))
    assert len({tuple(action) for action in stepped}) == 1 + 2 * played.lengths[:, 1].sum()


def test_every_episode_of_every_evaluation_has_its_own_seed():
    evaluation = Evaluation(sac.Args(env_id="Echo-v0", seed=3, num_seeds=2, eval_episodes=3), uniform)
    found = []
    for steps in (5_000, 10_000):
        evaluation.play(steps, jnp.zeros(2), jax.random.split(jax.random.key(0), 2))
        found += evaluation.batch.rows.seed.tolist()
    assert found == [
        environment_seed(seed, EVALUATION, steps, mode, episode)
        for steps in (5_000, 10_000)
        for seed in (3, 4)
        for mode in (0, 1)
        for episode in range(3)
    ]


def sample_first(policy, obs, key, deterministic):
    key, sample_key = jax.random.split(key)
    sample = policy + jax.random.normal(sample_key, (len(obs), 1))
    return jnp.zeros((len(obs), 1)) if deterministic else sample


@pytest.mark.parametrize("act", [sample_first, jax.jit(sample_first, static_argnums=3)], ids=["plain", "jit"])
def test_a_key_that_does_not_reach_the_action_does_not_count(act):
    assert policy_modes(act, jnp.zeros(1), obs_dim=3) == ("eval", "eval_stochastic")
    assert policy_modes(lambda *given: act(*given[:3], True), jnp.zeros(1), obs_dim=3) == ("eval",)


def test_a_soft_return_that_is_not_finite_is_refused():
    """Named by step and seed, before it reaches the record."""
    args = sac.Args(env_id="Pendulum-v1", num_seeds=2, eval_episodes=1)

    def sample_action(policy, obs, key):
        noise = jax.random.normal(key, (len(obs), 1))
        return noise, jnp.where(policy > 0, -jnp.inf, noise[:, 0])

    def act(policy, obs, key, deterministic):
        return sample_action(policy, obs, key)[0]

    of_both = Evaluation(args, act, sample_action)
    with pytest.raises(
        NonFiniteError, match="non-finite evaluation_soft_return at step 7, seed 2: it is inf"
    ):
        of_both(7, jnp.arange(2.0), jax.random.split(jax.random.key(0), 2), np.ones(2))


@pytest.mark.parametrize("algorithm", [sac, ppo], ids=["sac", "ppo"])
def test_an_evaluation_leaves_training_as_it_is(algorithm, tmp_path):
    records = []
    for episodes in (0, 2):
        folder = tmp_path / str(episodes)
        given = dict(eval_episodes=episodes, total_timesteps=360, checkpoint_frequency=0)
        algorithm.train(small_args(algorithm, **given, run_dir=str(folder)))
        record = rows(folder / "seed-1" / "metrics.jsonl")
        records.append([row for row in record if not any(name.startswith("eval") for name in row)])
    assert records[0] == records[1] and len(records[0]) >= 3

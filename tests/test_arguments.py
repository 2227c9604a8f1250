"""Bad input: one line that names the value, exit status 2, nothing written."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from cleanrl_maxent import ddpg, maxent_pg, sac, sql, td3
from cleanrl_maxent.common import devices
from cleanrl_maxent.common.arguments import RANGES, UsageError, parse_integer, validate

SCRIPT = Path(sac.__file__)
ALL = (ddpg, td3, sac, sql, maxent_pg)
ALGORITHMS = pytest.mark.parametrize("algorithm", ALL, ids=[algorithm.Args.exp_name for algorithm in ALL])

BAD = [
    (dict(gamma=5.0), "gamma must be in [0, 1); got 5.0"),
    (dict(gamma=float("nan")), "gamma must be in [0, 1); got nan"),
    (dict(tau=0.0), "tau must be in (0, 1]; got 0.0"),
    (dict(alpha=-1.0), "alpha must be a finite number >= 0; got -1.0"),
    (dict(q_lr=0.0), "q_lr must be a finite number > 0"),
    (dict(policy_lr=float("inf")), "policy_lr must be a finite number > 0"),
    (dict(total_timesteps=0), "total_timesteps must be an integer in [1, 2147483647]; got 0"),
    (dict(total_timesteps=-3), "total_timesteps must be an integer in [1, 2147483647]; got -3"),
    (dict(total_timesteps=1000, learning_starts=25_000), "learning would never start"),
    (dict(total_timesteps=1000, learning_starts=1000), "learning would never start"),
    (dict(batch_size=256, buffer_size=100), "batch_size 256 > buffer_size 100"),
    (dict(learning_starts=100), "only 100 transitions when learning starts"),
    (dict(seed=-1), "seed must be an integer in [0, 2147483647]; got -1"),
    (dict(seed=2**32), "seed must be an integer in [0, 2147483647]; got 4294967296"),
    (dict(seed=2**31 - 1, num_seeds=2), "beyond 2147483647"),
    (dict(num_seeds=0), "num_seeds must be an integer in [1, 2147483647]"),
    (dict(policy_frequency=0), "policy_frequency must be an integer in [1, 2147483647]"),
    (dict(target_network_frequency=0), "target_network_frequency must be"),
    (dict(eval_episodes=-1), "eval_episodes must be an integer in [0, 2147483647]"),
    (dict(eval_frequency=0), "eval_frequency must be an integer in [1, 2147483647]"),
    (dict(hidden_dims=()), "hidden_dims must be one to nine widths"),
    (dict(hidden_dims=(256, 0)), "hidden_dims must be one to nine widths"),
    (dict(total_timesteps=1e6), "total_timesteps must be an integer"),
    (dict(seed=2**31 - 1, num_seeds=10**9), "beyond 2147483647"),
    (dict(exp_name="../x"), "exp_name must be a name"),
    (dict(learning_rate=0.0), "learning_rate must be a finite number > 0; got 0.0"),
    (dict(exploration_noise=-0.1), "exploration_noise must be a finite number >= 0; got -0.1"),
    (dict(policy_noise=float("inf")), "policy_noise must be a finite number >= 0; got inf"),
    (dict(noise_clip=-0.5), "noise_clip must be a finite number >= 0; got -0.5"),
    (dict(ou_sigma=-1.0), "ou_sigma must be a finite number >= 0; got -1.0"),
    (dict(ou_dt=0.0), "ou_dt must be a finite number > 0; got 0.0"),
    (dict(noise="ou", ou_theta=3.0), "noise diverges unless 0 < ou_theta * ou_dt < 2; got 3.0 * 1.0"),
    (dict(noise="ou", ou_theta=0.0), "noise diverges unless 0 < ou_theta * ou_dt < 2; got 0.0 * 1.0"),
    (dict(reward_scale=0.0), "reward_scale must be a finite number > 0; got 0.0"),
    (dict(reward_scale=float("inf")), "reward_scale must be a finite number > 0; got inf"),
    (dict(n_critics=0), "n_critics must be an integer in [1, 2147483647]"),
    (dict(value_particles=0), "value_particles must be an integer in [1, 2147483647]"),
    (dict(svgd_particles=0), "svgd_particles must be an integer in [1, 2147483647]"),
    (dict(update_ratio=0.0), "update_ratio must be in (0, 1); got 0.0"),
    (dict(update_ratio=1.0), "update_ratio must be in (0, 1); got 1.0"),
    (dict(update_ratio=float("nan")), "update_ratio must be in (0, 1); got nan"),
    (dict(num_envs=0), "num_envs must be an integer in [1, 2147483647]"),
    (dict(num_steps=-1), "num_steps must be an integer in [1, 2147483647]"),
    (dict(update_epochs=0), "update_epochs must be an integer in [1, 2147483647]"),
    (dict(clip_coef=-0.1), "clip_coef must be a finite number >= 0; got -0.1"),
    (dict(gae_lambda=1.5), "gae_lambda must be in [0, 1]; got 1.5"),
    (dict(max_grad_norm=0.0), "max_grad_norm must be a finite number > 0; got 0.0"),
    (dict(noise="Gaussian"), "noise must be gaussian or ou; got 'Gaussian'"),
    (dict(svgd_space="Raw"), "svgd_space must be raw or action; got 'Raw'"),
    (dict(env_reset="never"), "env_reset must be "),
    (dict(alpha_lr=float("nan")), "alpha_lr must be a finite number > 0; got nan"),
]


CASES = [
    pytest.param(algorithm, given, words, id=f"{algorithm.Args.exp_name} {given}")
    for algorithm in ALL
    for given, words in BAD
    if given.keys() <= {field.name for field in fields(algorithm.Args)}
]
OF_ONE = [
    (sac, dict(alpha=0.0), "--no-autotune"),
    (sql, dict(alpha=0.0), "alpha must be > 0: soft Q-learning divides by it"),
    (sql, dict(svgd_particles=2), "svgd_particles 2 x update_ratio 0.5 moves 1 and leaves 1"),
    (sql, dict(svgd_particles=10, update_ratio=0.05), "moves 0 and leaves 10; at least 1 and 2 are needed"),
    (sql, dict(svgd_particles=3, update_ratio=0.7), "moves 2 and leaves 1; at least 1 and 2 are needed"),
    (maxent_pg, dict(alpha=0.0, autotune=True), "--no-autotune"),
    (maxent_pg, dict(alpha=5.0, autotune=True), "alpha is tuned within [0.0001, 1]; got 5.0"),
    (maxent_pg, dict(total_timesteps=1000), "num_envs 8 x num_steps 256 is longer than total_timesteps 1000"),
    (maxent_pg, dict(num_minibatches=30), "cannot be split evenly into num_minibatches 30"),
    (maxent_pg, dict(update_epochs=200_000), "more than 2147483647 gradient steps"),
]
CASES += [pytest.param(*case, id=f"{case[0].Args.exp_name} {case[1]}") for case in OF_ONE]


@pytest.mark.parametrize(("algorithm", "given", "words"), CASES)
def test_validate(algorithm, given, words):
    with pytest.raises(UsageError) as caught:
        validate(algorithm.Args(**given))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@ALGORITHMS
def test_defaults_are_valid_and_every_flag_has_a_check(algorithm):
    validate(algorithm.Args())
    kinds = {field.name: type(field.default) for field in fields(algorithm.Args)}
    assert {name for name, kind in kinds.items() if kind in (int, float)} <= RANGES.keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(env_id="Humanoid-v4", num_seeds=100), " GB, 20.0 GB available; lower --"),
        (
            dict(value_particles=10**6),
            "an update with so many particles needs 131.1 GB, 20.0 GB available; lower --b",
        ),
        (
            dict(svgd_particles=20_000),
            "an update with so many particles needs 102.4 GB, 20.0 GB available",
        ),
        (dict(device="cuda"), "no CUDA device found; available: cpu"),
        (dict(env_id="Hoper-v4"), "Did you mean Hopper-v"),
    ],
)
@ALGORITHMS
def test_train_refuses_and_leaves_nothing(algorithm, given, words, tmp_path, monkeypatch):
    if given.keys() & {"value_particles", "svgd_particles"} and algorithm is not sql:
        pytest.skip("has no particles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "available_memory", lambda: 20e9)
    if algorithm is maxent_pg and "num_seeds" in given:
        given = given | dict(num_seeds=1, num_steps=500_000, total_timesteps=10_000_000)
    with pytest.raises(UsageError) as caught:
        algorithm.train(algorithm.Args(**given))
    assert words in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gamma", "5"], "error: gamma must be in [0, 1); got 5.0"),
        (["--env-id", "CartPole-v1"], "Discrete(2)"),
        (["--gama", "0.9"], "--gamma"),
        (["--total-timesteps", "2.5"], "2.5"),
    ],
)
def test_shell(flags, words, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_integers():
    assert parse_integer("1e6") == 1_000_000 and parse_integer("1_000") == 1000
    for text in ("2.5", "abc", "nan", "inf", ""):
        with pytest.raises(ValueError):
            parse_integer(text)


@ALGORITHMS
def test_help_fits_a_screen_and_has_units(algorithm, tmp_path):
    script = [sys.executable, algorithm.__file__, "--help"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "environment steps" in done.stdout and "discount per step" in done.stdout
    assert algorithm in (ddpg, td3) or "nat" in done.stdout
    assert algorithm is not sql or all(words in done.stdout for words in ("30 on Swimmer", "300 Ant"))
    assert len(done.stdout.splitlines()) <= (70 if algorithm is maxent_pg else 60)

"""A whole run: the folder, the record and its mirrors, the evaluation, what is printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import envs as probes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from cleanrl_maxent import sac
from cleanrl_maxent.common.arguments import NonFiniteError, UsageError
from cleanrl_maxent.common.devices import EIGEN, set_up_xla
from cleanrl_maxent.common.envs import EVALUATION, SeedEnvs, environment_seed, make_env, scale_action
from cleanrl_maxent.common.evaluation import Evaluation

SMALL = dict(
    env_id="Pendulum-v1",
    total_timesteps=650,
    learning_starts=300,
    batch_size=16,
    buffer_size=500,
    hidden_dims=(8, 8),
    eval_frequency=250,
    eval_episodes=2,
)


FILES = (("commit", ".json"), ("state", ".npz"), ("segment", ".npz"))  # of a checkpoint


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def scalars(folder):
    """(tag, step, value) of every scalar in a folder's TensorBoard file."""
    data, found = next(Path(folder).glob("events.*")).read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two"
    result = sac.train(sac.Args(**SMALL, seed=3, num_seeds=2, run_dir=str(folder)))
    return folder, result


def test_folder(run):
    folder, result = run
    names = {str(path.relative_to(folder)).split(".out")[0] for path in folder.rglob("*") if path.is_file()}
    assert names == {
        ".lock",
        "config.json",
        "result.json",
        *(f"checkpoint/{name}-0000000650{end}" for name, end in FILES),
        "timing.jsonl",
        "policy-3.npz",
        "policy-4.npz",
        *(f"seed-{seed}/{name}" for seed in (3, 4) for name in ("metrics.jsonl", "events")),
    }
    assert json.loads((folder / "result.json").read_text()) == result
    newest = max((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    assert newest.name == "result.json"


def test_config(run):
    config = json.loads((run[0] / "config.json").read_text())
    assert config["algorithm"] == "sac" and config["args"]["gamma"] == 0.99
    assert config["args"]["hidden_dims"] == [8, 8] and config["device"]["platform"] == "cpu"
    assert all(
        config["versions"][name] for name in ("python", "jax", "gymnasium", "mujoco", "cleanrl_maxent")
    )
    assert config["cpu_threads"] >= 1


def test_record(run):
    folder, _ = run
    for seed in (3, 4):
        record = rows(folder / f"seed-{seed}" / "metrics.jsonl")
        names = set().union(*record)
        assert not any("SPS" in name or "time" in name for name in names)
        assert names == {
            "global_step",
            "charts/episodic_return",
            "charts/episodic_length",
            *(f"losses/qf{i}_{what}" for i in (1, 2) for what in ("loss", "values")),
            *(f"losses/{name}" for name in ("actor_loss", "alpha", "alpha_loss", "entropy")),
            *(
                f"{e}/{m}"
                for e in ("eval", "eval_stochastic")
                for m in ("return_mean", "return_std", "length")
            ),
            "eval/soft_return",
        }
        at = {
            "charts/episodic_return": [200, 400, 600],
            "losses/alpha": [400, 500, 600],
            "eval/return_mean": [250, 500, 650],
        }
        for name, steps in at.items():
            assert [row["global_step"] for row in record if name in row] == steps, name
    first, second = (rows(folder / f"seed-{seed}" / "metrics.jsonl") for seed in (3, 4))
    assert first != second


def test_tensorboard_mirrors_the_record(run):
    folder, _ = run
    board = {(tag, step): value for tag, step, value in scalars(folder / "seed-3") if "charts/SPS" not in tag}
    for row in rows(folder / "seed-3" / "metrics.jsonl"):
        for name, value in row.items():
            if name != "global_step":
                assert board[name, row["global_step"]] == pytest.approx(value, rel=1e-6)


def test_policy_file_plays_without_pickle(run):
    folder, _ = run
    params = {"params": {}}
    with np.load(folder / "policy-3.npz", allow_pickle=False) as arrays:
        for path, leaf in arrays.items():
            root, layer, name = path.split("/")
            params[root].setdefault(layer, {})[name] = leaf
    action = sac.act(params, np.zeros(3, np.float32), jax.random.key(0), True)
    assert action.shape == (1,) and np.abs(action).max() <= 1


def test_same_seed_same_record(run, tmp_path):
    sac.train(sac.Args(**SMALL, seed=3, num_seeds=2, run_dir=str(tmp_path / "again")))
    for seed in (3, 4):
        name = f"seed-{seed}/metrics.jsonl"
        assert (tmp_path / "again" / name).read_bytes() == (run[0] / name).read_bytes()


def test_seed_alone_equals_that_seed_beside_another(run, tmp_path):
    sac.train(sac.Args(**SMALL, seed=4, run_dir=str(tmp_path / "alone")))
    beside, alone = (rows(folder / "seed-4" / "metrics.jsonl") for folder in (run[0], tmp_path / "alone"))
    for a, b in zip(beside, alone, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


def test_seeds_explore_differently(tmp_path, monkeypatch):
    actions, step = [], SeedEnvs.step

    def noted_step(self, action):
        actions.append(action)
        return step(self, action)

    monkeypatch.setattr(SeedEnvs, "step", noted_step)
    sac.train(sac.Args(**SMALL | dict(eval_episodes=0), num_seeds=2, run_dir=str(tmp_path / "x")))
    actions = np.stack(actions)[..., 0]  # (step, seed)
    assert abs(np.corrcoef(actions[:300].T)[0, 1]) < 0.2 and np.abs(actions).max() <= 1
    assert len(np.unique(actions)) > 1200


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="exists and is not a run"):
        sac.train(sac.Args(**SMALL, run_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        sac.train(sac.Args(**SMALL, run_dir=str(tmp_path / "file" / "run")))


def test_no_evaluation(tmp_path):
    args = SMALL | dict(eval_episodes=0, total_timesteps=310)
    result = sac.train(sac.Args(**args, run_dir=str(tmp_path / "x")))
    assert result["evaluations"] == {"1": {}}


def test_nan_from_the_environment_stops_the_run_and_keeps_the_record(tmp_path):
    args = SMALL | dict(env_id="LateNan-v0", eval_episodes=0, run_dir=str(tmp_path / "x"))
    probes.register("LateNan-v0", entry_point=probes.Broken, kwargs={"at": 280}, disable_env_checker=True)
    with pytest.raises(NonFiniteError, match="reward at step 280, seed 1"):
        sac.train(sac.Args(**args))
    assert (tmp_path / "x" / "config.json").exists() and not (tmp_path / "x" / "result.json").exists()


def test_whole_episodes_of_unequal_length_count_once():
    """Sixteen Hopper episodes, each equal to the one that a single environment plays."""
    args = sac.Args(env_id="Hopper-v4", eval_episodes=8, hidden_dims=(8,))
    state = jax.vmap(lambda key: sac.init(key, 11, 3, args))(jax.random.split(jax.random.key(0), 1))
    evaluate = Evaluation(args, sac.act, sac.sample_action)
    keys = jax.random.split(jax.random.key(1), 1)
    first, again = (evaluate(5000, state.actor.params, keys, np.ones(1))[0] for _ in range(2))
    assert first == again and first != evaluate(10_000, state.actor.params, keys, np.ones(1))[0]

    env, params = make_env("Hopper-v4"), jax.tree.map(lambda leaf: leaf[0], state.actor.params)
    returns = []
    for episode in range(8):
        obs, total, over = env.reset(seed=environment_seed(1, EVALUATION, 5000, 0, episode))[0], 0.0, False
        while not over:
            action = np.asarray(sac.act(params, obs, None, True))
            obs, reward, terminated, truncated, _ = env.step(scale_action(action, env.action_space))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert first["eval/return_mean"] == pytest.approx(np.mean(returns), rel=1e-3)
    assert first["eval/return_std"] == pytest.approx(np.std(returns), rel=1e-2)


def test_soft_return_adds_alpha_times_entropy():
    args = sac.Args(env_id="Pendulum-v1", eval_episodes=2, hidden_dims=(8,))
    state = jax.vmap(lambda key: sac.init(key, 3, 1, args))(jax.random.split(jax.random.key(0), 1))
    evaluate = Evaluation(args, sac.act, sac.sample_action)
    keys = jax.random.split(jax.random.key(1), 1)
    plain, soft = (evaluate(1, state.actor.params, keys, np.full(1, alpha))[0] for alpha in (0.0, 2.0))
    assert plain["eval/soft_return"] == pytest.approx(plain["eval_stochastic/return_mean"], rel=1e-6)
    entropy = (soft["eval/soft_return"] - plain["eval/soft_return"]) / 2 / 200
    assert -1.0 < entropy < 0.6931  # nats a step; log 2 bounds it


def test_compiles_a_fixed_number_of_programs(tmp_path, caplog):
    """1,300 steps with episodes, evaluations and learning compile nothing that 400 steps did not."""
    counts = []
    for total in (400, 1300):
        caplog.clear()
        jax.clear_caches()
        args = SMALL | dict(total_timesteps=total, eval_frequency=1000 if total > 400 else 200)
        with jax.log_compiles(), caplog.at_level("WARNING"):
            sac.train(sac.Args(**args, run_dir=str(tmp_path / str(total))))
        counts.append(sum(r.message.startswith("Compiling") for r in caplog.records))
    assert counts[0] == counts[1] > 0


def test_seeds_shard_over_devices(tmp_path):
    """Four forced host devices give the curves of one."""
    few = SMALL | dict(total_timesteps=402, eval_episodes=0)
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax, numpy as np
from cleanrl_maxent import sac
from cleanrl_maxent.common.devices import seed_sharding
assert jax.device_count() == 4
assert seed_sharding(4).num_devices == 4 and seed_sharding(6).num_devices == 3
args = sac.Args(**{few!r}, num_seeds=4, run_dir={str(tmp_path / "four")!r})
sac.train(args)
"""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)
    sac.train(sac.Args(**few, num_seeds=4, run_dir=str(tmp_path / "one")))
    for seed in range(1, 5):
        four, one = (rows(tmp_path / name / f"seed-{seed}" / "metrics.jsonl") for name in ("four", "one"))
        for a, b in zip(four, one, strict=True):
            assert a == pytest.approx(b, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ((0, 10, 2), "", EIGEN),
        ((0, 11, 0), "--xla_cpu_enable_fast_math=false", f"{EIGEN} --xla_cpu_enable_fast_math=false"),
        ((0, 10, 2), f"{EIGEN}LIBRARY_FUSION_TYPE_DOT", f"{EIGEN}LIBRARY_FUSION_TYPE_DOT"),
        ((0, 10, 1), "", ""),
        ((0, 12, 0, 1), "", ""),
    ],
)
def test_flags_of_xla(version, given, expected, monkeypatch):
    """Eigen where YNNPACK errs; what the user chose stays, and a second run of the process adds nothing."""
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        set_up_xla(None)
        assert os.environ["XLA_FLAGS"] == expected


def test_sum_of_products_of_many_rows():
    """YNNPACK gets it wrong in jax 0.10.2: https://github.com/jax-ml/jax/issues/39103."""
    rows = jnp.arange(32_769.0)[:, None] * jnp.array([1.0, 0.0, 0.0])
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    assert squares[-1] == 32_768**2


def test_a_process_that_has_computed_before_is_told(tmp_path):
    """Its threads and flags are unknown, and recorded as such."""
    args = dict(SMALL, learning_starts=16, total_timesteps=20, run_dir=str(tmp_path / "run"))
    program = f"""
import jax
jax.numpy.ones(3).block_until_ready()
from cleanrl_maxent import sac
sac.train(sac.Args(**{args!r}))
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True)
    assert "JAX has computed before; this run cannot be resumed to the bit" in done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cpu_threads"] is None and config["xla_flags"] is None


def test_wandb_offline(tmp_path):
    """One run per seed in one group, in a process of its own; nothing leaves the machine."""
    args = dict(SMALL, total_timesteps=320, eval_episodes=0)
    program = (
        "from cleanrl_maxent import sac\n"
        f"sac.train(sac.Args(**{args!r}, num_seeds=2, track=True, wandb_mode='offline', run_dir='run'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*"))) == 2


def test_own_environment_by_module(tmp_path):
    (tmp_path / "my_module.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('MyEnv-v0', entry_point=PendulumEnv, max_episode_steps=200)\n"
    )
    flags = "--env-id my_module:MyEnv-v0 --total-timesteps 3.1e2 --learning-starts 300 --eval-episodes 1"
    command = [sys.executable, sac.__file__, *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("my_module_MyEnv-v0__sac__1__")
    assert "310/310" in done.stdout and "done: 310 steps" in done.stdout and "\x1b" not in done.stdout

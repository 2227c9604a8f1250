"""Threads, flags and devices of XLA: set before the first computation, and recorded."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from cleanrl_maxent.common import devices
from cleanrl_maxent.common.devices import DETERMINISTIC, EIGEN, set_up_xla
from cleanrl_maxent.common.errors import UsageError
from tests.support.runs import SMALL, rows, train


@pytest.mark.slow
def test_seeds_shard_over_devices(tmp_path):
    """Eight forced host devices, a seed each, give the curves of one after 200 updates; with workers, too."""
    few = SMALL | dict(learning_starts=300, total_timesteps=500, eval_frequency=500, checkpoint_frequency=0)
    program = f"""
import jax
from cleanrl_maxent import sac
from cleanrl_maxent.common.devices import seed_sharding
assert jax.device_count() == 8
assert seed_sharding(8).num_devices == 8 and seed_sharding(12).num_devices == 6
args = sac.Args(**{few!r}, num_seeds=8, env_workers=2, run_dir={str(tmp_path / "eight")!r})
sac.train(args)
"""
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=tmp_path)
    train(few | dict(num_seeds=8), tmp_path / "one")
    for seed in range(1, 9):
        eight, one = (rows(tmp_path / name / f"seed-{seed}" / "metrics.jsonl") for name in ("eight", "one"))
        for a, b in zip(eight, one, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


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
    monkeypatch.setattr(devices, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        set_up_xla(None)
        assert os.environ["XLA_FLAGS"] == expected


def test_deterministic_flags_of_xla(monkeypatch):
    """They are added to what the user chose, once, and only before XLA reads them."""
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    with pytest.raises(UsageError, match="deterministic comes too late"):
        set_up_xla(None, deterministic=True)
    monkeypatch.setattr(devices, "backends_are_initialized", lambda: False)
    for _ in range(2):
        set_up_xla(None, deterministic=True)
        assert os.environ["XLA_FLAGS"] == f"--xla_cpu_enable_fast_math=false {DETERMINISTIC}"


def test_sum_of_products_of_many_rows():
    """YNNPACK gets it wrong in jax 0.10.2: https://github.com/jax-ml/jax/issues/39103."""
    rows = jnp.arange(32_769.0)[:, None] * jnp.array([1.0, 0.0, 0.0])
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    assert squares[-1] == 32_768**2


@pytest.mark.slow
def test_a_new_run_takes_no_settings_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"cpu_threads": 3}')
    assert devices.recorded_settings(None) == {} != devices.recorded_settings(str(tmp_path))


@pytest.mark.parametrize("threads", [None, 1])
def test_a_process_that_has_computed_before_is_told(threads, tmp_path):
    """Flags that XLA has not seen, and threads unless NPROC gave them, are recorded as unknown."""
    args = dict(SMALL, learning_starts=16, total_timesteps=20, run_dir=str(tmp_path / "run"))
    program = f"""
import jax
jax.numpy.ones(3).block_until_ready()
from cleanrl_maxent import sac
sac.train(sac.Args(**{args!r}))
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("NPROC", "XLA_FLAGS")}
    clean |= {"NPROC": str(threads)} if threads else {}
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True)
    assert "JAX has already computed in this process; this run cannot be resumed bit for bit" in done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["cpu_threads"] == threads and config["xla_flags"] is None

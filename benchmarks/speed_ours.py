"""One measurement of ours for `benchmarks/speed.py`.

    python benchmarks/speed_ours.py run --num-seeds 4      # a run, as a user would start it
    python benchmarks/speed_ours.py parts --num-seeds 4    # what a step is made of, each part alone
    python benchmarks/speed_ours.py profile                # what an update is made of
    python benchmarks/speed_ours.py about                  # machine and versions

The last line that it prints is JSON.
"""

import contextlib
import io
import json
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.machine import describe_machine
from cleanrl_maxent.common.replay import Transition

try:
    import resource
except ImportError:  # not on Windows
    resource = None


@dataclass
class Run:
    """Trains and reads the rate off `timing.jsonl`: logging, TensorBoard and commits as they are."""

    algorithm: str = "sac"  # a file of cleanrl_maxent
    env_id: str = "Hopper-v4"
    num_seeds: int = 1  # vmapped
    warm: int = 2_000  # steps before the clock starts, 1,000 of them random; a multiple of 1,000
    steps: int = 20_000  # timed environment steps of each seed; a multiple of 1,000
    eval_episodes: int = 0  # episodes of each evaluation, every 5,000 steps


@dataclass
class Parts:
    """Times the update, the action, the environments and matrix products, each alone."""

    algorithm: str = "sac"  # a file of cleanrl_maxent
    env_id: str = "Hopper-v4"
    num_seeds: int = 1  # vmapped
    updates: int = 1_000  # timed updates of all seeds at once


@dataclass
class About:
    """Tells versions, device and commit."""


@dataclass
class Profile(Parts):
    """Share of the threads' busy time that each kind of operation takes in an update (CPU)."""


def run(given: Run) -> dict[str, float]:
    """Environment steps per second of all seeds together, and the most memory that the process held."""
    algorithm = import_module(f"cleanrl_maxent.{given.algorithm}")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        algorithm.train(
            algorithm.Args(
                env_id=given.env_id,
                num_seeds=given.num_seeds,
                total_timesteps=given.warm + given.steps,
                eval_episodes=given.eval_episodes,
                run_dir=f"{folder}/run",
                **({"learning_starts": 1_000} if hasattr(algorithm.Args, "learning_starts") else {}),
            )
        )
        rows = [json.loads(row) for row in Path(folder, "run", "timing.jsonl").open()]
    first, *_, last = (row for row in rows if row["global_step"] >= given.warm)  # rollouts end where they do
    steps, elapsed = (last[name] - first[name] for name in ("global_step", "seconds"))
    figures = {"steps_per_second": given.num_seeds * steps / elapsed}
    if resource:
        figures["host_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        figures["device_megabytes"] = sum(of_device["peak_bytes_in_use"] for of_device in stats) / 1e6
    return figures


def parts(given: Parts) -> dict[str, float]:
    """Rates of all seeds together, latencies in microseconds, floating-point operations of one update.

    The floor is the update's operations at the highest rate of a 256 × 256 product measured here.
    """
    set_up_device("auto")
    jax.config.update("jax_enable_compilation_cache", False)
    algorithm = import_module(f"cleanrl_maxent.{given.algorithm}")
    envs = SeedEnvs(given.env_id, list(range(given.num_seeds)))
    small = matmul_rate(256, 200)
    figures = time_update(algorithm, given, envs)
    small = max(small, matmul_rate(256, 200))
    return figures | {
        "matmul_256_gigaflops": small,
        "matmul_2048_gigaflops": matmul_rate(2048, 4),
        "floor_updates_per_second": given.num_seeds * small / figures["gigaflop"],
        "environment_steps_per_second": time_environments(envs, 3_000),
    }


def prepare_update(algorithm: ModuleType, args: Any, envs: SeedEnvs) -> tuple[Callable, Any, tuple]:
    """The jitted update of `algorithm`, not compiled yet; the state; batches on the device, and keys."""
    rng, num_seeds = np.random.default_rng(0), len(envs.seeds)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(num_seeds, args.batch_size, *shape)), jnp.float32)

    batch = Transition(
        obs=normal(envs.obs_dim),
        action=jnp.tanh(normal(envs.action_dim)),
        reward=normal(),
        next_obs=normal(envs.obs_dim),
        terminated=jnp.zeros((num_seeds, args.batch_size)),
    )
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    init = jax.vmap(lambda key: algorithm.init(key, envs.obs_dim, envs.action_dim, args))
    update = jax.vmap(lambda *inputs: algorithm.update(*inputs, args), (0, 0, 0, None))
    return jax.jit(update, donate_argnums=0), jax.jit(init)(keys), (batch, keys)


def time_update(algorithm: ModuleType, given: Parts, envs: SeedEnvs) -> dict[str, float]:
    """The update of `algorithm` on batches that stay on the device, and its action."""
    update, state, (batch, keys) = prepare_update(algorithm, algorithm.Args(), envs)
    began = time.perf_counter()
    update = update.lower(state, batch, keys, jnp.int32(0)).compile()
    compile_seconds = time.perf_counter() - began
    for index in range(given.updates // 5 + given.updates):
        if index == given.updates // 5:
            jax.block_until_ready(state)
            began = time.perf_counter()
        state, metrics = update(state, batch, keys, jnp.int32(index))
    jax.block_until_ready((state, metrics))
    elapsed = time.perf_counter() - began
    act = jax.jit(jax.vmap(lambda params, obs, key: algorithm.act(params, obs, key, False)))
    actions = seconds_until_here(lambda: act(state.actor.params, envs.obs, keys), 1_000)
    return {
        "compile_seconds": compile_seconds,
        "updates_per_second": given.num_seeds * given.updates / elapsed,
        "gigaflop": gigaflop(algorithm, given, envs),
        "action_microseconds": 1e6 * statistics.median(actions),
    }


def gigaflop(algorithm: ModuleType, given: Parts, envs: SeedEnvs) -> float:
    """Floating-point operations of an update as XLA counts them, the mean over the turns of a delay."""
    turns = range(getattr(algorithm.Args(), "policy_frequency", 1))
    with jax.default_device(jax.devices("cpu")[0]):  # elsewhere products in libraries are not counted
        update, state, (batch, keys) = prepare_update(algorithm, algorithm.Args(), envs)
        compiled = [jax.jit(lambda *inputs, i=i: update(*inputs, i)).lower(state, batch, keys) for i in turns]
    return statistics.mean(one.compile().cost_analysis()["flops"] for one in compiled) / 1e9


def about(given: About) -> dict[str, Any]:
    """Machine, versions, threads and flags, as a run has them."""
    set_up_device("auto")
    return describe_machine()


def profile(given: Profile) -> dict[str, float]:
    """Kind of operation, as XLA names it → share of the busy time of its threads; from 1%, largest first."""
    set_up_device("cpu")
    algorithm = import_module(f"cleanrl_maxent.{given.algorithm}")
    envs = SeedEnvs(given.env_id, list(range(given.num_seeds)))
    update, state, (batch, keys) = prepare_update(algorithm, algorithm.Args(), envs)
    for _ in range(50):
        state, metrics = update(state, batch, keys, jnp.int32(0))
    jax.block_until_ready((state, metrics))
    busy = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(given.updates):
                state, metrics = update(state, batch, keys, jnp.int32(0))
            jax.block_until_ready((state, metrics))
        trace = next(Path(folder).rglob("*.xplane.pb"))
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for line in plane.lines:
                if line.name.startswith("tf_XLA"):
                    for event in line.events:
                        busy[event.name.partition(".")[0]] += event.duration_ns
    kinds = {kind: time for kind, time in busy.most_common() if re.fullmatch("[a-z_-]+", kind)}
    shares = {kind: round(time / sum(kinds.values()), 3) for kind, time in kinds.items()}
    return {kind: share for kind, share in shares.items() if share >= 0.01}


def seconds_until_here(call: Callable[[], jax.Array], times: int) -> list[float]:
    """Seconds until the result of `call` is on the host, each of `times` times, after a few not counted."""
    seconds = []
    for _ in range(times + times // 10):
        began = time.perf_counter()
        np.asarray(call())
        seconds.append(time.perf_counter() - began)
    return seconds[times // 10 :]


def matmul_rate(size: int, products: int) -> float:
    """GFLOP/s of a chain of float32 products of two square matrices: the fastest of 20 chains."""
    matrix = jnp.full((size, size), 1 / size)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, x: x @ matrix, x)[0])
    return products * 2 * size**3 / min(seconds_until_here(lambda: chain(matrix), 20)) / 1e9


def time_environments(envs: SeedEnvs, steps: int) -> float:
    """Steps per second of all environments together, stepped in turn with uniform actions."""
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(steps):
        envs.step(rng.uniform(-1, 1, (len(envs.seeds), envs.action_dim)).astype(np.float32))
    return len(envs.seeds) * steps / (time.perf_counter() - began)


if __name__ == "__main__":
    chosen = tyro.cli(Run | Parts | Profile | About)
    kinds = {Run: run, Parts: parts, Profile: profile, About: about}
    print(json.dumps(kinds[type(chosen)](chosen)))

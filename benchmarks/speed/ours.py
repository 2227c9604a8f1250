"""One measurement of ours for `benchmarks/speed/compare.py`.

    python benchmarks/speed/ours.py run --num-seeds 4      # a run, as a user would start it
    python benchmarks/speed/ours.py parts --num-seeds 4    # what a step is made of, each part alone
    python benchmarks/speed/ours.py profile                # what an update is made of
    python benchmarks/speed/ours.py about                  # machine and versions

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
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.commands import algorithm_module, applicable_flags, check_algorithms, is_file
from benchmarks.speed.batches import BatchUpdate
from benchmarks.speed.clock import EnvironmentClock
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.devices import per_seed, set_up_device
from cleanrl_maxent.common.env.batch import EnvBatch
from cleanrl_maxent.common.env.make import EnvChoice
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import require
from cleanrl_maxent.common.run.machine import describe_machine

try:
    import resource
except ImportError:  # not on Windows
    resource = None


DQN = dict(alpha=0.0, start_e=1.0, end_e=0.05, tau=1.0, target_network_frequency=500)  # as its peers have it


@dataclass
class Run:
    """Trains and reads the rate off `timing.jsonl`: logging, TensorBoard and checkpoints as they are."""

    algorithm: str = "sac"  # a file of cleanrl_maxent
    env_id: str = "Hopper-v4"
    num_seeds: int = 1  # vmapped
    warm: int = 2_000  # steps before the clock starts, 1,000 of them random; a multiple of 1,000
    steps: int = 20_000  # timed environment steps of each seed; a multiple of 1,000
    eval_episodes: int = 0  # episodes of each evaluation, every 5,000 steps
    env_workers: int = 0  # processes that step the environments; 0: this one


@dataclass
class Parts:
    """Times the update, the action, the environments and matrix products, each alone."""

    algorithm: str = "sac"  # a file of cleanrl_maxent
    env_id: str = "Hopper-v4"
    num_seeds: int = 1  # vmapped
    updates: int = 1_000  # timed updates of all seeds at once


@dataclass
class About:
    """Tells versions, device and git commit."""


@dataclass
class Profile(Parts):
    """Share of the threads' busy time that each kind of operation takes in an update (CPU)."""


def settings(algorithm: str) -> dict[str, Any]:
    """The flags with which an algorithm is timed."""
    return DQN if algorithm == "sql_discrete" else {}


def run(chosen: Run) -> dict[str, float]:
    """Environment steps per second of all seeds together, and the most memory that the process held.

    Without evaluation and workers, which have other environments, also the rate outside the environments.
    """
    algorithm, clock = algorithm_module(chosen.algorithm), EnvironmentClock(EnvBatch, "step_wait")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        algorithm.train(
            algorithm.Args(
                env_id=chosen.env_id,
                num_seeds=chosen.num_seeds,
                total_timesteps=chosen.warm + chosen.steps,
                eval_episodes=chosen.eval_episodes,
                eval_frequency=5_000,
                run_dir=f"{folder}/run",
                env_workers=chosen.env_workers,
                **settings(chosen.algorithm),
                **applicable_flags(chosen.algorithm, {"learning_starts": 1_000}),
            )
        )
        rows = [json.loads(row) for row in Path(folder, "run", "timing.jsonl").open()]
    speeds = [row for row in rows if "charts/SPS" in row]  # before the evaluation at the same step
    # a rollout may end later than `warm`
    timed = [row for row in speeds if row["global_step"] >= chosen.warm]
    require(len(timed) >= 2, f"{chosen.steps} steps are too few to be timed; raise --steps")
    first, last = timed[0], timed[-1]
    elapsed = last["seconds"] - first["seconds"]
    steps = last["global_step"] - first["global_step"]
    figures = {"steps_per_second": chosen.num_seeds * steps / elapsed}
    if not (chosen.eval_episodes or chosen.env_workers):
        copies = getattr(algorithm.Args, "num_envs", 1)
        inside = clock.between(first["global_step"] // copies, last["global_step"] // copies)
        figures["agent_steps_per_second"] = chosen.num_seeds * steps / (elapsed - inside)
    if resource:
        figures["host_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        figures["device_megabytes"] = sum(of_device["peak_bytes_in_use"] for of_device in stats) / 1e6
    return figures


def parts(chosen: Parts) -> dict[str, float]:
    """Rates of all seeds together, latencies in microseconds, floating-point operations of one update.

    `floor_updates_per_second` is an upper bound: all operations at the highest rate of a 256 × 256 product.
    """
    set_up_device("auto")
    jax.config.update("jax_enable_compilation_cache", False)
    algorithm, envs = algorithm_module(chosen.algorithm), make_envs(chosen)
    small = matmul_rate(256, 200)
    figures = time_update(algorithm, chosen, envs)
    small = max(small, matmul_rate(256, 200))
    return figures | {
        "matmul_256_gigaflops": small,
        "matmul_2048_gigaflops": matmul_rate(2048, 4),
        "floor_updates_per_second": chosen.num_seeds * small / figures["gigaflop"],
        "environment_steps_per_second": time_environments(envs, 3_000),
    }


def make_envs(chosen: Parts) -> SeedEnvs:
    """The environments of as many seeds as were chosen."""
    choice = EnvChoice(chosen.env_id, algorithm_module(chosen.algorithm).Args.action_spaces)
    return SeedEnvs(choice, list(range(chosen.num_seeds)))


def time_update(algorithm: ModuleType, chosen: Parts, envs: SeedEnvs) -> dict[str, float]:
    """Times the update of `algorithm` on batches that stay on the device, and its action."""
    args = algorithm.Args(**settings(chosen.algorithm))
    update = BatchUpdate(algorithm, args, envs)
    began = time.perf_counter()
    update.compile()
    compile_seconds = time.perf_counter() - began
    for index in range(chosen.updates // 5 + chosen.updates):
        if index == chosen.updates // 5:
            update.wait()
            began = time.perf_counter()
        update(index)
    update.wait()
    elapsed = time.perf_counter() - began
    act = per_seed(lambda policy, obs, key: algorithm.act(policy, obs, key, False))
    policy = algorithm.policy(update.state)
    actions = seconds_until_here(lambda: act(policy, envs.obs, update.keys), 1_000)
    return {
        "compile_seconds": compile_seconds,
        "updates_per_second": chosen.num_seeds * chosen.updates / elapsed,
        "gigaflop": gigaflop(algorithm, args, envs),
        "action_microseconds": 1e6 * statistics.median(actions),
    }


def gigaflop(algorithm: ModuleType, args: Any, envs: SeedEnvs) -> float:
    """10⁹ floating-point operations of an update as XLA counts them, averaged over a cycle of its delays."""
    with jax.default_device(jax.devices("cpu")[0]):  # elsewhere XLA does not count products in libraries
        return BatchUpdate(algorithm, args, envs).flops() / 1e9


def about(chosen: About) -> dict[str, Any]:
    """Machine, versions, threads and flags, as a run has them."""
    set_up_device("auto")
    return describe_machine()


def profile(chosen: Profile) -> dict[str, float]:
    """Kind of operation, as XLA names it → share of the busy time of its threads; from 1%, largest first."""
    set_up_device("cpu")
    algorithm = algorithm_module(chosen.algorithm)
    update = BatchUpdate(algorithm, algorithm.Args(**settings(chosen.algorithm)), make_envs(chosen))
    for index in range(50):
        update(index)
    update.wait()
    busy = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for index in range(chosen.updates):
                update(index)
            update.wait()
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
    """Seconds until the result of `call` is on the host, for each of `times` calls after a few uncounted."""
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
    rng, count, task = np.random.default_rng(0), len(envs.seeds), envs.task
    began = time.perf_counter()
    for _ in range(steps):
        if task.discrete:
            envs.step(rng.integers(task.action_dim, size=count))
        else:
            envs.step(rng.uniform(-1, 1, (count, task.action_dim)).astype(np.float32))
    return len(envs.seeds) * steps / (time.perf_counter() - began)


def main(chosen: Run | Parts | Profile | About) -> None:
    """Prints the figures of a measurement as a line of JSON. Raises UsageError."""
    if not isinstance(chosen, About):
        check_algorithms([] if is_file(chosen.algorithm) else [chosen.algorithm])
    measure = {Run: run, Parts: parts, Profile: profile, About: about}[type(chosen)]
    print(json.dumps(measure(chosen)))


if __name__ == "__main__":
    run_script(Run | Parts | Profile | About, main)

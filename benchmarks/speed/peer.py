"""One measurement of a peer for `benchmarks/speed/compare.py`, printed as a line of JSON.

Runs in the peer's own Python environment, so it imports only `clock.py` of ours, with PYTHONPATH set:

    PYTHONPATH=. python benchmarks/speed/peer.py sbx                             # its versions
    PYTHONPATH=. python benchmarks/speed/peer.py sbx SAC Hopper-v4 2000 20000    # warm-up and timed steps
"""

import argparse
import importlib
import json
import resource
import time
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np

from benchmarks.speed.clock import EnvironmentClock

PACKAGES = {
    "sbx": ("sbx-rl", "jax"),
    "stable_baselines3": ("stable-baselines3", "torch"),
    "sb3_contrib": ("sb3-contrib", "stable-baselines3", "torch"),
}
ON_POLICY: dict[str, tuple[int, dict[str, Any]]] = {  # number of environments, and our default sizes
    "PPO": (8, dict(n_steps=256, batch_size=64, n_epochs=10, gae_lambda=0.95)),
    "A2C": (16, dict(n_steps=5, gae_lambda=1.0, ent_coef=0.01)),
    "TRPO": (8, dict(n_steps=256, batch_size=64, cg_max_steps=10, n_critic_updates=10, gae_lambda=0.97)),
}
OFF_POLICY = dict(
    learning_starts=1_000,
    buffer_size=1_000_000,
    batch_size=256,
    train_freq=1,
    gradient_steps=1,
    policy_kwargs={"net_arch": [256, 256]},
)
DQN = OFF_POLICY | dict(
    buffer_size=100_000, batch_size=128, target_update_interval=500, exploration_final_eps=0.05
)


def make_model(package: str, algorithm: str, env_id: str) -> Any:
    """A model with our sizes: batches of 256, two layers of 256, a replay of a million, noise of 0.1.

    DQN: batches of 128, a replay of 100,000, new targets every 500 updates. On-policy: `ON_POLICY`, two
    layers of 64 for actor and critic each, their default, and normalised observations and rewards.
    """
    env_util, noise, vec_env = (
        importlib.import_module(f"stable_baselines3.common.{name}")
        for name in ("env_util", "noise", "vec_env")
    )
    make = getattr(importlib.import_module(package), algorithm)
    if algorithm in ON_POLICY:
        count, sizes = ON_POLICY[algorithm]
        env = vec_env.VecNormalize(env_util.make_vec_env(env_id, n_envs=count))
        return make("MlpPolicy", env, seed=1, device="cpu", **sizes)
    env = gymnasium.make(env_id)
    if algorithm == "DQN":
        return make("MlpPolicy", env, seed=1, **DQN)
    zeros = np.zeros(env.action_space.shape or ())
    action_noise = None if algorithm in ("SAC", "CrossQ") else noise.NormalActionNoise(zeros, zeros + 0.1)
    return make("MlpPolicy", env, action_noise=action_noise, seed=1, **OFF_POLICY)


def measure(package: str, algorithm: str, env_id: str, warm: str, steps: str) -> dict[str, float]:
    """Steps per second, in all and outside the environments, and the most memory held."""
    vector_env = importlib.import_module("stable_baselines3.common.vec_env").DummyVecEnv
    clock = EnvironmentClock(vector_env, "step_wait")
    model = make_model(package, algorithm, env_id)
    model.learn(int(warm))
    first, began = model.num_timesteps, time.perf_counter()
    model.learn(int(steps), reset_num_timesteps=False)
    elapsed, last = time.perf_counter() - began, model.num_timesteps
    inside = clock.between(first // model.n_envs, last // model.n_envs)
    return {
        "steps_per_second": (last - first) / elapsed,
        "agent_steps_per_second": (last - first) / (elapsed - inside),
        "host_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(description="Versions of a peer, or a measurement of it.")
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("what", nargs="*", help="algorithm, environment, warm-up steps, timed steps")
    args = parser.parse_args()
    importlib.import_module(args.package)
    versions = {name: version(name) for name in (*PACKAGES[args.package], "gymnasium", "mujoco")}
    print(json.dumps(measure(args.package, *args.what) if args.what else versions))


if __name__ == "__main__":
    main()

"""One measurement of a peer for `benchmarks/speed/compare.py`, printed as a line of JSON.

Runs in the peer's own environment, so it imports nothing of ours:

    python benchmarks/speed/peer.py sbx                             # its versions
    python benchmarks/speed/peer.py sbx SAC Hopper-v4 2000 20000    # warm-up and timed steps
"""

import argparse
import importlib
import json
import resource
import time
from importlib.metadata import version

import gymnasium
import numpy as np

PACKAGES = {"sbx": ("sbx-rl", "jax"), "stable_baselines3": ("stable-baselines3", "torch")}


def measure(package: str, algorithm: str, env_id: str, warm: str, steps: str) -> dict[str, float]:
    """Rate with our sizes: batches of 256, two layers of 256, a ring of a million, noise of 0.1.

    PPO's rollouts are 256 steps of eight environments, ten epochs of batches of 64, two layers of 64.
    """
    env_util, noise, vec_env = (
        importlib.import_module(f"stable_baselines3.common.{name}")
        for name in ("env_util", "noise", "vec_env")
    )
    make_model = getattr(importlib.import_module(package), algorithm)
    if algorithm == "PPO":
        env = vec_env.VecNormalize(env_util.make_vec_env(env_id, n_envs=8))
        model = make_model("MlpPolicy", env, n_steps=256, batch_size=64, n_epochs=10, seed=1)
    else:
        env = gymnasium.make(env_id)
        zeros = np.zeros(env.action_space.shape or ())
        model = make_model(
            "MlpPolicy",
            env,
            learning_starts=1_000,
            buffer_size=1_000_000,
            batch_size=256,
            train_freq=1,
            gradient_steps=1,
            policy_kwargs={"net_arch": [256, 256]},
            action_noise=None if algorithm == "SAC" else noise.NormalActionNoise(zeros, zeros + 0.1),
            seed=1,
        )
    model.learn(int(warm))
    before, began = model.num_timesteps, time.perf_counter()
    model.learn(int(steps), reset_num_timesteps=False)
    return {
        "steps_per_second": (model.num_timesteps - before) / (time.perf_counter() - began),
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

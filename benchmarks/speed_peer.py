"""One measurement of a peer for `benchmarks/speed.py`, printed as a line of JSON.

Runs in the peer's own environment, so it imports nothing of ours:

    python benchmarks/speed_peer.py sbx                             # its versions
    python benchmarks/speed_peer.py sbx SAC Hopper-v4 2000 20000    # warm-up and timed steps
"""

import importlib
import json
import resource
import sys
import time
from importlib.metadata import version

import gymnasium
import numpy as np

PACKAGES = {"sbx": ("sbx-rl", "jax"), "stable_baselines3": ("stable-baselines3", "torch")}


def main(package: str, algorithm: str, env_id: str, warm: str, steps: str) -> dict[str, float]:
    """Rate with our sizes: batches of 256, two layers of 256, a ring of a million, noise of 0.1.

    PPO's rollouts are 256 steps of eight environments, ten epochs of batches of 64, two layers of 64.
    """
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    make_model = getattr(importlib.import_module(package), algorithm)
    if algorithm == "PPO":
        env = VecNormalize(make_vec_env(env_id, n_envs=8))
        model = make_model("MlpPolicy", env, n_steps=256, batch_size=64, n_epochs=10, seed=1)
    else:
        env = gymnasium.make(env_id)
        zeros = np.zeros(env.action_space.shape)
        model = make_model(
            "MlpPolicy",
            env,
            learning_starts=1_000,
            buffer_size=1_000_000,
            batch_size=256,
            train_freq=1,
            gradient_steps=1,
            policy_kwargs={"net_arch": [256, 256]},
            action_noise=None if algorithm == "SAC" else NormalActionNoise(zeros, zeros + 0.1),
            seed=1,
        )
    model.learn(int(warm))
    before, began = model.num_timesteps, time.perf_counter()
    model.learn(int(steps), reset_num_timesteps=False)
    return {
        "steps_per_second": (model.num_timesteps - before) / (time.perf_counter() - began),
        "host_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


if __name__ == "__main__":
    package, *rest = sys.argv[1:]
    importlib.import_module(package)
    versions = {name: version(name) for name in (*PACKAGES[package], "gymnasium", "mujoco")}
    print(json.dumps(main(package, *rest) if rest else versions))

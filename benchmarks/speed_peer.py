"""One measurement of a peer for `benchmarks/speed.py`, printed as a line of JSON.

Runs in the peer's own environment, so it imports nothing of ours:

    python benchmarks/speed_peer.py sbx SAC Hopper-v4 2000 20000
"""

import importlib
import json
import resource
import sys
import time
from importlib.metadata import version

import gymnasium

PACKAGES = {"sbx": ("sbx-rl", "jax"), "stable_baselines3": ("stable-baselines3", "torch")}

package, algorithm, env_id, warm, steps = sys.argv[1:]
env = gymnasium.make(env_id)
make = getattr(importlib.import_module(package), algorithm)
model = make("MlpPolicy", env, learning_starts=1_000, buffer_size=1_000_000)
model.learn(int(warm))
began = time.perf_counter()
model.learn(int(steps), reset_num_timesteps=False)
elapsed = time.perf_counter() - began
figures = {
    "steps_per_second": int(steps) / elapsed,
    "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    "versions": {name: version(name) for name in (*PACKAGES[package], "gymnasium", "mujoco")},
}
print(json.dumps(figures))

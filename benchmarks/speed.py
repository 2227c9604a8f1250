"""Steps per second while learning: SAC here, and SBX and SB3 in turn on the same machine.

    python benchmarks/speed.py --peer-python ../peers/bin/python

Each program warms up, learns `--steps` steps on one seed without evaluation, and is timed over these
alone; compilation is over by then. The programs take turns `--rounds` times; medians are quoted. Our
bare update (no environment, no replay) is timed in the same rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent

OURS = """
import json, pathlib
from cleanrl_maxent import sac
folder = pathlib.Path({folder!r}) / "run"
sac.train(sac.Args(env_id={env_id!r}, total_timesteps={warm} + {steps} + 1, learning_starts=1000,
                   eval_episodes=0, run_dir=str(folder)))
rows = [json.loads(line) for line in (folder / "timing.jsonl").open()]
first, last = next(row for row in rows if row["global_step"] == {warm}), rows[-1]
rate = (last["global_step"] - first["global_step"]) / (last["seconds"] - first["seconds"])
print("rate", rate)
"""

BARE = """
import time
import jax, jax.numpy as jnp, numpy as np
from cleanrl_maxent import sac
from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.envs import SeedEnvs
from cleanrl_maxent.common.replay import Transition
set_up_device("auto")
args, envs, rng = sac.Args(), SeedEnvs({env_id!r}, [1]), np.random.default_rng(0)
def normal(*shape):
    return jnp.asarray(rng.normal(size=(1, 256, *shape)), jnp.float32)
batch = Transition(normal(envs.obs_dim), jnp.tanh(normal(envs.action_dim)), normal(), normal(envs.obs_dim),
                   jnp.zeros((1, 256)))
keys = jax.vmap(jax.random.key)(jnp.arange(1))
state = jax.jit(jax.vmap(lambda key: sac.init(key, envs.obs_dim, envs.action_dim, args)))(keys)
update = jax.jit(jax.vmap(lambda *given: sac.update(*given, args), (0, 0, 0, None)), donate_argnums=0)
for index in range({warm} // 10 + {steps} // 4):
    if index == {warm} // 10:
        jax.block_until_ready(state)
        start = time.perf_counter()
    state, metrics = update(state, batch, keys, index)
jax.block_until_ready((state, metrics))
print("rate", ({steps} // 4) / (time.perf_counter() - start))
"""

PEER = """
import time
import gymnasium
from {package} import SAC
env = gymnasium.make({env_id!r})
model = SAC("MlpPolicy", env, learning_starts=1000, buffer_size=1_000_000, verbose=0, device={device!r})
model.learn({warm})
start = time.perf_counter()
model.learn({steps}, reset_num_timesteps=False)
print("rate", {steps} / (time.perf_counter() - start))
"""


@dataclass
class Args:
    """Where the peers live, and how much to time."""

    peer_python: Path | None = (
        None  # python of an environment with sbx-rl, stable-baselines3, gymnasium[mujoco]
    )
    env_id: str = "Hopper-v4"  # one environment, one seed
    steps: int = 5_000  # timed environment steps of a round
    warm: int = 2_000  # steps before the clock starts, 1,000 of them random
    rounds: int = 3  # turns of every program


def measure(python: str, program: str) -> float:
    """The rate that a program prints, in steps (or updates) per second; raises where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {done.stderr[-2000:]}")
    return float(done.stdout.split("rate ")[1])


def main(args: Args) -> None:
    """Runs the rounds and prints a Markdown table and, as JSON, every figure."""
    given = dict(env_id=args.env_id, steps=args.steps, warm=args.warm)
    programs = {"ours": (sys.executable, OURS), "ours, bare update": (sys.executable, BARE)}
    if args.peer_python:
        sb3 = PEER.replace("{package}", "stable_baselines3").replace("{device!r}", "'cpu'")
        sbx = PEER.replace("{package}", "sbx").replace("{device!r}", "'auto'")
        programs |= {"SBX": (str(args.peer_python), sbx), "SB3": (str(args.peer_python), sb3)}
    rates = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, (python, program) in programs.items():
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(measure(python, program.format(folder=folder, **given)))
            print(name, f"{rates[name][-1]:.1f}", file=sys.stderr)
    ours = statistics.median(rates["ours"])
    print(f"| program ({args.env_id}) | per second, median | ours is |")
    print("|---|---|---|")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.0f} ({min(values):.0f}–{max(values):.0f}) | {ours / middle:.2f} × |")
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), **given, "rates": rates}))


if __name__ == "__main__":
    main(tyro.cli(Args))

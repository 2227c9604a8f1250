"""Trains a peer's algorithm with our sizes; evaluates it, like ours, on ten whole episodes every 5,000 steps.

Runs in the peer's own Python environment, one seed at a time. Its rows go to peers.csv; a seed that is there
already is not trained again:

    ../peers/bin/python benchmarks/studies/efficiency/peer.py CrossQ Hopper-v4 1

It uses SBX's defaults except for critics of 256, batches of 256, one update per step, and as many random
steps as ours: 10,000 before SAC learns, 5,000 before CrossQ does.
"""

import argparse
import csv
import importlib
from pathlib import Path
from typing import Any

import gymnasium

ROWS = Path(__file__).with_name("peers.csv")
COLUMNS = ("program", "env_id", "seed", "step", "return_deterministic")
STEPS, EVERY, EPISODES = 100_000, 5_000, 10
SIZES: dict[str, Any] = dict(batch_size=256, buffer_size=STEPS, train_freq=1, gradient_steps=1)
LEARNING_STARTS = {"SAC": 10_000, "CrossQ": 5_000}


def is_trained(algorithm: str, env_id: str, seed: int) -> bool:
    """True if the file has this seed."""
    if not ROWS.exists():
        return False
    with ROWS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = f"SBX {algorithm}", env_id, str(seed)
    return any((row["program"], row["env_id"], row["seed"]) == wanted for row in rows)


def evaluate(model: Any, env: Any, seed: int) -> float:
    """Mean return of the deterministic policy over ten episodes, on the same ten starts at every step."""
    returns = []
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=1_000_000 + EPISODES * seed + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return sum(returns) / EPISODES


def main() -> None:
    """Trains one seed and adds its rows, all at once at the end."""
    parser = argparse.ArgumentParser(description="Train a peer's algorithm, and add its evaluations.")
    parser.add_argument("algorithm", choices=LEARNING_STARTS)
    parser.add_argument("env_id")
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    if is_trained(args.algorithm, args.env_id, args.seed):
        return
    make = getattr(importlib.import_module("sbx"), args.algorithm)
    env, eval_env = gymnasium.make(args.env_id), gymnasium.make(args.env_id)
    model = make(
        "MlpPolicy",
        env,
        seed=args.seed,
        learning_starts=LEARNING_STARTS[args.algorithm],
        policy_kwargs={"net_arch": [256, 256]},
        **SIZES,
    )
    rows = []
    for step in range(EVERY, STEPS + 1, EVERY):
        model.learn(EVERY, reset_num_timesteps=False)
        value = evaluate(model, eval_env, args.seed)
        rows.append([f"SBX {args.algorithm}", args.env_id, args.seed, step, f"{value:.1f}"])
        print(*rows[-1], flush=True)
    begun = ROWS.exists()
    with ROWS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(rows if begun else [COLUMNS, *rows])


if __name__ == "__main__":
    main()

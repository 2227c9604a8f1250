"""Finished runs that never ran, for the tools that read them."""

import json
from pathlib import Path

# a run of SAC by the version at commit 6a34618
EARLIER = Path(__file__).parents[1] / "tools" / "earlier_run"


def write_run(
    folder,
    returns,
    algorithm="sac",
    env_id="HalfCheetah-v4",
    exp_name=None,
    metric="eval/return_mean",
    every=5_000,
    episodes=(),
    **flags,
):
    """A finished run: `returns` are evaluations by seed, `flags` further arguments.

    `episodes` are steps and returns of training, the same of each seed.
    """
    folder.mkdir(parents=True)
    steps = every * len(next(iter(returns.values())))
    args = {"exp_name": exp_name or algorithm, "env_id": env_id, "total_timesteps": steps}
    config = {"algorithm": algorithm, "args": args | {"run_dir": str(folder)} | flags}
    (folder / "config.json").write_text(json.dumps(config))
    last = {seed: {metric: values[-1]} for seed, values in returns.items()}
    result = {"total_timesteps": steps, "seconds": 60, "evaluations": last}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "timing.jsonl").write_text('{"global_step": 10000, "seconds": 100}\n')
    for seed, values in returns.items():
        record = [{"global_step": step, "charts/episodic_return": value} for step, value in episodes]
        record += [{"global_step": every * place, metric: value} for place, value in enumerate(values, 1)]
        record.sort(key=lambda row: row["global_step"])
        (folder / f"seed-{seed}").mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in record)
        (folder / f"seed-{seed}" / "metrics.jsonl").write_text(lines)
    return folder

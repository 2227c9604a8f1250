"""What benchmarks/report.py collects from finished runs."""

import csv
import json

import report
from test_runs import SMALL, rows

from cleanrl_maxent import sac


def test_collects_each_evaluation_of_each_seed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    run = tmp_path / "run"
    args = SMALL | dict(total_timesteps=500, eval_episodes=1)
    sac.train(sac.Args(**args, num_seeds=2, run_dir=str(run)))
    for _ in range(2):
        report.collect([run])
    table = list(csv.DictReader((tmp_path / "results" / "evaluations.csv").read_text().splitlines()))
    assert [(row["seed"], row["step"]) for row in table] == [
        (seed, step) for seed in "12" for step in ("250", "500")
    ]
    record = [row for row in rows(run / "seed-2" / "metrics.jsonl") if "eval/return_mean" in row]
    returns = [float(row["return_deterministic"]) for row in table[2:]]
    assert returns == [round(row["eval/return_mean"], 1) for row in record]
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert set(manifest) == {"sac Pendulum-v1 1", "sac Pendulum-v1 2"}
    assert str(tmp_path) not in json.dumps(manifest)

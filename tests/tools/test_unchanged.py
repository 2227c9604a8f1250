"""benchmarks/unchanged.py: what it compares of two runs, and how it trains them."""

import subprocess

import numpy as np
import pytest

from benchmarks import unchanged
from benchmarks.commands import ROOT


def write_run(folder, loss=1.0, weight=1.0, name="kernel"):
    (folder / "seed-1").mkdir(parents=True)
    (folder / "seed-1" / "metrics.jsonl").write_text(f'{{"global_step": 1, "loss": {loss}}}\n')
    np.savez(folder / "policy-1.npz", **{name: np.full(3, weight)}, bias=np.zeros(3))
    return folder


def test_what_differs_between_two_runs_is_named(tmp_path):
    """A number of the record, or of a policy; or a policy's names."""
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", loss=2.0),
        write_run(tmp_path / "c", weight=2.0),
        write_run(tmp_path / "d", name="weight"),
    ]
    of_a = [unchanged.differences(runs[0], run) for run in runs]
    assert of_a[:3] == [[], ["seed-1/metrics.jsonl: loss"], ["policy-1.npz: kernel"]]
    assert of_a[3][0] == "policy-1.npz: other names"


@pytest.mark.parametrize("changed", [False, True])
def test_both_trees_are_run_and_a_difference_sets_the_status(changed, monkeypatch, capsys):
    """Each with its own package first, and on one thread."""
    run, environments = subprocess.run, {}

    def train(command, env=None, **given):
        if env is None:
            return run(command, **given)
        folder = unchanged.Path(command[command.index("--run-dir") + 1])
        environments[env["PYTHONPATH"]] = env["NPROC"]
        write_run(folder, 2.0 if changed and env["PYTHONPATH"] == str(ROOT) else 1.0)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(unchanged.subprocess, "run", train)
    given = unchanged.Args("HEAD", ("sac",), (1,))
    assert unchanged.main(given) == changed
    row = capsys.readouterr().out.splitlines()[-1]
    assert ("seed-1/metrics.jsonl: loss" in row) == changed and ("| none |" in row) != changed
    assert str(ROOT) in environments and len(environments) == 2 and set(environments.values()) == {"1"}

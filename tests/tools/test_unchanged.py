"""benchmarks/unchanged.py: what it compares of two runs."""

import numpy as np

from benchmarks import unchanged


def test_what_differs_between_two_runs_is_named(tmp_path):
    """A number of the record, or of a policy."""
    for name, loss, weight in (("a", 1.0, 1.0), ("b", 2.0, 1.0), ("c", 1.0, 2.0)):
        folder = tmp_path / name / "seed-1"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(f'{{"global_step": 1, "loss": {loss}}}\n')
        np.savez(tmp_path / name / "policy-1.npz", kernel=np.full(3, weight), bias=np.zeros(3))
    of_a = [unchanged.differences(tmp_path / "a", tmp_path / name) for name in "abc"]
    assert of_a == [[], ["seed-1/metrics.jsonl: loss"], ["policy-1.npz: kernel"]]

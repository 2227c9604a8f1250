"""Cells of suites for tests of sweeps, and the files of a finished run."""

import json
from dataclasses import asdict

from benchmarks.cells import Cell
from cleanrl_maxent.common.evaluation import with_frequency


def make_cells(folder, names, device="cpu"):
    """Cells that are never run."""
    flags = ("--total-timesteps", "700", "--learning-starts", "300")
    return [Cell("sac", flags, folder / name, device) for name in names]


def write_config(cell, **entries):
    """What a run that has begun leaves for a sweep to see."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    config = {"algorithm": cell.algorithm, "args": asdict(with_frequency(cell.args)), **entries}
    (cell.folder / "config.json").write_text(json.dumps(config))


def write_result(cell):
    """What a finished run leaves for a sweep to see."""
    write_config(cell)
    (cell.folder / "result.json").write_text(json.dumps({"total_timesteps": cell.args.total_timesteps}))


def write_checkpoint(cell, steps):
    """The name of a checkpoint, which says how far a run is."""
    (cell.folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (cell.folder / "checkpoint" / f"checkpoint-{steps:010}.json").touch()

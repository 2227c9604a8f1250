"""The notebook for newcomers runs from its first cell to its last, shortened."""

import json

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.support.runs import rows
from tests.support.tree import ROOT

NOTEBOOK = ROOT / "docs" / "guide" / "first_run.ipynb"


def test_no_output_is_committed():
    """A run of the notebook is not a change of it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 8 <= len(code) <= 12
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


def execute(folder, monkeypatch, total_timesteps):
    """The notebook as it is after its cells ran in `folder`, in a kernel of its own with its own files there.

    Only the length of the training differs.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert setup.source.count("total_timesteps = 10_000") == 1
    setup.source = setup.source.replace("= 10_000", f"= {total_timesteps}")
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(folder / variable))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def printed(cell):
    """The lines that a cell printed, its errors and warnings included."""
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "".join(texts)


def kinds(cell):
    """What a cell showed: the media types of its outputs, and `stdout` or `stderr` if it printed."""
    return {kind for output in cell.outputs for kind in (*output.get("data", {}), output.get("name"))}


@pytest.mark.slow
def test_first_run(tmp_path, monkeypatch):
    """Two figures, the scores and a film, without a warning; then once more in the same folder."""
    cells = {
        cell.id: cell for cell in execute(tmp_path, monkeypatch, 1_300).cells if cell.cell_type == "code"
    }
    assert "done: 1,300 steps" in printed(cells["train"])
    assert "eval/return_mean" in printed(cells["scores"])
    assert [name for name, cell in cells.items() if "image/png" in kinds(cell)] == ["curve", "act"]
    assert "image/gif" in kinds(cells["watch"])
    assert not [name for name, cell in cells.items() if "stderr" in kinds(cell)]
    run = tmp_path / "runs" / "first_run"
    assert json.loads((run / "result.json").read_text())["total_timesteps"] == 2_300
    record = rows(run / "seed-1" / "metrics.jsonl")
    evaluated = [row["global_step"] for row in record if "eval/return_mean" in row]
    assert evaluated == [1_000, 2_000, 2_300]
    with Image.open(tmp_path / "first_run.gif") as film:
        assert film.n_frames > 20
    again = {cell.id: cell for cell in execute(tmp_path, monkeypatch, 1_300).cells}
    assert "nothing to do" in printed(again["train"]) and "nothing to do" in printed(again["extend"])

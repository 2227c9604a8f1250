"""The script `tabular.py`, and the table of its page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cleanrl_maxent import tabular
from cleanrl_maxent.common.cli import run_script

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_script_prints_the_claims_and_draws(tmp_path, capsys):
    tabular.main(tabular.Args(figure="none"))
    printed = capsys.readouterr().out
    assert "wrong    off by 5.1e-01; r - γ α" in printed and "P(8 ways) is 0.996" in printed
    for name in tabular.FIGURES:
        tabular.main(tabular.Args(figure=name, out_dir=tmp_path / "figures"))
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
    assert printed not in capsys.readouterr().out


def test_script_says_that_it_cannot_write(tmp_path):
    (tmp_path / "taken").write_text("")
    script = ROOT / "cleanrl_maxent" / "tabular.py"
    command = [sys.executable, script, "--figure", "corridor", "--out-dir", tmp_path / "taken"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "taken" in done.stderr


def test_script_says_how_to_install_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(sys, "argv", ["tabular.py", "--figure", "corridor"])
    with pytest.raises(SystemExit, match="2"):
        run_script(tabular.Args, tabular.main)
    printed = capsys.readouterr().err
    assert printed == f"error: {tabular.NEEDS_MATPLOTLIB}\n"


@pytest.mark.slow
def test_script_prints_its_claims_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tabular, "find_spec", lambda name: None)
    tabular.main(tabular.Args(out_dir=tmp_path / "figures"))
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(list(tabular.claims())) and last == tabular.NEEDS_MATPLOTLIB
    assert not (tmp_path / "figures").exists()


def test_every_test_that_the_document_names_exists():
    text = (ROOT / "docs" / "explain" / "tabular.md").read_text()
    table = text[text.index("| lecture | claim") : text.index("## Figures")]
    named = {
        f"test_{name}" for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[-1])
    }
    modules = Path(__file__).parent.glob("test_*.py")
    written = {name for path in modules for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert len(named) > 20 and named <= written

"""The player: its table, and what is refused; tests/contract sees that it repeats an evaluation."""

import shutil
import sys

import numpy as np
import pytest

from cleanrl_maxent import enjoy, sac
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import UsageError


def rows(text):
    """The cells of a table that was printed without a terminal, below its title and its head."""
    return [line.split() for line in text.splitlines()[2:]]


def test_a_row_for_each_seed(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    folder, result = run
    enjoy.main(enjoy.Args(str(folder), episodes=3))
    text = capsys.readouterr().out
    assert text.startswith("sac on Pendulum-v1, 570 steps, deterministic policy\n")
    assert [row[:2] for row in rows(text)] == [["3", "3"], ["4", "3"]]
    enjoy.main(enjoy.Args(str(folder), seed=4))
    ((seed, episodes, mean, std, *_),) = rows(capsys.readouterr().out)
    recorded = result["evaluations"]["4"]["eval/return_mean"]
    assert (seed, episodes, mean, std) == ("4", "1", f"{recorded:,.1f}", "0.0")
    enjoy.main(enjoy.Args(f"{folder}/seed-4", stochastic=True))
    assert "sampled policy" in (text := capsys.readouterr().out) and rows(text)[0][0] == "4"


def test_an_interval_is_students():
    """Of 1, 2, 3: 2 ± 4.3027 · 1 / √3."""
    assert enjoy.describe_returns(np.array([1.0, 2.0, 3.0])) == ["2.0", "0.8", "-0.5 to 4.5", "1.0", "3.0"]
    assert enjoy.describe_returns(np.array([1.0]))[2] == "–"


def test_a_file_of_the_users_own(run, tmp_path):
    """A run of `my_sac.py`, which is not of the package, with the file named."""
    mine = shutil.copytree(run[0], tmp_path / "run")
    config = (mine / "config.json").read_text()
    (mine / "config.json").write_text(config.replace('"algorithm": "sac"', '"algorithm": "my_sac"'))
    shutil.copy(sac.__file__, tmp_path / "my_sac.py")
    with pytest.raises(UsageError, match="was trained by my_sac.py, not of this package"):
        enjoy.evaluate(enjoy.Args(str(mine)))
    evaluation, played = enjoy.evaluate(enjoy.Args(str(mine), algorithm=str(tmp_path / "my_sac.py")))
    assert played.returns[0, 0].mean() == run[1]["evaluations"]["3"]["eval/return_mean"]
    with pytest.raises(UsageError, match="algorithm must be a Python file; got my_sac"):
        enjoy.evaluate(enjoy.Args(str(mine), algorithm="my_sac"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["{}/nothing"], "nothing is not a run: there is no"),
        (["{}/two", "--seed", "9"], "has seeds 3 to 4, not 9"),
        (["{}/two/seed-9"], "has seeds 3 to 4, not 9"),
        (["{}/two", "--video", "film.avi"], "avi"),
        (["{}/two", "--video", "film.gif", "--window"], "give --window or --video, not both"),
        (["{}/two", "--episodes", "0"], "episodes must be an integer in [1, 2147483647]; got 0"),
        (["{}/two", "--device", "cuda"], "no CUDA device found; available: cpu"),
    ],
)
def test_bad_input_is_a_line(run, flags, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["enjoy", *(flag.format(run[0].parent) for flag in flags)])
    with pytest.raises(SystemExit) as ended:
        run_script(enjoy.Args, enjoy.main)
    err = capsys.readouterr().err.replace(str(run[0].parent / "two"), "run")
    assert ended.value.code == 2 and words in err and err.count("\n") == 1

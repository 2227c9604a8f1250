"""The player: its table, and what is refused; tests/contract sees that it repeats an evaluation."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from cleanrl_maxent import enjoy, load_policy, sac
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import UsageError


def rows(text):
    """The cells of a table, below its head."""
    lines = [line.split() for line in text.splitlines()]
    return lines[[words[0] for words in lines].index("seed") + 1 :]


def test_a_row_for_each_seed(run, capsys):
    folder, result = run
    enjoy.main(enjoy.Args(str(folder), episodes=3))
    text = capsys.readouterr().out
    assert "sac on Pendulum-v1 after 570 steps\ndeterministic policy, 3 episodes per seed\n" in text
    assert [row[0] for row in rows(text)] == ["3", "4"] and max(map(len, text.splitlines())) < 60
    enjoy.main(enjoy.Args(str(folder), seed=4))
    ((seed, mean, std, *_),) = rows(capsys.readouterr().out)
    recorded = result["evaluations"]["4"]["eval/return_mean"]
    assert (seed, mean, std) == ("4", f"{recorded:,.1f}", "0.0")
    enjoy.main(enjoy.Args(f"{folder}/seed-4", stochastic=True))
    assert "sampled policy" in (text := capsys.readouterr().out) and rows(text)[0][0] == "4"


def test_a_shorter_time_limit(run):
    _, played = enjoy.evaluate(enjoy.Args(str(run[0]), max_episode_steps=50))
    assert (played.lengths[:, 0] == 50).all()


def test_an_interval_is_students():
    """Of 1, 2, 3: 2 ± 4.3027 · 1 / √3."""
    assert enjoy.describe_returns(np.array([1.0, 2.0, 3.0])) == ["2.0 ± 2.5", "0.8", "1.0", "3.0"]
    assert enjoy.describe_returns(np.array([1.0]))[0] == "1.0"


def test_a_mode_that_the_policy_lacks_is_the_one_that_it_has():
    stochastic, deterministic = enjoy.Args("x", stochastic=True), enjoy.Args("x")
    assert enjoy.chosen_mode(stochastic, ("eval",)) == "eval"
    assert enjoy.chosen_mode(deterministic, ("eval_stochastic",)) == "eval_stochastic"
    assert enjoy.chosen_mode(stochastic, enjoy.MODES) == "eval_stochastic"


def test_the_newest_finished_run_by_default(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no finished run in runs; name the folder of one"):
        enjoy.find_run(enjoy.Args())
    for name in ("suite/older", "unfinished", "../scratch/newer"):
        shutil.copytree(run[0], tmp_path / "runs" / name)
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "scratch")
    (tmp_path / "runs" / "unfinished" / "result.json").unlink()
    os.utime(tmp_path / "runs" / "suite" / "older" / "result.json", (1, 1))
    assert enjoy.find_run(enjoy.Args(seed=4)) == (Path("runs/linked/newer"), 4)
    enjoy.main(enjoy.Args(episodes=1))
    assert capsys.readouterr().out.startswith("the newest finished run: runs/linked/newer\n")


def test_one_seed_needs_its_own_policy_only(run, tmp_path):
    for name in ("config.json", "policy-4.npz"):
        shutil.copy(run[0] / name, tmp_path)
    evaluation, played = enjoy.evaluate(enjoy.Args(str(tmp_path), seed=4))
    assert played.returns[1, 0].mean() == run[1]["evaluations"]["4"]["eval/return_mean"]
    assert len(evaluation.batch.envs) <= 2  # no environments for the other seed, the other mode


@pytest.mark.parametrize("play", [enjoy.evaluate, enjoy.watch])
def test_an_environment_that_has_changed_since(run, play, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"low": [\n      -2.0', '"low": [\n      -3.0'))
    with pytest.raises(UsageError, match=r"spaces differ: low is \(-3.0,\) in .* \(-2.0,\) in Pendulum-v1"):
        play(enjoy.Args(str(folder), video=str(tmp_path / "film.gif")))


def test_a_file_of_the_users_own(run, tmp_path):
    """A run of `my_sac.py`, which is not of the package, with the file named."""
    mine = shutil.copytree(run[0], tmp_path / "run")
    config = (mine / "config.json").read_text()
    (mine / "config.json").write_text(config.replace('"algorithm": "sac"', '"algorithm": "my_sac"'))
    shutil.copy(sac.__file__, tmp_path / "my_sac.py")
    with pytest.raises(UsageError, match="was trained by my_sac.py, which is not part of this package"):
        enjoy.evaluate(enjoy.Args(str(mine)))
    evaluation, played = enjoy.evaluate(enjoy.Args(str(mine), algorithm=str(tmp_path / "my_sac.py")))
    assert played.returns[0, 0].mean() == run[1]["evaluations"]["3"]["eval/return_mean"]
    with pytest.raises(UsageError, match="an algorithm must be a Python file; got my_sac"):
        enjoy.evaluate(enjoy.Args(str(mine), algorithm="my_sac"))
    loaded, own = load_policy(mine, algorithm=str(tmp_path / "my_sac.py")), load_policy(run[0])
    assert (loaded([1.0, 0.0, 0.0]) == own([1.0, 0.0, 0.0])).all()


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

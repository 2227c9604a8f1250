"""What benchmarks/report.py collects, draws and concludes."""

import json
import math
import re
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cleanrl_maxent
from benchmarks import comparison, metric, records, report, tables
from benchmarks.curves import Lines
from benchmarks.speed.batches import learns_from_batches
from cleanrl_maxent import algorithms, sac
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run import locking
from tests.support.results import EARLIER, write_run
from tests.support.runs import SMALL, rows


def curves_of(*runs):
    return records.group_curves(records.read_rows(runs))


def test_collects_each_evaluation_of_each_seed_once(tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    args = SMALL | dict(total_timesteps=280, eval_frequency=140)
    sac.train(sac.Args(**args, num_seeds=2, run_dir=str(run)))
    for _ in range(2):
        records.collect([run], results)
    table = records.read_csv(results / "evaluations.csv")
    assert [(row["seed"], row["step"]) for row in table] == [
        (seed, step) for seed in "12" for step in ("140", "280")
    ]
    assert {row["total_timesteps"] for row in table} == {"280"}
    record = [row for row in rows(run / "seed-2" / "metrics.jsonl") if "eval/return_mean" in row]
    returns = [float(row["return_deterministic"]) for row in table[2:]]
    assert returns == [round(row["eval/return_mean"], 1) for row in record]
    manifest = json.loads((results / "manifest.json").read_text())
    flags = table[0]["flags"]
    assert "--hidden-dims" in flags
    assert set(manifest) == {f"sac sac Pendulum-v1 280 {seed} {flags}" for seed in "12"}
    assert str(tmp_path) not in json.dumps(manifest)


def test_runs_of_an_earlier_version_are_read(tmp_path, capsys):
    """`metrics.jsonl`, `timing.jsonl` and `config.json` mean what they meant: collected, drawn, compared."""
    records.collect([EARLIER], tmp_path)
    table, _ = records.read_results(tmp_path)
    assert [(row["step"], row["return_deterministic"], row["return_stochastic"]) for row in table] == [
        ("500", "-1801.8", "-1764.5"),
        ("1000", "-1038.5", "-1007.4"),
        ("1500", "-1267.4", "-1087.8"),
        ("2000", "-1417.5", "-1541.5"),
    ]
    assert [row["seconds"] for row in table] == ["7", "14", "14", "15"]  # timed every 1,000 steps
    (manifest,) = json.loads((tmp_path / "manifest.json").read_text()).values()
    assert manifest["git_commit"].startswith("6a34618") and manifest["args"]["hidden_dims"] == [8, 8]
    assert manifest["seconds"] == 15.799 and manifest["versions"]["jax"] == "0.10.2"
    assert "--hidden-dims 8 8" in table[0]["flags"]
    assert report.main(report.Draw((EARLIER,), tmp_path / "out")) == 0
    assert re.search(
        r"\| 2,000 \| sac `.*--hidden-dims 8 8` \| 1 \| deterministic \| −1,417 \|", capsys.readouterr().out
    )
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {"Pendulum-v1-2000.png", "report.md"}
    assert report.main(report.Compare((EARLIER,))) == 0
    assert re.search(
        "sac .* on Pendulum-v1 for .* steps, seed 1, deterministic evaluation", capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "args, name, flags",
    [
        ({"exp_name": "sac"}, "sac", ""),
        ({"exp_name": "sac-1m"}, "sac", ""),
        ({"exp_name": "sac", "tau": 0.01}, "sac", "--tau 0.01"),
        ({"exp_name": "fast", "tau": 0.01, "autotune": False}, "fast", "--tau 0.01 --no-autotune"),
        ({"exp_name": "x", "eval_frequency": 7, "device": "cpu", "checkpoint_frequency": 1}, "sac", ""),
        ({"exp_name": "x", "deterministic": True}, "sac", ""),
        ({"exp_name": "x", "a_flag_of_another_version": 3}, "sac", ""),
    ],
)
def test_a_run_with_default_flags_is_the_algorithm(args, name, flags):
    config = {"algorithm": "sac", "args": {"env_id": "Hopper-v4", "total_timesteps": 9, **args}}
    group = records.group_of(config)
    assert (group["algorithm"], group["exp_name"], group["flags"]) == ("sac", name, flags)


def test_the_trial_of_a_file_that_is_not_kept_is_a_variant():
    assert (
        records.known_algorithm("sac_glorot") == "sac"
        and records.known_algorithm("sac_discrete-2") == "sac_discrete"
    )
    assert (
        records.known_algorithm("sac_v1") == "sac_v1" and records.known_algorithm("sacrifice") == "sacrifice"
    )


@pytest.mark.parametrize(
    "file, known, flags", [("sac_glorot", "sac", "--gain 2.0"), ("mine", "mine", "--tau 0.005 --gain 2.0")]
)
def test_a_file_of_the_users_keeps_its_name_and_flags(file, known, flags):
    """Also flags of its own; what is like the algorithm's defaults, or every run's, is not changed."""
    args = {"exp_name": "wide", "env_id": "E-v0", "total_timesteps": 9, "tau": 0.005, "env_reset": "reuse"}
    group = records.group_of({"algorithm": file, "args": args | {"gain": 2.0}})
    assert (group["algorithm"], group["exp_name"], group["flags"]) == (known, "wide", flags)
    group = records.group_of({"algorithm": "sac_glorot", "args": args})
    assert (group["exp_name"], group["flags"]) == ("wide", "")
    group = records.group_of({"algorithm": "sac_glorot", "args": args | {"exp_name": "sac"}})
    assert group["exp_name"] == "sac_glorot"


def test_collect_deletes_no_run_with_other_flags_or_of_another_algorithm(tmp_path):
    """A name is not enough: a run with `--tau` and no name, and two algorithms' runs named `wide`."""
    write_run(tmp_path / "runs" / "a", {"1": [1]})
    write_run(tmp_path / "runs" / "b", {"1": [2]}, tau=0.01)
    for place, algorithm in enumerate(("sac", "td3")):
        write_run(tmp_path / "runs" / algorithm, {"1": [3 + place]}, algorithm, exp_name="wide", tau=0.02)
    for folders in (["a"], ["b", "sac", "td3"], ["b"]):
        records.collect([tmp_path / "runs" / folder for folder in folders], tmp_path)
    curves = records.group_curves(records.read_results(tmp_path)[0])
    found = {(curve.algorithm, curve.name, curve.flags): curve.returns.tolist() for curve in curves}
    assert found == {
        ("sac", "sac", ""): [[1]],
        ("sac", "sac", "--tau 0.01"): [[2]],
        ("sac", "wide", "--tau 0.02"): [[3]],
        ("td3", "wide", "--tau 0.02"): [[4]],
    }


def test_collected_flags_are_those_that_differ_from_todays_defaults(tmp_path):
    """A run collected before a default changed is still found, and replaced when it is collected again."""
    run = write_run(tmp_path / "run", {"1": [1]}, tau=0.01)
    records.collect([run], tmp_path)
    for name in ("evaluations.csv", "manifest.json"):
        text = (tmp_path / name).read_text()
        assert "--tau 0.01" in text
        (tmp_path / name).write_text(text.replace("--tau 0.01", "--tau 0.01 --alpha 7"))
    records.collect([run], tmp_path)
    (row,), manifest = records.read_results(tmp_path)
    assert row["flags"] == "--tau 0.01" and list(manifest) == ["sac sac HalfCheetah-v4 5000 1 --tau 0.01"]


def test_a_seed_in_two_folders_is_refused(tmp_path, monkeypatch):
    """Unless they are one folder, named twice, which counts once."""
    runs = [
        write_run(tmp_path / name, {seed: [1, 2], "1": [3, 4]}) for name, seed in (("a", "2"), ("b", "3"))
    ]
    line = r"seed 1 of sac on HalfCheetah-v4 is in both .*/a and .*/b; name only one of them"
    out = tmp_path / "out"
    for command in (
        report.Collect(tuple(runs), out),
        report.Compare((*runs, tmp_path)),
        report.Draw(tuple(runs), out),
        report.Plot("eval/return_mean", tuple(runs), out),
    ):
        with pytest.raises(UsageError, match=line):
            report.main(command)
    assert not out.exists()
    monkeypatch.chdir(tmp_path)
    assert records.finished_runs([Path("a"), runs[0], Path("b/../a")]) == [Path("a")]


def test_numbers_of_steps_and_variants_are_kept_apart(tmp_path):
    runs = [
        write_run(tmp_path / "a", {"1": [1, 2]}),
        write_run(tmp_path / "b", {"1": [3]}, exp_name="short"),
        write_run(tmp_path / "c", {"1": [4, 5]}, exp_name="x", tau=0.01),
    ]
    records.collect(runs, tmp_path)
    curves = records.group_curves(records.read_results(tmp_path)[0])
    found = {(curve.name, curve.budget): curve.returns.tolist() for curve in curves}
    assert found == {("sac", 10_000): [[1, 2]], ("sac", 5_000): [[3]], ("x", 10_000): [[4, 5]]}
    assert {curve.algorithm for curve in curves} == {"sac"}


def test_results_of_an_earlier_version_are_refused(tmp_path):
    """So are files that are something else: nothing is overwritten."""
    columns = ",".join(records.COLUMNS)
    cut = [f"{columns}\nsac,sac,,Hopper-v4,100,1,1", f"{columns}\nsac,sac,,Hopper-v4,100,1,100,60,12"]
    for content in ("algorithm,exp_name,total_timesteps\nsac,sac,9\n", "x\n", "", *cut, f"{cut[0]}\n"):
        (tmp_path / "evaluations.csv").write_text(content)
        with pytest.raises(UsageError, match="evaluations.csv is damaged or of an earlier version"):
            records.read_results(tmp_path)
    (tmp_path / "evaluations.csv").unlink()
    for content in ("{", "[]", '{"sac sac Hopper-v4 100 1": {}}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UsageError, match="manifest.json is damaged"):
            records.read_results(tmp_path)


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_killed_collect_loses_nothing(written, tmp_path, monkeypatch):
    """Killed after so many of its files: old rows can be read, and the same command completes them."""
    results, write_file = tmp_path / "results", records.write_file
    old, new = write_run(tmp_path / "old", {"1": [1]}), write_run(tmp_path / "new", {"2": [2]})
    records.collect([old], results)
    files = iter(range(written))

    def write(path, content):
        if next(files, None) is None:
            raise KeyboardInterrupt
        write_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_file", write)
        with pytest.raises(KeyboardInterrupt):
            records.collect([new], results)
    assert "1" in {row["seed"] for row in records.read_results(results)[0]}
    records.collect([new], results)
    rows, manifest = records.read_results(results)
    assert [row["seed"] for row in rows] == ["1", "2"]
    assert len(manifest) == len(records.read_manifest(results / "manifest.json")) == 2


def test_rows_without_their_run_are_refused(tmp_path):
    """A manifest that was deleted, or merged wrongly."""
    records.collect([write_run(tmp_path / "run", {"1": [1]})], tmp_path / "results")
    (tmp_path / "results" / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"manifest.json lacks the run sac sac HalfCheetah-v4 5000 1, which"):
        records.read_results(tmp_path / "results")


def test_training_return_is_of_the_last_twentieth(tmp_path):
    """Of 10,000 steps: episodes that ended at 9,500 or later."""
    episodes = [(9_000, -5.0), (9_499, 7.0), (9_500, 1.0), (10_000, 2.0)]
    run = write_run(tmp_path / "run", {"1": [40, 50]}, episodes=episodes)
    table, _ = records.read_run(run)
    assert [(row["step"], row.get("return_training")) for row in table] == [("5000", None), ("10000", "1.5")]
    protocols = {curve.protocol: curve.final().tolist() for curve in curves_of(run)}
    assert protocols == {"deterministic": [50], "training": [1.5]}


def test_folders_of_runs(tmp_path):
    """A sweep's folder, whose logs are passed over; a folder without runs is named."""
    (tmp_path / "sweep").mkdir()
    done = write_run(tmp_path / "sweep" / "done", {"1": [1]})
    (tmp_path / "sweep" / "unfinished").mkdir()
    (tmp_path / "sweep" / "done.log").write_text("")
    assert records.finished_runs([tmp_path / "sweep"]) == [done] == records.finished_runs([done])
    assert records.finished_runs([done, tmp_path / "sweep" / "done.log"]) == [done]
    for paths, words in (([tmp_path / "sweep" / "unfinished"], "holds no run"), ([], "name a run")):
        with pytest.raises(UsageError, match=words):
            records.finished_runs(paths)
    with pytest.raises(UsageError, match="--out-dir"):
        report.main(report.Draw((done,)))


def test_unfinished_runs_are_left_out_and_counted(tmp_path, capsys):
    """Alone or in a pattern, which may match folders without runs too; refused only if no run is finished."""
    done, begun = (write_run(tmp_path / name, {"1": [1]}) for name in ("run-a", "run-b"))
    (begun / "result.json").unlink()
    (tmp_path / "run-c").mkdir()
    assert records.finished_runs([begun, done]) == [done]
    assert "warning: 1 unfinished run left out" in capsys.readouterr().err
    assert [curve.seeds for curve in report.curves_of(tmp_path / "run-*")] == [["1"]]
    assert "1 unfinished run left out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no finished run, but 1 unfinished run: no result.json in .*run-b"):
        report.curves_of(tmp_path / "*b")
    with pytest.raises(UsageError, match="run-c holds no run"):
        report.curves_of(tmp_path / "*-c")


def test_damaged_runs_are_named(tmp_path):
    """One line instead of a traceback: what is empty, missing or no JSON."""
    damages = (
        ("seed-1/metrics.jsonl", "", r"metrics.jsonl is damaged: it ends before the run does"),
        ("seed-1/metrics.jsonl", "{]}", r"metrics.jsonl is damaged"),
        ("seed-1/metrics.jsonl", None, r"metrics.jsonl is missing"),
        ("config.json", '{"algorithm": "sac", "ar', "config.json is damaged: Unterminated string"),
        ("config.json", '{"algorithm": "sac"}', "config.json does not belong to a run"),
        ("result.json", "{", r"result.json is damaged"),
        ("result.json", '{"total_timesteps": 5000}', r"is damaged: KeyError\('evaluations'\)"),
        ("seed-1/metrics.jsonl", '{"global_step": 5000, "eval/return_mean": NaN}', "is damaged"),
        ("seed-1/metrics.jsonl", '{"eval/return_mean": 1}', r"is damaged: KeyError\('global_step'\)"),
    )
    for number, (file, content, words) in enumerate(damages):
        run = write_run(tmp_path / str(number), {"1": [1]})
        (run / file).unlink() if content is None else (run / file).write_text(content)
        with pytest.raises(UsageError, match=words):
            report.main(report.Compare((run,)))
        if "NaN" not in (content or ""):  # which is drawn as a gap
            with pytest.raises(UsageError, match=words if content else f"{file} is|{number} is damaged"):
                report.main(report.Plot("eval/return_mean", (run,)))


def test_a_record_that_ends_before_the_run_is_damaged(tmp_path):
    run = write_run(tmp_path / "run", {"1": [1, 2, 3]})
    result = json.loads((run / "result.json").read_text())
    result["evaluations"]["1"]["global_step"] = 15_000
    (run / "result.json").write_text(json.dumps(result))
    assert curves_of(run)
    record = run / "seed-1" / "metrics.jsonl"
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match="metrics.jsonl is damaged: it ends before the run does"):
        curves_of(run)


def test_collecting_again_says_what_was_replaced(tmp_path, capsys):
    run, results = write_run(tmp_path / "run", {"1": [1], "2": [1]}), tmp_path / "results"
    for replaced in (0, 2):
        report.main(report.Collect((run,), results))
        said = f"2 seeds of 1 run collected in {results}, {replaced} of them replaced earlier ones\n"
        assert capsys.readouterr().out == said
    assert report.main(report.Draw(results=results, out_dir=tmp_path / "out")) == 0
    assert "sac" in (tmp_path / "out" / "report.md").read_text()
    for own in (report.Draw(results=results), report.Draw((run,))):
        with pytest.raises(UsageError, match="name an --out-dir"):
            report.main(own)
    with pytest.raises(UsageError, match="nothing has no collected runs"):
        report.main(report.Draw(results=tmp_path / "nothing", out_dir=tmp_path / "out"))


def test_a_file_that_extends_no_algorithm_has_its_own_defaults(tmp_path, capsys):
    """The flags in a label are those that its `config.json` calls changed."""
    run = write_run(tmp_path / "run", {"1": [1]}, algorithm="my_sac", tau=0.005, gamma=0.9)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"changed": ["env_id", "gamma"]}))
    assert [curve.flags for curve in curves_of(run)] == ["--gamma 0.9"]
    report.main(report.Compare((run,)))
    why = "my_sac.py is not one of our algorithms; a file named sac_….py is compared with sac"
    assert capsys.readouterr().out.splitlines()[1:] == [f"  nothing published to compare with: {why}"]


def test_runs_without_evaluations_are_refused(tmp_path):
    runs = [write_run(tmp_path / name, {"1": [1]}, metric="losses/x") for name in "ab"]
    out = tmp_path / "out"
    for command in (
        report.Compare((runs[0],)),
        report.Draw(tuple(runs), out),
        report.Collect((runs[0],), out),
    ):
        with pytest.raises(UsageError, match="no evaluations in .*/a"):
            report.main(command)
    assert not out.exists()


def rows_of(*steps_by_seed):
    """Rows of evaluations.csv, of seeds that were evaluated at these steps of 10,000."""
    group = {"algorithm": "sac", "exp_name": "sac", "flags": "", "env_id": "E-v0", "total_timesteps": "10000"}
    return [
        group | {"seed": str(seed), "step": str(step), "return_deterministic": "1"}
        for seed, steps in enumerate(steps_by_seed)
        for step in steps
    ]


def test_final_returns_are_never_of_an_earlier_step():
    """Seeds whose last common evaluation is before the last 5% of their steps have no final return."""
    assert [curve.steps.tolist() for curve in records.group_curves(rows_of([9_500], [9_500, 10_000]))] == [
        [9_500]
    ]
    with pytest.raises(UsageError, match="no evaluation step in common in their last 5% of steps"):
        records.group_curves(rows_of([5_000, 9_499], [5_000, 9_499, 10_000]))


def test_seeds_without_evaluations_share_the_last_step(tmp_path):
    """Their last episodes end at different steps; a run whose clock could not be written has no seconds."""
    run = write_run(tmp_path / "run", {"1": [1]}, metric="losses/alpha", episodes=[(4_990, 3.0)])
    (run / "timing.jsonl").unlink()
    (row,) = records.read_run(run)[0]
    assert (row["step"], row["seconds"], row["return_training"]) == ("5000", "", "3.0")


def test_files_of_one_name_are_told_apart(tmp_path):
    runs = [
        write_run(tmp_path / name, {seed: [1]}, algorithm=name, exp_name="trial")
        for seed, name in enumerate(("sac_mine", "sac_other"), 1)
    ]
    said = r"sac_mine.py and of sac_other.py are both named trial: name only one"
    with pytest.raises(UsageError, match=said):
        records.read_rows(runs)
    records.collect(runs[:1], tmp_path / "results")
    with pytest.raises(UsageError, match=said):
        records.collect(runs[1:], tmp_path / "results")
    with pytest.raises(UsageError, match=said):
        report.main(report.Plot("eval/return_mean", (tmp_path,), tmp_path))


@pytest.mark.parametrize("flags", [dict(max_episode_steps=200), dict(env_kwargs='{"frame_skip": 2}')])
def test_a_changed_task_has_no_published_means(flags, tmp_path, capsys):
    (curve,) = curves_of(write_run(tmp_path / "run", {"1": [1.0] * 20}, exp_name="x", **flags))
    assert records.published(curve) == []
    assert comparison.compare_with_published([curve])
    assert "nothing published to compare with: the flags change the task" in capsys.readouterr().out


@pytest.mark.parametrize(
    "env_id, algorithm, why",
    [
        ("HalfCheetah-v4", "sac", "at these steps"),
        ("HalfCheetah-v4", "ppo", "for this kind of evaluation"),
        ("Hopper-v4", "maxent_pg", "for maxent_pg on this task"),
        ("Ant-v5", "sac", "for sac on this task; what is published is of versions with other rewards"),
        ("Ant-v5", "maxent_pg", "for maxent_pg on this task"),
        ("Mine-v5", "sac", "for sac on this task"),
        ("Mine", "sac", "for sac on this task"),
    ],
)
def test_why_nothing_published_is_compared(env_id, algorithm, why, tmp_path, capsys):
    """After 10 steps; PPO has sampled evaluations only."""
    curves = curves_of(write_run(tmp_path / "run", {"1": [1.0]}, algorithm, env_id, every=10))
    assert comparison.compare_with_published(curves)
    assert f"nothing published to compare with {why}\n" in capsys.readouterr().out


def test_versions_with_other_rewards_have_no_published_means_and_no_score(tmp_path):
    """Version 4 and those before it count as one environment."""
    rows = {
        env_id: records.published(*curves_of(write_run(tmp_path / env_id, {"1": [1.0] * 20}, "sac", env_id)))
        for env_id in ("Ant-v3", "Ant-v4", "Ant-v5")
    }
    assert rows["Ant-v3"] == rows["Ant-v4"] != [] and rows["Ant-v5"] == []
    (curve,) = curves_of(tmp_path / "Ant-v5")
    tasks = ("Ant", "Hopper", "Walker2d", "HalfCheetah", "Swimmer")
    for version, groups in (("v4", 1), ("v5", 0)):
        curves = [replace(curve, env_id=f"{task}-{version}") for task in tasks]
        assert len(tables.shared_tasks(curves)) == groups


def test_the_last_twentieth_has_its_edge():
    """9,500 of 10,000 counts, in a curve, in training and in a metric alike; so does 10,500 beside it."""
    (curve,) = records.group_curves(rows_of([9_499, 9_500, 10_000, 10_500, 10_501]))
    curve = replace(curve, returns=np.array([[100.0, 1, 2, 3, 200]]))
    assert curve.near(10_000).tolist() == [2]
    steps, values = np.array([9_499.0, 9_500, 10_000]), np.array([100.0, 1, 2])
    assert metric.Seed("1", steps, values, 10_000).at_the_end() == 1.5
    record = [
        {"global_step": int(step), "charts/episodic_return": value}
        for step, value in zip(steps, values, strict=True)
    ]
    assert records.training_return(record, 10_000) == 1.5


def published_means(algorithm, family, scale):
    """A curve through the mean of the published deterministic evaluations, times `scale`."""
    points = defaultdict(list)
    for row in records.published_rows():
        if (row["algorithm"], row["env_id"].split("-")[0]) == (algorithm, family):
            if row["protocol"].startswith("deterministic"):
                points[int(row["step"])].append(float(row["mean"]))
    steps, means = zip(*sorted((step, np.mean(values)) for step, values in points.items()), strict=True)
    return [scale * np.interp(5_000 * i, (0, *steps), (0, *means)) for i in range(1, 41)]


def test_compare_tells_a_good_run_from_one_that_learns_less(tmp_path, capsys):
    good = {
        seed: published_means("td3", "HalfCheetah", scale)
        for seed, scale in zip("123", (0.9, 1, 1.1), strict=True)
    }
    assert report.main(report.Compare((write_run(tmp_path / "good", good, "td3"),))) == 0
    out = capsys.readouterr().out
    assert [line.split()[3] for line in out.splitlines() if "steps:" in line] == ["inside"] * 3
    assert "sfujim" in out and "HalfCheetah-v1, deterministic evaluation" in out
    assert "training" not in out and "exploration" not in out
    weak = {seed: [0.3 * value for value in values] for seed, values in good.items()}
    assert report.main(report.Compare((write_run(tmp_path / "weak", weak, "td3"),))) == 1
    assert capsys.readouterr().out.count("outside") == 3


def test_being_inside_at_the_last_step_is_not_enough(tmp_path, capsys):
    """A run that learns late: outside at the first published step, inside at the last."""
    last = max(int(row["step"]) for row in records.published_rows()
               if row["algorithm"] == "td3" and row["env_id"].startswith("HalfCheetah-")
               and row["protocol"].startswith("deterministic") and int(row["step"]) <= 200_000)  # fmt: skip
    late = {
        seed: [
            value if 5_000 * i > 0.9 * last else 0.3 * value
            for i, value in enumerate(published_means("td3", "HalfCheetah", scale), 1)
        ]
        for seed, scale in zip("123", (0.9, 1, 1.1), strict=True)
    }
    assert report.main(report.Compare((write_run(tmp_path / "late", late, "td3"),))) == 1
    judged = [line.split()[3] for line in capsys.readouterr().out.splitlines() if "steps:" in line]
    assert judged[0] == "outside" and judged[-1] == "inside"


def test_compare_where_there_is_no_band(tmp_path, capsys):
    """Nothing published; soft Q-learning, whose figures are of one implementation; returns in training."""
    pendulum = write_run(tmp_path / "pendulum", {"1": [-150.0, -150.0]}, env_id="Pendulum-v1")
    sql = write_run(tmp_path / "sql", {"1": [3_000.0] * 20}, "sql", metric="eval_stochastic/return_mean")
    episodes = [(500_000, 400.0)]
    ppo = write_run(tmp_path / "ppo", {"1": [500.0] * 100}, "ppo", "CartPole-v1", episodes=episodes)
    assert report.main(report.Compare((pendulum, sql, ppo))) == 0
    out = capsys.readouterr().out
    assert "nothing published" in out and "3,000  no band  (no spread was published)" in out
    assert "500,000 steps: 400  no band  (training windows differ)" in out and "490 ± 6" in out


def test_on_policy_evaluations_are_set_against_sampled_ones(tmp_path, capsys):
    """Those by the policy that collects the data are; of off-policy algorithms they are exploration."""
    run = write_run(
        tmp_path / "ppo", {"1": [2_000.0] * 60}, "ppo", "Hopper-v4", metric="eval_stochastic/return_mean"
    )
    report.main(report.Compare((run,)))
    out = capsys.readouterr().out
    assert "tianshou" in out and "by the policy that collects the data" in out and "training" not in out


def test_published_rows_that_bear_a_variants_name_are_the_variants(tmp_path):
    """DQN is a variant of soft Q-learning, and its published returns are those of training."""
    episodes = [(500_000, 495.0)]
    run = write_run(
        tmp_path / "dqn",
        {"1": [500.0] * 100},
        "sql_discrete",
        "CartPole-v1",
        "dqn",
        episodes=episodes,
        alpha=0.0,
    )
    rows = tables.variant_table(curves_of(run))
    assert len(rows) == 4 and "| dqn | `--alpha 0.0` | 1 | training | 495 | 495 | 489, 498 |" in rows[3]
    assert all(not records.published(replace(curve, name="soft")) for curve in curves_of(run))


def test_published_rows_of_another_algorithm_are_never_a_variants(tmp_path):
    """A variant of SAC that is named `td3` stands beside SAC's."""
    run = write_run(tmp_path / "run", {"1": [1.0] * 20}, exp_name="td3", tau=0.01)
    (curve,) = curves_of(run)
    assert curve.is_variant and {row["algorithm"] for row in records.published(curve)} == {"sac"}


def compared(*paths, capsys):
    assert report.main(report.Compare(paths)) == 0
    return capsys.readouterr().out


def test_compare_of_two_sets(tmp_path, capsys):
    """B's seeds are above A's on one task and the same on the other; a third task is B's alone."""
    for side, scale in (("a", 1), ("b", 2)):
        seeds = {str(seed): [0.0, scale * (1_000.0 + seed)] for seed in (1, 2, 3)}
        write_run(tmp_path / side / "cheetah", seeds, algorithm={"a": "td3", "b": "sac"}[side])
        write_run(tmp_path / side / "hopper", {"1": [0, 7], "2": [0, 9]}, env_id="Hopper-v4")
    write_run(tmp_path / "b" / "walker", {"1": [0, 7]}, env_id="Walker2d-v4")
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    (tmp_path / "a.log").touch()  # as `runs/a*` names it too
    assert compared(tmp_path / "a", tmp_path / "a.log", tmp_path / "b", capsys=capsys) == out
    cheetah, hopper = out.split("Hopper-v4")
    assert "A: td3, 3 seeds: 1,002.0 ± 2.5" in cheetah and "B: sac, 3 seeds: 2,004.0 ± 5.0" in cheetah
    assert (
        "B − A: 1,002.0 (95%: 997.8 to 1,006.2); a seed of B beats one of A with probability 1.00\n"
        in cheetah
    )
    assert "B returns more: the difference is larger than chance explains (95%)." in cheetah
    assert "B − A: 0.0" in hopper and "These seeds cannot tell which of them returns more." in hopper
    average = "10,000 steps, averaged over 2 comparisons with at least two seeds a side"
    assert f"{average}: a seed of B beats one of A with probability 0.75\n" in hopper
    assert out.endswith("\nnot compared, in B: sac on Walker2d-v4 for 10,000 steps\n")
    assert "A returns more" in compared(tmp_path / "b" / "cheetah", tmp_path / "a" / "cheetah", capsys=capsys)
    with pytest.raises(UsageError, match="b/hopper is in both sets"):
        report.main(report.Compare((tmp_path / "b" / "hopper", tmp_path / "b")))


def test_two_sets_are_compared_once_and_by_number_of_steps(tmp_path, capsys):
    """In their main protocol alone; B wins the long runs and loses the short ones."""
    both = [row | {"return_stochastic": "0"} for row in rows_of([10_000])]
    pairs = comparison.pairs(records.group_curves(both), records.group_curves(both))
    assert [curve.protocol for pair in pairs for curve in pair] == ["deterministic"] * 2
    for side, (short, long) in {"a": (5.0, 1.0), "b": (4.0, 2.0)}.items():
        for env_id in ("HalfCheetah-v4", "Hopper-v4"):
            for name, returns in (("short", [short]), ("long", [0.0, long])):
                seeds = {seed: returns for seed in "12"}
                write_run(tmp_path / side / f"{env_id}-{name}", seeds, env_id=env_id)
    assert report.main(report.Compare((tmp_path / "a", tmp_path / "b"))) == 0
    words = "averaged over 2 comparisons with at least two seeds a side: a seed of B beats one of A with"
    out = capsys.readouterr().out
    assert f"5,000 steps, {words} probability 0.00\n" in out
    assert f"10,000 steps, {words} probability 1.00\n" in out


def test_a_changed_task_is_another_task(tmp_path, capsys):
    """Runs of 20 steps an episode are neither compared with others nor drawn beside them."""
    whole = write_run(tmp_path / "whole", {"1": [5.0], "2": [6.0]})
    short = write_run(tmp_path / "short", {"1": [1.0], "2": [2.0]}, exp_name="short", max_episode_steps=20)
    with pytest.raises(
        UsageError, match="nothing to compare: A has sac on .*; B has sac short --max-episode-steps"
    ):
        report.main(report.Compare((whole, short)))
    report.main(report.Draw((whole, short), tmp_path / "drawn"))
    printed = capsys.readouterr().out
    assert "### HalfCheetah-v4\n" in printed and "### HalfCheetah-v4 --max-episode-steps 20\n" in printed
    report.main(report.Plot("eval/return_mean", (whole, short), tmp_path / "drawn"))
    names = {path.name for path in (tmp_path / "drawn").glob("*.png")}
    tasks = "HalfCheetah-v4-5000.png", "HalfCheetah-v4_--max-episode-steps_20-5000.png"
    assert names == {*tasks, *(f"eval_return_mean-{task}" for task in tasks)}


def test_a_misspelt_name_is_answered_with_those_like_it():
    for name, said in (
        ("sac_unifrm", "did you mean sac_uniform"),
        ("runs/none", "^there is no folder runs/none$"),
    ):
        with pytest.raises(UsageError, match=said):
            report.main(report.Compare((Path("sac"), Path(name))))


def test_two_algorithms_of_one_name_are_told_apart(tmp_path, capsys):
    """Both run with the same --exp-name and changed flag, in both sets."""
    for side, more in {"a": 0, "b": 40}.items():
        for algorithm, returns in {"sac": [300.0, 310.0], "ddpg": [100.0, 102.0]}.items():
            seeds = {str(seed): [value + more] for seed, value in enumerate(returns)}
            write_run(tmp_path / side / algorithm, seeds, algorithm, exp_name="fast", tau=0.05)
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    for name in ("sac", "ddpg"):
        assert f"A: {name} fast --tau 0.05, 2 seeds" in out and f"B: {name} fast --tau 0.05" in out
    assert "not compared" not in out


def test_a_difference_is_written_as_finely_as_its_interval(tmp_path, capsys):
    """Every seed of B is above every one of A by 0.003, in returns that are collected with six digits."""
    for side, mean in {"a": 1.001, "b": 1.004}.items():
        seeds = {str(seed): [mean + seed / 10_000] for seed in range(5)}
        write_run(tmp_path / side, seeds, env_id="My-v0")
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert "A: sac, 5 seeds: 1.00120 ±" in out and "B − A: 0.00300 (95%: 0.00277 to 0.00323)" in out
    assert "probability 1.00" in out and "B returns more" in out


def test_equal_seeds_give_no_estimate_of_the_spread(tmp_path, capsys):
    for side, value in {"a": 499.9, "b": 500.0}.items():
        write_run(tmp_path / side, {seed: [value] for seed in "123"}, env_id="CartPole-v1")
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert (
        "B − A: 0.10; all seeds of each side are equal, which gives no estimate" in out and "more:" not in out
    )


def test_one_seed_a_side_shows_a_small_difference(tmp_path, capsys):
    for side, value in {"a": 1.001, "b": 1.004}.items():
        write_run(tmp_path / side, {"1": [value]}, env_id="My-v0")
    assert "B − A: 0.0030; one seed" in compared(tmp_path / "a", tmp_path / "b", capsys=capsys)


def test_a_copy_of_a_run_is_noticed(tmp_path, capsys):
    """Also one seed of several, and one whose returns are rounded, as in evaluations.csv."""
    write_run(tmp_path / "a", {"1": [1.0, 2.0], "2": [3.0, 4.0]})
    write_run(tmp_path / "b", {"1": [1.0, 2.0], "2": [3.0, 4.001]})
    write_run(tmp_path / "c", {"2": [3.0, 4.0], "3": [3.0, 4.0]})
    write_run(tmp_path / "d", {"1": [1.0, 2.1], "2": [3.0, 4.1]})
    for other, seeds in {"b": "seeds 1 2", "c": "seed 2"}.items():
        out = compared(tmp_path / "a", tmp_path / other, capsys=capsys)
        assert f"  {seeds} of A and B have identical returns: are they the same runs?\n" in out
    assert "identical" not in compared(tmp_path / "a", tmp_path / "d", capsys=capsys)


def test_seeds_without_evaluations_are_named(tmp_path, capsys):
    write_run(tmp_path / "a", {"1": [1.0]}, episodes=[(5_000, 7.0)])
    write_run(tmp_path / "b", {"2": [1.0]}, metric="losses/alpha", episodes=[(5_000, 7.0)])
    (curve,) = curves_of(tmp_path / "a", tmp_path / "b")
    assert curve.protocol == "training"
    said = "deterministic evaluations of sac on HalfCheetah-v4 are left out: there are none of seed 2"
    assert said in capsys.readouterr().err


def test_two_collects_at_once_lose_nothing(tmp_path):
    """The second waits until the first has written."""
    results = tmp_path / "results"
    results.mkdir()
    run = write_run(tmp_path / "run", {"1": [1.0]})
    waiting = threading.Thread(target=records.collect, args=([run], results), daemon=True)
    with open(results / "collect.lock", "w") as file:
        assert locking.acquire(file) is None
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not (results / "evaluations.csv").exists()
    waiting.join(30)
    assert not waiting.is_alive() and len(records.read_results(results)[0]) == 1


def test_the_users_own_algorithm_has_a_name_to_compare(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    own = write_run(tmp_path / "own", {"1": [1.0], "2": [2.0]}, "mymaxent")
    records.collect([own, write_run(tmp_path / "sac", {"1": [3.0]})], tmp_path / "results")
    assert "A: mymaxent, 2 seeds" in compared(Path("mymaxent"), Path("sac"), capsys=capsys)


def test_compare_of_small_returns(tmp_path, capsys):
    """An environment whose returns are thousandths; every seed of B is above every one of A."""
    for side, returns in (("a", [0.0011, 0.0035]), ("b", [0.0041, 0.0045])):
        write_run(tmp_path / side, {str(seed): [value] for seed, value in enumerate(returns)}, env_id="My-v0")
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert "A: sac, 2 seeds: 0.00230 ± 0.01525" in out and "B − A: 0.00200 (95%: " in out
    assert "Every seed of B returns more than every seed of A, but" in out
    out = compared(tmp_path / "b", tmp_path / "a", capsys=capsys)
    assert "Every seed of A returns more than every seed of B, but" in out


def test_without_collected_runs_no_document_is_touched(tmp_path, monkeypatch):
    """A lost evaluations.csv would empty every table."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "refreshed_pages", lambda curves: {})  # never those of this tree
    (tmp_path / "curve.png").touch()
    with pytest.raises(UsageError, match="has no collected runs"):
        report.refresh_documents()
    assert (tmp_path / "curve.png").exists()


def test_figures_that_are_no_longer_drawn_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "refreshed_pages", lambda curves: {})  # never those of this tree
    monkeypatch.setattr(report, "draw_results", lambda curves, out_dir: [out_dir / "drawn.png"])
    records.collect([write_run(tmp_path / "run", {"1": [1]})], tmp_path)
    for name in ("drawn.png", "gone.png"):
        (tmp_path / name).touch()
    report.refresh_documents()
    assert [path.name for path in tmp_path.glob("*.png")] == ["drawn.png"]


def test_compare_with_the_collected_runs_of_an_algorithm(tmp_path, capsys, monkeypatch):
    """Without its variants, which have names too; on either side, or on both. A folder of that name comes
    first."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    collected = write_run(tmp_path / "collected", {"1": [1.0, 2.0], "2": [1.0, 4.0]})
    others = [
        write_run(tmp_path / "variant", {"1": [0.0, 91.0]}, exp_name="wide", tau=0.02),
        write_run(tmp_path / "td3", {"1": [0.0, 92.0]}, "td3", tau=0.02),
    ]
    records.collect([collected, *others], tmp_path / "results")
    write_run(tmp_path / "mine", {"1": [0.0, 5.0], "2": [0.0, 6.0]}, exp_name="mine", tau=0.1)
    out = compared(Path("sac"), Path("mine"), capsys=capsys)
    assert "A: sac, 2 seeds: 3.0 ±" in out and "B: sac mine --tau 0.1, 2 seeds: 5.5 ±" in out
    assert "wide" not in out
    assert "B: sac wide --tau 0.02, 1 seed: 91.0" in compared(Path("sac"), Path("wide"), capsys=capsys)
    assert "B: sac, 2 seeds: 3.0 ±" in compared(Path("mine"), Path("sac"), capsys=capsys)
    with pytest.raises(UsageError, match="there is no folder runs/none"):
        report.main(report.Compare((Path("runs/none"), Path("runs/none"))))
    with pytest.raises(UsageError, match="sac is in both sets"):
        report.main(report.Compare((Path("sac"), Path("sac"))))
    assert report.main(report.Compare((Path("sac"),))) == 0
    assert capsys.readouterr().out.startswith("sac on HalfCheetah-v4 for 10,000 steps, seeds 1 2,")
    assert "B: td3 --tau 0.02, 1 seed" in compared(Path("sac"), Path("td3"), capsys=capsys)  # the folder
    with pytest.raises(UsageError, match="results has no run of ppo$"):
        report.main(report.Compare((Path("ppo"), Path("mine"))))
    for words in (("sca", "mine"), ("mine", "sca"), ("sca",)):
        with pytest.raises(UsageError, match="^sca is neither .* nor a variant; did you mean sac"):
            report.main(report.Compare(tuple(map(Path, words))))


def test_few_seeds_have_no_bootstrap_interval():
    """Five a side have one, unless every sample drawn agrees."""
    a = np.arange(5.0)
    assert comparison.chance([(a, a + 1)]).startswith("0.68 (")
    assert comparison.chance([(a, a[:4] + 1)]) == "0.60"
    assert comparison.chance([(a, a + 9)]) == "1.00"
    assert comparison.chance([(a, a + 1), (a, a[:4] + 1)]) == "0.64"


def test_a_band_of_one_implementation_is_called_so(tmp_path, capsys, monkeypatch):
    """Also if another program published its mean alone, without a spread."""
    rows = [
        {"algorithm": "sac", "env_id": "E-v0", "step": "10000", "mean": "5", "spread": spread, "seeds": "5"}
        | {"protocol": "deterministic evaluation", "source": "https://"}
        for spread in ("2", "")
    ]
    assert tables.rows_with_spread([row | {"seeds": "1"} for row in rows]) == []
    run = write_run(tmp_path / "run", {"1": [5.0, 5.0]}, env_id="E-v0")
    for count, spread, alone in ((1, "2", True), (2, "", True), (2, "2", False)):
        rows[1]["spread"] = spread
        monkeypatch.setattr(records, "published_rows", lambda count=count: rows[:count])
        report.main(report.Compare((run,)))
        assert (", too wide to judge by, of a single implementation" in capsys.readouterr().out) == alone
        assert ("(of one implementation, too wide)" in tables.task_table(curves_of(run))[2]) == alone


def test_compare_pairs_names_and_number_of_steps(tmp_path, capsys):
    """Sets of several algorithms: those of one name. Never runs of different length."""
    for side in "ab":
        write_run(tmp_path / side / "sac", {"1": [1.0, 2.0]})
        write_run(tmp_path / side / "td3", {"1": [1.0, 3.0]}, "td3")
    write_run(tmp_path / "longer" / "sac", {"1": [1.0, 2.0, 3.0]})
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert (
        out.count("A: sac") == out.count("B: sac") == out.count("A: td3") == 1
        and "one seed gives no estimate" in out
        and "averaged" not in out
    )
    with pytest.raises(
        UsageError, match="nothing to compare: A has sac on HalfCheetah-v4 for 10,000 steps, td3"
    ):
        report.main(report.Compare((tmp_path / "a", tmp_path / "longer")))
    pattern = compared(tmp_path / "a" / "s*", tmp_path / "b" / "td?", capsys=capsys)
    assert "A: sac" in pattern and "B: td3" in pattern
    (tmp_path / "a").rename(tmp_path / "a [old]")
    for words in ("a [old]/s*", "a [[]old]/[s]a?"):
        assert "A: sac" in compared(tmp_path / words, tmp_path / "b" / "td[3]", capsys=capsys)
    (tmp_path / "a [old]").rename(tmp_path / "a")
    with pytest.raises(UsageError, match="nothing matches .*zzz"):
        report.main(report.Compare((tmp_path / "a", tmp_path / "*zzz")))


def test_a_metric_at_different_steps_is_averaged_in_hundredths():
    """Where no seed has a value there is no point; a gap between a seed's values is interpolated, and their
    mean has all seeds or none."""
    seeds = [
        (np.array([10.0, 11, 990]), np.array([1.0, 3, 5])),
        (np.array([1_000.0]), np.array([7.0])),
        (np.array([9.0, 985]), np.array([1.0, 99])),
    ]
    steps, values = metric.on_common_steps(seeds)
    nothing = np.nan
    assert steps.tolist() == [10, 20, 990, 1_000]
    expected = [[1, 3, 5, nothing], [nothing, nothing, nothing, 7], [1, 2, 99, nothing]]
    np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose(Lines("sac", "", False, steps, values[::2]).mean(), [1, 2.5, 52, nothing])
    assert np.isnan(Lines("sac", "", False, steps, values).mean()).all()
    never = np.vstack([values[::2], np.full(4, nothing)])
    np.testing.assert_allclose(Lines("sac", "", False, steps, never).mean(), [1, 2.5, 52, nothing])
    assert np.isnan(Lines("sac", "", False, steps, never[2:]).mean()).all()


def test_values_that_are_not_finite_are_a_gap():
    """Not a straight line across it: a seed at 200 steps, without a number from step 51 to 150."""
    steps = np.arange(1.0, 201)
    values = np.where(steps <= 50, 1.0, np.where(steps <= 150, np.nan, 5.0))
    (row,) = metric.on_common_steps([(steps, values)])[1]
    np.testing.assert_array_equal(row, np.repeat([1, np.nan, 5], [25, 50, 25]))


def test_plot_of_a_metric(tmp_path, capsys):
    """Finished or not: the mean over the last 5% of the steps, and a figure for each task and length."""
    runs = (
        write_run(
            tmp_path / "runs" / "a", {"1": [1, 2]}, episodes=[(9_000, 5.0), (9_900, 1.0), (10_000, 2.0)]
        ),
        write_run(tmp_path / "runs" / "b", {"2": [4, 8]}),
    )
    (runs[0] / "result.json").unlink()
    for run in runs:
        with (run / f"seed-{'12'[run == runs[1]]}" / "metrics.jsonl").open("a") as record:
            record.write('{"global_step": 10000, "eval/ret')  # a line that is being written
    plot = report.Plot("eval/return_mean", (tmp_path / "runs",), tmp_path / "out")
    assert report.main(plot) == 0
    out = capsys.readouterr().out
    assert (
        "sac on HalfCheetah-v4, last 5% of 10,000 steps: eval/return_mean 5.00 ± 38.12, 2 seeds: 2.00, 8.00"
        in out
    )
    assert (tmp_path / "out" / "eval_return_mean-HalfCheetah-v4-10000.png").exists()
    report.main(report.Plot("charts/episodic_return", (tmp_path / "runs",), tmp_path / "out"))
    assert "charts/episodic_return 1.50, 1 seed: 1.50" in capsys.readouterr().out
    write_run(tmp_path / "runs" / "without", {"7": [1.0, 2.0]}, "td3", metric="losses/alpha")
    report.main(report.Plot("eval/return_mean", (tmp_path / "runs",), tmp_path / "out"))
    assert "without: 1 seed left out, without eval/return_mean\n" in capsys.readouterr().out
    with pytest.raises(UsageError, match="'losses/x'; there are: charts/episodic_return, .*, losses/alpha$"):
        report.main(report.Plot("losses/x", (tmp_path / "runs",)))


def test_the_mean_of_a_metric_leaves_out_seeds_under_way(tmp_path, capsys):
    """They are named with their step; a finished run of whole rollouts may end early; NaN has no curve."""
    done = write_run(tmp_path / "done", {"1": [1, 2]})
    early = write_run(tmp_path / "early", {"2": [4] * 9}, every=1_000)
    begun = write_run(tmp_path / "begun", {"3": [8] * 9, "4": [float("nan")] * 9}, every=1_000)
    for run in (early, begun):
        config = json.loads((run / "config.json").read_text())
        config["args"]["total_timesteps"] = 10_000
        (run / "config.json").write_text(json.dumps(config))
    (begun / "result.json").unlink()
    assert report.main(report.Plot("eval/return_mean", (done, early, begun), tmp_path)) == 0
    line = "eval/return_mean 3.00 ± 12.71, 2 seeds: 2.00, 4.00; "
    assert line + "seed 3 left out, last value at step 9,000; seed 4 left out" in capsys.readouterr().out
    report.main(report.Plot("eval/return_mean", (begun,), tmp_path))
    assert "last 5% of 10,000 steps: eval/return_mean seed 3 left out" in capsys.readouterr().out


def test_a_lost_record_is_named(tmp_path):
    """It is not left out of the mean without a word."""
    run = write_run(tmp_path / "run", {"1": [1, 2], "2": [3, 4]})
    (run / "seed-2" / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="run/seed-2/metrics.jsonl is missing"):
        report.main(report.Plot("eval/return_mean", (run,), tmp_path))


@pytest.mark.parametrize(
    ("value", "reference", "text"),
    [
        (1.02496, 0.982, "1.025"),
        (1.02496, 1.003, "1.02"),
        (-12.44, 12, "−12.4"),
        (5152.4, 980, "5,152"),
        (-0.001, 5000, "0"),
        (0.000123, 0.0004, "0.000123"),
        (3, 0, "3.00"),
        (2, math.inf, "2.00"),
    ],
)
def test_a_metric_is_written_with_three_digits_of_its_mean(value, reference, text):
    assert metric.three_digits(value, reference) == text


def test_seeds_of_different_versions_of_a_file_are_named(tmp_path, capsys):
    """They share a curve, with a warning; runs of an earlier version, without a digest, give none.

    Nor does collecting other runs.
    """
    other = write_run(tmp_path / "other", {"1": [1.0, 2.0]}, "td3")
    runs = [write_run(tmp_path / seed, {seed: [1.0, 2.0]}, "sac_mine", lr=1) for seed in "123"]
    said = "warning: seeds of sac_mine on HalfCheetah-v4 were trained by different versions of sac_mine.py\n"
    for digests, warning in (((None, "a", "a"), ""), (("a", "b", None), said)):
        for run, digest in zip(runs, digests, strict=True):
            config = json.loads((run / "config.json").read_text())
            (run / "config.json").write_text(json.dumps(config | {"algorithm_sha256": digest}))
        report.main(report.Compare((tmp_path,)))
        assert capsys.readouterr().err == warning
        report.main(report.Plot("eval/return_mean", (tmp_path,), tmp_path))
        assert capsys.readouterr().err == warning
        for run in runs:
            report.main(report.Collect((run,), results=tmp_path / f"results-{len(warning)}"))
        assert set(capsys.readouterr().err.splitlines(keepends=True)) == {warning} - {""}
        report.main(report.Collect((other,), results=tmp_path / f"results-{len(warning)}"))
        assert capsys.readouterr().err == ""


def test_files_under_way_in_the_package_do_not_keep_others_from_being_read(monkeypatch):
    """A name is enough to know them by."""
    names = (*algorithms(), "sac_half")
    algorithms.cache_clear()  # to import all of them would fail now: there is no sac_half.py
    for module in (cleanrl_maxent, records):
        monkeypatch.setattr(module, "algorithm_names", lambda: names)
    config = {"algorithm": "sac", "args": {"exp_name": "sac", "tau": 0.1}}
    assert records.changed_flags(config) == "--tau 0.1"
    assert records.known_algorithm("sac_half_2") == "sac_half"


def test_a_metric_that_is_never_finite_is_refused(tmp_path, capsys):
    """A curve without a finite value does not keep the others from being drawn."""
    nan = write_run(tmp_path / "nan", {"1": [float("nan")]})
    with pytest.raises(UsageError, match="'eval/return_mean' is never a finite number"):
        report.main(report.Plot("eval/return_mean", (nan,), tmp_path))
    other = write_run(tmp_path / "other", {"1": [2.0]}, "td3")
    assert report.main(report.Plot("eval/return_mean", (nan, other), tmp_path)) == 0


@pytest.mark.slow
def test_a_wrong_metric_is_a_line_and_a_status(tmp_path):
    run = write_run(tmp_path / "run", {"1": [1, 2]})
    command = [sys.executable, report.__file__, "plot", "losses/x", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: no run has the metric 'losses/x'; there are: eval/return_mean\n"
    )


def test_published_figures_have_a_source_and_a_protocol():
    table = records.published_rows()
    known = {row["algorithm"] for row in table}
    curves = records.group_curves(records.read_results(records.RESULTS)[0])
    ours = {curve.algorithm for curve in curves if curve.family in tables.REFERENCE_RETURNS}
    assert {name for name in ours if learns_from_batches(algorithms()[name])} <= known
    assert {"ppo", "trpo", "a2c", "reinforce"} <= known <= set(algorithms()) | {"dqn"}
    kinds = [kind for kinds in records.COMPARABLE.values() for kind in kinds]
    kinds += ["evaluation with exploration", "training episodes"]  # never compared
    for row in table:
        assert row["source"].startswith("https://") and float(row["mean"]) and row["env_id"][-3:-1] == "-v"
        assert row["protocol"].startswith(tuple(kinds)), row["protocol"]
        assert row["spread_kind"] == ("standard deviation over seeds" if row["spread"] else "")
    names = ("algorithm", "env_id", "step", "protocol", "source")
    assert len({tuple(row[name] for name in names) for row in table}) == len(table)
    assert not any(row["spread"] for row in table if row["algorithm"] == "sql")


def test_one_seed_and_an_odd_name_are_drawn(tmp_path):
    """One evaluation, two, and an environment of the user's, whose returns are all equal."""
    runs = [
        write_run(tmp_path / "a", {"1": [1, 2]}, env_id="Hopper-v4"),
        write_run(tmp_path / "b", {"1": [0.0], "2": [0.0]}, env_id="mine/Env-v0", every=300),
    ]
    assert report.main(report.Draw(tuple(runs), tmp_path / "out")) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"Hopper-v4-10000.png", "mine_Env-v0-300.png", "report.md"}


def test_tasks_whose_names_differ_in_a_sign_have_figures_of_their_own(tmp_path):
    """A dollar sign, which matplotlib would take for a formula; and arguments too long for a file's name."""
    given = ['{"x": "<5"}', '{"x": ">5"}', '{"m": "$\\\\frac$"}', json.dumps({"map": "SFFH" * 80})]
    runs = [
        write_run(tmp_path / str(place), {"1": [1.0]}, env_kwargs=kwargs)
        for place, kwargs in enumerate(given)
    ]
    assert report.main(report.Draw(tuple(runs), tmp_path / "out")) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == len(given)

"""What benchmarks/report.py collects, draws and concludes, and the statistics behind it."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks import intervals, report
from benchmarks.speed.batches import learns_from_batches
from cleanrl_maxent import algorithms, sac
from cleanrl_maxent.common.errors import UsageError
from tests.support.runs import SMALL, rows

EARLIER = Path(__file__).parent / "earlier_run"  # of SAC, by the version at commit 6a34618


def write_run(
    folder, returns, algorithm="sac", env_id="HalfCheetah-v4", exp_name=None, metric="eval/return_mean"
):
    """A finished run, made up: `returns` are evaluations every 5,000 steps, by seed."""
    folder.mkdir()
    args = {"exp_name": exp_name or algorithm, "env_id": env_id, "run_dir": str(folder)}
    (folder / "config.json").write_text(json.dumps({"algorithm": algorithm, "args": args}))
    (folder / "result.json").write_text(json.dumps({"evaluations": dict.fromkeys(returns), "seconds": 60}))
    (folder / "timing.jsonl").write_text('{"global_step": 10000, "seconds": 100}\n')
    for seed, values in returns.items():
        record = folder / f"seed-{seed}"
        record.mkdir()
        lines = [
            json.dumps({"global_step": 5_000 * (index + 1), metric: value})
            for index, value in enumerate(values)
        ]
        (record / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_collects_each_evaluation_of_each_seed_once(tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    args = SMALL | dict(total_timesteps=280, eval_frequency=140)
    sac.train(sac.Args(**args, num_seeds=2, run_dir=str(run)))
    for _ in range(2):
        report.collect([run], results)
    table = report.read_csv(results / "evaluations.csv")
    assert [(row["seed"], row["step"]) for row in table] == [
        (seed, step) for seed in "12" for step in ("140", "280")
    ]
    record = [row for row in rows(run / "seed-2" / "metrics.jsonl") if "eval/return_mean" in row]
    returns = [float(row["return_deterministic"]) for row in table[2:]]
    assert returns == [round(row["eval/return_mean"], 1) for row in record]
    manifest = json.loads((results / "manifest.json").read_text())
    assert set(manifest) == {"sac Pendulum-v1 1", "sac Pendulum-v1 2"}
    assert str(tmp_path) not in json.dumps(manifest)


def test_runs_of_an_earlier_version_are_read(tmp_path, capsys):
    """`metrics.jsonl`, `timing.jsonl` and `config.json` mean what they meant: collected, drawn, compared."""
    report.collect([EARLIER], tmp_path)
    table = report.read_csv(tmp_path / "evaluations.csv")
    assert [(row["step"], row["return_deterministic"], row["return_stochastic"]) for row in table] == [
        ("500", "-1801.8", "-1764.5"),
        ("1000", "-1038.5", "-1007.4"),
        ("1500", "-1267.4", "-1087.8"),
        ("2000", "-1417.5", "-1541.5"),
    ]
    assert [row["seconds"] for row in table] == ["7", "14", "14", "15"]  # timed every 1,000 steps
    manifest = json.loads((tmp_path / "manifest.json").read_text())["sac Pendulum-v1 1"]
    assert manifest["git_commit"].startswith("6a34618") and manifest["args"]["hidden_dims"] == [8, 8]
    assert manifest["seconds"] == 15.799 and manifest["versions"]["jax"] == "0.10.2"
    assert report.main(report.Draw((EARLIER,), tmp_path / "out")) == 0
    assert "| sac | Pendulum-v1 | deterministic | 1 | 2,000 | -1,418 |" in capsys.readouterr().out
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {"Pendulum-v1.png", "report.md"}  # no scale for profiles
    assert report.main(report.Compare((EARLIER,))) == 0
    assert "sac on Pendulum-v1, seeds 1, deterministic evaluation" in capsys.readouterr().out


def test_names_keep_variants_of_an_algorithm_apart(tmp_path):
    runs = [write_run(tmp_path / "a", {"1": [1, 2]}), write_run(tmp_path / "b", {"1": [3]}, exp_name="x")]
    report.collect(runs, tmp_path)
    found = {
        curve.exp_name: curve for curve in report.group_curves(report.read_csv(tmp_path / "evaluations.csv"))
    }
    assert found["sac"].returns.tolist() == [[1, 2]] and found["x"].returns.tolist() == [[3]]
    assert found["x"].algorithm == "sac" and found["sac"].seconds.tolist() == [[50, 100]]


def test_folders_of_runs(tmp_path):
    """A sweep's folder, whose logs and unfinished runs are passed over; a folder without runs is named."""
    (tmp_path / "sweep").mkdir()
    done = write_run(tmp_path / "sweep" / "done", {"1": [1]})
    (tmp_path / "sweep" / "unfinished").mkdir()
    (tmp_path / "sweep" / "done.log").write_text("")
    assert report.finished_runs([tmp_path / "sweep"]) == [done] == report.finished_runs([done])
    assert report.finished_runs([done, tmp_path / "sweep" / "done.log"]) == [done]
    for paths, words in (([tmp_path / "sweep" / "unfinished"], "holds no finished run"), ([], "name a run")):
        with pytest.raises(UsageError, match=words):
            report.finished_runs(paths)
    with pytest.raises(UsageError, match="--out-dir"):
        report.main(report.Draw((done,)))


def test_interquartile_mean():
    assert intervals.interquartile_mean([100, 3, 4, 5, 6, -100, 2, 7]) == pytest.approx(4.5)
    assert intervals.interquartile_mean([1, 2, 6]) == 3


def test_bootstrap_keeps_to_the_tasks():
    """Tasks without spread have an interval without width, however far apart they are; for others it is
    that of seeds drawn again by hand."""
    assert intervals.stratified_bootstrap([np.zeros(4), np.full(4, 100.0)]) == (50, 50)
    rng = np.random.default_rng(1)
    tasks = [rng.normal(size=10), rng.normal(3, size=6)]
    drawn = []
    for _ in range(20_000):
        scores = np.sort(np.concatenate([rng.choice(task, len(task)) for task in tasks]))
        drawn.append(scores[4:12].mean())
    found = intervals.stratified_bootstrap(tasks, repetitions=20_000)
    np.testing.assert_allclose(found, np.percentile(drawn, [2.5, 97.5]), rtol=0, atol=0.03)


def test_profile_weighs_tasks_alike():
    profile = intervals.performance_profile([[0.5] * 10, [1.5]], [0, 0.5, 1, 2])
    np.testing.assert_array_equal(profile, [1, 0.5, 0.5, 0])


def test_mean_interval_of_two_scores():
    """t of one degree of freedom is 12.706, the standard error of 0 and 2 is 1."""
    assert intervals.mean_interval([0, 2]) == pytest.approx(12.706, abs=1e-3)
    assert np.isnan(intervals.mean_interval([1]))


def test_prediction_interval_of_one_program():
    """t of 9 degrees of freedom is 2.262; the deviation of ten seeds, 3, divides by ten."""
    low, high = intervals.prediction_interval([100], [3], [10], 5)
    half_width = 2.262 * 3 * np.sqrt(10 / 9) * np.sqrt(1 / 5 + 1 / 10)
    assert (low, high) == pytest.approx((100 - half_width, 100 + half_width), abs=1e-2)


@pytest.mark.parametrize("between, seeds", [(0, [10] * 4), (0, [10, 3]), (3, [10] * 4), (3, [10, 10, 3])])
def test_prediction_interval_covers(between, seeds):
    """1,500 times some programs are published, and one more is run with three seeds: 19 in 20 within."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1_500):
        programs = [rng.normal(rng.normal(0, between), 2, n) for n in seeds]
        means, deviations = zip(*((returns.mean(), returns.std()) for returns in programs), strict=True)
        new = rng.normal(rng.normal(0, between), 2, 3).mean()
        low, high = intervals.prediction_interval(means, deviations, seeds, 3)
        inside += low <= new <= high
    assert 0.88 < inside / 1_500 < 0.98


def published_means(algorithm, family, scale):
    """A curve through the mean of the published deterministic evaluations, times `scale`."""
    points = defaultdict(list)
    for row in report.read_csv(report.PUBLISHED):
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


def test_compare_where_there_is_no_band(tmp_path, capsys):
    """Nothing published; and soft Q-learning, sampled, whose two figures are of one program."""
    pendulum = write_run(tmp_path / "pendulum", {"1": [-150.0, -150.0]}, env_id="Pendulum-v1")
    sql = write_run(tmp_path / "sql", {"1": [3_000.0] * 20}, "sql", metric="eval_stochastic/return_mean")
    assert report.main(report.Compare((pendulum, sql))) == 0
    out = capsys.readouterr().out
    assert "nothing published" in out and "3,000  no band  (no spread was published)" in out


def test_published_figures_have_a_source_and_a_protocol():
    table = report.read_csv(report.PUBLISHED)
    known = {row["algorithm"] for row in table}
    curves = report.group_curves(report.read_csv(report.RESULTS / "evaluations.csv"))
    ours = {curve.algorithm for curve in curves if curve.family in report.REFERENCE_RETURNS}
    assert {name for name in ours if learns_from_batches(algorithms()[name])} <= known <= set(algorithms())
    for row in table:
        assert row["source"].startswith("https://") and row["protocol"] and float(row["mean"])
        assert row["spread_kind"] in ("", "standard deviation over seeds") and row["env_id"][-3:-1] == "-v"
    assert not any(row["spread"] for row in table if row["algorithm"] == "sql")


def test_one_seed_and_an_odd_name_are_drawn(tmp_path):
    runs = [
        write_run(tmp_path / "a", {"1": [1, 2]}, env_id="Hopper-v4"),
        write_run(tmp_path / "b", {"1": [1, 2]}, env_id="mine/Env-v0"),
    ]
    assert report.main(report.Draw(tuple(runs), tmp_path / "out")) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"Hopper-v4.png", "mine_Env-v0.png", "profiles.png", "report.md"}


def test_committed_report_is_what_the_rows_give(tmp_path):
    text = report.draw(report.read_csv(report.RESULTS / "evaluations.csv"), tmp_path)
    assert (report.RESULTS / "report.md").read_text() == text
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in report.RESULTS.glob("*.png")}


def committed_curves():
    return report.group_curves(report.read_csv(report.RESULTS / "evaluations.csv"))


def test_committed_page_is_what_the_rows_give():
    """Every row of report.md's table is once on docs/results.md, in one of its two tables."""
    text, curves = report.PAGE.read_text(), committed_curves()
    assert report.refresh_page(text, curves) == text
    lines = text.splitlines()
    titles, _, *table = report.final_table(curves)
    assert len(table) >= 20 and [lines.count(row) for row in table] == [1] * len(table)
    assert lines.count(titles) == 2


def test_page_is_refreshed():
    """Its tables are renewed, and nothing else."""
    text, curves = report.PAGE.read_text(), committed_curves()
    stale = text.replace("| ddpg |", "| changed |").replace("| td3-paper-lr |", "| changed |")
    assert "| changed |" in stale and report.refresh_page(stale, curves) == text


def test_returns_in_the_readme():
    """The row of an algorithm has its mean return on HalfCheetah-v4, and the range of those published.

    That of maxent_pg, which has none, has its mean on Hopper-v4.
    """
    lines = (report.PAGE.parent.parent / "README.md").read_text().splitlines()
    protocols = []
    for curve in committed_curves():
        means = [float(row["mean"]) for row in report.published(curve) if row["step"] == "100000"]
        if curve.exp_name == curve.algorithm and curve.env_id == "HalfCheetah-v4" and means:
            line = next(line for line in lines if f"(cleanrl_maxent/{curve.algorithm}.py)" in line)
            expected = [f"{curve.final().mean():,.0f}", f"{min(means):,.0f} to {max(means):,.0f}"]
            assert [cell.strip() for cell in line.split("|")[-3:-1]] == expected
            protocols.append((int(curve.steps[-1]), len(curve.seeds)))
        elif (curve.exp_name, curve.env_id) == ("maxent_pg", "Hopper-v4"):
            line = next(line for line in lines if "(cleanrl_maxent/maxent_pg.py)" in line)
            assert f"{curve.final().mean():,.0f} " in line
    assert protocols == [(100_000, 3)] * 4

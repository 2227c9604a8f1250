"""What benchmarks/report.py collects, draws and concludes."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import metric, records, report, tables
from benchmarks.speed.batches import learns_from_batches
from cleanrl_maxent import algorithms, sac
from cleanrl_maxent.common.errors import UsageError
from tests.support.results import write_run
from tests.support.runs import SMALL, rows

EARLIER = Path(__file__).parent / "earlier_run"  # of SAC, by the version at commit 6a34618


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
    assert set(manifest) == {"sac Pendulum-v1 280 1", "sac Pendulum-v1 280 2"}
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
    manifest = json.loads((tmp_path / "manifest.json").read_text())["sac Pendulum-v1 2000 1"]
    assert manifest["git_commit"].startswith("6a34618") and manifest["args"]["hidden_dims"] == [8, 8]
    assert manifest["seconds"] == 15.799 and manifest["versions"]["jax"] == "0.10.2"
    assert "--hidden-dims 8 8" in table[0]["flags"]
    assert report.main(report.Draw((EARLIER,), tmp_path / "out")) == 0
    assert re.search(
        r"\| 2,000 \| sac `.*--hidden-dims 8 8` \| 1 \| deterministic \| −1,418 \|", capsys.readouterr().out
    )
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {"Pendulum-v1-2000.png", "report.md"}
    assert report.main(report.Compare((EARLIER,))) == 0
    assert re.search("sac .* on Pendulum-v1, seeds 1, deterministic evaluation", capsys.readouterr().out)


@pytest.mark.parametrize(
    "args, name, flags",
    [
        ({"exp_name": "sac"}, "sac", ""),
        ({"exp_name": "sac-1m"}, "sac", ""),
        ({"exp_name": "sac", "tau": 0.01}, "sac", "--tau 0.01"),
        ({"exp_name": "fast", "tau": 0.01, "autotune": False}, "fast", "--tau 0.01 --no-autotune"),
        ({"exp_name": "x", "eval_frequency": 7, "device": "cpu", "checkpoint_frequency": 1}, "sac", ""),
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
    (tmp_path / "evaluations.csv").write_text("algorithm,exp_name\nsac,sac\n")
    with pytest.raises(UsageError, match="earlier version"):
        records.read_results(tmp_path)


def test_training_return_is_of_the_last_twentieth(tmp_path):
    """Of 10,000 steps: episodes that ended after 9,500."""
    episodes = [(9_000, -5.0), (9_500, 7.0), (9_501, 1.0), (10_000, 2.0)]
    run = write_run(tmp_path / "run", {"1": [40, 50]}, episodes=episodes)
    table, _ = records.read_run(run)
    assert [(row["step"], row.get("return_training")) for row in table] == [("5000", None), ("10000", "1.50")]
    protocols = {curve.protocol: curve.final().tolist() for curve in curves_of(run)}
    assert protocols == {"deterministic": [50], "training": [1.5]}


def test_folders_of_runs(tmp_path):
    """A sweep's folder, whose logs and unfinished runs are passed over; a folder without runs is named."""
    (tmp_path / "sweep").mkdir()
    done = write_run(tmp_path / "sweep" / "done", {"1": [1]})
    (tmp_path / "sweep" / "unfinished").mkdir()
    (tmp_path / "sweep" / "done.log").write_text("")
    assert records.finished_runs([tmp_path / "sweep"]) == [done] == records.finished_runs([done])
    assert records.finished_runs([done, tmp_path / "sweep" / "done.log"]) == [done]
    for paths, words in (([tmp_path / "sweep" / "unfinished"], "holds no finished run"), ([], "name a run")):
        with pytest.raises(UsageError, match=words):
            records.finished_runs(paths)
    with pytest.raises(UsageError, match="--out-dir"):
        report.main(report.Draw((done,)))


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


def test_compare_where_there_is_no_band(tmp_path, capsys):
    """Nothing published; soft Q-learning, whose two figures are of one program; returns in training."""
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
    cheetah, hopper = out.split("Hopper-v4")
    assert "A: td3, 3 seeds: 1,002 ± 2" in cheetah and "B: sac, 3 seeds: 2,004 ± 5" in cheetah
    assert (
        "B − A: 1,002 (95%: 998 to 1,006); a seed of B beats one of A with probability 1.00 (1.00 to"
        in cheetah
    )
    assert "B returns more: the difference exceeds the spread of seeds." in cheetah
    assert "B − A: 0.0" in hopper and "These seeds do not say which of them returns more." in hopper
    assert "on average over these tasks: a seed of B beats one of A with probability 0.75" in hopper
    assert "Walker2d" not in out
    assert "A returns more" in compared(tmp_path / "b" / "cheetah", tmp_path / "a" / "cheetah", capsys=capsys)


def test_compare_pairs_names_and_number_of_steps(tmp_path, capsys):
    """Sets of several algorithms: those of one name. Never runs of different length."""
    for side in "ab":
        write_run(tmp_path / side / "sac", {"1": [1.0, 2.0]})
        write_run(tmp_path / side / "td3", {"1": [1.0, 3.0]}, "td3")
    write_run(tmp_path / "longer" / "sac", {"1": [1.0, 2.0, 3.0]})
    out = compared(tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert (
        out.count("A: sac") == out.count("B: sac") == out.count("A: td3") == 1
        and "one seed does not say" in out
    )
    with pytest.raises(
        UsageError, match="nothing to compare: A has sac on HalfCheetah-v4 for 10,000 steps, td3"
    ):
        report.main(report.Compare((tmp_path / "a", tmp_path / "longer")))
    pattern = compared(tmp_path / "a" / "s*", tmp_path / "b" / "td?", capsys=capsys)
    assert "A: sac" in pattern and "B: td3" in pattern
    with pytest.raises(UsageError, match="nothing is named like .*zzz"):
        report.main(report.Compare((tmp_path / "a", tmp_path / "*zzz")))


def test_a_metric_at_different_steps_is_averaged_in_hundredths():
    """Where no seed has a value there is no point, and where one lacks it there is NaN."""
    seeds = [(np.array([10.0, 11, 990]), np.array([1.0, 3, 5])), (np.array([1_000.0]), np.array([7.0]))]
    steps, values = metric.on_common_steps(seeds)
    assert steps.tolist() == [10, 20, 990, 1_000]
    np.testing.assert_array_equal(values, [[1, 3, 5, np.nan], [np.nan, np.nan, np.nan, 7]])


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
    assert "sac on HalfCheetah-v4, last 5% of 10,000 steps: eval/return_mean 5 ± 38, 2 seeds: 2, 8" in out
    assert (tmp_path / "out" / "eval_return_mean-HalfCheetah-v4-10000.png").exists()
    report.main(report.Plot("charts/episodic_return", (tmp_path / "runs",), tmp_path / "out"))
    assert "charts/episodic_return 1.5, 1 seed: 1.5" in capsys.readouterr().out
    with pytest.raises(UsageError, match="'losses/x'; there are: charts/episodic_return, eval/return_mean$"):
        report.main(report.Plot("losses/x", (tmp_path / "runs",)))


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

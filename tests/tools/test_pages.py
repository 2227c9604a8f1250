"""The results that documents show, and their figures, are those that are committed."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from benchmarks import curves, efficiency, pages, records, tables
from cleanrl_maxent.common.errors import UsageError
from tests.support.breaches import demand


@pytest.fixture(scope="module")
def committed():
    return records.group_curves(records.read_results(records.RESULTS)[0])


def made_up(
    env_id="HalfCheetah-v4", budget=100_000, name="sac", algorithm="sac", protocol="deterministic", **changed
):
    given = dict(
        flags="", seeds=["1", "2"], steps=np.array([budget]), returns=np.array([[5_000.0], [6_000.0]])
    )
    return records.Curve(algorithm, name, env_id=env_id, budget=budget, protocol=protocol, **given | changed)


@pytest.fixture
def drawn(monkeypatch):
    """Figures that would be saved, and closed."""
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path, description: figures.append(figure))
    yield figures
    for figure in figures:
        curves.pyplot().close(figure)


def size_and_description(path):
    with Image.open(path) as image:
        return image.size, image.text["Description"]


def test_committed_pages_are_what_the_rows_give(committed):
    """docs/results.md, README.md, report.md, every page of an algorithm with marks; else `report.py draw`."""
    fresh = pages.refreshed_pages(committed)
    assert len(fresh) >= 16
    stale = [path.name for path, text in fresh.items() if path.read_text() != text]
    demand(not stale, f"python benchmarks/report.py draw would change {', '.join(stale)}")


def test_every_row_is_on_a_page(committed):
    """An algorithm's on docs/results.md too, a variant's on its algorithm's page alone."""
    fresh = pages.refreshed_pages(committed)
    for curve in committed:
        page = fresh[pages.ROOT / "docs" / "algorithms" / f"{curve.algorithm}.md"]
        row = " | ".join(tables.result_cells(curve))
        if curve in tables.worth_a_row(committed):
            with_name = tables.task_table([curve])[2]
            assert row in page and (with_name in fresh[pages.PAGE]) != curve.is_variant
        if curve.is_variant:
            assert f"| {curve.name} |" in page and f"| {curve.name} |" not in fresh[pages.PAGE]


def test_committed_figures_show_the_rows(committed, monkeypatch):
    """A PNG keeps a digest of what it shows: `report.py draw`."""
    shown = {}

    def keep(figure, path, description):
        curves.pyplot().close(figure)
        shown[path.name] = description
        return path

    for drawing in (curves, efficiency):
        monkeypatch.setattr(drawing, "save_figure", keep)
    pages.draw_results(committed, records.RESULTS)
    found = {path.name: size_and_description(path)[1] for path in records.RESULTS.glob("*.png")}
    assert len(shown) >= 20 and shown == found


def test_committed_figures_have_200_dots_per_inch():
    paths = [*records.RESULTS.glob("*.png"), *(pages.ROOT / "docs" / "figures").glob("*.png")]
    for path in paths:
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1), path
    assert len(paths) >= 60


def test_blocks_are_renewed_and_nothing_else(committed):
    text = pages.PAGE.read_text()
    stale = text.replace("| ddpg |", "| changed |")
    assert stale != text
    assert pages.write_block(stale, "results", pages.results_block(committed)) == text
    for wrong in ("no marks", text + text):
        with pytest.raises(UsageError, match="one block"):
            pages.write_block(wrong, "results", [])


def test_readme_is_renewed(committed):
    text = pages.README.read_text()
    stale = re.sub(r"(?m)^(\|.*\(cleanrl_maxent/sac\.py\).*?\|.*?\|.*?\|).*$", r"\1 old | old |", text)
    assert stale != text and pages.refresh_readme(stale, committed) == text


def of_three_seeds(*given, **changed):
    returns = np.array([[5_000.0], [5_500.0], [6_000.0]])
    return made_up(*given, seeds=["1", "2", "3"], returns=returns, **changed)


def test_what_the_readme_shows_of_an_algorithm():
    """HalfCheetah before others, the longest runs there, never a variant; sampled where that has a band."""
    others = [of_three_seeds("Hopper-v4"), of_three_seeds("Ant-v4"), of_three_seeds(budget=50_000)]
    cells = pages.readme_cells([*others, of_three_seeds(name="sac-x"), of_three_seeds()], "sac")
    assert cells == ["HalfCheetah-v4, 100,000", "5,500", "5,233 to 6,156 (inside 4,249 to 7,183)"]
    kinds = ("deterministic", "sampled", "training")
    ppo = [of_three_seeds("Hopper-v4", 10**6, "ppo", "ppo", kind) for kind in kinds]
    assert pages.readme_cells(ppo, "ppo")[0] == "Hopper-v4, 1,000,000, sampled"
    wide = of_three_seeds("HalfCheetah-v4", 10**6, "ppo", "ppo", "sampled")
    assert "(too wide: −" in pages.readme_cells([wide], "ppo")[2]
    assert pages.readme_cells(others, "td3") == ["", "", ""]
    changed = of_three_seeds(flags="--tau 0.1")
    assert pages.readme_cells([changed, of_three_seeds("Hopper-v4")], "sac")[0] == "Hopper-v4, 100,000"
    assert pages.readme_cells([changed], "sac")[0] == "HalfCheetah-v4, 100,000, `--tau 0.1`"


def test_the_readme_shows_no_trial():
    """Two seeds, or 400 steps, on the task that comes first."""
    trials = [made_up(), of_three_seeds(budget=400)]
    assert pages.readme_cells(trials, "sac") == ["", "", ""]
    assert pages.readme_cells([*trials, of_three_seeds("Ant-v4", 10_000)], "sac")[0] == "Ant-v4, 10,000"


def test_a_row_says_whether_the_mean_is_inside():
    """Flags that differ are beside the name; a protocol has a row if something published compares with it."""
    inside, outside = made_up(), made_up(returns=np.array([[900.0], [1_000.0]]), flags="--tau 0.1")
    sampled = made_up(protocol="sampled")
    table = tables.task_table([inside, sampled, outside])
    assert len(table) == 4 and "| inside " in table[2] and "5,233, 5,759, 6,156" in table[2]
    assert "| **outside** " in table[3] and "| sac `--tau 0.1` |" in table[3]
    assert tables.verdicts([inside, outside]) == (
        "Inside their band: 1 of the 2 means that have one. Outside: "
        "sac `--tau 0.1` on HalfCheetah-v4 after 100,000 steps (deterministic, below)."
    )


@pytest.mark.parametrize(
    ("band", "wide"),
    [((-1, 9), True), ((0, 9), True), ((2, 9), True), ((3, 9), False), ((-9, -3), False), ((-9, -2), True)],
)
def test_a_band_that_says_little_is_called_too_wide(band, wide, monkeypatch):
    """Its ends differ in sign or by more than a factor of three. Outside it our mean is a finding."""
    for module in (tables, pages):
        monkeypatch.setattr(module, "published_band", lambda *_: band)
    for value, inside in ((band[1], True), (band[1] + 1, False)):
        ours = replace(of_three_seeds(), returns=np.full((3, 1), float(value)))
        assert tables.result_cells(ours)[-1].endswith(" (too wide)") == (inside and wide)
        assert ("too wide: " in pages.readme_cells([ours], "sac")[2]) == (inside and wide)
        assert ("1 are too wide" in tables.verdicts([ours])) == (inside and wide)


def test_evaluations_below_the_published_average_are_counted():
    """5,500 and 5,800 around the published average of 5,716, 950 far below it; training does not count."""
    above = made_up(returns=np.array([[5_800.0], [5_800.0]]))
    low = made_up(returns=np.array([[900.0], [1_000.0]]), flags="--tau 0.1")
    long, unpublished = made_up(budget=10**6), made_up("Pendulum-v1")
    training = made_up("HalfCheetah-v4", 300_000, "ppo", "ppo", "training")
    assert tables.below_average([made_up(), above, low, long, unpublished, training]) == (
        "Below the average of the published means beside them: after 100,000 steps 2 of 3, "
        "after 1,000,000 steps 1 of 1."
    )
    assert tables.below_average([unpublished, training]) == ""


def test_what_the_results_say_of_low_means_is_what_is_counted(committed):
    """And the sign test's p: twice the chance that so many of so many fair coins fall on one side."""
    text = pages.PAGE.read_text()
    section = " ".join(text.split("## Are the means at 100,000 steps low?")[1].split("\n## ")[0].split())
    low, all_of_them, p = re.search(r"(\d+) of (\d+) evaluations .*?p = (0\.\d+)", section).groups()
    long, all_long, below_every = re.search(
        r"a million steps (\d+) of (\d+) are below the average, and (\d+) below every", section
    ).groups()
    counted = tables.below_average(pages.split(committed)[0])
    assert f"after 100,000 steps {low} of {all_of_them}," in counted
    assert counted.endswith(f"after 1,000,000 steps {long} of {all_long}.")
    assert float(p) == pytest.approx(binomtest(int(low), int(all_of_them)).pvalue, abs=0.0005)
    shown = tables.worth_a_row(pages.split(committed)[0])
    compared = [curve for curve in shown if curve.protocol != "training" and records.published_at_end(curve)]
    short, million = (
        [curve for curve in compared if curve.budget == budget] for budget in (100_000, 1_000_000)
    )
    below = re.findall(r"(\d+) of (\d+) on (\w+-v4)", section)
    assert "but none on" in section and set(below) == {
        (str(sum(low)), str(len(low)), task)
        for task, low in by_task((curve, below_mean(curve)) for curve in short).items()
        if any(low)
    }
    every, expected = re.search(r"(\d+) are below every published mean, where about (\d+)", section).groups()
    assert (int(every), int(below_every)) == tuple(sum(map(below_all, group)) for group in (short, million))
    chances = [1 / (1 + len(tables.means_of(records.published_at_end(curve)))) for curve in short]
    assert int(expected) == round(sum(chances))
    bands = re.search(r"the (\d+) that have a band, (\d+) lie inside it, (\d+) of them in bands too", section)
    judged = tables.verdicts(short)
    assert f"{bands[2]} of the {bands[1]} means" in judged and f", {bands[3]} are too wide" in judged


def below_mean(curve):
    return curve.final().mean() < np.mean(tables.means_of(records.published_at_end(curve)))


def below_all(curve):
    return curve.final().mean() < min(tables.means_of(records.published_at_end(curve)))


def by_task(pairs):
    found = {}
    for curve, low in pairs:
        found.setdefault(curve.task, []).append(low)
    return found


def test_published_means_stand_only_beside_a_curve_that_reaches_them():
    reached, before = (made_up(steps=np.array([step])) for step in (95_000, 94_999))
    assert len(records.published_at_end(reached)) == 3 and not records.published_at_end(before)


def test_scores_need_five_tasks_of_one_length():
    tasks = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4", "Swimmer-v4"]
    five = [made_up(task) for task in tasks]
    others = [made_up("Reacher-v4", 10**6), made_up("Reacher-v4", name="sac-x"), made_up("Pendulum-v1")]
    td3 = [made_up(task, name="td3", algorithm="td3") for task in [*tasks, "Reacher-v4"]]
    ddpg = [made_up(task, name="ddpg", algorithm="ddpg") for task in tasks[:4]]
    assert tables.aggregate_table(five[:4] + others) == []
    shared = tables.shared_tasks([*five, *td3, *ddpg, *others])
    (together,) = shared.values()
    assert set(shared) == {(100_000, "deterministic")} and set(together) == {"sac", "td3"}
    assert all([curve.env_id for curve in group] == sorted(tasks) for group in together.values())
    assert len(tables.aggregate_table([*five, *td3])) == 4
    assert tables.shared_tasks([*five[:4], replace(five[4], flags="--tau 0.1")]) == {}
    sampled = [replace(curve, protocol="sampled") for curve in five]
    others = [replace(curve, name="sql", algorithm="sql") for curve in sampled]
    assert set(tables.shared_tasks(five + sampled)) == {(100_000, "deterministic")}
    both = tables.shared_tasks(five + sampled + others)
    assert set(both) == {(100_000, "deterministic"), (100_000, "sampled")}
    assert {name for group in both.values() for name in group} == {"sac", "sql"}
    training = [replace(curve, protocol="training") for curve in five]
    assert tables.shared_tasks(training) == {}


def test_the_axis_of_a_young_run_ends_where_the_run_does(tmp_path, drawn):
    """With published means, which stand beyond the last step, it ends there."""
    young = curves.Lines("sac", "sac", False, np.array([10_000, 40_000]), np.array([[1.0, 2.0]]))
    curves.draw_lines([young], 1_000_000, "", "", tmp_path)
    curves.draw_lines([replace(young, marks=(3.0,))], 1_000_000, "", "", tmp_path)
    assert 40_000 < drawn[0].axes[0].get_xlim()[1] < 45_000
    assert drawn[1].axes[0].get_xlim()[1] > 1_000_000
    curves.draw_lines([replace(young, steps=np.array([10_000, 98_304]))], 100_000, "", "", tmp_path)
    assert drawn[2].axes[0].spines["bottom"].get_bounds() == (0, 100_000)  # almost finished


def test_an_inset_enlarges_what_all_but_the_beginning_squeezes_into_the_top_of_a_figure(tmp_path, drawn):
    """It shows every return and published mean after 30% of the steps, each step below itself."""
    steps = np.arange(1, 11) * 10_000

    def inset_of(*late, early=-80.0, marks=(-4.0,)):
        values = np.array([[early, early, *np.resize(late, 8)], [early, early, *np.resize(late[::-1], 8)]])
        curves.draw_lines(
            [curves.Lines("sac", "sac", False, steps, values, marks)], 100_000, "", "", tmp_path
        )
        (figure,) = drawn[-1].axes
        return figure, figure.child_axes

    figure, (inset,) = inset_of(-9.0, -5.0)
    assert inset.get_ylim() == pytest.approx((-9.25, -3.75)) and inset.get_xlim()[1] == figure.get_xlim()[1]
    assert len(inset.lines) == len(figure.lines) - 1  # the published means of the legend
    edge = figure.transData.inverted().transform(inset.transData.transform((inset.get_xlim()[0], -9)))
    assert edge[0] == pytest.approx(inset.get_xlim()[0], abs=500)
    assert inset_of(-9.0, -5.0, early=np.nan)[1] == []  # nothing lies below
    assert inset_of(-30.0, -5.0)[1] == []  # they fill a third
    assert inset_of(-4.5, -4.5)[1] == inset_of(-4.0, -4.0, early=-4.0)[1] == []  # nothing to see
    assert inset_of(np.nan, np.nan, marks=())[1] == []


def test_an_inset_leaves_out_the_line_that_ends_lowest_and_lies_below_it(tmp_path, drawn):
    """If that stays in the upper half, and two others remain."""
    steps = np.arange(1, 11) * 10_000

    def inset_of(*ends):
        lines = [
            curves.Lines(name, name, False, steps, np.array([[-80.0, -80.0, *[end - 1, end] * 4]]))
            for name, end in zip(("sac", "td3", "sql"), ends, strict=False)
        ]
        curves.draw_lines(lines, 100_000, "", "", tmp_path)
        return drawn[-1].axes[0], drawn[-1].axes[0].child_axes

    axes, (inset,) = inset_of(-4.0, -8.0, -32.0)
    assert inset.get_ylim() == pytest.approx((-9.25, -3.75))
    top = axes.transAxes.inverted().transform(inset.transAxes.transform((0, 1)))[1]
    assert 0.3 < top < axes.transLimits.transform((0, -33))[1] - 0.05
    assert inset_of(-4.0, -8.0, -60.0)[1] == inset_of(-4.0, -32.0)[1] == []


def test_a_second_panel_enlarges_what_the_highest_lines_squeeze_into_the_bottom_of_a_figure(tmp_path, drawn):
    """It has the steps of the first, and all returns of three lines or more that end in the lower half."""
    steps = np.arange(1, 11) * 10_000

    def panels_of(*tops):
        names = zip(("crossq", "sac", "td3", "sql", "ddpg"), tops, strict=False)
        lines = [
            curves.Lines(name, name, False, steps, np.linspace(0, [0.5 * top, top], 10, axis=1), (800.0,))
            for name, top in names
        ]
        curves.draw_lines(lines, 100_000, "title", "return", tmp_path)
        return drawn[-1].axes

    high = [4_000.0, 3_500.0]
    first, second = panels_of(*high, 500.0, 300.0, 100.0)
    assert second.get_ylim() == pytest.approx((-25, 525)) and first.get_ylim()[1] > 4_000
    assert second.get_xlim() == first.get_xlim() and len(second.lines) == len(first.lines) - 1
    assert (first.get_title(), second.get_title()) == ("title", "enlarged")
    assert (first.get_xlabel(), second.get_xlabel()) == ("", "environment steps")
    assert drawn[-1].get_supylabel() == "return"
    assert [len(panels_of(*high, highest, 300.0, 100.0)) for highest in (1_500.0, 1_700.0)] == [2, 1]
    for tops in [(*high, 500.0, 300.0), (500.0, 500.0, 500.0), (*high, *[0.0] * 3), [np.nan] * 5]:
        (only,) = panels_of(*tops)
        assert only.get_xlabel() == "environment steps"


def test_many_variants_have_a_panel_each(tmp_path, drawn):
    """In the order of names and dark, beside the algorithm's own curve and published means, on equal axes."""
    returns = {
        letter: np.array([[1_000.0 * place], [1_000.0 * place + 500]]) for place, letter in enumerate("abcde")
    }
    variants = [made_up(name=f"sac-{letter}", returns=returns[letter]) for letter in "edcba"]
    curves.draw_curves([*variants, made_up()], tmp_path)
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    titles = [axes.get_title().replace("\N{NO-BREAK SPACE}", " ") for axes in panels]
    assert titles == [f"sac-{letter}, 2 seeds" for letter in "abcde"]
    blue, dark = (curves.shade(curves.COLORS["sac"], tint) for tint in (0, curves.DARK))
    for axes, values in zip(panels, returns.values(), strict=True):
        own, variant = [line for line in axes.lines if line.get_linewidth() > 2]
        assert (own.get_color(), variant.get_color()) == (blue, dark)
        assert [line.get_ydata().tolist() for line in (own, variant)] == [[5_500.0], [values.mean()]]
        seeds = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 0.7]
        assert seeds == [5_000.0, 6_000.0, *values[:, 0]]
        (marks,) = [line for line in axes.lines if line.get_marker() == "<"]
        assert len(marks.get_ydata()) == 3 and marks.get_color() == blue
        assert axes.get_ylim() == panels[0].get_ylim() and axes.get_xlim()[1] == pytest.approx(110_000)
    assert [bool(axes.get_xlabel()) for axes in panels] == [False, True, True, True, True]
    (legend,) = drawn[0].legends
    names = [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in legend.get_texts()]
    assert names == ["sac, 2 seeds", "the variant", curves.MARKS]
    alone, other = variants[:4], made_up(name="td3", algorithm="td3")
    for few in (alone, [*variants, other], [*variants, made_up(), made_up(flags="--tau 0.1")]):
        curves.draw_curves(few, tmp_path)
        assert len(drawn[-1].axes) == 1
    many = [made_up(name=f"sac-{letter}", returns=np.full((11, 1), 7.0)) for letter in "abcde"]
    curves.draw_curves(many, tmp_path)
    assert len(drawn[-1].axes[0].lines) == 2  # a mean and the published ones


def test_one_colour_and_other_dashes(tmp_path, drawn):
    """Variants have a shade of their algorithm's colour; seeds are thin; published means stand beyond the
    last step."""
    curves.draw_curves([made_up(name="sac-x"), made_up(), made_up(name="td3", algorithm="td3")], tmp_path)
    axes = drawn[0].axes[0]
    thick = {line.get_label(): line for line in axes.lines if line.get_linewidth() > 2}
    sac, variant, td3 = (thick[f"{name}, 2\N{NO-BREAK SPACE}seeds"] for name in ("sac", "sac-x", "td3"))
    shades = [("sac", 0.0), ("sac", curves.TINTS[1]), ("td3", 0.0)]
    expected = [curves.shade(curves.COLORS[name], share) for name, share in shades]
    assert [line.get_color() for line in (sac, variant, td3)] == expected
    assert sac.get_ydata().tolist() == [5_500.0]  # the mean
    assert sac.get_linestyle() == td3.get_linestyle() == "-" != variant.get_linestyle()
    alone = curves.lines_of(made_up(name="sac-x"), [])
    assert curves.line_styles([alone])[0][0] != "-"
    many = [replace(alone, algorithm=name, is_variant=False) for name in ("mine", "other")] + [alone] * 30
    looks = curves.line_styles(many)
    assert len({(str(style), color) for style, color in looks}) == 32
    assert all(style != "-" for style, _ in looks[1:])
    shades = {color for _, color in curves.line_styles([replace(alone, algorithm="maxent_pg")] * 6)}
    assert len(shades) == 6 and min(map(max, shades)) > 0.25  # none as dark as black
    assert sum(curves.shade(curves.COLORS["trpo"], 0.45)) < sum(curves.shade(curves.COLORS["trpo"], 0))
    assert curves.shade("#ff0080", -0.5) == (0.5, 0, 64 / 255) and curves.shade("#ff0000", 1) == (1, 1, 1)
    seeds = [line for line in axes.lines if line.get_linewidth() < 1 and line.get_marker() == "o"]
    assert sorted(line.get_ydata().tolist() for line in seeds) == 3 * [[5_000.0]] + 3 * [[6_000.0]]
    marks = [line for line in axes.lines if line.get_marker() == "<" and len(line.get_xdata())]
    assert [len(line.get_ydata()) for line in marks] == [3, 4] and all(
        min(m.get_xdata()) > 100_000 for m in marks
    )
    assert axes.get_title() == "HalfCheetah-v4, 100,000 steps" and axes.get_xlabel() == "environment steps"


def test_a_variant_looks_the_same_in_all_figures(tmp_path, drawn):
    """Beside others or alone; of two with one name, the flags tell which."""
    names = [("sac-a", ""), ("sac-b", "--tau 0.1"), ("sac-b", "--tau 0.2"), ("sac-c", "")]
    variants = [made_up(name=name, flags=flags) for name, flags in names]
    elsewhere = [replace(curve, env_id="Hopper-v4") for curve in variants[2:]]
    pages.draw_results([made_up(), *variants, *elsewhere], tmp_path)
    looks = [
        {line.get_label(): (line.get_linestyle(), line.get_color()) for line in figure.axes[0].lines}
        for figure in drawn
        if figure.axes and "steps" in figure.axes[0].get_title()
    ]
    (_, many, few) = looks
    shown = [
        {name.partition(",")[0]: look for name, look in found.items() if name.startswith("sac-")}
        for found in (many, few)
    ]
    assert len(set(shown[0].values())) == 4
    assert shown[1] == {"sac-b": shown[0]["sac-b --tau 0.2"], "sac-c": shown[0]["sac-c"]}


def test_a_figure_names_its_best_ten(tmp_path, drawn):
    """The trials of a search: two of twelve are grey, without their seeds; also if all return the same.

    No two named ones look alike, and the legend with their long names is inside the figure.
    """
    rates = "--policy-lr 0.000312345 --q-lr 0.00212345"
    for slope in (1.0, 0.0):
        trials = [
            made_up(flags=f"{rates} --tau 0.{tau}", returns=np.array([[slope * tau], [slope * tau + 1]]))
            for tau in range(10, 22)
        ]
        curves.draw_curves(trials, tmp_path)
        axes = drawn[-1].axes[0]
        legend = axes.get_legend()
        named = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
        assert len([name for name in named if name.startswith("sac")]) == 10 and named[-1] == "2 more"
        assert len({(line.get_linestyle(), line.get_color()) for line in legend.get_lines()[:10]}) == 10
        drawn[-1].canvas.draw()
        inside, whole = legend.get_window_extent(), drawn[-1].bbox
        assert 0 <= inside.y0 and inside.y1 <= whole.y1 and inside.x1 <= whole.x1
        assert axes.bbox.width > 0.4 * whole.width
        if slope:
            assert named[0].startswith(f"sac {rates} --tau 0.21, 2") and "0.11" not in "".join(named)
            grey = axes.lines[:2]
            assert [line.get_ydata()[-1] for line in grey] == [10.5, 11.5]
            assert all(line.get_marker() == "o" for line in grey)


def test_published_means_are_drawn_once_beside_variants_alone_too(tmp_path, drawn):
    """In the algorithm's colour, whatever the curves' flags. The algorithm's own curve is named however low;
    the legend has the order of the tables, of the mean over the last 5% of the steps."""
    variants = [made_up(name=f"sac-{letter}", flags=f"--tau 0.{ord(letter)}") for letter in "abcdefghijklm"]
    several = [made_up(flags=flags) for flags in ("--tau 0.1", "--tau 0.2")]
    late = made_up(steps=np.array([95_000, 100_000]), returns=np.array([[9.0, 1], [9, 1]]))
    for shown in (variants[:1], several, [*variants, late]):
        curves.draw_curves(shown, tmp_path)
        axes = drawn[-1].axes[0]
        (marks,) = [line for line in axes.lines if line.get_marker() == "<" and len(line.get_xdata())]
        assert marks.get_color() == curves.COLORS["sac"] and len(marks.get_ydata()) == 3
        names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names[-3:] == ["sac, 2\N{NO-BREAK SPACE}seeds", curves.MARKS, "4 more"]
    assert curves.lines_of(late, []).end() == 5


def test_algorithms_that_share_a_figure_differ_to_colour_blind_eyes(committed):
    """Distances in OKLab (Ottosson 2020), times 100, as they are and as the three kinds of dichromats see
    them (Machado et al. 2009, severity 1)."""
    seen = np.stack(
        [
            np.eye(3),
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ],
            [
                [1.255528, -0.076749, -0.178779],
                [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900],
            ],
        ]
    )
    to_cones = np.array(
        [
            [0.41222147, 0.53633254, 0.05144599],
            [0.21190350, 0.68069955, 0.10739696],
            [0.08830246, 0.28171884, 0.62997870],
        ]
    )
    to_lab = np.array(
        [
            [0.21045426, 0.79361779, -0.00407205],
            [1.97799850, -2.42859221, 0.45059371],
            [0.02590404, 0.78277177, -0.80867577],
        ]
    )

    def lab(algorithm):
        rgb = np.array(curves.shade(curves.COLORS[algorithm], 0))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return 100 * np.cbrt(np.clip(seen @ linear, 0, 1) @ to_cones.T) @ to_lab.T

    assert lab("maxent_pg")[0, 0] == pytest.approx(17.8, abs=0.1)  # almost black
    for group in pages.by_task_and_budget(pages.split(committed)[0]):
        for one, other in itertools.combinations({curve.algorithm for curve in group}, 2):
            assert np.linalg.norm(lab(one) - lab(other), axis=1).min() > 9, (one, other)


def test_sampled_evaluations_have_a_figure_where_something_is_published():
    """Of PPO on Hopper, not of SAC, whose published means are deterministic; all algorithms share it."""
    both = [
        made_up("Hopper-v4", 300_000, name, name, protocol)
        for name in ("ppo", "maxent_pg", "sac")
        for protocol in ("deterministic", "sampled")
    ]
    (group,) = pages.sampled_groups([*both, made_up("Walker2d-v4", 100_000, protocol="sampled")])
    assert [(curve.name, curve.protocol) for curve in group] == [
        (curve.name, "sampled") for curve in both[::2]
    ]
    assert pages.figure_of(group, Path("x"), sampled=True) == Path("x/Hopper-v4-300000-sampled.png")
    assert pages.sampled_groups(both[1:2]) == []  # its only evaluation, which the main figure shows


def test_a_profile_is_the_share_of_runs_above_each_score(tmp_path, drawn, monkeypatch):
    """One seed of each task has score 0.3, the other 0.9."""
    monkeypatch.setattr(curves, "score", lambda curve: np.array([0.3, 0.9]))
    curves.draw_profiles({"sac": [made_up(), made_up("Hopper-v4")]}, tmp_path / "profiles.png")
    (line,) = drawn[0].axes[0].lines
    thresholds, shares = line.get_data()
    assert np.array_equal(shares, (thresholds < 0.3) / 2 + (thresholds < 0.9) / 2)


def test_profiles_are_drawn(tmp_path):
    group = [made_up(task) for task in ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4", "Swimmer-v4")]
    (path,) = pages.draw_scores(group, tmp_path)
    assert path == tmp_path / "profiles-100000.png" and size_and_description(path)[0] == (1440, 680)
    assert pages.draw_scores(group[1:], tmp_path) == []

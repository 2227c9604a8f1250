"""Statistics of few seeds, against closed forms, SciPy and simulation."""

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind, ttest_ind_from_stats

from benchmarks import intervals


def test_interquartile_mean():
    assert intervals.interquartile_mean([100, 3, 1, 2, 60, 0, 4, 50]) == (2 + 3 + 4 + 50) / 4
    assert intervals.interquartile_mean([1, 2, 6]) == 3


def test_interquartile_mean_weighs_tasks_alike():
    """Forty seeds of a task count as much as five of another; of equal numbers it is the mean of the inner
    half of all scores."""
    tasks = [np.full(5, 0.2)] * 4 + [np.full(40, 0.9)]
    assert intervals.weighted_interquartile_mean(tasks) == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    tasks = rng.normal(size=(3, 4))
    inner = np.sort(tasks.ravel())[3:9]
    assert intervals.weighted_interquartile_mean(list(tasks)) == pytest.approx(inner.mean())


def test_bootstrap_keeps_to_the_tasks():
    """Tasks without spread have an interval without width, however far apart they are; for others it is
    that of seeds drawn again by hand."""
    assert intervals.stratified_bootstrap([np.zeros(4), np.full(4, 100.0)]) == (50, 50)
    rng = np.random.default_rng(1)
    tasks = [rng.normal(size=10), rng.normal(3, size=10)]
    drawn = []
    for _ in range(20_000):
        scores = np.sort(np.concatenate([rng.choice(task, len(task)) for task in tasks]))
        drawn.append(scores[5:15].mean())
    found = intervals.stratified_bootstrap(tasks, repetitions=20_000)
    np.testing.assert_allclose(found, np.percentile(drawn, [2.5, 97.5]), rtol=0, atol=0.03)


def test_profile_weighs_tasks_alike():
    profile = intervals.performance_profile([[0.5] * 10, [1.5]], [0, 0.5, 1, 2])
    np.testing.assert_array_equal(profile, [1, 0.5, 0.5, 0])


def test_mean_interval_of_two_scores():
    """t of one degree of freedom is 12.706, the standard error of 0 and 2 is 1."""
    assert intervals.mean_interval([0, 2]) == pytest.approx(12.706, abs=1e-3)
    assert np.isnan(intervals.mean_interval([1]))


def test_prediction_interval_of_one_implementation():
    """t of 9 degrees of freedom is 2.262; the deviation of ten seeds, 3, divides by ten."""
    low, high = intervals.prediction_interval([100], [3], [10], 5)
    half_width = 2.262 * 3 * np.sqrt(10 / 9) * np.sqrt(1 / 5 + 1 / 10)
    assert (low, high) == pytest.approx((100 - half_width, 100 + half_width), abs=1e-2)


def test_the_band_of_one_implementation_counts_the_spread_of_our_seeds():
    """A mean at its edge has p = 0.05 in SciPy's test; the published standard deviation has divisor n."""
    ours = np.array([354.0, 338, 2_119])
    for bound in intervals.welch_band(497, 43, 3, ours):
        moved = ours - ours.mean() + bound
        deviations = 43 * np.sqrt(3 / 2), np.std(ours, ddof=1)
        test = ttest_ind_from_stats(497, deviations[0], 3, moved.mean(), deviations[1], 3, equal_var=False)
        assert test.pvalue == pytest.approx(0.05)


def test_prediction_interval_of_two_implementations():
    """s² = (10·9 + 5·8)/13 = 10 and u = 0.15; V = 50 leaves b² = 50 - 1.5."""
    low, high = intervals.prediction_interval([100, 110], [3, 8**0.5], [10, 5], 5)
    within, between = 10 * (1 / 5 + 0.15 / 2), 48.5 * 1.5
    freedom = (within + between) ** 2 / (within**2 / 13 + between**2 / 1)
    half_width = student.ppf(0.975, freedom) * np.sqrt(within + between)
    assert (low, high) == pytest.approx((105 - half_width, 105 + half_width))
    # means as close as seeds make them: V = 0.5 < 1.5
    low, high = intervals.prediction_interval([100, 101], [3, 8**0.5], [10, 5], 5)
    assert (high - low) / 2 == pytest.approx(student.ppf(0.975, 13) * np.sqrt(within))


@pytest.mark.parametrize(
    "between, seeds, new_seeds, least, most",
    [
        (0, [10] * 4, 3, 0.94, 0.98),
        (0, [10, 3], 3, 0.94, 0.98),
        (3, [10] * 4, 3, 0.91, 0.95),
        (3, [10, 10, 3], 3, 0.88, 0.92),
        (1, [10, 10, 3], 10, 0.86, 0.91),
        (3, [10, 10], 3, 0.85, 0.88),
        (3, [10, 3], 10, 0.8, 0.85),
    ],
)
def test_prediction_interval_covers(between, seeds, new_seeds, least, most):
    """1,500 times some programs are published, and one more is run.

    19 in 20 are within if programs do not differ; fewer if they do and there are few of them.
    """
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1_500):
        programs = [rng.normal(rng.normal(0, between), 2, n) for n in seeds]
        means, deviations = zip(*((returns.mean(), returns.std()) for returns in programs), strict=True)
        new = rng.normal(rng.normal(0, between), 2, new_seeds).mean()
        low, high = intervals.prediction_interval(means, deviations, seeds, new_seeds)
        inside += low <= new <= high
    assert least < inside / 1_500 < most


def test_difference_of_means_is_welchs():
    a, b = [1.0, 4.0, 2.0], [9.0, 3.0, 5.0, 8.0]
    expected = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert intervals.difference_interval(a, b) == pytest.approx((expected.low, expected.high))
    assert intervals.difference_interval([500, 500], [400, 400]) == (-100, -100)


def test_probability_of_improvement():
    """Of six pairs 5 > 1, 5 > 3, 3 > 1, 3 = 3, 1 = 1, 1 < 3."""
    assert intervals.probability_of_improvement([1, 3], [5, 3, 1]) == pytest.approx((3 + 2 / 2) / 6)


def test_improvement_is_averaged_over_tasks():
    """Whoever is drawn, B wins the first task and loses the second; alone, the first is certain."""
    won, lost = ([1, 2, 3], [4, 5, 6]), ([4, 5, 6], [1, 2, 3])
    assert intervals.improvement_interval([won]) == (1, 1)
    assert intervals.improvement_interval([won, lost]) == (0.5, 0.5)
    low, high = intervals.improvement_interval([([0, 2], [1, 3])])
    assert (low, high) == (0, 1)


def test_the_interval_of_an_improvement_has_95_percent():
    """Of 16 seeds of B half beat A, so what is drawn is binomial: its quantiles are 4 and 12 of 16, those of
    a 90% interval 5 and 11."""
    a, b = np.zeros(16), np.repeat([1.0, -1.0], 8)
    assert intervals.improvement_interval([(a, b)]) == (4 / 16, 12 / 16)

"""Hand-worked numbers first, then scipy and statsmodels beside ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness import statistics as st
from harness.statistics import Resampled, combine


def resampled(values: np.ndarray, seed: int = 0, draws: int = 20_000) -> Resampled:
    return Resampled(
        float(values.mean()),
        st.resampled_means(values[None], seed, draws)[:, 0],
        (st.leave_one_out(values),),
        len(values),
    )


def test_bca_agrees_with_scipy_on_skewed_items() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    e = resampled(values).estimate()
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert (e.low, e.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert e.low > values.mean() - (e.high - values.mean())  # skewed like the items, unlike a symmetric interval


def test_bca_of_a_ratio_over_two_topics_agrees_with_scipy() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(3, 1, 30), draw.normal(2, 0.5, 20)
    one, two = resampled(a, 1), resampled(b, 2)
    placed = [
        Resampled(one.value, one.draws, (one.jackknife[0], np.full(20, one.value)), 30),
        Resampled(two.value, two.draws, (np.full(30, two.value), two.jackknife[0]), 20),
    ]
    e = combine(lambda x, y: x / y, *placed).estimate()
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        n_resamples=20_000,
        method="BCa",
        vectorized=True,
        rng=1,
    )
    assert (e.low, e.high) == pytest.approx(tuple(theirs.confidence_interval), rel=0.01)


def test_a_constant_has_no_width() -> None:
    e = resampled(np.full(10, 0.3), draws=100).estimate()
    assert (e.value, e.low, e.high) == pytest.approx((0.3, 0.3, 0.3))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(2)
    inside = 0
    for seed in range(300):
        e = resampled(draw.exponential(size=60), seed, 500).estimate()
        inside += e.low <= 1.0 <= e.high
    assert 0.88 <= inside / 300 <= 0.98  # skewed items: a little below the nominal .95 at n = 60


def test_leave_one_out_by_hand() -> None:
    assert st.leave_one_out(np.array([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
    assert st.leave_one_out(np.array([1.0, np.nan, 3.0])).tolist() == [3.0, 2.0, 1.0]


def test_the_permutation_test_is_exact_for_few_items() -> None:
    """Four items that all rise: of 16 exchanges two are as extreme, so p = 2/16."""
    before = np.zeros(4)
    assert st.permutation_p(np.array([1.0, 2.0, 3.0, 4.0]), before) == pytest.approx(2 / 16)


def test_the_permutation_test_leaves_unanswered_items_out() -> None:
    after, before = np.array([1.0, 2.0, 3.0, 4.0, np.nan]), np.array([0.0, 0.0, 0.0, 0.0, 5.0])
    assert st.permutation_p(after, before) == pytest.approx(2 / 16)
    assert math.isnan(st.permutation_p(after[:1], before[:1]))
    assert st.permutation_p(before, before) == 1


def test_corrections_by_hand() -> None:
    """Holm of .01 .04 .03: 3*.01, then 2*.03, then max with 1*.04; BH: .03, .04, .04."""
    holm, bh = st.corrected(np.array([0.01, 0.04, 0.03, np.nan]))
    assert holm[:3] == pytest.approx([0.03, 0.06, 0.06]) and bh[:3] == pytest.approx([0.03, 0.04, 0.04])
    assert math.isnan(holm[3]) and math.isnan(bh[3])


def test_the_detectable_effect_is_found_as_often_as_promised() -> None:
    """Normal approximation: (1.96 + .84) * sd / sqrt(n); simulated power is about .8."""
    values = np.random.default_rng(3).normal(size=60)
    effect = st.detectable(values)
    assert effect == pytest.approx((1.96 + 0.84) * values.std(ddof=1) / math.sqrt(60), rel=0.03)
    draw, sd = np.random.default_rng(4), values.std(ddof=1)
    found = np.mean([stats.ttest_1samp(draw.normal(effect, sd, 60), 0).pvalue < 0.05 for _ in range(1000)])
    assert found == pytest.approx(0.8, abs=0.05)
    assert st.detectable(np.full(5, 0.2)) == 0 and math.isnan(st.detectable(np.array([1.0])))


def test_spearman_brown_by_hand() -> None:
    assert st.spearman_brown(0.6) == pytest.approx(0.75)


def test_split_half_is_one_without_noise_and_none_without_signal() -> None:
    models = np.linspace(-1, 1, 6)[:, None]
    items = np.random.default_rng(5).normal(size=(1, 40))
    assert st.split_half(models + items) == pytest.approx(1)
    noise = np.random.default_rng(6).normal(size=(40, 40))
    assert abs(st.split_half(noise, splits=100)) < 0.4
    assert math.isnan(st.split_half(np.zeros((2, 40))))


def test_split_half_agrees_with_the_variance_components_it_estimates() -> None:
    """Reliability of a mean over n items = var_models / (var_models + var_noise / n)."""
    draw = np.random.default_rng(7)
    scores = draw.normal(0, 1, (200, 1)) + draw.normal(0, 3, (200, 20))
    assert st.split_half(scores, splits=100) == pytest.approx(1 / (1 + 9 / 20), abs=0.08)


def test_combined_statistics_of_different_items_fall_back_to_the_percentile_interval() -> None:
    one, two = resampled(np.arange(10.0), draws=500), resampled(np.arange(12.0), draws=500)
    both = combine(lambda a, b: a - b, one, two)
    assert both.jackknife == () and both.estimate().low < both.value < both.estimate().high

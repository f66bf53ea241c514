"""Comparisons that carry the seeds' noise: against SciPy, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import (
    auc,
    auc_difference_variance,
    compare_clicks,
    compare_over_seeds,
    holm,
    log_loss,
    mean_variance,
)


def test_over_seeds_is_scipys_paired_test():
    rng = np.random.default_rng(0)
    a, b = rng.random(5), rng.random(5)
    found, expected = compare_over_seeds(a, b), stats.ttest_rel(a, b)
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.degrees, found.seeds) == (4, 5)
    turned = compare_over_seeds(b, a)
    assert (turned.t, turned.low) == pytest.approx((-found.t, -found.high))


def test_over_seeds_by_hand_with_the_examples_noise():
    """Differences 1, 2, 3: variance of the mean 1/3; plus 1/6 makes 1/2 at 2 (3/2)^2 degrees."""
    found = compare_over_seeds([1, 2, 3], [0, 0, 0], sampling_variance=1 / 6)
    assert found.mean_difference == 2
    assert found.degrees == pytest.approx(4.5)
    assert found.t == pytest.approx(2 / math.sqrt(0.5))
    assert found.p == pytest.approx(2 * stats.t.sf(found.t, 4.5))
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 4.5) * math.sqrt(0.5))
    assert "3 seeds" in str(found)


def test_equal_constant_and_single_seeds():
    same = compare_over_seeds([0.5, 0.6], [0.5, 0.6])
    assert (same.t, same.p, same.low, same.high) == (0, 1, 0, 0)
    constant = compare_over_seeds([1.0, 2.0], [0.5, 1.5])
    assert (constant.t, constant.p) == (math.inf, 0)
    single = compare_over_seeds([1.0], [0.5], sampling_variance=1e-6)
    assert single.mean_difference == 0.5
    assert math.isnan(single.p)
    assert math.isnan(single.low)


def test_intervals_hold_as_often_as_they_say():
    """2,000 experiments of 3 seeds whose examples' noise is common: it would be missed without."""
    rng = np.random.default_rng(0)
    covered = blind = 0
    for _ in range(2000):
        common = rng.normal(scale=1.0)
        differences = 0.3 + common + rng.normal(scale=0.5, size=3)
        found = compare_over_seeds(differences, np.zeros(3), sampling_variance=1.0)
        covered += found.low <= 0.3 <= found.high
        without = compare_over_seeds(differences, np.zeros(3))
        blind += without.low <= 0.3 <= without.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)
    assert blind / 2000 < 0.8


def test_delong_by_hand():
    """Positives 2, 0 and negatives 1, -1; b orders all pairs right.

    a: V10 = (1, 1/2), V01 = (1/2, 1). b: all 1. Differences: variances 1/8 over 2 each.
    """
    labels = [1, 1, 0, 0]
    a, b = [2.0, 0.0, 1.0, -1.0], [2.0, 2.0, 0.0, 0.0]
    assert auc_difference_variance(labels, a, b) == pytest.approx(1 / 16 + 1 / 16)
    assert auc_difference_variance(labels, a, a) == 0


def test_delong_is_the_spread_of_resampled_differences():
    rng = np.random.default_rng(1)
    labels = rng.random(1500) < 0.4
    signal = rng.normal(size=1500) + labels
    a, b = signal + rng.normal(size=1500), signal + 2 * rng.normal(size=1500)
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, 1500, 1500)
        drawn.append(auc(labels[rows], a[rows]) - auc(labels[rows], b[rows]))
    assert auc_difference_variance(labels, a, b) == pytest.approx(np.var(drawn), rel=0.2)


def test_clicks_of_several_seeds():
    rng = np.random.default_rng(2)
    labels = (rng.random(800) < 0.4).astype(int)
    a = labels + rng.normal(size=(3, 800))
    b = labels + 2 * rng.normal(size=(3, 800))
    found = compare_clicks(labels, a, b)
    of_a, of_b = ([auc(labels, row) for row in rows] for rows in (a, b))
    assert found.mean_difference == pytest.approx(np.mean(of_a) - np.mean(of_b))
    assert found.low > 0
    assert found.high - found.low > 2 * 1.96 * math.sqrt(auc_difference_variance(labels, a, b))
    losses = compare_clicks(labels, a, b, metric="logloss")
    expected = np.mean([log_loss(labels, row) for row in b]) - np.mean(
        [log_loss(labels, row) for row in a]
    )
    assert losses.mean_difference == pytest.approx(expected)
    assert losses.seeds == 3


def test_mean_variance_is_that_of_the_mean_over_seeds():
    differences = np.random.default_rng(3).normal(size=(4, 50))
    expected = stats.sem(differences.mean(axis=0)) ** 2
    assert mean_variance(differences) == pytest.approx(expected)
    assert mean_variance(differences[0]) == pytest.approx(stats.sem(differences[0]) ** 2)


def test_holm_by_hand():
    """Sorted .01 x 4, .02 x 3, .03 x 2, .04: never falling, so .04, .06, .06, .06."""
    assert holm([0.02, 0.01, 0.04, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert len(holm([])) == 0


def test_bad_input_is_refused():
    with pytest.raises(InvalidInputError, match="paired"):
        compare_over_seeds([1.0, 2.0], [1.0])
    with pytest.raises(InvalidInputError, match="finite"):
        compare_over_seeds([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(InvalidInputError, match="sampling_variance"):
        compare_over_seeds([1.0, 2.0], [1.0, 2.0], sampling_variance=-1.0)
    with pytest.raises(InvalidInputError, match="confidence"):
        compare_over_seeds([1.0, 2.0], [1.0, 2.0], confidence=95)
    with pytest.raises(InvalidInputError, match="as many seeds"):
        compare_clicks([0, 1], np.zeros((2, 2)), np.zeros((3, 2)))
    with pytest.raises(InvalidInputError, match="'auc' or 'logloss'"):
        compare_clicks([0, 1], np.zeros(2), np.zeros(2), metric="recall")
    with pytest.raises(InvalidInputError, match="two examples of each"):
        auc_difference_variance([0, 0, 1], np.zeros(3), np.zeros(3))
    with pytest.raises(InvalidInputError, match="at least 2"):
        mean_variance([1.0])
    with pytest.raises(InvalidInputError, match=r"within \[0, 1\]"):
        holm([0.5, math.nan])

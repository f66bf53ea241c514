"""The paired t-test against its formula, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import Metrics, paired_t_test


def metrics(recall: list[float], users: list[int] | None = None, **options: str) -> Metrics:
    values = np.array(recall)
    ids = np.arange(len(values)) if users is None else np.array(users)
    return Metrics(users=ids, recall={20: values}, ndcg={20: values / 2}, **options)


def test_against_the_formula() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.random(50)
    result = paired_t_test(metrics(list(first)), metrics(list(second)))
    difference = first - second
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(50))
    assert result.t == pytest.approx(t)
    assert result.p == pytest.approx(2 * stats.t.sf(abs(t), 49))
    assert result.mean_difference == pytest.approx(difference.mean())
    assert result.relative_gain == pytest.approx(first.mean() / second.mean() - 1)
    assert result.n == 50
    other = paired_t_test(metrics(list(first)), metrics(list(second)), "ndcg")
    assert other.t == pytest.approx(t)
    assert other.mean_difference == pytest.approx(difference.mean() / 2)
    assert "recall@20" in str(result)


def test_turned_round_it_changes_its_sign_only() -> None:
    a, b = metrics([0.1, 0.5, 0.4]), metrics([0.3, 0.2, 0.2])
    forth, back = paired_t_test(a, b), paired_t_test(b, a)
    assert (forth.t, forth.p) == pytest.approx((-back.t, back.p))


def test_equal_and_tiny_samples() -> None:
    same = paired_t_test(metrics([0.1, 0.2]), metrics([0.1, 0.2]))
    assert (same.t, same.p, same.relative_gain) == (0, 1, 0)
    assert math.isnan(paired_t_test(metrics([0.1]), metrics([0.2])).p)
    assert paired_t_test(metrics([1.0, 0.5]), metrics([0.0, 0.0])).relative_gain == math.inf


def test_different_users_or_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="same users"):
        paired_t_test(metrics([0.1, 0.2]), metrics([0.1, 0.2], [0, 2]))
    with pytest.raises(InvalidInputError, match="both alike"):
        paired_t_test(metrics([0.1, 0.2]), metrics([0.1, 0.2], on="validation"))
    with pytest.raises(InvalidInputError, match="k=5 was not evaluated"):
        paired_t_test(metrics([0.1, 0.2]), metrics([0.1, 0.2]), k=5)

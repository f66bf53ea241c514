"""Click metrics against scikit-learn, TorchRec and hand-counted pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import (
    auc,
    calibration,
    click_metrics,
    log_loss,
    log_losses,
    normalised_entropy,
)


def example(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.float32)
    return labels, (rng.normal(size=n) + labels).astype(np.float32)


def test_auc_by_hand():
    """Positives 3, 1, 1 against negatives 2, 1: 3 beats both; each 1 loses to 2 and ties with 1."""
    assert auc([1, 1, 1, 0, 0], [3.0, 1.0, 1.0, 2.0, 1.0]) == (2 + 0.5 + 0.5) / 6
    assert auc([0, 1], [0.0, 1.0]) == 1
    assert auc([0, 1], [1.0, 0.0]) == 0
    assert auc([True, False], torch.tensor([0.5, 0.5])) == 0.5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_is_that_of_all_pairs(examples):
    """Few distinct scores, so that most pairs tie."""
    labels = np.array([label for label, _ in examples])
    scores = np.array([score for _, score in examples], dtype=np.float32)
    if labels.all() or not labels.any():
        return
    pairs = scores[labels][:, None] - scores[~labels]
    assert auc(labels, scores) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert auc(labels, scores) + auc(labels, -scores) == pytest.approx(1)


def test_against_scikit_learn():
    labels, logits = example()
    rounded = np.round(logits, 1)
    for scores in (logits, rounded):
        assert auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert log_loss(labels, logits) == pytest.approx(sk.log_loss(labels, probabilities))
    assert log_losses(labels, logits).shape == (4000,)
    assert calibration(labels, logits) == pytest.approx(probabilities.sum() / labels.sum())


def test_normalised_entropy_is_torchrecs():
    ne = pytest.importorskip("torchrec.metrics.ne")
    labels, logits = (torch.from_numpy(values).double() for values in example())
    states = ne.get_ne_states(labels, torch.sigmoid(logits), torch.ones_like(labels), eta=1e-12)
    expected = ne.compute_ne(**_named(states), eta=1e-12).item()
    assert normalised_entropy(labels, logits) == pytest.approx(expected, rel=1e-9)
    rate = labels.mean().item()
    always_the_mean = np.full(len(labels), math.log(rate / (1 - rate)))
    assert normalised_entropy(labels, always_the_mean) == pytest.approx(1)


def _named(states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "ce_sum": states["cross_entropy_sum"],
        "weighted_num_samples": states["weighted_num_samples"],
        "pos_labels": states["pos_labels"],
        "neg_labels": states["neg_labels"],
    }


def test_all_at_once():
    labels, logits = example(500)
    found = click_metrics(labels, logits)
    assert found.examples == 500
    assert (found.auc, found.log_loss) == (auc(labels, logits), log_loss(labels, logits))
    assert found.normalised_entropy == normalised_entropy(labels, logits)
    assert found.calibration == calibration(labels, logits)
    assert f"AUC {found.auc:.4f}" in str(found)


def test_extreme_logits_have_an_exact_loss():
    """A probability in fp32 would be 1 and its loss infinite, or clamped."""
    assert log_losses([0, 1, 1], [200.0, 200.0, -1000.0]) == pytest.approx([200, 0, 1000])
    assert log_loss([1, 1], [0.0, 0.0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("metric", [auc, normalised_entropy])
def test_one_class_is_refused(metric):
    for labels in ([0, 0], [1, 1]):
        with pytest.raises(InvalidInputError, match="both classes"):
            metric(labels, [0.1, 0.2])


@pytest.mark.parametrize("metric", [auc, log_loss, normalised_entropy, calibration, click_metrics])
def test_bad_input_is_refused(metric):
    with pytest.raises(InvalidInputError, match="1 of 2 scores are NaN"):
        metric([0, 1], [math.nan, 0.5])
    with pytest.raises(InvalidInputError, match="as many labels"):
        metric([0, 1], [0.5])
    with pytest.raises(InvalidInputError, match="as many labels"):
        metric([], [])
    with pytest.raises(InvalidInputError, match=r"0 or 1, got 4"):
        metric([0, 4], [0.5, 0.1])


def test_calibration_needs_a_click():
    with pytest.raises(InvalidInputError, match="label 1"):
        calibration([0, 0], [0.1, 0.2])

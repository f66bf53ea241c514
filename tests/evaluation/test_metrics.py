"""Recall and NDCG by hand, and against scikit-learn and torchmetrics."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import ndcg_score

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import Metrics, evaluate, metrics_of_lists, top_items


def part(dense: Any) -> SimpleNamespace:
    """One part of a split, as far as evaluation looks at it."""
    return SimpleNamespace(csr=lambda: sparse.csr_matrix(np.asarray(dense, dtype=np.float32)))


def test_worked_example() -> None:
    # User 0 has items 1, 2, 4; its list is 1, 0, 4: hits in the first and third place.
    # User 1 has item 3; its list is 0, 1, 3: one hit in the third place.
    # User 2 has nothing: left out.
    relevant = sparse.csr_matrix(
        np.array([[0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=np.float32)
    )
    lists = np.array([[1, 0, 4], [0, 1, 3], [0, 1, 2]])
    metrics = metrics_of_lists(lists, relevant, ks=(1, 2, 3))
    np.testing.assert_array_equal(metrics.users, [0, 1])
    assert metrics.left_out == 1
    np.testing.assert_allclose(metrics.recall[1], [1 / 3, 0])
    np.testing.assert_allclose(metrics.recall[2], [1 / 3, 0])
    np.testing.assert_allclose(metrics.recall[3], [2 / 3, 1])
    third = 1 / math.log2(4)
    np.testing.assert_allclose(metrics.ndcg[1], [1, 0])
    np.testing.assert_allclose(metrics.ndcg[2], [1 / (1 + 1 / math.log2(3)), 0])
    np.testing.assert_allclose(
        metrics.ndcg[3], [(1 + third) / (1 + 1 / math.log2(3) + third), third]
    )
    assert metrics.mean()["recall@3"] == pytest.approx((2 / 3 + 1) / 2)
    # Eq. 13, user by user and k by k.
    by_user = [
        np.mean([(metrics.recall[k][u] + metrics.ndcg[k][u]) / 2 for k in (1, 2, 3)])
        for u in (0, 1)
    ]
    assert metrics.quality((1, 2, 3)) == pytest.approx(np.mean(by_user))


@given(
    users=st.integers(1, 8),
    items=st.integers(2, 30),
    density=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_against_scikit_learn(users: int, items: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((users, items)) < density
    # A permutation: distinct scores, so that both rank alike.
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1)
    ks = tuple(k for k in (1, 3, 10) if k <= items)
    lists = top_items(torch.from_numpy(scores), torch.eye(items), k=max(ks))
    metrics = metrics_of_lists(lists, sparse.csr_matrix(truth), ks=ks)
    np.testing.assert_array_equal(metrics.users, truth.any(1).nonzero()[0])
    for k in ks:
        for place, user in enumerate(metrics.users):
            expected = ndcg_score(truth[user][None], scores[user][None], k=k)
            assert metrics.ndcg[k][place] == pytest.approx(expected)
            assert 0 <= metrics.recall[k][place] <= 1
            assert 0 <= metrics.ndcg[k][place] <= 1 + 1e-12


def test_against_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    rng = np.random.default_rng(5)
    truth = rng.random((40, 60)) < 0.15
    truth[:, 0] |= ~truth.any(1)
    scores = rng.standard_normal((40, 60)).astype(np.float32)
    lists = top_items(torch.from_numpy(scores), torch.eye(60), k=20)
    metrics = metrics_of_lists(lists, sparse.csr_matrix(truth), ks=(5, 20))
    for k in (5, 20):
        for user in range(40):
            pair = torch.from_numpy(scores[user]), torch.from_numpy(truth[user])
            recall = functional.retrieval_recall(*pair, top_k=k)
            ndcg = functional.retrieval_normalized_dcg(*pair, top_k=k)
            assert metrics.recall[k][user] == pytest.approx(float(recall), abs=1e-6)
            assert metrics.ndcg[k][user] == pytest.approx(float(ndcg), abs=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_recall_never_falls_with_k(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = sparse.csr_matrix(rng.random((6, 25)) < 0.2)
    lists = rng.permuted(np.tile(np.arange(25), (6, 1)), axis=1)
    metrics = metrics_of_lists(lists, truth, ks=(1, 5, 25))
    assert (metrics.recall[1] <= metrics.recall[5]).all()
    assert (metrics.recall[5] <= metrics.recall[25]).all()
    np.testing.assert_array_equal(metrics.recall[25], 1)


def test_duplicates_count_once_and_empty_places_never() -> None:
    twice = sparse.csr_matrix((np.ones(3), np.array([2, 0, 0]), np.array([0, 3])), shape=(1, 3))
    lists = np.array([[0, -1, -1]])
    metrics = metrics_of_lists(lists, twice, ks=(3,))
    np.testing.assert_allclose(metrics.recall[3], [1 / 2])
    # (user 1, place -1) must not read as (user 0, last item).
    last = sparse.csr_matrix(np.array([[0, 0, 1], [1, 0, 0]]))
    metrics = metrics_of_lists(np.array([[-1, -1, -1]] * 2), last, ks=(3,))
    np.testing.assert_array_equal(metrics.recall[3], 0)


@pytest.fixture
def split() -> SimpleNamespace:
    # Three users, five items; scores fall with the item's id.
    train = [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]]
    validation = [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    test = [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    return SimpleNamespace(train=part(train), validation=part(validation), test=part(test))


SCORES = (torch.ones(3, 1), torch.tensor([[5.0], [4], [3], [2], [1]]))


def test_masks_are_selectable_and_stated(split: Any) -> None:
    both = evaluate(SCORES, split, on="test", ks=(1,))
    assert (both.on, both.masked) == ("test", "train+validation")
    np.testing.assert_array_equal(both.recall[1], [1, 1, 0])
    train = evaluate(SCORES, split, on="test", mask="train", ks=(1,))
    assert train.masked == "train"
    np.testing.assert_array_equal(train.recall[1], [0, 0, 0])
    validation = evaluate(SCORES, split, on="validation", ks=(1,))
    assert (validation.masked, validation.left_out) == ("train", 1)
    np.testing.assert_array_equal(validation.users, [0, 1])
    np.testing.assert_array_equal(validation.recall[1], [1, 1])
    assert "train masked, 2 users" in str(validation)


def test_matrices_functions_and_rankers_agree(split: Any) -> None:
    class Own:
        def top_items(self, **options: Any) -> NDArray[np.int64]:
            return top_items(*SCORES, **options)

    expected = evaluate(SCORES, split, ks=(1, 3), users=[2, 0])
    for scores in (lambda ids: SCORES[0][ids] @ SCORES[1].T, Own()):
        found = evaluate(scores, split, ks=(1, 3), users=[2, 0])
        assert found.mean() == expected.mean()
        np.testing.assert_array_equal(found.users, [2, 0])


def test_what_makes_no_sense_is_refused(split: Any) -> None:
    with pytest.raises(InvalidInputError, match="leaves nothing to find"):
        evaluate(SCORES, split, on="validation", mask="train+validation")
    with pytest.raises(InvalidInputError, match="on='validation' or on='test'"):
        evaluate(SCORES, split, on="train")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="mask='train' or"):
        evaluate(SCORES, split, mask="test")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="distinct list lengths"):
        evaluate(SCORES, split, ks=(5, 5))
    with pytest.raises(InvalidInputError, match=r"evaluate with ks=\(1, 5, 10, 20\)"):
        evaluate(SCORES, split, ks=(1,)).quality()
    with pytest.raises(InvalidInputError, match="lists of at least 3"):
        metrics_of_lists(np.zeros((3, 2), dtype=int), split.test.csr(), ks=(3,))


def test_nobody_to_evaluate_is_not_a_number() -> None:
    nothing = part(np.zeros((3, 5)))
    empty = SimpleNamespace(train=nothing, validation=nothing, test=nothing)
    metrics = evaluate(SCORES, empty)  # type: ignore[arg-type]
    assert metrics.left_out == 3
    assert math.isnan(metrics.quality())
    assert isinstance(metrics, Metrics)

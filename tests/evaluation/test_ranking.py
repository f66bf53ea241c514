"""Exact ranking against a plain argsort, with masks, ties and odd shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import top_items, top_items_by


def naive(scores: NDArray[np.float32], hidden: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """Stable argsort a user: best first, ties by id, -1 once only hidden items are left."""
    lists = np.full((len(scores), k), -1, dtype=np.int64)
    for user, row in enumerate(scores):
        order = np.argsort(-row, kind="stable")
        order = order[~hidden[user, order]][:k]
        lists[user, : len(order)] = order
    return lists


@given(
    users=st.integers(1, 12),
    items=st.integers(1, 40),
    k=st.integers(1, 50),
    block=st.integers(1, 14),
    levels=st.sampled_from([1, 2, 5, 1000]),
    density=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_equals_argsort(
    users: int, items: int, k: int, block: int, levels: int, density: float, seed: int
) -> None:
    # Whole numbers of few levels: many ties, and inner products that are exact in any order.
    rng = np.random.default_rng(seed)
    left = rng.integers(-levels, levels + 1, (users, 3)).astype(np.float32)
    right = rng.integers(-levels, levels + 1, (items, 3)).astype(np.float32)
    hidden = rng.random((users, items)) < density
    found = top_items(
        torch.from_numpy(left),
        torch.from_numpy(right),
        k=k,
        masked=sparse.csr_matrix(hidden),
        block=block,
    )
    np.testing.assert_array_equal(found, naive(left @ right.T, hidden, k))


def test_a_subset_of_users_in_any_order_gets_its_own_lists() -> None:
    rng = np.random.default_rng(0)
    left, right = (torch.from_numpy(rng.standard_normal((n, 8)).astype("f4")) for n in (30, 50))
    hidden = sparse.random(30, 50, density=0.3, format="csr", random_state=1)
    every = top_items(left, right, k=7, masked=hidden)
    users = [29, 3, 3, 11]
    np.testing.assert_array_equal(
        top_items(left, right, k=7, masked=hidden, users=users, block=3), every[users]
    )
    assert top_items(left, right, k=7, users=[]).shape == (0, 7)


def test_several_masks_add_up_whatever_their_values() -> None:
    scores = torch.tensor([[5.0, 4, 3, 2]])
    first = sparse.csr_matrix(np.array([[1.0, 0, 0, 0]]))
    second = sparse.csr_matrix(np.array([[-1.0, 0, 1, 0]]))
    found = top_items(torch.ones(1, 1), scores.T, k=4, masked=(first, second))
    np.testing.assert_array_equal(found, [[1, 3, -1, -1]])


def test_a_scoring_function_equals_the_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 4, generator=generator) for n in (20, 33))
    found = top_items_by(lambda ids: left[ids] @ right.T, num_users=20, num_items=33, k=5, block=6)
    np.testing.assert_array_equal(found, top_items(left, right, k=5))


def test_whatever_a_scoring_function_returns_stays_its_own() -> None:
    kept = torch.arange(12, dtype=torch.float64).reshape(4, 3).T  # not contiguous, fp64
    mask = sparse.csr_matrix(np.eye(3, 4)[:, ::-1])
    options = {"num_users": 3, "num_items": 4, "k": 2}
    found = top_items_by(lambda _: kept, masked=mask, **options)
    np.testing.assert_array_equal(found, [[2, 1], [3, 1], [3, 2]])
    assert kept.isfinite().all()
    with pytest.raises(InvalidInputError, match=r"\(3, 4\), got \(3,\)"):
        top_items_by(lambda ids: ids, **options)


def test_inputs_stay_as_they_are() -> None:
    left, right = torch.ones(3, 2), torch.ones(4, 2)
    mask = sparse.csr_matrix(np.eye(3, 4))
    top_items(left, right, k=2, masked=mask)
    assert left.eq(1).all()
    assert right.eq(1).all()
    np.testing.assert_array_equal(mask.toarray(), np.eye(3, 4))


@pytest.mark.parametrize(
    ("left", "right", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 5), {"k": 1}, "3 wide and item rows 5"),
        (torch.ones(2), torch.ones(4, 2), {"k": 1}, "two matrices"),
        (torch.ones(2, 3), torch.ones(4, 3), {"k": 0}, "at least 1"),
        (torch.ones(2, 3), torch.ones(4, 3), {"k": 1, "users": [2]}, "ids from 0 to 1"),
        (torch.ones(2, 3), torch.full((4, 3), torch.nan), {"k": 1}, "not finite"),
        (torch.ones(2, 3), torch.full((4, 3), torch.inf), {"k": 1}, "not finite"),
        (
            torch.ones(2, 3),
            torch.ones(4, 3),
            {"k": 1, "masked": sparse.csr_matrix((2, 5))},
            "2 users x 4 items, got 2 x 5",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    left: torch.Tensor, right: torch.Tensor, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        top_items(left, right, **options)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_cuda_gives_the_same_lists() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, (n, 8), generator=generator).float() for n in (50, 700))
    hidden = sparse.random(50, 700, density=0.1, format="csr", random_state=0)
    here = top_items(left, right, k=20, masked=hidden)
    there = top_items(left.cuda(), right.cuda(), k=20, masked=hidden)
    np.testing.assert_array_equal(there, here)

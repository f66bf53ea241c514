"""NCF's separable scores against the plain form: concatenate, dense layer, activation, sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from bet_torchrec.errors import InvalidInputError
from bet_torchrec.evaluation import SeparableScores, evaluate, top_items
from bet_torchrec.evaluation import separable as module


def model(
    users: int, items: int, hidden: int, slope: float, seed: int, linear: bool = True
) -> tuple[SeparableScores, torch.Tensor]:
    """Random whole-number parts, and the scores of all pairs by the plain form in fp64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, generator=generator).float()

    left, right, weights = draw(users, hidden), draw(items, hidden), draw(hidden)
    outer = (draw(users, 3), draw(items, 3)) if linear else (None, None)
    pairs = left[:, None].double() + right[None].double()
    expected = F.leaky_relu(pairs, slope) @ weights.double() + 0.5
    if linear:
        expected += outer[0].double() @ outer[1].double().T
    parts = SeparableScores(
        hidden_users=left,
        hidden_items=right,
        weights=weights,
        negative_slope=slope,
        linear_users=outer[0],
        linear_items=outer[1],
        bias=0.5,
    )
    return parts, expected


@given(
    users=st.integers(1, 40),
    items=st.integers(1, 60),
    hidden=st.integers(1, 9),
    slope=st.sampled_from([0.0, 0.25]),  # a power of two keeps every sum exact
    linear=st.booleans(),
    tile=st.sampled_from([(1, 1), (3, 7), (32, 512)]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_exactly_the_plain_form(
    users: int, items: int, hidden: int, slope: float, linear: bool, tile: Any, seed: int
) -> None:
    parts, expected = model(users, items, hidden, slope, seed, linear)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module._TILE, "cpu", tile)
        scores = parts.score_block(torch.arange(users))
        assert torch.equal(scores.double(), expected)
        found = parts.top_items(k=5, block=7)
    np.testing.assert_array_equal(found, top_items(expected.float(), torch.eye(items), k=5))


def test_real_numbers_agree_to_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(24, 16)
    rows_u, rows_i = (torch.randn(n, 12, generator=generator) for n in (30, 700))
    top = torch.randn(16, generator=generator)
    with torch.no_grad():
        both = torch.cat(
            [rows_u[:, None].expand(-1, 700, -1), rows_i[None].expand(30, -1, -1)], dim=2
        )
        expected = F.leaky_relu(layer(both), 0.01) @ top
        parts = SeparableScores(
            hidden_users=rows_u @ layer.weight[:, :12].T + layer.bias,
            hidden_items=rows_i @ layer.weight[:, 12:].T,
            weights=top,
            negative_slope=0.01,
        )
        torch.testing.assert_close(parts.score_block(torch.arange(30)), expected)


def test_masks_and_subsets_go_through_evaluate() -> None:
    parts, expected = model(9, 20, 4, 0.0, 3)
    rng = np.random.default_rng(0)

    class Part:
        def __init__(self, share: float) -> None:
            self.dense = (rng.random((9, 20)) < share).astype(np.float32)

        def csr(self) -> sparse.csr_matrix:
            return sparse.csr_matrix(self.dense)

    class Halves:
        train, validation, test = Part(0.3), Part(0.2), Part(0.4)

    options: dict[str, Any] = {"ks": (2, 5), "users": [4, 1, 8]}
    by_matrix = evaluate((expected.float(), torch.eye(20)), Halves(), **options)  # type: ignore[arg-type]
    by_parts = evaluate(parts, Halves(), **options)  # type: ignore[arg-type]
    assert by_parts.mean() == by_matrix.mean()


def test_parts_that_do_not_fit_are_refused() -> None:
    good: dict[str, Any] = {
        "hidden_users": torch.ones(2, 3),
        "hidden_items": torch.ones(4, 3),
        "weights": torch.ones(3),
    }
    with pytest.raises(InvalidInputError, match="weights"):
        SeparableScores(**{**good, "weights": torch.ones(2)})
    with pytest.raises(InvalidInputError, match="both"):
        SeparableScores(**good, linear_users=torch.ones(2, 1))
    with pytest.raises(InvalidInputError, match="of one width"):
        SeparableScores(**good, linear_users=torch.ones(2, 1), linear_items=torch.ones(4, 2))

"""Factorisation machine (Rendle, ICDM 2010), second order.

    logit = bias + sum_i w_i + sum_{i<j} <v_i, v_j>,   a row being [w_i, v_i]

The pairs' sum costs O(F D): ((sum_i v_i)^2 - sum_i v_i^2) / 2, summed over columns. (TorchRec's
``FactorizationMachine`` sums over all entries of all fields before squaring, which multiplies every
entry with every other; it equals this for factors of one column.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .layers import DenseFields
from .protocol import OverFields, check_inputs
from .turning import common_axes, turned


class FM(OverFields):
    """FM over F fields; without ``linear`` whole rows are factors. See ``ClickModel``.

    dense_features: each is a field of one row of its own, scaled by the value.
    """

    def __init__(
        self, num_fields: int, dim: int, *, dense_features: int = 0, linear: bool = True
    ) -> None:
        super().__init__(num_fields, dim, dense_features, linear=linear, least_dim=1)
        self.dense = DenseFields(dense_features, dim)
        self.bias = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.dense.reset_parameters(generator)
        nn.init.zeros_(self.bias)

    def forward(
        self,
        rows_BFD: Tensor,
        dense_BK: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        check_inputs(self, rows_BFD, dense_BK)
        return self.bias + fm_terms(self.dense(rows_BFD, dense_BK), linear=self.linear)

    @torch.no_grad()
    def rotate(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Tensor]:
        """All tables' factors by one rotation: their inner products stay."""
        axes = common_axes(self, tables, counts)
        self.dense.turn(axes)
        return turned(tables, axes)


def fm_terms(rows_BFD: Tensor, *, linear: bool) -> Tensor:
    """Linear and pairwise terms of rows, (B,)."""
    total = rows_BFD.sum(dim=1)
    pairs = (total.square() - rows_BFD.square().sum(dim=1)) / 2
    if not linear:
        return pairs.sum(dim=1)
    return total[:, 0] + pairs[:, 1:].sum(dim=1)

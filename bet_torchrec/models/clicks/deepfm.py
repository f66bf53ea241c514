"""DeepFM (Guo et al., IJCAI 2017): an FM and an MLP over the same rows, added.

logit = FM + MLP([v_1, ..., v_F])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .fm import fm_terms
from .layers import DenseFields, FieldsLinear, Tower, check_layers
from .protocol import OverFields, check_inputs
from .turning import common_axes, turned


class DeepFM(OverFields):
    """DeepFM over F fields; see ``ClickModel`` and ``FM``.

    layers: hidden units of the MLP, 100-100 as in PEP's and our measurements (the paper: three of
        200 to 400). dropout: after each of them.
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        *,
        dense_features: int = 0,
        linear: bool = True,
        layers: Sequence[int] = (100, 100),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_fields, dim, dense_features, linear=linear)
        layers = check_layers(layers, dropout)
        self.dense = DenseFields(dense_features, dim)
        fields = num_fields + dense_features
        first = FieldsLinear(fields, dim - linear, layers[0], linear=linear)
        self.tower = Tower(first, layers, dropout=dropout)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.dense.reset_parameters(generator)
        self.tower.reset_parameters(generator)

    def forward(
        self,
        rows_BFD: Tensor,
        dense_BK: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        check_inputs(self, rows_BFD, dense_BK)
        rows = self.dense(rows_BFD, dense_BK)
        # The global bias is that of the tower's output.
        return fm_terms(rows, linear=self.linear) + self.tower(rows, generator=generator)

    @torch.no_grad()
    def rotate(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Tensor]:
        """All tables' factors by one rotation, which the MLP's first layer takes back."""
        axes = common_axes(self, tables, counts)
        self.dense.turn(axes)
        self.tower.first.turn(axes)  # type: ignore[operator]
        return turned(tables, axes)

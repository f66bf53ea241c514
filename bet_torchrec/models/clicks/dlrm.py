"""DLRM (Naumov et al., 2019): inner products of all pairs of fields, then an MLP.

    x = MLP_bottom(dense);  z = [x, <e_i, e_j> for i < j, e_0 = x];  logit = MLP_top(z)

Without dense features there is neither bottom nor x. Plain torch, because TorchRec's
``InteractionArch`` always wants a dense row of the tables' full width; tested to be equal to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...errors import InvalidInputError
from .layers import Tower, check_layers, reset
from .protocol import OverFields, check_inputs
from .turning import common_axes, turned


class DLRM(OverFields):
    """DLRM over F fields; see ``ClickModel``.

    bottom: hidden units before the last layer of the dense features' MLP, whose output is as wide
        as a row's factors (the paper's Criteo model: 512-256-64). layers: hidden units of the top
        (there: 512-256). dropout: after each of the top's. Every layer but the last has a ReLU.
    """

    pairs: Tensor

    def __init__(
        self,
        num_fields: int,
        dim: int,
        *,
        dense_features: int = 0,
        linear: bool = False,
        bottom: Sequence[int] = (512, 256, 64),
        layers: Sequence[int] = (512, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_fields, dim, dense_features, linear=linear)
        layers = check_layers(layers, dropout)
        rows, width = num_fields + bool(dense_features), dim - linear
        if rows < 2:
            raise InvalidInputError(
                "DLRM needs two fields, or one and dense features, to multiply; got one field alone"
            )
        self.bottom = nn.ModuleList()
        if dense_features:
            units = (dense_features, *check_layers(bottom, 0.0, least=0), width)
            self.bottom.extend(nn.Linear(into, out) for into, out in pairwise(units))
        first, second = torch.triu_indices(rows, rows, offset=1)
        self.register_buffer("pairs", first * rows + second, persistent=False)
        inputs = len(self.pairs) + (width if dense_features else 0)
        self.tower = Tower(nn.Linear(inputs, layers[0]), layers, dropout=dropout)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for layer in self.bottom:
            reset(layer, generator)
        self.tower.reset_parameters(generator)

    def forward(
        self,
        rows_BFD: Tensor,
        dense_BK: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        check_inputs(self, rows_BFD, dense_BK)
        factors = rows_BFD[:, :, int(self.linear) :]
        if dense_BK is None:
            inputs = self.interactions(factors)
        else:
            dense = dense_BK
            for layer in self.bottom:
                dense = torch.relu(layer(dense))
            met = dense[:, None, : factors.shape[2]]
            inputs = torch.cat([dense, self.interactions(torch.cat([met, factors], dim=1))], dim=1)
        logits = self.tower(inputs, generator=generator)
        return logits + rows_BFD[:, :, 0].sum(dim=1) if self.linear else logits

    def interactions(self, rows: Tensor) -> Tensor:
        """Inner products of all pairs of rows (B, R, D), first row first: (B, R (R - 1) / 2)."""
        products = torch.bmm(rows, rows.transpose(1, 2))
        return products.flatten(1).index_select(1, self.pairs)

    @torch.no_grad()
    def rotate(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Tensor]:
        """All tables' factors by one rotation, their inner products stay; not with dense features,
        whose row has passed a ReLU that a rotation can't be moved through."""
        axes = common_axes(self, tables, counts)
        return dict(tables) if self.dense_features else turned(tables, axes)

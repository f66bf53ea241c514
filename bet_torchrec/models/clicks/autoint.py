"""AutoInt (Song et al., CIKM 2019): multi-head self-attention over the fields.

    e'_i = relu([sum_j softmax_j(<Q_h e_i, K_h e_j>) V_h e_j for each head h] + R e_i)

Scores are not scaled, as in the paper. After the last layer all fields go through one dense layer;
with ``layers`` an MLP over the rows is added (the paper's AutoInt+).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...errors import InvalidInputError
from .layers import DenseFields, FieldsLinear, Tower, check_layers, glorot_
from .protocol import OverFields, check_inputs
from .turning import common_axes, turned


class AutoInt(OverFields):
    """AutoInt over F fields; see ``ClickModel``.

    dense_features: each is a field of one row of its own, scaled by the value.
    attention: units of the interacting layers, all heads together (the paper: three layers of two
        heads with 32 each). heads: of each layer. layers: hidden units of AutoInt+'s MLP, none
        unless given. dropout: after each of those.
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        *,
        dense_features: int = 0,
        linear: bool = False,
        attention: Sequence[int] = (64, 64, 64),
        heads: int = 2,
        layers: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_fields, dim, dense_features, linear=linear)
        attention = check_layers(attention, dropout)
        layers = check_layers(layers, dropout, least=0)
        self.dense = DenseFields(dense_features, dim)
        fields, widths = num_fields + dense_features, (dim - linear, *attention)
        self.attention = nn.ModuleList(
            _Interacting(into, out, heads) for into, out in pairwise(widths)
        )
        self.out = FieldsLinear(fields, attention[-1], 1)
        self.tower = (
            Tower(
                FieldsLinear(fields, widths[0], layers[0], linear=linear), layers, dropout=dropout
            )
            if layers
            else None
        )
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.dense.reset_parameters(generator)
        for layer in (*self.attention, self.out, *filter(None, [self.tower])):
            layer.reset_parameters(generator)

    def forward(
        self,
        rows_BFD: Tensor,
        dense_BK: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        check_inputs(self, rows_BFD, dense_BK)
        rows = self.dense(rows_BFD, dense_BK)
        hidden = rows[:, :, int(self.linear) :]
        for layer in self.attention:
            hidden = layer(hidden)
        logits = self.out(hidden).squeeze(1)
        if self.tower is not None:
            logits = logits + self.tower(rows, generator=generator)
        return logits + rows[:, :, 0].sum(dim=1) if self.linear else logits

    @torch.no_grad()
    def rotate(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Tensor]:
        """All tables' factors by one rotation, which the first layers take back."""
        axes = common_axes(self, tables, counts)
        self.dense.turn(axes)
        self.attention[0].turn(axes)  # type: ignore[operator]
        if self.tower is not None:
            self.tower.first.turn(axes)  # type: ignore[operator]
        return turned(tables, axes)


class _Interacting(nn.Module):
    """One layer: (B, F, D), D <= into -> (B, F, out). weight: Q, K, V and R below each other."""

    def __init__(self, into: int, out: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or out % heads:
            raise InvalidInputError(
                f"attention should be a multiple of the number of heads, got {out} and {heads}"
            )
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(4 * out, into))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        out, into = self.weight.shape
        glorot_(self.weight, generator, fan_in=into, fan_out=out // 4)

    def forward(self, rows_BFD: Tensor) -> Tensor:
        mapped = rows_BFD @ self.weight[:, : rows_BFD.shape[2]].T
        *projected, residual = mapped.chunk(4, dim=2)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected
        )
        met = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return torch.relu(met.transpose(1, 2).flatten(2) + residual)

    @torch.no_grad()
    def turn(self, axes: Tensor) -> None:
        """Take back a rotation of the rows, row @ axes."""
        self.weight.copy_(self.weight @ axes)

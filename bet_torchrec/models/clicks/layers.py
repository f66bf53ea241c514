"""Layers that the click models share. Shapes as in ``protocol``; H, L units of a layer.

All draw their weights from a generator (Glorot-uniform, biases zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidInputError
from ..dropout import dropout_mask


@torch.no_grad()
def glorot_(
    weight: Tensor, generator: torch.Generator | None, *, fan_in: int, fan_out: int
) -> None:
    """Uniform within sqrt(6 / (fan_in + fan_out)); drawn on the CPU, alike on every device."""
    bound = (6 / (fan_in + fan_out)) ** 0.5
    weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)


class FieldsLinear(nn.Module):
    """A dense layer over all fields' rows: (B, F, D), D <= dim, and (B, K) if any -> (B, H).

    Narrower rows meet the first columns of each field's weights, as if padded with zeros.
    linear: rows come with their linear weight first, (B, F, 1 + D), which it doesn't see. (A column
    of zeros among the weights costs less than cutting it off the rows, and that in the backward.)
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        units: int,
        *,
        dense_features: int = 0,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.weight = nn.Parameter(torch.empty(units, num_fields, dim))
        self.dense_weight = nn.Parameter(torch.empty(units, dense_features))
        self.bias = nn.Parameter(torch.empty(units))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        units, fields, dim = self.weight.shape
        fan_in = fields * dim + self.dense_weight.shape[1]
        glorot_(self.weight, generator, fan_in=fan_in, fan_out=units)
        glorot_(self.dense_weight, generator, fan_in=fan_in, fan_out=units)
        nn.init.zeros_(self.bias)

    def forward(self, rows_BFD: Tensor, dense_BK: Tensor | None = None) -> Tensor:
        weight = self.weight[:, :, : rows_BFD.shape[2] - self.linear]
        if self.linear:
            weight = F.pad(weight, (1, 0))
        out = F.linear(rows_BFD.flatten(1), weight.flatten(1), self.bias)
        return out if dense_BK is None else out + dense_BK @ self.dense_weight.T

    @torch.no_grad()
    def turn(self, axes: Tensor) -> None:
        """Take back a rotation of the rows, row @ axes."""
        self.weight.copy_(self.weight @ axes)


class Tower(nn.Module):
    """An MLP with one output, whose first layer is given: first(*inputs) (B, H) -> (B,).

    layers: units of all hidden layers, the first one's H included. dropout: after each of them.
    """

    def __init__(self, first: nn.Module, layers: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = first
        self.hidden = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(layers))
        self.out = nn.Linear(layers[-1], 1)
        self.dropout = dropout

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        reset(self.first, generator)
        for layer in (*self.hidden, self.out):
            reset(layer, generator)

    def forward(self, *inputs: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        hidden = self._activate(self.first(*inputs), generator)
        for layer in self.hidden:
            hidden = self._activate(layer(hidden), generator)
        return self.out(hidden).squeeze(1)

    def _activate(self, hidden: Tensor, generator: torch.Generator | None) -> Tensor:
        hidden = torch.relu(hidden)
        if not self.training or not self.dropout:
            return hidden
        return hidden * dropout_mask(hidden.shape, self.dropout, hidden.device, generator)


class DenseFields(nn.Module):
    """Dense features as further fields: one row each, scaled by its value (AutoInt, section 4.3).

    (B, F, D) and (B, K) -> (B, F + K, d). Without dense features rows pass as they are.
    """

    def __init__(self, dense_features: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(dense_features, dim))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.rows.copy_(torch.randn(self.rows.shape, generator=generator) * 0.01)

    def forward(self, rows_BFD: Tensor, dense_BK: Tensor | None) -> Tensor:
        if dense_BK is None:
            return rows_BFD
        # These rows are d wide, so that all have to be.
        padded = F.pad(rows_BFD, (0, self.rows.shape[1] - rows_BFD.shape[2]))
        return torch.cat([padded, dense_BK[:, :, None] * self.rows], dim=1)

    @torch.no_grad()
    def turn(self, axes: Tensor) -> None:
        """Turn the last columns, as many as there are axes, as the tables' are."""
        factors = self.rows[:, self.rows.shape[1] - len(axes) :]
        factors.copy_(factors @ axes)


def reset(layer: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the weights of a layer of this package or of an nn.Linear."""
    if isinstance(layer, nn.Linear):
        glorot_(layer.weight, generator, fan_in=layer.in_features, fan_out=layer.out_features)
        nn.init.zeros_(layer.bias)
    else:
        layer.reset_parameters(generator)  # type: ignore[operator]


def check_layers(layers: Sequence[int], dropout: float, *, least: int = 1) -> tuple[int, ...]:
    """Units of hidden layers as a tuple, or InvalidInputError."""
    checked = tuple(layers)
    if len(checked) < least or any(units < 1 for units in checked):
        raise InvalidInputError(
            f"layers should be at least {least} hidden layers of at least 1 unit, got {checked}"
        )
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"dropout should be at least 0 and below 1, got {dropout}")
    return checked

"""DCN V2 (Wang et al., WWW 2021), in parallel: a cross network and an MLP over the same input.

    x_0 = [e_1, ..., e_F, dense];  x_{l+1} = x_0 * (W_l x_l + b_l) + x_l
    logit = <w, x_L> + MLP(x_0)

W_l is a full matrix, or U_l V_l of a rank. Entries of x_0 that are zero stay zero in every layer,
so that narrow rows need only the weights of their own columns. Plain torch for that reason; tested
to be equal to TorchRec's ``CrossNet`` and ``LowRankCrossNet``, which take full rows only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...errors import InvalidInputError
from .layers import FieldsLinear, Tower, check_layers, glorot_
from .protocol import OverFields, check_inputs


class DCN(OverFields):
    """DCN V2 over F fields; see ``ClickModel``.

    cross_layers: of the cross network. rank: of its matrices, full unless given (the paper: a
        quarter of the input's width loses nothing). layers: hidden units of the MLP. dropout: after
        each of them.
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        *,
        dense_features: int = 0,
        linear: bool = False,
        cross_layers: int = 3,
        rank: int | None = None,
        layers: Sequence[int] = (400, 400),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_fields, dim, dense_features, linear=linear)
        layers = check_layers(layers, dropout)
        fields = {"num_fields": num_fields, "dim": dim - linear}
        self.cross = CrossNetwork(
            **fields, dense_features=dense_features, layers=cross_layers, rank=rank
        )
        first = FieldsLinear(
            **fields, units=layers[0], dense_features=dense_features, linear=linear
        )
        self.tower = Tower(first, layers, dropout=dropout)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.cross.reset_parameters(generator)
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
        logits = self.cross(factors, dense_BK) + self.tower(rows_BFD, dense_BK, generator=generator)
        return logits + rows_BFD[:, :, 0].sum(dim=1) if self.linear else logits

    def rotate(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Tensor]:
        """The tables as they came: products of single entries change with a rotation."""
        return dict(tables)


class CrossNetwork(nn.Module):
    """(B, F, D), D <= dim, and (B, K) if any -> (B,): the last layer's product with weights.

    left, right: U_l and V_l of each layer, over F dim + K entries; W_l and nothing at full rank.
    """

    def __init__(
        self, num_fields: int, dim: int, *, dense_features: int, layers: int, rank: int | None
    ) -> None:
        super().__init__()
        if layers < 1 or (rank is not None and rank < 1):
            raise InvalidInputError(
                f"expected at least 1 cross layer of rank at least 1, got {layers} of rank {rank}"
            )
        self.fields_shape, self.rank = (num_fields, dim), rank
        entries = num_fields * dim + dense_features
        columns = entries if rank is None else rank
        self.left = nn.Parameter(torch.empty(layers, entries, columns))
        self.right = nn.Parameter(torch.empty(layers, 0 if rank is None else rank, entries))
        self.biases = nn.Parameter(torch.empty(layers, entries))
        self.out = nn.Parameter(torch.empty(entries))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        _, entries, columns = self.left.shape
        glorot_(self.left, generator, fan_in=columns, fan_out=entries)
        glorot_(self.right, generator, fan_in=entries, fan_out=columns)
        glorot_(self.out, generator, fan_in=entries, fan_out=1)
        nn.init.zeros_(self.biases)

    def forward(self, rows_BFD: Tensor, dense_BK: Tensor | None = None) -> Tensor:
        return self.crossed(rows_BFD, dense_BK) @ self._of(self.out, rows_BFD.shape[2])

    def crossed(self, rows_BFD: Tensor, dense_BK: Tensor | None = None) -> Tensor:
        """x_L, the entries of D columns and the dense ones: (B, F D + K)."""
        width = rows_BFD.shape[2]
        start = rows_BFD.flatten(1)
        if dense_BK is not None:
            start = torch.cat([start, dense_BK], dim=1)
        crossed = start
        for left, right, bias in zip(self.left, self.right, self.biases, strict=True):
            rows = self._of(left, width)
            if self.rank is None:
                mapped = F.linear(crossed, self._of(rows.T, width).T, self._of(bias, width))
            else:
                projected = crossed @ self._of(right.T, width)
                mapped = F.linear(projected, rows, self._of(bias, width))
            crossed = start * mapped + crossed
        return crossed

    def _of(self, weights: Tensor, width: int) -> Tensor:
        """Of weights whose first dimension is entries, those of ``width`` columns and dense."""
        fields, dim = self.fields_shape
        if width == dim:
            return weights
        of_rows = weights[: fields * dim].unflatten(0, (fields, dim))[:, :width].flatten(0, 1)
        return torch.cat([of_rows, weights[fields * dim :]])

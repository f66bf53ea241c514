"""What a click model is: a plain module from the fields' rows to logits.

It knows neither tables nor fields' names. A field's row is the pooled row of its values in an
example, read from whatever embedding module the task is trained over.

Shapes: B examples, F fields, d the tables' full width (``dim``), D <= d the columns that an
embedding module returns, K dense features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...errors import InvalidInputError


class ClickModel(Protocol):
    """Also an ``nn.Module`` (parameters, state_dict).

    num_fields: F. dim: d. dense_features: K, 0 for none. linear: the first entry of each row is
    its weight in a linear part, so that these weights are counted in every budget and a row of size
    1 keeps nothing else; the other d - 1 entries are the row's factors.
    """

    num_fields: int
    dim: int
    dense_features: int
    linear: bool

    def __call__(
        self,
        rows_BFD: Tensor,
        dense_BK: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits (B,). As if the rows were padded with zeros to ``dim`` columns.

        generator: of dropout, in training mode.
        """
        ...

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw its weights anew; the tables are not its."""
        ...

    def rotate(
        self, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Tensor]:
        """Turn full tables (rows, dim) to principal axes, in which a prefix loses least.

        Changes the module's own weights so that its logits with the returned tables are those it
        had with the given ones. Where the logits don't allow it the tables return as they came.
        counts: {table: (rows,)}, how often each row is looked up, to weigh it by; all alike
        without. The column of linear weights stays where it is.
        """
        ...


class OverFields(nn.Module):
    """What a ``ClickModel`` is built over.

    least_dim: 1, and one for a linear weight, unless given.

    Raises:
        InvalidInputError: there is no such model.
    """

    def __init__(
        self,
        num_fields: int,
        dim: int,
        dense_features: int,
        *,
        linear: bool,
        least_dim: int | None = None,
    ) -> None:
        super().__init__()
        least_dim = 1 + linear if least_dim is None else least_dim
        if num_fields < 1:
            raise InvalidInputError(f"num_fields should be at least 1, got {num_fields}")
        if dim < least_dim:
            raise InvalidInputError(
                f"dim should be at least {least_dim} here (a linear weight takes one), got {dim}"
            )
        if dense_features < 0:
            raise InvalidInputError(f"dense_features should be at least 0, got {dense_features}")
        self.num_fields, self.dim = num_fields, dim
        self.dense_features, self.linear = dense_features, linear


def check_inputs(model: ClickModel, rows_BFD: Tensor, dense_BK: Tensor | None) -> None:
    """Raise InvalidInputError unless rows and dense features are of the model's shapes."""
    if (
        rows_BFD.ndim != 3
        or rows_BFD.shape[1] != model.num_fields
        or not 1 <= rows_BFD.shape[2] <= model.dim
    ):
        raise InvalidInputError(
            f"expected rows (B, {model.num_fields}, 1 to {model.dim}), got {tuple(rows_BFD.shape)}"
        )
    expected = (len(rows_BFD), model.dense_features) if model.dense_features else None
    if (None if dense_BK is None else tuple(dense_BK.shape)) != expected:
        raise InvalidInputError(
            f"expected dense features {expected or 'None'}, "
            f"got {None if dense_BK is None else tuple(dense_BK.shape)}"
        )

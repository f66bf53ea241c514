"""One rotation of all tables' factors, for models whose scores allow it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...errors import InvalidInputError
from ..protocol import principal_axes
from .protocol import OverFields


def common_axes(
    model: OverFields, tables: Mapping[str, Tensor], counts: Mapping[str, ArrayLike] | None
) -> Tensor:
    """Principal axes (d', d') of all a model's tables' factors, each row weighted by its count.

    d' is dim, or dim - 1 beside linear weights.

    Raises:
        InvalidInputError: not its number of tables of ``dim`` columns, or counts that don't fit.
    """
    num_fields, dim = model.num_fields, model.dim
    shapes = {name: tuple(table.shape) for name, table in tables.items()}
    if len(shapes) != num_fields or any(
        len(shape) != 2 or shape[1] != dim for shape in shapes.values()
    ):
        raise InvalidInputError(f"expected {num_fields} tables {dim} wide, got shapes {shapes}")
    factors = {name: table.detach()[:, int(model.linear) :] for name, table in tables.items()}
    if counts is not None:
        factors = {name: _weighted(name, part, counts) for name, part in factors.items()}
    return principal_axes(*factors.values())


def turned(tables: Mapping[str, Tensor], axes: Tensor) -> dict[str, Tensor]:
    """Tables whose last columns, as many as there are axes, are coordinates along them."""
    first = {name: table.shape[1] - len(axes) for name, table in tables.items()}
    return {
        name: torch.cat([table[:, : first[name]], table[:, first[name] :] @ axes], dim=1)
        for name, table in tables.items()
    }


def _weighted(name: str, factors: Tensor, counts: Mapping[str, ArrayLike]) -> Tensor:
    given = np.asarray(counts[name]) if name in counts else None
    if given is None or given.shape != (len(factors),) or (given < 0).any():
        raise InvalidInputError(
            f"table {name!r}: expected {len(factors)} counts of at least 0, got "
            f"{'none' if given is None else given.shape}"
        )
    weights = torch.from_numpy(np.sqrt(given, dtype=np.float64)).to(factors.device)
    return factors * weights.to(factors.dtype)[:, None]

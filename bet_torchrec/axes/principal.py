"""Principal axes of a table, weighted by how often its rows are looked up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInputError
from .basis import Basis
from .moments import Moments, Rows, moments_of, numbers, row_blocks

_BLOCK = 1 << 16  # rows turned at once


def principal_basis(
    table: Rows | Iterable[tuple[Rows, Any]] | Moments,
    counts: Any = None,
    *,
    width: int | None = None,
) -> Basis:
    """The axes in which a prefix of every row keeps the most, most first.

    Of all orthonormal bases this one loses least, sum of count * squared error, when rows are cut
    to their first k coordinates, for every k at once (Eckart and Young). One pass, one block of
    rows in memory at a time. Not centred: a prefix is read without adding anything.

    Args:
        table: rows x d; or blocks (rows, counts or None) in any number and order, as
            ``row_blocks`` gives them; or moments that were gathered before.
        counts: of a whole table, one number a row in its order; None weighs all rows alike.
        width: axes to keep; all d unless given.

    Returns:
        Orthonormal axes. Signs are fixed (an axis' largest entry is positive), so that equal
        tables give equal axes. ``energy`` is the weighted mean square along each axis.

    Raises:
        InvalidInputError: numbers not finite, counts that don't fit, weights all zero.
    """
    if isinstance(table, Moments):
        moments = table
    elif isinstance(table, (Tensor, np.ndarray)):
        moments = moments_of(row_blocks(table, counts))
    else:
        if counts is not None:
            raise InvalidInputError("blocks should come as pairs (rows, counts), got counts beside")
        moments = moments_of(table)
    kept = moments.dim if width is None else width
    if not 1 <= kept <= moments.dim:
        raise InvalidInputError(f"width should be from 1 to {moments.dim}, got {width}")
    if moments.weight <= 0:
        raise InvalidInputError(
            f"counts should be above 0 for some row, got zeros for all {moments.rows} rows: leave "
            "counts out to weigh rows alike"
        )
    energy, vectors = np.linalg.eigh(moments.matrix() / moments.weight)
    axes = vectors.T[::-1][:kept]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(kept), largest])[:, None]
    return Basis(
        torch.from_numpy(axes.astype(np.float32)),
        torch.from_numpy(energy[::-1][:kept].clip(min=0).copy()),
    )


def lookups(counts: Any) -> NDArray[np.float64] | None:
    """Counts to weigh a table's rows by: an array, a tensor, or ``RowCounts`` in id order.

    None where there are none, or nobody has looked anything up: all rows weigh alike then.
    """
    values = counts.by_id() if hasattr(counts, "by_id") else counts
    found = None if values is None else numbers(values)
    return found if found is not None and found.any() else None


@torch.no_grad()
def turn_in_place(table: Rows, basis: Basis) -> None:
    """Rows to coordinates, in the table's own memory, block by block.

    table: (rows, d) of any floating type, or a writable memory map. Its first ``basis.width``
    columns become the coordinates and the rest zeros.

    Raises:
        InvalidInputError: other columns than the basis has, or a read-only array.
    """
    if table.ndim != 2 or table.shape[1] != basis.dim:
        raise InvalidInputError(
            f"table should have the basis' {basis.dim} columns, got shape {tuple(table.shape)}"
        )
    if isinstance(table, np.ndarray) and not table.flags.writeable:
        raise InvalidInputError("table should be writable to be turned in place, got read-only")
    for start in range(0, len(table), _BLOCK):
        block = table[start : start + _BLOCK]
        # A copy even of fp32 rows, for what is read here is overwritten below.
        rows = torch.as_tensor(np.array(block) if isinstance(block, np.ndarray) else block).float()
        turned: Any = basis.coordinates(rows)
        if isinstance(block, np.ndarray):
            turned = turned.numpy()
        block[:, : basis.width] = turned
        block[:, basis.width :] = 0

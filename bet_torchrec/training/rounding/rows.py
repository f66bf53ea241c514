"""Tables of sized rows that are read as row-wise quantisation leaves them, and train so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..sized_embedding import SPREAD_ROWS, SizedEmbedding
from .straight_through import rounded_rows


class RoundedRows(nn.Module):
    """Reads every row in its precision; fits ``models.EmbeddingModule``.

    What is trained are the inner module's entries in fp32: a step too small to change a code is
    not lost. Trained on, ``inner.quantised(precisions)`` reads exactly as this does.

    Args:
        inner: the rows, shared. precisions: {table: one precision, or one a row in id order}, of
            fp32, fp16, int8, int4, int2; tables that are not named are read as they are.
    """

    def __init__(self, inner: SizedEmbedding, precisions: Mapping[str, ArrayLike | str]) -> None:
        super().__init__()
        self.inner, self.width = inner, inner.width
        self._precisions: dict[str, tuple[str, ...]] = {}
        self._numbers = {name: number for number, name in enumerate(inner.names)}
        for name, number in self._numbers.items():
            sizes = inner.sizes(name)
            rows = np.broadcast_to(np.asarray(precisions.get(name, "fp32"), dtype=str), sizes.shape)
            used, which = np.unique(rows, return_inverse=True)
            self._precisions[name] = tuple(str(precision) for precision in used)
            self._keep(f"sizes_{number}", torch.from_numpy(sizes.astype(np.int64)))
            alone = len(used) == 1
            self._keep(f"which_{number}", None if alone else torch.from_numpy(which.ravel()))

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        if len(self.inner.sizes(name)) <= SPREAD_ROWS * ids.numel():
            return F.embedding(ids, self.table(name))  # rounds every row once
        return self._rounded(name, self.inner.lookup(name, ids), ids)

    def table(self, name: str) -> Tensor:
        return self._rounded(name, self.inner.table(name), None)

    def full_tables(self, width: int | None = None) -> dict[str, Tensor]:
        """Copies of what is trained, not rounded; see ``SizedEmbedding.full_tables``."""
        return self.inner.full_tables(width)

    def _rounded(self, name: str, rows: Tensor, ids: Tensor | None) -> Tensor:
        number, used = self._numbers[name], self._precisions[name]
        if used == ("fp32",):
            return rows
        sizes, which = (getattr(self, f"{what}_{number}") for what in ("sizes", "which"))
        if ids is not None:
            sizes, which = sizes[ids], None if which is None else which[ids]
        if which is None:
            return rounded_rows(rows, sizes, used[0])
        read = rows
        for k, precision in enumerate(used):
            read = torch.where((which == k)[:, None], rounded_rows(rows, sizes, precision), read)
        return read

"""Tables behind learnt thresholds: V' = sign(V) relu(|V| - sigmoid(s)) (PEP, Eq. 6 to 8).

Autograd's gradient is the paper's: 1 for an entry above its threshold and 0 below; to s,
-sign(V) sigmoid'(s), summed over the entries above that share it.

Shapes: R rows of a table, D columns of a read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import InvalidInputError

Granularity = Literal["global", "dimension", "feature", "feature_dimension"]
"""What shares a threshold: all entries, a column of all tables, a row, or nothing."""


class SoftThreshold(nn.Module):
    """Full tables behind thresholds; fits ``models.EmbeddingModule``.

    tables: {name: (R, d)}, the entries before training; D is the largest d.
    granularity: "global" has one s, "dimension" D, "feature" R a table, "feature_dimension" R x d.
    start: every s at first.
    """

    def __init__(
        self, tables: Mapping[str, Tensor], *, granularity: Granularity, start: float
    ) -> None:
        super().__init__()
        if granularity not in get_args(Granularity):
            raise InvalidInputError(
                f"granularity should be one of {', '.join(get_args(Granularity))}, "
                f"got {granularity!r}"
            )
        self.width = max(table.shape[1] for table in tables.values())
        self.granularity = granularity
        self.values = nn.ParameterDict({n: nn.Parameter(t.clone()) for n, t in tables.items()})
        shapes: dict[str, tuple[int, ...]] = {"shared": (1,)}
        if granularity == "dimension":
            shapes = {"shared": (self.width,)}
        elif granularity == "feature":
            shapes = {name: (len(table), 1) for name, table in tables.items()}
        elif granularity == "feature_dimension":
            shapes = {name: tuple(table.shape) for name, table in tables.items()}
        self.thresholds = nn.ParameterDict(
            {name: nn.Parameter(torch.full(shape, float(start))) for name, shape in shapes.items()}
        )

    def threshold(self, name: str) -> Tensor:
        """sigmoid(s), broadcasting over the table's (R, d)."""
        if "shared" not in self.thresholds:
            return self.thresholds[name].sigmoid()
        shared = self.thresholds["shared"]
        return (shared if len(shared) == 1 else shared[: self.values[name].shape[1]]).sigmoid()

    def table(self, name: str) -> Tensor:
        values = self.values[name]
        pruned = values.sign() * F.relu(values.abs() - self.threshold(name))
        return F.pad(pruned, (0, self.width - pruned.shape[1]))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        values, threshold = F.embedding(ids, self.values[name]), self.threshold(name)
        if threshold.ndim == 2:  # a row's own
            threshold = F.embedding(ids, threshold)
        pruned = values.sign() * F.relu(values.abs() - threshold)
        return F.pad(pruned, (0, self.width - pruned.shape[1]))

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """|V| - sigmoid(s), (R, d) a table: above 0 where an entry survives."""
        return {name: v.abs() - self.threshold(name) for name, v in self.values.items()}

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables as they are read."""
        return {name: self.table(name).clone() for name in self.values}

"""Tables behind learnt thresholds: V' = sign(V) relu(|V| - g), g = f sigmoid(s) (PEP, Eq. 6 to 8).

f is one factor for all thresholds, 1 in the paper; a budget raises it (``tighten``), the s decide
what it takes. Autograd's gradient is the paper's: 1 for an entry above its threshold and 0 below;
to s, -sign(V) f sigmoid'(s), summed over the entries above that share it.

Shapes: R rows of a table, D columns of a read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....errors import InvalidInputError
from ..weights import TableWeights

Granularity = Literal["global", "dimension", "feature", "feature_dimension"]
"""What shares a threshold: all entries, a column of all tables, a row, or nothing."""


class SoftThreshold(nn.Module):
    """Full tables behind thresholds; fits ``models.EmbeddingModule``.

    tables: {name: (R, d)}, the entries before training; D is the largest d.
    granularity: "global" has one s, "dimension" D, "feature" R a table, "feature_dimension" R x d.
    start: every s at first.
    """

    log_factor: Tensor

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
        self.values = TableWeights({name: table.clone() for name, table in tables.items()})
        shapes: dict[str, tuple[int, ...]] = {}
        if granularity == "feature":
            shapes = {name: (len(table), 1) for name, table in tables.items()}
        elif granularity == "feature_dimension":
            shapes = {name: tuple(table.shape) for name, table in tables.items()}
        self.thresholds = TableWeights(
            {name: torch.full(shape, float(start)) for name, shape in shapes.items()}
        )
        common = {"global": (1,), "dimension": (self.width,)}.get(granularity)
        self.shared = None if common is None else nn.Parameter(torch.full(common, float(start)))
        self.register_buffer("log_factor", torch.zeros(()))

    def raw(self, name: str) -> Tensor:
        """s, broadcasting over the table's (R, d)."""
        if self.shared is None:
            return self.thresholds[name]
        s = self.shared
        return s if len(s) == 1 else s[: self.values[name].shape[1]]

    def table(self, name: str) -> Tensor:
        return self._pruned(self.values[name], self.raw(name))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        s = self.raw(name)
        if s.ndim == 2:  # a row's own
            s = F.embedding(ids, s)
        return self._pruned(F.embedding(ids, self.values[name]), s)

    def _pruned(self, values: Tensor, s: Tensor) -> Tensor:
        threshold = (self.log_factor + F.logsigmoid(s)).exp()  # a sigmoid is 0 where s is deep
        pruned = values.sign() * F.relu(values.abs() - threshold)
        missing = self.width - pruned.shape[1]
        return F.pad(pruned, (0, missing)) if missing else pruned

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """log(|V| / sigmoid(s)), (R, d) a table: an entry survives above ``log_factor``."""
        return {
            name: v.abs().log() - F.logsigmoid(self.raw(name)) for name, v in self.values.items()
        }

    def masks(self) -> dict[str, Tensor]:
        """Whether an entry survives, (R, d) bool a table."""
        return {name: score > self.log_factor for name, score in self.scores().items()}

    @torch.no_grad()
    def tighten(self, entries: int) -> None:
        """Set the factor to the least one, not under 1, that leaves no more than ``entries``."""
        scores = torch.cat([score.flatten() for score in self.scores().values()])
        least = scores.new_zeros(())
        if entries < len(scores):
            # the largest that must go
            least = scores.nan_to_num(nan=-torch.inf).kthvalue(len(scores) - entries).values
        self.log_factor.copy_(least.clamp(min=0.0))

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables as they are read."""
        return {name: self.table(name).clone() for name in self.values}

"""Tables in which rows may go and every prefix may be all that is read (OptEmbed, CIKM 2022).

Shapes: R rows of a table, d its columns, D columns of a read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..weights import TableWeights


class Step(torch.autograd.Function):
    """1 above 0, else 0. Backward as if its slope were 2 - 4|x| up to .4, .4 up to 1, 0 beyond."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        far = x.abs()
        slope = torch.where(far <= 0.4, 2 - 4 * far, torch.where(far <= 1, 0.4, 0.0))
        return grad * slope


class SuperNet(nn.Module):
    """Full tables; fits ``models.EmbeddingModule``.

    A row is kept where its entries' magnitudes sum to more than its table's threshold t, 0 at
    first. In training every read row is cut to a prefix whose length is drawn from 1 .. d, each
    time anew, from a generator of its own.

    tables: {name: (R, d)}, the entries at first. seed: of the draws.
    """

    def __init__(self, tables: Mapping[str, Tensor], *, seed: int) -> None:
        super().__init__()
        self.width = max(table.shape[1] for table in tables.values())
        self.values = TableWeights({name: table.clone() for name, table in tables.items()})
        self.thresholds = TableWeights({name: torch.zeros(()) for name in tables})
        self._drawn = torch.Generator().manual_seed(seed)

    def table(self, name: str) -> Tensor:
        return self._read(name, self.values[name])

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._read(name, F.embedding(ids, self.values[name]))

    def _read(self, name: str, rows: Tensor) -> Tensor:
        kept: Tensor = Step.apply(rows.abs().sum(-1) - self.thresholds[name])
        read = rows * kept[:, None]
        if self.training:
            d = rows.shape[1]
            lengths = torch.randint(1, d + 1, (len(rows), 1), generator=self._drawn)
            read = read * (torch.arange(d) < lengths).to(rows)
        missing = self.width - read.shape[1]
        return F.pad(read, (0, missing)) if missing else read

    def sparser(self) -> Tensor:
        """sum exp(-t) over the tables: a loss that raises thresholds."""
        return torch.stack([torch.exp(-t) for _, t in self.thresholds.items()]).sum()

    @torch.no_grad()
    def kept(self) -> dict[str, NDArray[Any]]:
        """{table: (R,) bool}."""
        return {
            name: (values.abs().sum(-1) > self.thresholds[name]).cpu().numpy()
            for name, values in self.values.items()
        }

    @torch.no_grad()
    def cut(self, sizes: Mapping[str, NDArray[Any]]) -> CutTables:
        """The tables with rows cut to these sizes {table: (R,)}."""
        tables = {}
        for name, values in self.values.items():
            own = torch.from_numpy(sizes[name]).to(values.device)
            columns = torch.arange(values.shape[1], device=values.device)
            cut = values * (columns < own[:, None])
            tables[name] = F.pad(cut, (0, self.width - cut.shape[1]))
        return CutTables(tables, self.width)

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables, dropped rows as zeros."""
        kept = self.kept()
        sizes = {name: kept[name] * values.shape[1] for name, values in self.values.items()}
        return {name: self.cut(sizes).table(name).clone() for name in self.values}


class CutTables:
    """Plain tables to look at; ``models.EmbeddingModule``."""

    def __init__(self, tables: Mapping[str, Tensor], width: int) -> None:
        self.width, self._tables = width, dict(tables)

    def table(self, name: str) -> Tensor:
        return self._tables[name]

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._tables[name])


class AdamBesideSGD(torch.optim.Adam):
    """Adam; groups with "plain" set move by their gradients as they are."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"] if group.get("plain") else ():
                if weight.grad is not None:
                    weight.sub_(weight.grad * group["lr"])
                    weight.grad = None
        return super().step(closure)

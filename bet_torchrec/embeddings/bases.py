"""The axes of tables that are kept as coordinates, and the product that turns these into rows.

A plan's table with a basis holds coordinates: row = coordinates[:size] @ basis[:size]. Pooling is
linear, so coordinates are routed, looked up, sent and pooled as any columns are, fewer of them, and
multiplied once, pooled. Every rank has all axes: fixed ones are buffers, trained ones parameters
that DistributedDataParallel keeps alike.

Shapes: B examples, w coordinates and d columns of a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.sparse.jagged_tensor import KeyedTensor

from ..axes import Basis
from ..errors import InvalidInputError
from ..planning.table_plan import TablePlan
from ..team import team
from .routing import Slot

_PREFIX = "axes_"  # of a table's name, which may be that of a module's attribute


def coordinate_plan(plan: TablePlan) -> TablePlan:
    """The plan of what is stored: of a table with a basis, coordinates, as wide as it has axes."""
    if plan.basis is None:
        return plan
    return dataclasses.replace(plan, embedding_dim=max(plan.axes, 1), basis=None)


@dataclass(frozen=True)
class Product:
    """One slot's columns: where they begin and how many they are, before and after.

    table: whose axes they are multiplied by; None for columns that are rows already.
    """

    table: str | None
    source: int
    width: int
    target: int
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the axes."""
        return self.width, self.dim


class Bases(nn.Module):
    """The bases of a collection's tables.

    Args:
        plans: by table. slots: in the output's order.
        device: of the axes. They begin as the first unit vectors, so that coordinates read as the
            row's first columns, until ``put`` or training says otherwise.
        train: False keeps all of them as they are, whatever the plans say: for serving.
    """

    def __init__(
        self,
        plans: Mapping[str, TablePlan],
        slots: Sequence[Slot],
        device: torch.device | str | None = None,
        *,
        train: bool = True,
    ) -> None:
        super().__init__()
        self._shapes = {
            name: (plan.axes, plan.embedding_dim) for name, plan in plans.items() if plan.axes
        }
        # Without orders, which a copy of the module would copy along.
        self._plans = {n: dataclasses.replace(plan, order=None) for n, plan in plans.items()}
        self._slots = tuple(slots)
        for name, (width, dim) in self._shapes.items():
            axes = torch.eye(width, dim, device=device)
            if train and plans[name].basis == "trained":
                self.register_parameter(_PREFIX + name, nn.Parameter(axes))
            else:
                self.register_buffer(_PREFIX + name, axes)
        self._products = _products(slots, plans)
        self._turns = any(p.table or p.width < p.dim for p in self._products)
        self._keys, self._dims = [s.key for s in slots], [p.dim for p in self._products]

    def axes(self, table: str) -> Tensor | None:
        """(w, d) of a table; None of one whose rows are kept as they are."""
        if table not in self._shapes:
            return None
        found: Tensor = getattr(self, _PREFIX + table)
        return found

    def forward(self, values: Tensor) -> Tensor:
        """Pooled coordinates of all slots side by side (B, sum of w) to rows (B, sum of d)."""
        if not self._turns:
            return values
        if torch.compiler.is_compiling():
            return self._one_by_one(values)
        axes = [getattr(self, _PREFIX + name) for name in self._shapes]
        turned: Tensor = _Turned.apply(values, self._products, tuple(self._shapes), *axes)
        return turned

    def _one_by_one(self, values: Tensor) -> Tensor:
        """The same in plain operators, for graphs, which take no writes into parts of an output."""
        parts = []
        for product in self._products:
            columns = values.narrow(1, product.source, product.width)
            if product.table is None:
                parts.append(F.pad(columns, (0, product.dim - product.width)))
            else:
                parts.append(columns @ getattr(self, _PREFIX + product.table).to(columns.dtype))
        return torch.cat(parts, dim=1)

    def output(self, coordinates: KeyedTensor) -> KeyedTensor:
        """A merged batch as the collection's output."""
        if not self._turns:
            return coordinates
        return KeyedTensor(
            keys=self._keys, length_per_key=self._dims, values=self(coordinates.values())
        )

    def rows(self, table: str, coordinates: Tensor) -> Tensor:
        """Coordinates (n, w or more) of one table as rows (n, d)."""
        axes = self.axes(table)
        if axes is None:
            return coordinates
        return coordinates[..., : len(axes)] @ axes.to(coordinates)

    def told(self) -> dict[str, Basis]:
        """{table: its axes as they are now}, as values."""
        return {name: Basis(self._axes(name)) for name in self._shapes}

    @torch.no_grad()
    def put(self, bases: Mapping[str, Basis]) -> None:
        """Copy axes in, the first of each basis.

        Raises:
            InvalidInputError: of a table without a basis, of too few axes or of another dim.
        """
        for name, basis in bases.items():
            if name not in self._shapes:
                raise InvalidInputError(
                    f"expected bases of {', '.join(self._shapes) or 'no table'}, got one of "
                    f"{name!r}: plan it with one (BudgetPlanner(basis=...))"
                )
            width, dim = self._shapes[name]
            if basis.dim != dim or basis.width < width:
                raise InvalidInputError(
                    f"table {name!r}: expected {width} or more axes of {dim} columns, got "
                    f"{basis.width} of {basis.dim}"
                )
        for name, basis in bases.items():
            self._axes(name).copy_(basis.axes[: self._shapes[name][0]])

    def share(self, process_group: dist.ProcessGroup | None) -> None:
        """The first rank's axes for all: what other hardware computed may differ in signs."""
        team(process_group).share([self._axes(name) for name in self._shapes])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The first unit vectors again."""
        for name, (width, dim) in self._shapes.items():
            axes = self._axes(name)
            if not axes.is_meta:
                axes.copy_(torch.eye(width, dim, device=axes.device))

    def on(self, device: torch.device, *, train: bool = True) -> Bases:
        """The same on another device; from "meta", as newly made."""
        made = Bases(self._plans, self._slots, device, train=train)
        if not any(self._axes(name).is_meta for name in self._shapes):
            made.put(self.told())
        return made

    @property
    def nbytes(self) -> int:
        """Of all axes, on every rank; an optimizer's state is beside it."""
        return sum(self._axes(name).nbytes for name in self._shapes)

    def _axes(self, name: str) -> Tensor:
        axes: Tensor = getattr(self, _PREFIX + name)
        return axes.detach()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {w} x {d}" for name, (w, d) in self._shapes.items())


def _products(slots: Sequence[Slot], plans: Mapping[str, TablePlan]) -> tuple[Product, ...]:
    found, source, target = [], 0, 0
    for slot in slots:
        plan = plans[slot.table]
        width, dim = coordinate_plan(plan).embedding_dim, plan.embedding_dim
        found.append(Product(slot.table if plan.axes else None, source, width, target, dim))
        source, target = source + width, target + dim
    return tuple(found)


class _Turned(torch.autograd.Function):
    """Every slot's columns times its table's axes, each written where it belongs.

    Products of one shape side by side are one batched product on CUDA, where launches count; on CPU
    each is written in place, which spares a copy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        products: tuple[Product, ...],
        names: tuple[str, ...],
        *axes: Tensor,
    ) -> Tensor:
        own = dict(zip(names, (a.to(values.dtype) for a in axes), strict=True))
        ctx.products, ctx.names, ctx.kinds = products, names, [a.dtype for a in axes]
        ctx.batched, ctx.columns = _batched(values), values.shape[1]
        kept = values if any(ctx.needs_input_grad[3:]) else None  # for the axes' gradients alone
        ctx.save_for_backward(kept, *own.values())
        shape = (len(values), products[-1].target + products[-1].dim)
        all_turned = all(product.table for product in products)
        out = values.new_empty(shape) if all_turned else values.new_zeros(shape)
        for run in _runs(products, batched=ctx.batched):
            one = run[0]
            columns = values.narrow(1, one.source, sum(p.width for p in run))
            to = out.narrow(1, one.target, sum(p.dim for p in run))
            if one.table is None:
                to.narrow(1, 0, one.width).add_(columns)  # narrower where every row is dropped
            else:
                _multiply(columns, [own[str(p.table)] for p in run], to)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, *axes = ctx.saved_tensors
        own = dict(zip(ctx.names, axes, strict=True))
        back = gradient.new_empty(len(gradient), ctx.columns)
        wanted = dict(zip(ctx.names, ctx.needs_input_grad[3:], strict=True))
        found: dict[str, Tensor] = {}
        for run in _runs(ctx.products, batched=ctx.batched):
            one = run[0]
            columns = gradient.narrow(1, one.target, sum(p.dim for p in run))
            to = back.narrow(1, one.source, sum(p.width for p in run))
            if one.table is None:
                to.copy_(columns[:, : one.width])
            else:
                _multiply(columns, [own[str(p.table)].T for p in run], to)
            for product in run:
                if product.table is not None and wanted[product.table]:
                    mine = values.narrow(1, product.source, product.width).T @ gradient.narrow(
                        1, product.target, product.dim
                    )
                    name = product.table
                    found[name] = found[name] + mine if name in found else mine
        of_axes = (
            found[name].to(kind) if name in found else None
            for name, kind in zip(ctx.names, ctx.kinds, strict=True)
        )
        return back, None, None, *of_axes


def _batched(values: Tensor) -> bool:
    return values.is_cuda


def _runs(products: Sequence[Product], *, batched: bool) -> list[list[Product]]:
    """Products of one shape side by side, together where they may be batched."""
    runs: list[list[Product]] = []
    for product in products:
        last = runs[-1][-1] if runs and batched else None
        if last and last.table and product.table and last.shape == product.shape:
            runs[-1].append(product)
        else:
            runs.append([product])
    return runs


def _multiply(columns: Tensor, factors: Sequence[Tensor], out: Tensor) -> None:
    """columns (B, n * a) by n factors (a, b) into out (B, n * b)."""
    if len(factors) == 1:
        torch.mm(columns, factors[0], out=out)
        return
    each, to = (t.unflatten(1, (len(factors), -1)).transpose(0, 1) for t in (columns, out))
    torch.bmm(each, torch.stack(list(factors)), out=to)

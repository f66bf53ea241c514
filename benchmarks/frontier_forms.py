"""Every way to store a trained model's tables that the frontier compares, as modules that train on.

Each reads exactly as it would be served, before and after training on, and says its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from product_quantiser import ProductCodes

from bet_torchrec.axes import Moments, principal_basis
from bet_torchrec.column_codes import choose_codes, coded_bytes
from bet_torchrec.planning.sizers.sensitivity import gradient_moments
from bet_torchrec.training import SizedEmbedding, Trained, TrainingWorkbench, TurnedEmbedding
from bet_torchrec.training.rounding import ColumnCodes, RoundedRows

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
SAMPLE = 50  # batches that the loss' gradients are measured over


@dataclass(frozen=True)
class Form:
    """method, setting: its name. bytes: of all tables. make: the module, from the trained model.

    width: of the tables that it starts from, where these are narrower than the full ones.
    """

    method: str
    setting: str
    bytes: int
    make: Callable[[Trained], Any]
    width: int | None = None


def row_bytes(width: int, precision: str) -> int:
    """Of a row as FBGEMM stores it unaligned: integers with an fp16 scale and bias."""
    return -(-width * BITS[precision] // 8) + (4 if precision.startswith("int") else 0)


def precisions_at(width: int) -> list[str]:
    """Those that pay at a width: of equal bytes the finest."""
    best: dict[int, str] = {}
    for precision in BITS:  # finest first
        best.setdefault(row_bytes(width, precision), precision)
    kept, least = [], 1 << 30
    for precision in BITS:
        if (
            best.get(row_bytes(width, precision)) == precision
            and row_bytes(width, precision) < least
        ):
            kept.append(precision)
            least = row_bytes(width, precision)
    return kept


def forms(
    bench: TrainingWorkbench, targets: list[float], most: float, *, parts: bool
) -> Iterator[Form]:
    """All of one task. targets: bytes a row that ours are made for. most: of the others' bytes a
    row, but for the full table's own rows. parts: ours with each part taken away instead."""
    rows = sum(table.num_embeddings for table in bench.tables)
    dim = bench.tables[0].embedding_dim
    if parts:
        for method in PARTS:
            yield from (ours(bench, int(target * rows), method) for target in targets)
        return
    yield from (ours(bench, int(target * rows)) for target in targets)
    for precision in BITS:
        yield Form("full", precision, rows * row_bytes(dim, precision), rounded(dim, precision))
    widths = [1 << k for k in range(dim.bit_length() - 1)]
    for width in widths:
        for precision in precisions_at(width):
            if row_bytes(width, precision) <= most:
                yield narrow(rows, width, precision)
    for width in widths:
        for precision in precisions_at(width):
            if row_bytes(width, precision) <= most:
                yield prefix(bench, rows, width, precision)
    for count in (16, 256):
        for parts in (1 << k for k in range(dim.bit_length())):
            each = -(-parts * count.bit_length() // 8) if count == 16 else parts
            if each <= most:
                yield product(bench, rows, dim, parts, count)


PARTS = {
    "codes without axes": {"turned": False},
    "codes without rank blocks": {"rank_blocks": (1,)},
    "codes without sensitivity": {},
}
"""What ours come to with one part taken away; fine-tuning is the other column."""


def ours(bench: TrainingWorkbench, limit: int, method: str = "column codes") -> Form:
    """Column codes in the axes that the loss asks for; or with a part taken away."""

    def make(full: Trained) -> ColumnCodes:
        batches = min(SAMPLE, bench.task.steps_per_epoch)
        moments = gradient_moments(bench.task, full.model, full.embedding, batches=batches)
        tables, options = full.full_tables(), PARTS.get(method, {})
        if method == "codes without sensitivity":  # all errors cost alike
            plain = {table.name: torch.eye(table.embedding_dim) for table in bench.tables}
            moments = {name: Moments(len(own)).add(own) for name, own in plain.items()}
        codes = choose_codes(tables, bench.counts(), moments, limit=limit, **options)
        assert coded_bytes(codes.tables) <= limit
        return ColumnCodes(codes.tables, codes.coordinates(tables))

    return Form(method, f"{limit} B", limit, make)


def rounded(dim: int, precision: str) -> Callable[[Trained], RoundedRows]:
    """Full rows as FBGEMM quantises them."""

    def make(full: Trained) -> RoundedRows:
        tables = full.full_tables()
        sizes = {name: np.full(len(table), dim, np.int32) for name, table in tables.items()}
        own = SizedEmbedding(sizes).load_prefix(tables)
        return RoundedRows(own, dict.fromkeys(tables, precision))

    return make


def narrow(rows: int, width: int, precision: str) -> Form:
    """A smaller embedding_dim, trained from scratch."""
    cost = rows * row_bytes(width, precision)
    return Form("narrow", f"{width} {precision}", cost, rounded(width, precision), width)


def prefix(bench: TrainingWorkbench, rows: int, width: int, precision: str) -> Form:
    """Equal prefixes of the rows in their tables' principal axes, which are counted in int8, as
    ours, but not rounded."""

    def make(full: Trained) -> TurnedEmbedding:
        tables, counts = full.full_tables(), bench.counts()
        bases = {
            name: principal_basis(table, counts[name].by_id(), width=min(width, len(table)))
            for name, table in tables.items()
        }
        sizes = {name: np.full(len(tables[name]), b.width, np.int32) for name, b in bases.items()}
        own = SizedEmbedding(sizes)
        own.load_prefix({name: b.coordinates(tables[name]) for name, b in bases.items()})
        return TurnedEmbedding(RoundedRows(own, dict.fromkeys(tables, precision)), bases)

    dim = bench.tables[0].embedding_dim
    axes = sum(min(width, table.num_embeddings) * dim for table in bench.tables)
    cost = rows * row_bytes(width, precision) + axes
    return Form("prefix in own axes", f"{width} {precision}", cost, make)


def product(bench: TrainingWorkbench, rows: int, dim: int, parts: int, count: int) -> Form:
    def make(full: Trained) -> ProductCodes:
        tables, counts = full.full_tables(), bench.counts()
        weights = {name: torch.from_numpy(counts[name].by_id() + 1e-3) for name in tables}
        return ProductCodes(tables, weights, parts=parts, count=count, seed=bench.seed)

    each = -(-parts * (count.bit_length() - 1) // 8)
    return Form("product codes", f"{parts} x {count}", rows * each + 2 * count * dim, make)

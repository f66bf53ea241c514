"""MGQE: rows as product codes into shared centroids, fewer for rarer rows (Kang et al., 2020).

Shapes: R rows of a table, d its columns, S subspaces of d / S columns, K centroids in each,
D columns of a read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import InvalidInputError
from ..tables import TableSpec
from .checks import check_positive
from .forms import FormPlan, form_cost, form_plan, infeasible
from .problem import SizingProblem
from .weights import TableWeights, attribute

MOST_CENTROIDS = 256


@dataclass(frozen=True, kw_only=True)
class MGQE:
    """Multi-granular quantised embeddings: a code a subspace, learnt straight through.

    Training keeps full rows, which are read as their nearest centroids; serving keeps the codes and
    the codebooks, and these are what is paid for (codes are packed; four bytes of them count as a
    parameter). The head of a table by count chooses among all K centroids, the tail among the first
    quarter of them (256 and 64 in the paper, one codebook for both). A table with at most K rows is
    kept as it is.

    The budget decides S and K, the same in all tables: of what fits, the most bits a row, then the
    most centroids; where nothing does at full width, with narrower tables. Needs no evaluation.

    head: its share of a table's rows. commitment: of the pull between a row and its centroid,
        beside the loss's gradient. init_std: of rows and centroids at first.
    """

    head: float = 0.1
    commitment: float = 0.25
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.head <= 1:
            raise InvalidInputError(f"head should be a share from 0 to 1, got {self.head!r}")
        if not 0 <= self.commitment < math.inf:
            raise InvalidInputError(f"commitment should be at least 0, got {self.commitment!r}")
        check_positive(self, "init_std")

    def __call__(self, problem: SizingProblem) -> FormPlan:
        """The codes' form; raises InfeasibleBudgetError if the smallest, 1 wide, does not fit."""
        width = max(table.embedding_dim for table in problem.tables)
        while width >= 1:
            fitting = [
                form
                for form in self._forms(problem, width)
                if form_cost(form, problem.budget) <= problem.limit
            ]
            if fitting:
                best = max(fitting, key=lambda form: (form.bits, form.centroids))
                notes = {
                    "subspaces": str(best.subspaces),
                    "centroids": str(best.centroids),
                    "in training": f"{best.training_parameters()} weights",
                }
                return form_plan(problem, best, "mgqe", notes=notes)
            width //= 2
        smallest = min(form_cost(form, problem.budget) for form in self._forms(problem, 1))
        raise infeasible(problem, "mgqe", smallest, "a bit a row and a codebook a table")

    def _forms(self, problem: SizingProblem, width: int) -> list[CodedTables]:
        """Of all numbers of subspaces and centroids; and the tables themselves."""
        heads = []
        for table, counts in zip(problem.tables, problem.counts, strict=True):
            rows = math.ceil(self.head * table.num_embeddings)
            by_rank = np.arange(table.num_embeddings) if counts.order is None else counts.order
            heads.append(np.sort(by_rank[:rows]).astype(np.int64))
        dims = [min(width, table.embedding_dim) for table in problem.tables]
        shared = math.gcd(*dims)
        numbers = [n for n in range(1, shared + 1) if shared % n == 0]
        centroids = [1 << bits for bits in range(1, MOST_CENTROIDS.bit_length())]
        whole = max(table.num_embeddings for table in problem.tables)
        return [
            CodedTables(
                tables=problem.tables,
                heads=tuple(heads),
                ranked=tuple(counts.order is None for counts in problem.counts),
                width=width,
                subspaces=s,
                centroids=k,
                commitment=self.commitment,
                init_std=self.init_std,
            )
            for s, k in [*((s, k) for s in numbers for k in centroids), (1, whole)]
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class CodedTables:
    """A ``Form``, ``Coded``: codes and codebooks; a table of at most ``centroids`` rows is whole.

    heads: ids of a table's rows that choose among all centroids. ranked: whether they come first.
    """

    tables: tuple[TableSpec, ...]
    heads: tuple[NDArray[np.int64], ...]
    ranked: tuple[bool, ...]
    width: int
    subspaces: int
    centroids: int
    commitment: float
    init_std: float

    @property
    def bits(self) -> int:
        """Of a head row's codes; of a whole table's row, more than any code has."""
        if all(self.is_whole(table) for table in self.tables):
            return 1 << 30
        return self.subspaces * _bits(self.centroids)

    @property
    def tail(self) -> int:
        """Centroids that tail rows choose among."""
        return max(1, self.centroids // 4)

    def is_whole(self, table: TableSpec) -> bool:
        """Whether a table is kept as it is."""
        return table.num_embeddings <= self.centroids

    def dim(self, table: TableSpec) -> int:
        """A table's columns."""
        return min(self.width, table.embedding_dim)

    def shapes(self) -> list[tuple[int, int]]:
        found = []
        for table in self.tables:
            d = self.dim(table)
            if self.is_whole(table):
                found.append((table.num_embeddings, d))
            else:
                found.append((self.subspaces * self.centroids, d // self.subspaces))
        return found

    def code_bytes(self) -> int:
        """Packed; and a bit a row that says whether it is of the head, where ids don't."""
        total = 0
        for table, head, ranked in zip(self.tables, self.heads, self.ranked, strict=True):
            if self.is_whole(table):
                continue
            tail = table.num_embeddings - len(head)
            bits = len(head) * _bits(self.centroids) + tail * _bits(self.tail)
            bits = bits * self.subspaces + (0 if ranked else table.num_embeddings)
            total += -(-bits // 8)
        return total

    def index_bytes(self) -> int:
        return self.code_bytes()

    def training_parameters(self) -> int:
        """Weights while it trains: full rows and the codebooks."""
        rows = [t.num_embeddings * self.dim(t) for t in self.tables if not self.is_whole(t)]
        return sum(rows) + sum(n * width for n, width in self.shapes())

    def build(self, seed: int) -> CodedEmbedding:
        return CodedEmbedding(self, torch.Generator().manual_seed(seed))

    def content(self) -> dict[str, Any]:
        heads = {f"head.{t.name}": h for t, h in zip(self.tables, self.heads, strict=True)}
        settings = (self.width, self.subspaces, self.centroids, self.commitment, self.init_std)
        return {**heads, "settings": settings}


def _bits(choices: int) -> int:
    """That tell so many apart."""
    return (choices - 1).bit_length()


class CodedEmbedding(nn.Module):
    """Rows read as their nearest centroids; fits ``models.EmbeddingModule``."""

    def __init__(self, form: CodedTables, generator: torch.Generator) -> None:
        super().__init__()
        self.width = max(form.dim(table) for table in form.tables)
        self._form = form
        rows, books = {}, {}
        for table, head in zip(form.tables, form.heads, strict=True):
            d = form.dim(table)
            drawn = torch.randn(table.num_embeddings, d, generator=generator)
            rows[table.name] = drawn * form.init_std
            if not form.is_whole(table):
                shape = (form.subspaces, form.centroids, d // form.subspaces)
                books[table.name] = torch.randn(shape, generator=generator) * form.init_std
                allowed = torch.full((table.num_embeddings,), form.tail)
                allowed[torch.from_numpy(head)] = form.centroids
                self.register_buffer(f"allowed_{attribute(table.name)}", allowed, persistent=False)
        self.rows, self.books = TableWeights(rows), TableWeights(books)

    def table(self, name: str) -> Tensor:
        if name not in self.books:
            return self._padded(self.rows[name])
        return self._read(name, self.rows[name], getattr(self, f"allowed_{attribute(name)}"))

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.rows[name])
        if name not in self.books:
            return self._padded(rows)
        return self._read(name, rows, getattr(self, f"allowed_{attribute(name)}")[ids])

    def _read(self, name: str, rows: Tensor, allowed: Tensor) -> Tensor:
        book = self.books[name]
        codes = nearest(rows, book, allowed)
        read: Tensor = StraightThrough.apply(rows, book, codes, self._form.commitment)
        return self._padded(read)

    def _padded(self, rows: Tensor) -> Tensor:
        missing = self.width - rows.shape[1]
        return F.pad(rows, (0, missing)) if missing else rows

    @torch.no_grad()
    def codes(self) -> dict[str, Tensor]:
        """{table: (R, S)}, what is stored after training, of those that are not whole."""
        found = {}
        for name, book in self.books.items():
            found[name] = nearest(
                self.rows[name], book, getattr(self, f"allowed_{attribute(name)}")
            )
        return found

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables as they are read, (R, D)."""
        return {name: self.table(name).clone() for name in self.rows}


@torch.no_grad()
def nearest(rows: Tensor, book: Tensor, allowed: Tensor) -> Tensor:
    """(n, S) the nearest centroids of rows (n, d) in a book (S, K, d / S), the first of ties.

    allowed: (n,) how many of them a row may choose among.
    """
    subspaces, centroids, part = book.shape
    beyond = torch.arange(centroids, device=rows.device) >= allowed[:, None]
    codes = []
    for s in range(subspaces):  # one at a time: (n, K) is the most that is held
        own = rows[:, s * part : (s + 1) * part]
        distance = book[s].square().sum(-1) - 2 * own @ book[s].T
        codes.append(distance.masked_fill(beyond, math.inf).argmin(-1))
    return torch.stack(codes, 1)


class Grads(NamedTuple):
    """Of ``StraightThrough``'s arguments."""

    rows: Tensor
    book: Tensor
    codes: None = None
    commitment: None = None


class StraightThrough(torch.autograd.Function):
    """Rows (n, d) read as centroids; the gradient reaches both, and both pull at each other.

    Backward, g of a read row: its own row gets g + commitment (row - centroid) / n, its centroid
    the sum of g + commitment (centroid - row) / n over all rows that are read as it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, book: Tensor, codes: Tensor, commitment: float) -> Tensor:
        centroids = book[torch.arange(len(book), device=book.device), codes]  # (n, S, d / S)
        read = centroids.reshape(rows.shape)
        ctx.save_for_backward(rows, codes, read)
        ctx.commitment, ctx.shape = commitment, book.shape
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Grads:
        rows, codes, read = ctx.saved_tensors
        pull = ctx.commitment / max(len(rows), 1) * (rows - read)
        subspaces, centroids, part = ctx.shape
        places = codes + torch.arange(subspaces, device=codes.device) * centroids
        book = grad.new_zeros(subspaces * centroids, part)
        book.index_add_(0, places.flatten(), (grad - pull).reshape(-1, part))
        return Grads(grad + pull, book.view(ctx.shape))

"""Product quantisation (Jegou et al., 2011) of all tables together, as a module that trains on.

Rows are cut into M parts of d / M columns; each part is one of K centroids that all tables share,
as a codebook a table would take more than the codes of a small one. Codes stay, centroids train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROUNDS = 25


def centroids(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Weighted k-means, (n, k) -> (count, k): Lloyd's rounds from weighted draws."""
    drawn = torch.multinomial(weights, min(count, len(points)), generator=generator)
    found = points[drawn].clone()
    if len(found) < count:
        found = F.pad(found, (0, 0, 0, count - len(found)))
    for _ in range(_ROUNDS):
        own = nearest(points, found)
        mass = torch.zeros(count).index_add_(0, own, weights)
        sums = torch.zeros_like(found).index_add_(0, own, points * weights[:, None])
        found = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-12)[:, None], found)
        empty = (mass == 0).nonzero().flatten()
        if len(empty):  # where the error is largest
            lost = (points - found[nearest(points, found)]).square().sum(1) * weights
            found[empty] = points[lost.topk(min(len(empty), len(points))).indices][: len(empty)]
    return found


def nearest(points: Tensor, found: Tensor) -> Tensor:
    """(n,) the nearest centroid of each."""
    parts = points.split(1 << 14)
    return torch.cat([(found.square().sum(1) - 2 * part @ found.T).argmin(1) for part in parts])


class ProductCodes(nn.Module):
    """Tables {name: (rows, d)} as codes of M parts; an embedding module whose centroids train."""

    def __init__(
        self,
        tables: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        *,
        parts: int,
        count: int,
        seed: int,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        points, mass = torch.cat(list(tables.values())), torch.cat(list(weights.values())).float()
        self.width, self.parts, self.count = points.shape[1], parts, count
        cut = points.view(len(points), parts, -1).transpose(0, 1)
        books = [centroids(own, mass, count, generator) for own in cut]
        self.book = nn.Parameter(torch.cat(books))  # (M * K, d / M)
        codes = torch.stack([nearest(p, b) + m * count for m, (p, b) in enumerate(zip(cut, books))])  # noqa: B905
        split = codes.T.split([len(table) for table in tables.values()])
        self.codes = {name: own.contiguous() for name, own in zip(tables, split, strict=True)}

    @property
    def nbytes(self) -> int:
        """Codes without gaps within a row, and the codebook in fp16."""
        rows = sum(len(own) for own in self.codes.values())
        return rows * math.ceil(self.parts * math.log2(self.count) / 8) + 2 * self.book.numel()

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(self.codes[name][ids], self.book).flatten(1)

    def table(self, name: str) -> Tensor:
        return F.embedding(self.codes[name], self.book).flatten(1)

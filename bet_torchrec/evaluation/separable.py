"""Exact ranking for models whose first layer is separable, such as NCF.

NCF feeds one dense layer with a user's row beside an item's, so the layer is a sum of a user's half
and an item's half, and only act(half + half) is left to do for each of 10^9 pairs:

    score(u, v) = linear_users[u] . linear_items[v]
                + weights . act(hidden_users[u] + hidden_items[v]) + bias

With act = (leaky) ReLU of slope s, act(a + b) = (1 - s) * max(b, -a) + a + s * b, so the pairs cost
one maximum and one weighted sum over a tile that stays in the cache; everything else is linear and
goes into one matrix product. Nothing is approximated or skipped; sums are fp32.
(29,858 x 40,981 pairs x 128 hidden units: seconds on two cores; the plain form needs minutes.)

Shapes: U users, I items, H hidden units, L width of the linear part, B users in a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import InvalidInputError
from .ranking import Masked, rank

# A tile's (H, users, items) maxima: 8 MB at H = 128, measured best of 1 to 32 MB on two cores.
_TILE = {"cpu": (32, 512), "cuda": (128, 4096)}


@dataclass(frozen=True, eq=False, kw_only=True)
class SeparableScores:
    """A model's scores in separable form; all tensors fp32 on one device, which does the work.

    hidden_users: (U, H) and hidden_items: (I, H), the first layer's halves (its bias in either).
    weights: (H,) of the hidden units in the score. negative_slope: of the LeakyReLU, 0 for ReLU.
    linear_users: (U, L) and linear_items: (I, L), the inner product beside it, or None for none.
    bias: added to every score.
    """

    hidden_users: Tensor
    hidden_items: Tensor
    weights: Tensor
    negative_slope: float = 0.0
    linear_users: Tensor | None = None
    linear_items: Tensor | None = None
    bias: float = 0.0

    def __post_init__(self) -> None:
        hidden = self.weights.shape
        if (
            len(hidden) != 1
            or self.hidden_users.shape[1:] != hidden
            or self.hidden_items.shape[1:] != hidden
        ):
            raise InvalidInputError(
                "expected hidden_users (users x H), hidden_items (items x H) and weights (H), got "
                f"{tuple(self.hidden_users.shape)}, {tuple(self.hidden_items.shape)} and "
                f"{tuple(hidden)}"
            )
        if (self.linear_users is None) != (self.linear_items is None):
            raise InvalidInputError("expected both linear_users and linear_items, or neither")
        if self.linear_users is not None and self.linear_items is not None:
            left, right = self.linear_users.shape, self.linear_items.shape
            if (left[0], right[0], left[1:]) != (self.num_users, self.num_items, right[1:]):
                raise InvalidInputError(
                    f"expected linear parts of {self.num_users} users and {self.num_items} items "
                    f"of one width, got {tuple(left)} and {tuple(right)}"
                )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.hidden_users)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.hidden_items)

    def top_items(
        self,
        *,
        k: int,
        masked: Masked | Sequence[Masked] | None = None,
        users: ArrayLike | None = None,
        block: int | None = None,
    ) -> NDArray[np.int64]:
        """As ``ranking.top_items``: (U, k) item ids, best first, -1 where none is left."""
        # Made here, not first by several threads at once.
        _ = self._item_tiles, self._linear_left, self._linear_right
        return rank(
            self._score_into,
            num_users=self.num_users,
            num_items=self.num_items,
            k=k,
            masked=masked,
            users=users,
            block=block,
            device=self.hidden_users.device,
        )

    @torch.no_grad()
    def score_block(self, users: Tensor) -> Tensor:
        """(B,) ids -> (B, I) scores."""
        out = torch.empty(len(users), self.num_items, device=self.hidden_users.device)
        return self._score_into(users, out)

    def _score_into(self, users: Tensor, out: Tensor) -> Tensor:
        scores = torch.mm(self._linear_left[users], self._linear_right, out=out)
        turned = self.hidden_users[users].float().neg().T.contiguous()  # (H, B)
        weights = (self.weights.float() * (1 - self.negative_slope))[None]
        hidden = weights.shape[1]
        group, width = _TILE["cuda" if scores.is_cuda else "cpu"]
        maxima = scores.new_empty(hidden * group * width)
        sums = scores.new_empty(1, group * width)
        for tile, first in zip(self._item_tiles, range(0, self.num_items, width), strict=True):
            columns = slice(first, first + width)
            for start in range(0, len(users), group):
                part = turned[:, start : start + group, None]
                shape = (hidden, part.shape[1], tile.shape[1])
                pairs = shape[1] * shape[2]
                held = maxima[: hidden * pairs].view(shape)
                torch.maximum(tile[:, None], part, out=held)
                total = torch.mm(weights, held.view(hidden, pairs), out=sums[:, :pairs])
                scores[start : start + group, columns] += total.view(shape[1:])
        return scores

    @cached_property
    def _item_tiles(self) -> list[Tensor]:
        """The items' halves as contiguous (H, items of a tile)."""
        items = self.hidden_items.detach().float()
        width = _TILE["cuda" if items.is_cuda else "cpu"][1]
        return [part.T.contiguous() for part in items.split(width)]

    @cached_property
    def _linear_left(self) -> Tensor:
        """(U, L + 2): the linear part, then what only a user, then what only an item adds."""
        own = self.hidden_users.detach().float() @ self.weights.detach().float() + self.bias
        return _beside(self.linear_users, own, torch.ones_like(own))

    @cached_property
    def _linear_right(self) -> Tensor:
        own = self.hidden_items.detach().float() @ self.weights.detach().float()
        own *= self.negative_slope
        return _beside(self.linear_items, torch.ones_like(own), own).T.contiguous()


def _beside(linear: Tensor | None, *columns: Tensor) -> Tensor:
    parts = [] if linear is None else [linear.detach().float()]
    return torch.cat([*parts, *(column[:, None] for column in columns)], dim=1)

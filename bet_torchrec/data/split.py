"""Splits of interactions into train, validation and test.

All parts keep both tables whole: a row that has no interaction in a part has count 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .interactions import Interactions

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Three parts of the same two tables.

    how: what made it, for reports. seed: what it was drawn with, None where nothing was drawn.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    how: str
    seed: int | None = None

    def __post_init__(self) -> None:
        tables = {(part.num_users, part.num_items) for part in self.parts()}
        if len(tables) != 1:
            raise DataError(
                "the parts of a split should have the same numbers of users and items, got "
                f"{sorted(tables)}"
            )

    def parts(self) -> tuple[Interactions, Interactions, Interactions]:
        """Train, validation and test, in this order."""
        return self.train, self.validation, self.test

    def by_rank(self) -> Split:
        """All parts relabelled alike: id 0 is the most frequent row in *train*, ties by old id."""
        counts = self.train.counts()
        train, validation, test = (part.by_rank(counts) for part in self.parts())
        return Split(train=train, validation=validation, test=test, how=self.how, seed=self.seed)


def random_split(
    interactions: Interactions,
    *,
    ratios: Sequence[float] = (0.5, 0.25, 0.25),
    seed: int,
) -> Split:
    """Each user's interactions dealt at random, by default 50/25/25.

    Every interaction draws a key of its own and each user's are sorted by it: one permutation
    reused for all users would favour the same positions, and with sorted items one part would get
    the popular ones.

    Rounding: of a user's n interactions the first round(n * train) are train and those up to
    round(n * (train + validation)) validation, halves up; so 9 gives 5, 2, 2 and 2 gives 1, 1, 0.
    At least one is train, whatever the ratios.

    Args:
        ratios: train, validation and test; they sum to 1.
        seed: of the draw. The same interactions in another order get another split; the loaders
            sort them.
    """
    shares = checked_shares(ratios)
    part = _deal(interactions.users, interactions.num_users, shares, _keys(interactions, seed))
    return _split(interactions, part, how=f"random {percent(shares)} per user", seed=seed)


def published_split(
    interactions: Interactions, *, validation_share: float = 0.0, seed: int = 0
) -> Split:
    """The test part that was published with the data (LightGCN's, for Gowalla and Yelp2018).

    Args:
        validation_share: of each user's remaining interactions, drawn and rounded as in
            ``random_split``; 0 leaves validation empty and train as published.

    Raises:
        DataError: the data has no published split.
    """
    if interactions.test_mark is None:
        raise DataError(
            f"{interactions.name} has no published split; gowalla, yelp2018 and folders of "
            "train.txt and test.txt do. Use random_split"
        )
    if not 0 <= validation_share < 1:
        raise DataError(f"validation_share should be from 0 to below 1, got {validation_share}")
    part = np.where(interactions.test_mark, 2, 0).astype(np.int8)
    rest = np.flatnonzero(part == 0)
    if validation_share and len(rest):
        remaining = interactions.subset(rest)
        shares = (1 - validation_share, validation_share, 0.0)
        keys = _keys(remaining, seed)
        part[rest] = _deal(remaining.users, remaining.num_users, shares, keys)
    how = "published"
    if validation_share:
        how += f", {validation_share:.0%} of each user's train for validation"
    return _split(interactions, part, how=how, seed=seed if validation_share else None)


def temporal_split(
    interactions: Interactions,
    *,
    ratios: Sequence[float] = (0.5, 0.25, 0.25),
    scope: Literal["user", "global"] = "user",
    seed: int = 0,
) -> Split:
    """Earlier interactions train, later ones validation and test.

    Args:
        scope: "user" cuts each user's own history, rounded as in ``random_split``, at least one in
            train. "global" cuts all interactions at two moments, as a live system would: users and
            items that first appear later then have count 0 in train.
        seed: orders interactions of the same second; in the order of ids they would leak
            popularity.

    Raises:
        DataError: the data has no timestamps.
    """
    shares = checked_shares(ratios)
    if interactions.timestamps is None:
        raise DataError(f"{interactions.name} has no timestamps; use random_split")
    if scope not in ("user", "global"):
        raise DataError(f"scope should be 'user' or 'global', got {scope!r}")
    order = np.lexsort((_keys(interactions, seed), interactions.timestamps))
    moment = np.empty(len(order), dtype=np.int64)
    moment[order] = np.arange(len(order))
    if scope == "user":
        part = _deal(interactions.users, interactions.num_users, shares, moment)
    else:
        part = _deal(np.zeros_like(interactions.users), 1, shares, moment)
    how = f"temporal {percent(shares)} {'per user' if scope == 'user' else 'over all'}"
    return _split(interactions, part, how=how, seed=seed)


def checked_shares(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Of train, validation and test, or DataError."""
    shares = tuple(float(ratio) for ratio in ratios)
    fine = len(shares) == 3 and all(math.isfinite(share) and share >= 0 for share in shares)
    if not fine or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise DataError(
            "ratios should be three numbers of 0 or more that sum to 1, the first above 0, got "
            f"{tuple(ratios)}"
        )
    return shares[0], shares[1], shares[2]


def _keys(interactions: Interactions, seed: int) -> NDArray[np.float64]:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(f"seed should be a whole number of 0 or more, got {seed!r}")
    return np.random.default_rng(seed).random(len(interactions))


def _deal(
    groups: NDArray[np.int32],
    num_groups: int,
    shares: tuple[float, float, float],
    keys: NDArray[Any],
) -> NDArray[np.int8]:
    """The part (0, 1, 2) of each interaction: each group's, in order of keys, cut at the shares."""
    counts = np.bincount(groups, minlength=num_groups)
    order = np.lexsort((keys, groups))
    place = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.maximum(np.floor(counts * shares[0] + 0.5), 1)
    second = np.maximum(np.floor(counts * (shares[0] + shares[1]) + 0.5), first)
    dealt = (place >= np.repeat(first, counts)).astype(np.int8)
    dealt += place >= np.repeat(second, counts)
    part = np.empty(len(groups), dtype=np.int8)
    part[order] = dealt
    return part


def _split(
    interactions: Interactions, part: NDArray[np.int8], *, how: str, seed: int | None
) -> Split:
    train, validation, test = (interactions.subset(part == which) for which in range(3))
    return Split(train=train, validation=validation, test=test, how=how, seed=seed)


def percent(shares: tuple[float, float, float]) -> str:
    """As reports write them: 80/10/10."""
    return "/".join(f"{100 * share:g}" for share in shares)

"""Made-up interactions that a model can learn from: popularity that falls as a power law, tastes
of a few latent factors, and users of very different activity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .interactions import Interactions

_START = 1_500_000_000  # July 2017, in Unix seconds
_YEAR = 365 * 24 * 3600
# Mandelbrot's shift of ranks, as a share of the items: real sets have no item that all users take.
_FLAT_HEAD = 0.02


def generate(
    *,
    num_users: int = 2_000,
    num_items: int = 3_000,
    interactions: int = 60_000,
    seed: int = 0,
    factors: int = 16,
    user_exponent: float = 0.6,
    item_exponent: float = 0.9,
    taste: float = 3.0,
    min_per_user: int = 4,
) -> Interactions:
    """Exactly so many distinct pairs, a second or two a million of them.

    An item's probability for a user is a sum over factors k of theta[user, k] * phi[k, item]:
    theta is drawn from a Dirichlet(0.05), so that a user likes one or two factors, and phi[k] is
    popularity times exp(taste * normal), that over its mean over factors. Popularity falls as
    (rank + 2 % of the items)^-item_exponent, users' activity as rank^-user_exponent. Ranks are
    dealt to ids at random, so that ids carry nothing. Pairs are drawn until each user has its
    number of distinct ones, which flattens the heads a little. Times are uniform over a year.

    Args:
        taste: how much factors differ in their items; 0 leaves popularity only.
        min_per_user: least interactions a user has, as far as ``interactions`` allow.

    Items, rare ones above all, may get no interaction: they are rows of count 0.

    Raises:
        DataError: fewer interactions than users, or more than half of all pairs.
    """
    _check(num_users, num_items, interactions, factors, min_per_user)
    rng = np.random.default_rng(seed)
    wanted = _activity(num_users, num_items, interactions, user_exponent, min_per_user, rng)
    theta = np.cumsum(rng.dirichlet(np.full(factors, 0.05), num_users), axis=1)
    ranks = np.arange(1, num_items + 1) + _FLAT_HEAD * num_items
    popularity = rng.permutation(ranks**-item_exponent)
    affinity = np.exp(taste * rng.standard_normal((factors, num_items)))
    # Over all factors an item has its popularity, however much it belongs to one of them.
    phi = np.cumsum(popularity * affinity / affinity.mean(axis=0), axis=1)
    # Row k of both runs from k to k + 1, so that one search over the flat array serves all rows.
    theta_flat = _stacked(theta)
    phi_flat = _stacked(phi)

    pairs = np.empty(0, dtype=np.int64)
    missing = wanted
    for _ in range(30):
        users = np.repeat(np.arange(num_users), missing + (missing + 1) // 2)
        factor = np.searchsorted(theta_flat, users + rng.random(len(users)), side="right")
        factor = np.minimum(factor - users * factors, factors - 1)
        item = np.searchsorted(phi_flat, factor + rng.random(len(users)), side="right")
        item = np.minimum(item - factor * num_items, num_items - 1)
        pairs = _add(pairs, users * num_items + item, missing, num_items)
        missing = wanted - np.bincount(pairs // num_items, minlength=num_users)
        if not missing.any():
            break
    pairs = _complete(pairs, missing, num_items, rng)
    return Interactions(
        users=(pairs // num_items).astype(np.int32),
        items=(pairs % num_items).astype(np.int32),
        num_users=num_users,
        num_items=num_items,
        timestamps=_START + rng.integers(0, _YEAR, len(pairs)),
        name=f"generated-{num_users}x{num_items}-{interactions}-seed{seed}",
    )


def _check(
    num_users: int, num_items: int, interactions: int, factors: int, min_per_user: int
) -> None:
    if min(num_users, num_items, factors) < 1 or min_per_user < 0:
        raise DataError(
            "num_users, num_items and factors should be at least 1 and min_per_user 0, got "
            f"{num_users}, {num_items}, {factors} and {min_per_user}"
        )
    if not num_users <= interactions <= num_users * num_items // 2:
        raise DataError(
            f"interactions should be from {num_users:,} (one a user) to "
            f"{num_users * num_items // 2:,} (half of all pairs), got {interactions:,}"
        )


def _activity(
    num_users: int,
    num_items: int,
    interactions: int,
    exponent: float,
    least: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """How many items each user takes, (num_users,): a power law between two bounds, exact sum."""
    low, high = min(least, interactions // num_users), (num_items + 1) // 2
    weight = rng.permutation(np.arange(1, num_users + 1, dtype=np.float64) ** -exponent)
    below, above = 0.0, high / weight.min()
    for _ in range(100):  # bisect the scale at which the sum is right
        scale = (below + above) / 2
        if np.minimum(low + scale * weight, high).sum() > interactions:
            above = scale
        else:
            below = scale
    exact = np.minimum(low + below * weight, high)
    taken = np.floor(exact).astype(np.int64)
    spare = np.argsort(-(exact - taken) + 2.0 * (taken >= high), kind="stable")
    taken[spare[: interactions - taken.sum()]] += 1
    return taken


def _stacked(cumulative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of cumulative weights, normalised and laid end to end: row k goes from k to k + 1."""
    cumulative = cumulative / cumulative[:, -1:] + np.arange(len(cumulative))[:, None]
    return np.asarray(cumulative).ravel()


def _add(
    pairs: NDArray[np.int64], drawn: NDArray[np.int64], missing: NDArray[np.int64], num_items: int
) -> NDArray[np.int64]:
    """Sorted pairs and, of those drawn, each user's first new ones, as many as it misses."""
    _, first = np.unique(drawn, return_index=True)
    drawn = drawn[np.sort(first)]
    if len(pairs):
        at = np.minimum(np.searchsorted(pairs, drawn), len(pairs) - 1)
        drawn = drawn[pairs[at] != drawn]
    users = drawn // num_items
    counts = np.bincount(users, minlength=len(missing))
    place = np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(np.concatenate((pairs, drawn[place < missing[users]])))


def _complete(
    pairs: NDArray[np.int64],
    missing: NDArray[np.int64],
    num_items: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The few that drawing left missing, where a user has nearly all of its taste, at random."""
    more = [pairs]
    for user in np.flatnonzero(missing):
        own = slice(*np.searchsorted(pairs, [user * num_items, (user + 1) * num_items]))
        rest = np.setdiff1d(np.arange(num_items), pairs[own] - user * num_items)
        more.append(user * num_items + rng.choice(rest, missing[user], replace=False))
    return np.sort(np.concatenate(more))

"""Small click splits that can be learnt."""

from __future__ import annotations

import numpy as np

from bet_torchrec.data.clicks import ClickLog, ClickSplit, Field, split_random

FIELDS = (Field("user", 30), Field("genres", 6, multi_hot=True), Field("item", 20))


def planted(n: int = 3000, *, dense: bool = False, seed: int = 0) -> ClickSplit:
    """Clicks drawn from a factorisation machine over two ids and a bag of genres."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, 30, n), rng.integers(0, 20, n)], axis=1)
    lengths = rng.integers(0, 4, n)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    genres = rng.integers(0, 6, offsets[-1])
    user, item, genre = (rng.normal(size=(rows, 3)) for rows in (30, 20, 6))
    bags = np.zeros((n, 3))
    np.add.at(bags, np.repeat(np.arange(n), lengths), genre[genres])
    taste = user[ids[:, 0]]
    logits = (taste * item[ids[:, 1]]).sum(1) + (taste * bags / 3).sum(1)
    given = rng.normal(size=(n, 2))
    if dense:
        logits = logits + given[:, 0]
    labels = rng.random(n) < 1 / (1 + np.exp(-2 * logits))
    log = ClickLog.from_arrays(
        FIELDS,
        labels=labels.astype(np.float32),
        ids=ids,
        bags={"genres": (genres, offsets)},
        dense=given if dense else None,
    )
    return split_random(log, seed=seed)

"""Small data for the training tests."""

from __future__ import annotations

import numpy as np

from bet_torchrec.data import Interactions, Split


def small_split(seed: int = 0) -> Split:
    """60 users x 80 items with a rank-4 structure: 750 / 350 / 400 interactions."""
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(60, 4)), rng.normal(size=(80, 4))
    weights = np.exp(1.5 * users @ items.T).ravel()
    chosen = rng.choice(60 * 80, 1500, replace=False, p=weights / weights.sum())
    parts = [
        Interactions(
            users=(part // 80).astype(np.int32),
            items=(part % 80).astype(np.int32),
            num_users=60,
            num_items=80,
        )
        for part in np.split(chosen, [750, 1100])
    ]
    return Split(train=parts[0], validation=parts[1], test=parts[2], how="drawn", seed=seed)

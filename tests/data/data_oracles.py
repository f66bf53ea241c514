"""What the data tests share: slow and plain versions, and small interactions."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from bet_torchrec.data import Interactions


def tiny() -> Interactions:
    """Three users, four items, seven pairs; item 3 and nobody else has none."""
    return Interactions(
        users=np.array([0, 0, 1, 1, 1, 2, 2]),
        items=np.array([0, 1, 0, 1, 2, 1, 2]),
        num_users=3,
        num_items=4,
        timestamps=np.array([5, 3, 1, 2, 3, 9, 8]),
        test_mark=np.array([0, 1, 0, 0, 1, 0, 1], dtype=bool),
        name="tiny",
    )


def pairs_of(interactions: Interactions) -> list[tuple[int, int]]:
    """Its pairs in order."""
    users, items = interactions.users.tolist(), interactions.items.tolist()
    return list(zip(users, items, strict=True))


def original_pairs(interactions: Interactions) -> set[tuple[object, object]]:
    """Its pairs in original ids."""
    user, item = interactions.user_labels, interactions.item_labels
    return {
        (u if user is None else user[u].item(), i if item is None else item[i].item())
        for u, i in pairs_of(interactions)
    }


@st.composite
def pair_lists(draw: st.DrawFn) -> Interactions:
    """Up to 60 distinct pairs of up to 8 users and 12 items, some rows empty."""
    users, items = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    cells = draw(st.sets(st.integers(0, users * items - 1), min_size=1, max_size=60))
    keys = np.array(sorted(cells))
    return Interactions(
        users=keys // items,
        items=keys % items,
        num_users=users,
        num_items=items,
        timestamps=np.array(
            draw(st.lists(st.integers(0, 5), min_size=len(keys), max_size=len(keys)))
        ),
        test_mark=np.array(draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys)))),
    )

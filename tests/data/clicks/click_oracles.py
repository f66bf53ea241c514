"""What the click tests share: a log small enough to check by hand, and any small log."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from bet_torchrec.data.clicks import ClickLog, Field, Vocabulary

FIELDS = (Field("user", 5), Field("genres", 4, multi_hot=True), Field("item", 3))


def tiny() -> ClickLog:
    """Six examples of a user, an item and a bag of genres; user 4 and genre 3 never occur."""
    return ClickLog.from_arrays(
        FIELDS,
        labels=[1, 0, 0, 1, 1, 0],
        ids=[[1, 1], [1, 2], [2, 1], [3, 1], [3, 2], [3, 1]],
        bags={"genres": ([1, 2, 1, 1, 2, 2], [0, 2, 3, 3, 5, 6, 6])},
        dense=[[0.5], [1], [2], [3], [4], [5]],
        dense_names=["price"],
        timestamps=[10, 30, 20, 50, 40, 60],
        vocabularies={"user": Vocabulary.of("user", ["ann", "bob", "cy", "dee"])},
        name="tiny",
    )


def examples_of(log: ClickLog) -> list[tuple[object, ...]]:
    """Every example as plain values, read one at a time through ``batch``."""
    found = []
    for row in range(len(log)):
        one = log.batch([row])
        bags = tuple(tuple(one.bags[name][0].tolist()) for name in log.multi)
        dense = None if one.dense is None else tuple(one.dense[0].tolist())
        found.append((tuple(one.ids[0].tolist()), bags, dense, one.labels[0].item()))
    return found


@st.composite
def logs(draw: st.DrawFn) -> ClickLog:
    """Up to 30 examples of up to three single-hot and two multi-hot fields."""
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.lists(st.integers(1, 6), min_size=0, max_size=3))
    multi = draw(st.lists(st.integers(1, 6), min_size=0, max_size=2))
    fields = [Field(f"s{i}", size) for i, size in enumerate(rows)]
    fields += [Field(f"m{i}", size, multi_hot=True) for i, size in enumerate(multi)]
    bags = {}
    for field in fields[len(rows) :]:
        offsets = np.concatenate(([0], np.cumsum(rng.integers(0, 4, n))))
        bags[field.name] = (rng.integers(0, field.rows, offsets[-1]), offsets)
    ids = [rng.integers(0, size, n) for size in rows]
    return ClickLog.from_arrays(
        fields,
        labels=rng.integers(0, 2, n),
        ids=np.stack(ids, axis=1) if ids else None,
        bags=bags,
        dense=rng.random((n, 2)) if draw(st.booleans()) else None,
        timestamps=rng.integers(0, 5, n),
    )

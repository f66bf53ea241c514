"""A stored tensor's pieces make up the whole, or are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bet_torchrec.embeddings.checkpoints.stored import Piece, StoredTensor


def piece(offsets, sizes):
    return Piece(tuple(offsets), tuple(sizes), "F32", "__0_0.safetensors")


def cut(draw, offsets, sizes):
    """Pieces of a box by cutting it again and again."""
    cuttable = [d for d, n in enumerate(sizes) if n > 1]
    if not cuttable or not draw(st.integers(0, 3)):
        return [piece(offsets, sizes)]
    d = draw(st.sampled_from(cuttable))
    at = draw(st.integers(1, sizes[d] - 1))
    first, second = list(sizes), list(sizes)
    first[d], second[d] = at, sizes[d] - at
    further = list(offsets)
    further[d] += at
    return [*cut(draw, offsets, first), *cut(draw, further, second)]


def covers(shape, pieces):
    """The oracle: each entry of the whole is in exactly one piece."""
    count = np.zeros(shape, dtype=int)
    for one in pieces:
        ends = [o + n for o, n in zip(one.offsets, one.sizes, strict=True)]
        if any(not 0 <= o < e <= n for o, e, n in zip(one.offsets, ends, shape, strict=True)):
            return False
        count[tuple(slice(o, e) for o, e in zip(one.offsets, ends, strict=True))] += 1
    return bool((count == 1).all())


@settings(deadline=None)
@given(st.data())
def test_as_counted_entry_by_entry(data) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), max_size=3))
    pieces = cut(data.draw, [0] * len(shape), shape)
    StoredTensor(tuple(shape), tuple(pieces))
    kind = data.draw(st.sampled_from(["lose", "double", "shift"]))
    i = data.draw(st.integers(0, len(pieces) - 1))
    if kind == "lose":
        pieces.pop(i)
    elif kind == "double":
        pieces.append(pieces[i])
    elif shape:
        d = data.draw(st.integers(0, len(shape) - 1))
        by = data.draw(st.sampled_from([-1, 1]))
        field = data.draw(st.sampled_from(["offsets", "sizes"]))
        values = list(getattr(pieces[i], field))
        values[d] += by
        pieces[i] = dataclasses.replace(pieces[i], **{field: tuple(values)})
    if covers(shape, pieces):
        StoredTensor(tuple(shape), tuple(pieces))
    else:
        with pytest.raises(ValueError, match="piece"):
            StoredTensor(tuple(shape), tuple(pieces))


def test_empty_tensors_have_no_pieces() -> None:
    StoredTensor((0, 5), ())
    for shape, pieces in (((), ()), ((0,), (piece([0], [0]),)), ((2,), (piece([0, 0], [2, 1]),))):
        with pytest.raises(ValueError, match="piece"):
            StoredTensor(shape, pieces)


def test_many_shards_are_quick_and_absurd_ones_refused() -> None:
    rows = 5000
    StoredTensor((rows, 8), tuple(piece([r, 0], [1, 8]) for r in range(rows)))
    n = 10_000
    diagonal = tuple(piece([i, i], [1, 1]) for i in range(n))
    with pytest.raises(ValueError, match="too unevenly"):
        StoredTensor((n, n), diagonal)

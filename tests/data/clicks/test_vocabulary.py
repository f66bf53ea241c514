"""Vocabularies: a row for every value, one for all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bet_torchrec.data import DataError
from bet_torchrec.data.clicks import Vocabulary


@given(st.lists(st.integers(-(2**62), 2**62)), st.lists(st.integers(-(2**62), 2**62)))
def test_integers_against_a_dict(values: list[int], asked: list[int]):
    known = Vocabulary.of("x", np.array(values, dtype=np.int64))
    rows = {value: row for row, value in enumerate(sorted(set(values)), 1)}
    asked = asked + values
    encoded = known.encode(np.array(asked, dtype=np.int64))
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [rows.get(value, 0) for value in asked]
    assert known.num_rows == len(rows) + 1
    assert known.decode(encoded) == [value if value in rows else None for value in asked]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_strings_survive_a_file(tmp_path: Path, values: list[str]):
    known = Vocabulary.of("x", np.array(values, dtype=str))
    again = Vocabulary.load(known.save(tmp_path / "v.npz"))
    rows = {value: row for row, value in enumerate(sorted(set(values)), 1)}
    asked = [*values, "not there, surely"]
    assert again.encode(np.array(asked)).tolist() == [rows.get(value, 0) for value in asked]


def test_rows_elsewhere():
    known = Vocabulary.of("x", ["a", "b", "c"])
    fewer = known.kept(np.array([1, 0, 1, 2], dtype=np.int32), oov=1)
    assert fewer.encode(["a", "b", "c", "z"]).tolist() == [0, 1, 2, 1]
    assert fewer.decode([0, 1, 2]) == ["a", None, "c"]


def test_the_wrong_kind_is_told():
    with pytest.raises(DataError, match="vocabulary of 'x' is of int64, got <U1"):
        Vocabulary.of("x", [1, 2]).encode(["1"])
    with pytest.raises(DataError, match="is of <U1, got int64"):
        Vocabulary.of("x", ["1"]).encode([1])


@pytest.mark.parametrize(
    ("values", "rows", "says"),
    [
        ([2, 1], [1, 2], "sorted and different"),
        ([1, 2], [1, 1], "each once"),
        ([1, 2], [1, 3], "each once"),
        ([1.5, 2], [1, 2], "integers or strings"),
        ([1, 2], [1], "a row each"),
    ],
)
def test_what_is_no_vocabulary(values: list[float], rows: list[int], says: str):
    with pytest.raises(DataError, match=says):
        Vocabulary("x", np.array(values), np.array(rows, dtype=np.int32))


def test_files_that_are_none(tmp_path: Path):
    path = tmp_path / "v.npz"
    np.savez(path, a=[1])
    with pytest.raises(DataError, match="should be a vocabulary of version 1 or older, got .* a"):
        Vocabulary.load(path)
    arrays = Vocabulary.of("x", [1]).arrays()
    del arrays["rows"]
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="damaged: it has no 'rows'"):
        Vocabulary.load(path)

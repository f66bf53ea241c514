"""Tensor files: what safetensors reads and writes too, checked to the last byte before use."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated
from safetensors.numpy import load_file, save_file

from bet_torchrec.files.tensors import (
    CHECKSUM,
    Entry,
    TensorFileError,
    from_bytes,
    open_file,
    write_file,
)

ARRAYS = {
    "wide": np.linspace(0, 1, 6, dtype="<f8").reshape(2, 3),
    "ids": np.arange(5, dtype="<i4"),
    "none": np.zeros((0, 7), dtype="<f2"),
    "one": np.array(3, dtype="u1"),
}
TYPES = {"wide": "F64", "ids": "I32", "none": "F16", "one": "U8"}


def written(path: Path) -> Path:
    entries = [
        Entry(name, TYPES[name], array.shape, partial(iter, [array]))
        for name, array in ARRAYS.items()
    ]
    checksum = write_file(path, {"who": "me", "header": '{"a": 1}'}, entries)
    assert open_file(path).metadata[CHECKSUM] == checksum
    return path


def test_there_and_back_and_by_others(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "file")
    theirs = load_file(path)
    for file in (open_file(path), from_bytes(path.read_bytes())):
        file.verify()
        assert set(file.tensors) == set(theirs) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert np.array_equal(file.array(name), array)
            assert np.array_equal(theirs[name], array)
            assert file.array(name).dtype == array.dtype
        assert file.header(dict[str, int]) == {"a": 1}
        with pytest.raises(TensorFileError, match="no tensor 'x'"):
            file.array("x")


def test_files_of_others_are_read(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "theirs")
    file = open_file(tmp_path / "theirs")
    assert {n: file.array(n).tolist() for n in ARRAYS} == {n: a.tolist() for n, a in ARRAYS.items()}
    with pytest.raises(TensorFileError, match="checksum does not match"):
        file.verify()
    with pytest.raises(TensorFileError, match="no readable header"):
        file.header(dict)
    save_file({}, tmp_path / "empty")
    assert open_file(tmp_path / "empty").tensors == {}


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    good = written(tmp_path / "file").read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with pytest.raises(TensorFileError):
            from_bytes(bytes(bad)).verify()


def described(**changes: Any) -> bytes:
    """A file of 8 bytes of data whose one tensor says this of itself."""
    told = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8], **changes}
    text = json.dumps({"x": told}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no safetensors file"),
        ((10**9).to_bytes(8, "little") + bytes(99), "no safetensors file"),
        (described(dtype="Q9"), "there is no tensor of 'Q9'"),
        (described(shape=[-2, -4]), "there is no tensor"),
        (described(shape=[7]), "takes 7 bytes, not 0 to 8"),
        (described(shape=[2**62, 4]), "bytes, not 0 to 8"),
        (described(data_offsets=[8, 0]), "bytes, not 8 to 0"),
        (described(data_offsets=[-8, 0]), "bytes, not -8 to 0"),
        (described(data_offsets=[8, 16]), "one after the other"),
        (described(shape=[4], data_offsets=[0, 4]), "longer or shorter"),
        (described(shape="8"), r"table of tensors\['x'\].shape should be a list, got '8'"),
        (described(more=1), "has no 'more'"),
    ],
)
def test_headers_that_contradict_the_data(data: bytes, says: str) -> None:
    with pytest.raises(TensorFileError, match=says):
        from_bytes(data)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("good") / "file").read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_only_our_error_comes_out(good: bytes, data: Any) -> None:
    length = int.from_bytes(good[:8], "little")
    text = json.dumps(mutated(data.draw, json.loads(good[8 : 8 + length]))).encode()
    try:
        file = from_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])
        for name in file.tensors:
            assert file.array(name).nbytes == len(file.raw(name))
    except TensorFileError:
        pass


def test_pieces_that_are_too_few_are_a_mistake_of_ours(tmp_path: Path) -> None:
    entry = Entry("x", "U8", (4,), partial(iter, [np.zeros(3, np.uint8)]))
    with pytest.raises(RuntimeError, match="3 bytes for shape"):
        write_file(tmp_path / "file", {}, [entry])
    assert not list(tmp_path.iterdir())

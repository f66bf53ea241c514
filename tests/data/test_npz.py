"""npz files: a saved set comes back whole, foreign arrays are read, damage is told."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_oracles import original_pairs, pair_lists, pairs_of, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bet_torchrec.data import DataError, Interactions, load

SHARED = [HealthCheck.function_scoped_fixture]  # each example writes its file anew
FIELDS = ("users", "items", "timestamps", "test_mark", "user_labels", "item_labels")


def assert_same(one: Interactions, other: Interactions) -> None:
    for field in FIELDS:
        ours, theirs = getattr(one, field), getattr(other, field)
        assert (ours is None) == (theirs is None), field
        if ours is not None:
            assert ours.dtype == theirs.dtype
            assert (ours == theirs).all()
    assert (one.num_users, one.num_items, one.name) == (
        other.num_users,
        other.num_items,
        other.name,
    )
    assert one.notes == other.notes


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(pair_lists())
def test_a_saved_set_comes_back_whole(tmp_path: Path, data: Interactions):
    path = data.by_rank().save(tmp_path / "deep" / "saved.npz")
    assert_same(Interactions.load(path), data.by_rank())
    assert_same(load(path), data.by_rank())
    assert os.listdir(path.parent) == ["saved.npz"]


def test_string_labels_notes_and_empty_rows_survive(tmp_path: Path):
    data = Interactions.from_pairs(["bob", "al", "al"], ["x", "y", "y"], name="mine")
    assert_same(Interactions.load(data.save(tmp_path / "a.npz")), data)
    assert Interactions.load(tiny().save(tmp_path / "b.npz")).num_items == 4
    with pytest.raises(DataError, match="saved without ratings"):
        load(tmp_path / "a.npz", min_rating=3)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tiny().save(tmp_path / "a.npz")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="disk full"):
        tiny().by_rank().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_arrays_of_others(tmp_path: Path):
    path = tmp_path / "theirs.npz"
    np.savez(path, user_id=[4, 2, 4], movieId=[1, 1, 0], stars=[5, 1, 3], time=[1.9, 2, 3])
    data = load(path, min_rating=3)
    assert original_pairs(data) == {(4, 1), (4, 0)}
    assert data.timestamps.tolist() == [3, 1]
    np.savez(path, a=["u", "v"], b=[3, 4])
    assert original_pairs(load(path, user="a", item="b")) == {("u", 3), ("v", 4)}
    np.savez(path, user=np.float32([0, 1]), item=[0, 1], lightgcn_test=np.uint8([1, 0]))
    assert load(path).test_mark.tolist() == [True, False]
    assert pairs_of(load(path)) == [(0, 0), (1, 1)]


def arrays(**more: object) -> dict[str, object]:
    return {"user": [0, 1], "item": [1, 0], **more}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (arrays(user=[0, -1]), "user ids should be 0 or more, got -1"),
        (arrays(user=[0, np.nan]), "whole numbers or strings, got nan"),
        (arrays(item=[0]), "one length"),
        (arrays(item=[[0], [1]]), "one dimension"),
        (arrays(rating=[1, np.inf]), "ratings should be finite, got inf"),
        (arrays(rating=["a", "b"]), "ratings should be numbers"),
        (arrays(time=["a", "b"]), "timestamps should be 2 numbers"),
        ({"user": [], "item": []}, "at least one interaction"),
        ({"user": [0]}, "an array of users and one of items, got user"),
        (arrays(user=np.array([{}, []], dtype=object)), "pickled objects"),
    ],
)
def test_arrays_that_are_no_data(tmp_path: Path, content: dict[str, object], says: str):
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=says):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"<html></html>", pickle.dumps({}), b"\x93NUMPY\x01\0"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    for reader in (load, Interactions.load):
        with pytest.raises(DataError, match="should be an npz archive"):
            reader(tmp_path / "a.npz")


def test_truncation_at_any_place_is_told(tmp_path: Path):
    whole = tiny().save(tmp_path / "a.npz").read_bytes()
    for length in range(4, len(whole), 97):
        (tmp_path / "b.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated"):
            load(tmp_path / "b.npz")


def test_a_changed_or_newer_saved_file_is_told(tmp_path: Path):
    with np.load(tiny().save(tmp_path / "a.npz")) as file:
        saved = dict(file)
    np.savez(tmp_path / "b.npz", **{**saved, "item": saved["item"][::-1]})
    with pytest.raises(DataError, match="does not match its fingerprint"):
        load(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", **{**saved, "bet_torchrec_interactions": np.int64(99)})
    with pytest.raises(DataError, match="upgrade bet_torchrec"):
        load(tmp_path / "b.npz")
    del saved["num_users"]
    np.savez(tmp_path / "b.npz", **saved)
    with pytest.raises(DataError, match="damaged.*num_users"):
        load(tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", user=[0], item=[0])
    with pytest.raises(DataError, match=r"written by Interactions.save"):
        Interactions.load(tmp_path / "b.npz")


def test_a_position_makes_no_sense_in_an_npz(tmp_path: Path):
    np.savez(tmp_path / "a.npz", user=[0], item=[0])
    with pytest.raises(DataError, match="have names, got position 0"):
        load(tmp_path / "a.npz", user=0)


def noisy(method: int) -> bytes:
    """An archive whose member is compressed noise."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("user.npy", bytes(range(256)) * 9)
    data = bytearray(buffer.getvalue())
    data[60:120] = bytes(range(60, 120))
    return bytes(data)


def with_header(header: str) -> bytes:
    """An archive of one npy file that says this of itself."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        text = header.encode()
        member = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text
        archive.writestr("user.npy", member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        noisy(zipfile.ZIP_LZMA),
        noisy(zipfile.ZIP_BZIP2),
        noisy(zipfile.ZIP_DEFLATED),
        with_header("(" * 9000),
        with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}"),
        with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 99,)}"),
        with_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}"),
        with_header("{'descr': [('a', '<i8')] * 9, 'fortran_order': False, 'shape': (1,)}"),
        with_header("\0"),
    ],
)
def test_damaged_members_are_told(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"should be an npz file of plain arrays"):
        load(tmp_path / "a.npz")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_anywhere_is_told_or_means_nothing(tmp_path: Path, data: st.DataObject):
    whole = bytearray(tiny().save(tmp_path / "a.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    (tmp_path / "b.npz").write_bytes(bytes(whole))
    try:
        found = load(tmp_path / "b.npz")
    except DataError:
        return
    assert_same(found, tiny())


ODD = (
    st.sampled_from(
        ["<i8", "<u8", "<f8", "<f2", "<c8", "?", "S3", "<U3", "<M8[s]", "<m8[D]", "V2", "<i8,<f4"]
    ),
    st.sampled_from([(), (0,), (2,), (2, 1), (3,)]),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(["user", "item", "rating", "time", "test", "bet_torchrec_interactions"]),
        st.tuples(*ODD),
        min_size=1,
    )
)
def test_arrays_of_any_type_are_data_or_a_data_error(tmp_path: Path, chosen: Any):
    content = {name: np.zeros(shape, kind) for name, (kind, shape) in chosen.items()}
    np.savez(tmp_path / "a.npz", **content)
    for options in ({}, {"min_rating": 1}):
        try:
            load(tmp_path / "a.npz", **options)
        except DataError:
            continue

"""Named data sets: where they are looked for, fetched from, and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_oracles import original_pairs
from file_server import Site, serve

from bet_torchrec.data import (
    DATASETS,
    DataError,
    DataNotFoundError,
    DownloadError,
    Interactions,
    data_directory,
    load,
    loaders,
)
from bet_torchrec.data.sources import Source

TRAIN, TEST = b"0 0 2\n1 1\n2 0 1\n", b"0 1\n2 2\n"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A data set "toy" on a server of this machine, and no other folder than data_dir."""
    users, items = np.array([0, 0, 0, 1, 2, 2, 2]), np.array([0, 1, 2, 1, 0, 1, 2])
    known = Interactions(users=users, items=items, num_users=3, num_items=3)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve({"/train.txt": TRAIN, "/test.txt": TEST}) as site:
        sources = tuple(
            Source(url=f"{site.url}/{name}", name=name) for name in ("train.txt", "test.txt")
        )
        toy = dataclasses.replace(
            DATASETS["gowalla"],
            name="toy",
            users=3,
            items=3,
            interactions=7,
            test=2,
            fingerprint=known.fingerprint(),
            sources=sources,
        )
        monkeypatch.setattr(loaders, "DATASETS", {"toy": toy})
        yield site


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BET_TORCHREC_DATA", raising=False)
    assert data_directory() == tmp_path / ".cache" / "bet_torchrec"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_directory() == tmp_path / "cache" / "bet_torchrec"
    monkeypatch.setenv("BET_TORCHREC_DATA", str(tmp_path / "named"))
    assert data_directory() == tmp_path / "named"
    assert data_directory("~/own") == tmp_path / "own"


def test_a_missing_set_is_downloaded_once_and_checked(toy: Site, tmp_path: Path):
    for _ in range(2):
        data = load("toy", data_dir=tmp_path, progress=False)
    assert len(toy.asked) == 2
    assert data.name == "toy"
    assert original_pairs(data.subset(data.test_mark)) == {(0, 1), (2, 2)}
    assert (tmp_path / "toy" / "train.txt").read_bytes() == TRAIN


def test_a_half_done_download_is_finished(toy: Site, tmp_path: Path):
    del toy.files["/test.txt"]
    with pytest.raises(DownloadError, match="toy is not in .*answered 404.*BET_TORCHREC_DATA"):
        load("toy", data_dir=tmp_path, progress=False)
    toy.files["/test.txt"] = TEST
    assert len(load("toy", data_dir=tmp_path, progress=False)) == 7
    assert toy.asked == ["/train.txt", "/test.txt", "/test.txt"]


@pytest.mark.parametrize(
    ("train", "test"),
    [(TRAIN[:-2], TEST), (TRAIN, b"0 1\n"), (TRAIN + b"2 2\n", TEST), (TRAIN + b"5 7\n", TEST)],
)
def test_a_truncated_or_other_version_is_told(toy: Site, tmp_path: Path, train: bytes, test: bytes):
    toy.files.update({"/train.txt": train, "/test.txt": test})
    with pytest.raises(DataError, match="should hold toy with 3 users.*truncated, or another"):
        load("toy", data_dir=tmp_path, progress=False)
    load(tmp_path / "toy")  # by its path it is anybody's data


def test_a_copy_of_ours_serves_as_well(toy: Site, tmp_path: Path):
    whole = load("toy", data_dir=tmp_path / "a", progress=False)
    (tmp_path / "b" / "toy").mkdir(parents=True)
    whole.save(tmp_path / "b" / "toy" / "interactions.npz")
    again = load("toy", data_dir=tmp_path / "b", download=False)
    assert again.fingerprint() == whole.fingerprint()
    with pytest.raises(DataError, match="without ratings"):
        load("toy", data_dir=tmp_path / "b", min_rating=3)
    with pytest.raises(DataError, match="needs a column of ratings"):
        load("toy", data_dir=tmp_path / "a", min_rating=3)


def test_without_download_a_missing_set_is_not_found(toy: Site, tmp_path: Path):
    with pytest.raises(DataNotFoundError, match=r"toy: expected interactions.npz or train.txt"):
        load("toy", data_dir=tmp_path, download=False)
    assert toy.asked == []


@pytest.mark.parametrize(("name", "says"), [("gowala", "Did you mean 'gowalla'"), ("x.csv", "got")])
def test_no_such_name_or_file(tmp_path: Path, name: str, says: str):
    with pytest.raises(DataNotFoundError, match=f"expected one of gowalla.*{says}"):
        load(name, data_dir=tmp_path)


def test_a_folder_without_data(tmp_path: Path):
    with pytest.raises(DataNotFoundError, match="is a folder; expected a file, or a folder with"):
        load(tmp_path)


def test_files_in_the_data_folder_by_their_name(tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "u.data").write_text("1\t2\t3\t4\n1\t5\t5\t6\n")
    data = load("own", data_dir=tmp_path, min_rating=3)
    assert original_pairs(data) == {(1, 2), (1, 5)}
    assert data.timestamps.tolist() == [4, 6]
    assert len(load("own/u.data", data_dir=tmp_path, min_rating=4)) == 1
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n1::5::5::6\n")
    data = load(tmp_path / "ratings.dat")
    assert original_pairs(data) == {(1, 2), (1, 5)}
    assert data.timestamps.tolist() == [4, 6]

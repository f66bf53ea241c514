"""Click files of others, made by hand: Criteo, Avazu, TorchRec's binary form, libfm, npz."""

from __future__ import annotations

import gzip
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bet_torchrec.data import DataError, DataNotFoundError
from bet_torchrec.data.clicks import (
    ClickLog,
    Field,
    read_avazu,
    read_binary_criteo,
    read_coded,
    read_criteo,
    read_criteo_encoded,
    read_libfm,
    read_movielens,
    read_movielens_pep,
    split_given,
)
from bet_torchrec.data.clicks.integers import log_square, log_squares


def values_of(log: ClickLog) -> list[dict[str, Any]]:
    """Every example in the values of its vocabularies."""
    columns = {
        name: log.vocabularies[name].decode(log.ids[:, i]) for i, name in enumerate(log.single)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# Two lines of Criteo: label, 13 integers, 26 hashes.
ONE = ["1", "0", "-1", "", "3", *["100"] * 9, "68fd1e64", "", *["a"] * 24]
TWO = ["0", "2", "-2", "7", "4", *["101"] * 9, "05db9164", "b", *["a"] * 24]


def tsv(*rows: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def test_criteo_as_fields(tmp_path: Path):
    path = tmp_path / "train.txt"
    path.write_text(tsv(ONE, TWO))
    log = read_criteo(path)
    assert log.labels.tolist() == [1.0, 0.0]
    first, second = values_of(log)
    assert [first[f"int_{i}"] for i in range(5)] == ["-2", "-3", "", "1", "21"]
    assert [second[f"int_{i}"] for i in range(5)] == ["0", "-4", "3", "1", "21"]
    assert [first[f"cat_{i}"] for i in range(3)] == ["68fd1e64", "", "a"]
    assert log.field("int_3").rows == 2  # 3 and 4 share a value
    assert log.field("cat_0").rows == 3
    assert log.counts()["cat_25"].tolist() == [0, 2]
    (tmp_path / "day_0.gz").write_bytes(gzip.compress(tsv(TWO).encode()))
    both = read_criteo([path, tmp_path / "day_0.gz"])
    assert values_of(both) == [first, second, second]


def test_criteo_with_dense_integers(tmp_path: Path):
    path = tmp_path / "train.txt"
    path.write_text(tsv(ONE, TWO))
    log = read_criteo(path, integers="dense")
    assert len(log.fields) == 26
    assert log.dense_names == tuple(f"int_{i}" for i in range(13))
    expected = [0, 0, 0, math.log(4), *[math.log(101)] * 9]
    assert log.dense[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (tsv(ONE, TWO[:-1]), "line 2 should have 40 columns, got 39"),
        (tsv(ONE) + "\n\n" + tsv([*TWO, "x"]), "line 4 should have 40 columns, got 41"),
        (tsv(ONE, ["x", *TWO[1:]]), "label in line 2 should be a number, got 'x'"),
        (tsv(ONE, ["2", *TWO[1:]]), "label in line 2 should be 0 or 1, got '2'"),
        (tsv(ONE, ["nan", *TWO[1:]]), "label in line 2 should be a number, got 'nan'"),
        (tsv(ONE, ["0", "1.5", *TWO[2:]]), "int_0 in line 2: invalid literal"),
        (tsv(ONE, [*TWO[:39], "a" * 201]), "cat_25 in line 2: values should be short, got 201"),
        (tsv(ONE, ONE), "labels should be of both classes, got 1 in all 2"),
        ("", "is empty; expected lines of 40 columns"),
        ("<html>", "a web page"),
    ],
)
def test_what_is_not_criteos(tmp_path: Path, text: str, says: str):
    path = tmp_path / "train.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_criteo(path)


def test_bytes_that_are_not_criteos(tmp_path: Path):
    path = tmp_path / "train.txt"
    path.write_bytes(tsv(ONE).encode() + b"\xff\n")
    with pytest.raises(DataError, match="should be text in UTF-8"):
        read_criteo(path)
    path.write_bytes(gzip.compress(tsv(*[ONE, TWO] * 500).encode())[:-20])
    with pytest.raises(DataError, match="truncated gzip"):
        read_criteo(path)
    with pytest.raises(DataError, match="can't be read"):
        read_criteo(tmp_path / "none.txt")


def test_peps_rule_for_integers():
    numbers = [-5, 0, 1, 2, 3, 4, 7, 8, 1000, 2**31]
    expected = ["-7", "-2", "-1", "0", "1", "1", "3", "4", "47", "461"]
    assert [log_square(str(number)) for number in numbers] == expected
    wide = np.arange(-3, 100_000)
    assert log_squares(wide).tolist() == [int(log_square(str(i))) for i in wide]
    with pytest.raises(DataError, match="should be integers, got float64"):
        log_squares([1.5])


def test_encoded_criteo(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(f"1,{','.join(['5'] * 39)}\n0,{','.join(['10'] * 39)}\n")
    log = read_criteo_encoded(path)
    assert log.vocabularies["cat_3"].values.tolist() == [5, 10]
    assert log.ids.tolist() == [[1] * 39, [2] * 39]


AVAZU = "id,click,hour,C1,site_id\n1,0,14102100,1005,aa\n2,1,14102623,1005,bb\n"


def test_avazu_has_hours_and_weekdays(tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text(AVAZU)
    log = read_avazu(path)
    assert values_of(log) == [
        {"hour": "00", "weekday": "1", "C1": "1005", "site_id": "aa"},  # a Tuesday
        {"hour": "23", "weekday": "6", "C1": "1005", "site_id": "bb"},  # a Sunday
    ]
    assert log.timestamps.tolist() == [1_413_849_600, 1_414_364_400]
    path.write_text("click,hour,C1\n0,02,7\n1,17,8\n")
    hours = read_avazu(path)
    assert [one["hour"] for one in values_of(hours)] == ["02", "17"]
    assert hours.timestamps is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (AVAZU.replace("14102623", "14132623"), "hour in line 3: an hour should be YYMMDDHH"),
        (AVAZU.replace("14102623", "23"), "hour in line 3: an hour should be|invalid literal"),
        (AVAZU.replace("14102100", "02"), "hour in line 3: an hour should be HH"),
        (AVAZU.replace("click", "klick"), "should have Avazu's header, with click and hour"),
        (AVAZU.replace("site_id", "C1"), "should have different columns"),
        (AVAZU + "3,1\n", "line 4 should have 5 columns, got 2"),
        (AVAZU.split("\n")[0], "has a header and no examples"),
    ],
)
def test_what_is_not_avazus(tmp_path: Path, text: str, says: str):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_avazu(path)


def test_avazu_files_of_one_kind(tmp_path: Path):
    (tmp_path / "a.csv").write_text(AVAZU)
    (tmp_path / "b.csv").write_text(AVAZU)
    assert len(read_avazu([tmp_path / "a.csv", tmp_path / "b.csv"])) == 4
    (tmp_path / "b.csv").write_text(AVAZU.replace("C1", "C2"))
    with pytest.raises(DataError, match="b.csv should have the columns of .*a.csv"):
        read_avazu([tmp_path / "a.csv", tmp_path / "b.csv"])


def torchrec_writes(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary files of a tsv by TorchRec's own utilities, with a stand-in for iopath."""
    manager = types.SimpleNamespace(open=open, set_strict_kwargs_checking=lambda _: None)
    fake = types.SimpleNamespace(PathManagerFactory=lambda: {"torchrec": manager})
    for name in ("iopath", "iopath.common"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "iopath.common.file_io", fake)
    from torchrec.datasets.criteo import BinaryCriteoUtils

    (folder / "day_0.tsv").write_text(text)
    files = [str(folder / f"day_0_{part}.npy") for part in ("dense", "sparse", "labels")]
    BinaryCriteoUtils.tsv_to_npys(str(folder / "day_0.tsv"), *files)
    BinaryCriteoUtils.sparse_to_contiguous([files[1]], str(folder), 1)


def test_torchrecs_own_binary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = tsv(ONE, TWO, ONE)
    torchrec_writes(tmp_path, text, monkeypatch)
    names = [tmp_path / f"day_0_{part}.npy" for part in ("dense", "sparse", "labels")]
    log = read_binary_criteo(*names)
    assert log.labels.tolist() == [1.0, 0.0, 1.0]
    assert log.dense.tolist() == np.load(names[0]).tolist()
    one = values_of(log)[0]
    assert (one["cat_0"], one["cat_1"], one["cat_2"]) == (0x68FD1E64, 0, 0xA)
    # The text gives the same examples the same rows, but for names.
    assert [f.rows for f in log.fields] == [
        f.rows for f in read_criteo(tmp_path / "day_0.tsv", integers="dense").fields
    ]
    names[1] = tmp_path / "day_0_sparse_contig_freq.npy"
    kept = read_binary_criteo(*names, contiguous=True)
    assert kept.ids.tolist() == np.load(names[1]).tolist()
    twice = read_binary_criteo(*([name, name] for name in names), contiguous=True)
    assert twice.take(slice(3, 6)).fingerprint() == kept.fingerprint()


def triple(folder: Path, **change: Any) -> list[Path]:
    """Three examples of two dense values and two ids, or others."""
    arrays = {
        "dense": np.ones((3, 2), np.float32),
        "sparse": np.array([[1, 2], [3, 2], [1, 5]], np.int32),
        "labels": np.array([[1], [0], [1]], np.int32),
    }
    for name, array in {**arrays, **change}.items():
        np.save(folder / f"{name}.npy", array)
    return [folder / f"{name}.npy" for name in arrays]


def test_contiguous_ids_stay_in_their_file(tmp_path: Path):
    log = read_binary_criteo(*triple(tmp_path), contiguous=True)
    assert isinstance(log.store.ids, np.memmap)
    assert isinstance(log.store.dense, np.memmap)
    assert log.fields == (Field("cat_0", 4), Field("cat_1", 6))
    files = triple(tmp_path)
    known = read_binary_criteo(*files, spool=tmp_path)
    assert isinstance(known.store.ids, np.memmap)
    assert [tuple(one.values()) for one in values_of(known)] == [(1, 2), (3, 2), (1, 5)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": np.full((3, 1), -1)}, "labels should be 0 or 1, got -1"),
        ({"labels": np.ones((3, 1), int)}, "both classes"),
        ({"labels": np.ones((2, 1), int)}, "files should have one length"),
        ({"sparse": np.ones((3, 2))}, r"integers \(n, S\)"),
        ({"dense": np.ones(3)}, r"floats \(n, K\)"),
        ({"dense": np.full((3, 2), np.nan)}, "finite, got nan"),
        ({"dense": np.array([{}], dtype=object)}, "npy file of a plain array"),
    ],
)
def test_what_is_not_torchrecs(tmp_path: Path, contiguous: bool, change: dict[str, Any], says: str):
    with pytest.raises(DataError, match=says):
        read_binary_criteo(*triple(tmp_path, **change), contiguous=contiguous)


def test_binary_files_that_lack(tmp_path: Path):
    files = triple(tmp_path)
    with pytest.raises(DataError, match="ids from 0 to 3, got -1"):
        read_binary_criteo(
            *triple(tmp_path, sparse=np.array([[1, 2], [3, 2], [-1, 5]], np.int32)),
            contiguous=True,
        )
    with pytest.raises(DataError, match="as many dense, sparse and label files.* got 2, 1, 1"):
        read_binary_criteo([files[0], files[0]], files[1], files[2])
    files[0].unlink()
    with pytest.raises(DataNotFoundError, match="expected a file .*dense.npy"):
        read_binary_criteo(*files)


def test_libfm_by_hand(tmp_path: Path):
    (tmp_path / "a").write_text("1 3:1 10:1\n-1 4:1 9:1.0\n")
    (tmp_path / "b").write_text("0 3:1 9:1\n")
    log, sizes = read_libfm([tmp_path / "a", tmp_path / "b"], ["user", "item"])
    assert sizes == [2, 1]
    assert log.labels.tolist() == [1.0, 0.0, 0.0]
    assert values_of(log) == [
        {"user": 3, "item": 10},
        {"user": 4, "item": 9},
        {"user": 3, "item": 9},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 3:1 10:1\n-1 4:1\n", "line 2 should have 3 columns, got 2"),
        ("1 3:1 10:1\n-1 4:2 9:1\n", "field_0 in line 2: a feature should be NUMBER:1, got '4:2'"),
        ("1 3:1 10:1\n-1 x:1 9:1\n", "got 'x:1'"),
        ("1 3:1 10:1\n-1 10:1 3:1\n", "every feature should be of one field, got"),
        ("1\n", "should have a label and features"),
    ],
)
def test_what_is_no_libfm(tmp_path: Path, text: str, says: str):
    (tmp_path / "a").write_text(text)
    with pytest.raises(DataError, match=says):
        read_libfm(tmp_path / "a")


def coded(**change: Any) -> dict[str, Any]:
    return {
        "x": np.array([[0, 2], [1, 0], [0, 1]], np.int32),
        "fields": np.array(["user", "item"]),
        "rows": np.array([2, 3]),
        "label": np.array([5, 3, 4]),
        "day": np.array([1, 2, 3]),
        **change,
    }


def test_coded_arrays(tmp_path: Path):
    np.savez(tmp_path / "data.npz", **coded())
    log = read_coded(tmp_path / "data.npz", label="label", positive=4, time="day")
    assert log.fields == (Field("user", 3), Field("item", 4))
    assert log.labels.tolist() == [1.0, 0.0, 1.0]
    assert values_of(log)[0] == {"user": 0, "item": 2}
    assert log.timestamps.tolist() == [1, 2, 3]
    split = split_given(log, train=[0, 1], validation=[], test=[2]).with_vocabulary()
    assert split.test.ids.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": np.array([2, 2])}, "'item' should have ids from 0 to 2, got 3"),
        ({"rows": np.array([2])}, r"x should be integers \(N, 2\)"),
        ({"label": np.array([5, 4, 4])}, "both classes"),
        ({"label": np.array([5, 4])}, "ids should be integers"),
        ({"x": np.array([[-1, 2], [1, 0], [0, 1]])}, "x should be 0 or more, got -1"),
    ],
)
def test_what_is_not_coded(tmp_path: Path, change: dict[str, Any], says: str):
    np.savez(tmp_path / "data.npz", **coded(**change))
    with pytest.raises(DataError, match=says):
        read_coded(tmp_path / "data.npz", label="label", positive=4)
    with pytest.raises(DataError, match="no rating"):
        read_coded(tmp_path / "data.npz", label="rating")


def movielens(folder: Path) -> Path:
    (folder / "users.dat").write_text("7::F::1::10::48067\n9::M::56::16::70072-1\n")
    (folder / "movies.dat").write_bytes(
        "1::Toy Story (1995)::Animation|Comedy\n5::Caf\xe9 (1995)::Drama\n".encode("latin-1")
    )
    (folder / "ratings.dat").write_text("7::1::5::100\n7::5::3::107\n9::5::2::101\n9::1::4::104\n")
    return folder


def test_movielens_text_by_hand(tmp_path: Path):
    log = read_movielens(movielens(tmp_path))
    assert log.labels.tolist() == [1.0, 0.0, 1.0]
    assert [(one["user"], one["movie"]) for one in values_of(log)] == [(7, 1), (9, 5), (9, 1)]
    assert log.timestamps.tolist() == [100, 101, 104]
    pep = read_movielens_pep(tmp_path)
    # Seconds since the first: 0, 1 and 4.
    assert [one["time"] for one in values_of(pep)] == [-2, -1, 1]
    assert pep.single == ("time", "gender", "age", "occupation", "zip", "year", "genres")
    assert pep.field("year").rows == 2


def drop_user(folder: Path) -> None:
    (folder / "users.dat").write_text("7::F::1::10::48067\n")


def repeat_movie(folder: Path) -> None:
    path = folder / "movies.dat"
    path.write_bytes(path.read_bytes() * 2)


def only_good(folder: Path) -> None:
    (folder / "ratings.dat").write_text("7::1::5::100\n")


def no_ratings(folder: Path) -> None:
    (folder / "ratings.dat").unlink()


def no_times(folder: Path) -> None:
    (folder / "ratings.dat").unlink()
    np.savez(folder / "ratings.npz", user=[7, 9], item=[1, 5], rating=[5, 1])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (drop_user, "users.dat should have every id that is rated, got none of 9"),
        (repeat_movie, "movies.dat should have each id once"),
        (only_good, "both classes"),
        (no_ratings, "should have ratings.dat or"),
        (no_times, "should have .*because PEP uses times"),
    ],
)
def test_what_is_not_movielens(tmp_path: Path, harm: Callable[[Path], None], says: str):
    harm(movielens(tmp_path))
    with pytest.raises(DataError, match=says):
        read_movielens_pep(tmp_path)

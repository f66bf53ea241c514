"""Anybody's csv and parquet files with named columns, and arrays larger than memory."""

from __future__ import annotations

import builtins
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bet_torchrec.data import DataError
from bet_torchrec.data.clicks import Field, read_table

TEXT = """click,user,tags,price,age,when
1,ann,a|b,1.5,3,10
0,bob,,2,100,20
0,ann,b,-1,,30
"""
OPTIONS: dict[str, Any] = {
    "label": "click",
    "multi_hot": {"tags": "|"},
    "dense": ["price"],
    "integers": ["age"],
    "timestamp": "when",
}


def test_a_csv_by_hand(tmp_path: Path):
    path = tmp_path / "clicks.csv"
    path.write_text(TEXT)
    log = read_table(path, **OPTIONS)
    assert log.name == "clicks"
    assert log.fields == (Field("user", 3), Field("age", 4), Field("tags", 3, multi_hot=True))
    assert log.vocabularies["user"].decode(log.ids[:, 0]) == ["ann", "bob", "ann"]
    assert log.vocabularies["age"].decode(log.ids[:, 1]) == ["1", "21", ""]
    assert log.vocabularies["tags"].decode(log.bags["tags"].values) == ["a", "b", "b"]
    assert log.bags["tags"].offsets.tolist() == [0, 2, 2, 3]
    assert log.dense.tolist() == [[1.5], [2.0], [-1.0]]
    assert log.dense_names == ("price",)
    assert log.timestamps.tolist() == [10, 20, 30]
    assert log.labels.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("delimiter", ["\t", ";", "::"])
def test_other_delimiters_and_gzip(tmp_path: Path, delimiter: str):
    path = tmp_path / "clicks.tsv.gz"
    text = "y,user,item\n5,7,x\n3,12,z\n4,7,y\n".replace(",", delimiter)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    log = read_table(path, label="y", positive=4)
    assert log.single == ("user", "item")
    assert log.vocabularies["user"].values.tolist() == [7, 12]  # integers, because all are
    assert log.labels.tolist() == [1.0, 0.0, 1.0]
    alone = read_table(path, label="y", positive=5, fields=["item"], delimiter=delimiter)
    assert alone.single == ("item",)


def test_quotes_and_the_line_of_what_is_wrong(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('y,user\n1,"a, b"\n0,"c\nd"\n\n2,e\n')
    with pytest.raises(DataError, match="label in line 6 should be 0 or 1, got '2'"):
        read_table(path, label="y")
    path.write_text('y,user\n1,"a, b"\n0,"c\nd"\n')
    log = read_table(path, label="y")
    assert log.vocabularies["user"].decode(log.ids[:, 0]) == ["a, b", "c\nd"]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (TEXT, {"label": "clik"}, "should have a column 'clik', got click, user"),
        (TEXT, {"dense": ["user"]}, "should have different names, got twice: user|user in line 2"),
        (TEXT, {"fields": ["user", "price"]}, "different names, got twice: price"),
        (TEXT, {"integers": ["price"]}, "integers should be fields, got price"),
        (TEXT, {"timestamp": "price"}, "got twice: price"),
        (TEXT, {"label": "user", "fields": ["age"]}, "label in line 2 should be a number"),
        (TEXT, {"integers": ["user"]}, "user in line 2: invalid literal"),
        (TEXT, {"delimiter": "||"}, "one character or '::'"),
        (TEXT, {"fields": [], "multi_hot": {}}, "at least one field"),
        (TEXT.replace("user", "click"), {}, "columns should have different names.*click"),
        (TEXT.replace("0,bob", "nan,bob"), {}, "label in line 3 should be a number, got 'nan'"),
        (TEXT.replace("0,bob", "x,bob"), {}, "label in line 3 should be a number, got 'x'"),
        (TEXT.replace("0,bob", ",bob"), {}, "label in line 3 should be a number, got ''"),
        (TEXT.replace("bob,", ""), {}, "line 3 should have 6 columns, got 5"),
        (TEXT.replace(",2,", ",inf,"), {}, "price in line 3 should be a number, got 'inf'"),
        (TEXT.replace(",20", ",2.5"), {}, "time in line 3 should be a whole number, got '2.5'"),
        (TEXT.replace(",20", f",{2**64}"), {}, "time in line 3 should be a whole number"),
        (TEXT.replace("1,ann", "0,ann"), {}, "both classes"),
        (TEXT.split("\n")[0] + "\n", {}, "has a header and no examples"),
        (" \n", {}, "is empty; expected lines of named columns"),
        ("\x80abc", {}, "clicks"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str, options: dict[str, Any], says: str):
    path = tmp_path / "clicks.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_table(path, **{**OPTIONS, **options})


def test_what_does_not_fit_memory_is_mapped(tmp_path: Path):
    path = tmp_path / "clicks.csv"
    path.write_text(TEXT * 1 + "".join(f"{i % 2},u{i % 9},a|c{i},{i},5,{i}\n" for i in range(300)))
    spool = tmp_path / "spool"
    spool.mkdir()
    log, whole = read_table(path, spool=spool, **OPTIONS), read_table(path, **OPTIONS)
    for array in (log.store.ids, log.store.dense, log.store.labels, log.store.bags["tags"].values):
        assert isinstance(array, np.memmap)
    assert log.fingerprint() == whole.fingerprint()
    assert list(spool.iterdir()) == []  # nameless files, gone with the log


def test_parquet_is_read_like_text(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "click": [True, False, False],
        "user": ["ann", "bob", "ann"],
        "tags": [["a", "b"], [], ["b"]],
        "price": [1.5, 2.0, -1.0],
        "age": [3, 100, None],
        "when": [10, 20, 30],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "clicks.parquet")
    (tmp_path / "clicks.csv").write_text(TEXT)
    log = read_table(tmp_path / "clicks.parquet", **OPTIONS)
    assert log.fingerprint() == read_table(tmp_path / "clicks.csv", **OPTIONS).fingerprint()
    columns["click"] = [1, 0, 3]
    parquet.write_table(pyarrow.table(columns), tmp_path / "clicks.parquet")
    with pytest.raises(DataError, match="label in row 3 should be 0 or 1, got '3'"):
        read_table(tmp_path / "clicks.parquet", **OPTIONS)
    (tmp_path / "clicks.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="should be a parquet file"):
        read_table(tmp_path / "clicks.parquet", **OPTIONS)


def test_without_pyarrow_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match="reading parquet needs pyarrow.*pip install pyarrow"):
        read_table(tmp_path / "clicks.parquet", label="click")

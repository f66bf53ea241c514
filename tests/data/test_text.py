"""Files of text: what is found out about them, and what is said of those that are no data."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_oracles import original_pairs

from bet_torchrec.data import DataError, load

PAIRS = {(1, 10), (1, 20), (2, 10)}


def write(folder: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user,item\n1,10\n1,20\n2,10\n"),
        ("a.csv", "userId,movieId,rating,timestamp\n1,10,4,7\n1,20,3,8\n2,10,5,9\n"),
        ("a.csv", "item_id,user_id\n10,1\n20,1\n10,2\n"),
        ("a.csv", "1,10\n1,20\n2,10"),
        ("a.csv", '"user","item"\r\n"1","10"\r\n"1","20"\r\n"2","10"\r\n'),
        ("a.csv", "\ufeffuser;item\n1;10\n1;20\n\n2;10\n"),
        ("a.inter", "user_id:token\titem_id:token\n1\t10\n1\t20\n2\t10\n"),
        ("a.tsv", "1\t10\n1\t20\n2\t10\n"),
        ("a.txt", "1 10\n1 20\n2 10\n"),
        ("a.dat", "1::10::5::7\n1::20::5::7\n2::10::5::7\n"),
        ("a.txt", "1|10\n1|20\n2|10\n"),
        ("a.csv", "1.0,10.0\n1.0,20.0\n2.0,10.0\n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_forms_of_one_content(tmp_path: Path, name: str, text: str, zipped: bool):
    content = gzip.compress(text.encode(), mtime=0) if zipped else text.encode()
    data = load(write(tmp_path, content, name + ".gz" * zipped))
    assert original_pairs(data) == PAIRS
    assert data.name == "a"


def test_columns_by_name_and_by_position(tmp_path: Path):
    path = write(tmp_path, "when,who,what,stars\n5,ann,x,1\n6,bob,y,5\n4,bob,x,4\n")
    for who, what, when in (("who", "what", "when"), (1, 2, 0)):
        data = load(path, user=who, item=what, timestamp=when, min_rating=4)
        assert original_pairs(data) == {("bob", "x"), ("bob", "y")}
        assert data.timestamps.tolist() == [4, 6]
    data = load(write(tmp_path, "9,1,a\n9,2,b\n"), user=2, item=1, header=False)
    assert original_pairs(data) == {("a", 1), ("b", 2)}


def test_min_rating_keeps_it_and_more_and_says_what_went(tmp_path: Path):
    path = write(tmp_path, "user,item,rating\n0,0,3.5\n0,1,4\n1,1,2\n2,2,5\n2,2,1\n")
    data = load(path, min_rating=4)
    assert original_pairs(data) == {(0, 1), (2, 2)}
    assert (
        "3 interactions rated below 4 left out, and with them 1 users and 1 items"
        in (data.notes[0])
    )
    assert len(load(path)) == 4  # a pair rated twice is one
    with pytest.raises(DataError, match="no rating is 9 or more; they go from 1 to 5"):
        load(path, min_rating=9)
    third = write(tmp_path, "0,0,3\n0,1,4\n", "bare.csv")
    assert len(load(third, min_rating=4)) == 1
    with pytest.raises(DataError, match="needs a column of ratings"):
        load(write(tmp_path, "user,item\n0,0\n", "pairs.csv"), min_rating=4)


def test_string_ids_keep_their_spelling(tmp_path: Path):
    data = load(write(tmp_path, 'user,item\n007,"a, b"\n7,c\n', "s.csv"))
    assert original_pairs(data) == {("007", "a, b"), ("7", "c")}
    # beyond int64: strings
    long = load(write(tmp_path, "user,item\n10000169349117863715,1\n2,1\n", "l.csv"))
    assert set(long.user_labels.tolist()) == {"10000169349117863715", "2"}


@pytest.mark.parametrize("piece", [1, 2, 3])
def test_reading_in_pieces_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
):
    path = write(tmp_path, "user,item,rating,time\n1,a,1,3\n1,b,2.5,4\nx,a,3,5\n")
    whole = load(path)
    monkeypatch.setattr("bet_torchrec.data.text.PIECE", piece)
    pieces = load(path)
    assert original_pairs(pieces) == original_pairs(whole) == {("1", "a"), ("1", "b"), ("x", "a")}
    assert (pieces.timestamps == whole.timestamps).all()


def test_lists_of_lightgcn(tmp_path: Path):
    write(tmp_path, "0 3 1 \n1\n2 0 1 3 4 5\n", "train.txt")
    write(tmp_path, "0 2\n2 2 3\n", "test.txt")
    data = load(tmp_path)
    train = {(0, 3), (0, 1), (2, 0), (2, 1), (2, 3), (2, 4), (2, 5)}
    assert original_pairs(data) == train | {(0, 2), (2, 2)}
    # (2, 3) is in both: it stays a training pair, and is dropped from test
    assert original_pairs(data.subset(data.test_mark)) == {(0, 2), (2, 2)}
    assert data.num_users == 2
    assert data.user_labels.tolist() == [0, 2]
    assert data.notes == (
        "train.txt: 1 users without items left out",
        "1 repeated pairs dropped, the earliest of each kept",
    )
    (tmp_path / "test.txt").unlink()
    assert load(tmp_path).test_mark is None
    assert original_pairs(load(tmp_path / "train.txt")) == train


PAGE = b"<!DOCTYPE html><html><body>404</body></html>"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"user,item\n", "header and no interactions"),
        (PAGE, "a web page"),
        (gzip.compress(PAGE, mtime=0), "a web page"),
        (pickle.dumps([1, 2]), "a pickle"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x89PNG\0\0", "a binary file"),
        (b'[{"user": 1}]', "JSON"),
        (b"user,item\n1,caf\xe9\n", "UTF-8"),
        (gzip.compress(b"user,item\n1,2\n" * 99, mtime=0)[:-12], "damaged or truncated gzip"),
        (b"hello\nworld\n", "a user and an item on a line"),
        (b"user,item,rating\n1,2,3\n1,3\n", "row 2 should have 3 columns.*truncated"),
        (b"user,item\n1,2\n-1,3\n", "user ids should be 0 or more, got -1"),
        (b"user,item\n1,2\n,3\n", "missing in row 2"),
        (b"user,item\nnan,2\nx,3\n", "missing in row 1"),
        (b"user,item,rating\n1,2,nan\n", "ratings should be finite, got nan"),
        (b"user,item,rating\n1,2,4\n1,3,inf\n", "ratings should be finite, got inf"),
        (b"user,item,rating\n1,2,good\n", "rating should be a number, got 'good' in row 1"),
        (b"user,item,time\n1,2,monday\n", "timestamp should be a number"),
        (b"user,item,time\n1,2,nan\n", "timestamps should be finite"),
        (b"user,price\n1,2\n", "say which by user= and item="),
        (b"user,item\n1," + b"x" * 300 + b"\n", "should be short"),
        (b'user,item\n1,"2\n' + b"1,2\n" * 60_000, "open"),
    ],
)
def test_what_is_no_data(tmp_path: Path, content: bytes, says: str):
    with pytest.raises(DataError, match=says) as refused:
        load(write(tmp_path, content))
    assert "data" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"user": "nobody"}, "should have a column 'nobody', got user, item"),
        ({"user": 5}, "column should be from 0 to 1, got 5"),
        ({"user": 1, "item": 1}, "can't be the same column"),
        ({"user": "user", "header": False}, "needs a header"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, options: dict[str, object], says: str):
    with pytest.raises(DataError, match=says):
        load(write(tmp_path, "user,item\n1,2\n3,4\n"), **options)  # type: ignore[arg-type]


def test_nothing_is_lost_of_many_lines(tmp_path: Path):
    rng = np.random.default_rng(0)
    table = np.stack([rng.integers(0, 5000, 40_000), rng.integers(0, 9000, 40_000)], axis=1)
    path = tmp_path / "big.csv"
    np.savetxt(path, table, fmt="%d", delimiter=",")
    data = load(path)
    assert len(data) == len(np.unique(table, axis=0))

"""The real click sets, where they are on this machine: as published, and split as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bet_torchrec.data import DataError, DataNotFoundError, DownloadError
from bet_torchrec.data.clicks import (
    CLICK_SETS,
    ClickLog,
    ClickSplit,
    load_clicks,
    read_movielens,
    registry,
)

# name: examples, fields, rows of all values, share of positives; as papers and sources count them,
# but for PEP's, whose 3,864 rows have 13 times where the rule that its code has gives 254.
PUBLISHED = {
    "movielens-1m-clicks": (739_012, 8, 13_559, 0.778),
    "movielens-1m-pep": (739_012, 7, 4_105, 0.778),
    "frappe": (288_609, 10, 5_382, 0.333),
    "renttherunway": (192_462, 12, 111_841, 0.262),
    "epinions": (922_267, 3, 318_468, 0.738),
    "criteo-sample": (8_000, 39, 37_794, 0.216),
    "criteo-sample-encoded": (20_000, 39, 54_698, 0.254),
    "avazu-sample": (8_999, 23, 10_350, 0.174),
}


def found(name: str, data_dir: Path, **options: object) -> ClickSplit:
    if not (data_dir / CLICK_SETS[name].folder).is_dir():
        pytest.skip(f"{data_dir} has no {CLICK_SETS[name].folder}/")
    return load_clicks(name, data_dir, download=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(CLICK_SETS))
def test_as_published(name: str, data_dir: Path):
    split = found(name, data_dir, vocabulary="all")
    parts = split.parts()
    examples = sum(map(len, parts))
    rows = sum(field.rows - 1 for field in split.fields)
    share = round(sum(float(part.labels.sum()) for part in parts) / examples, 3)
    assert (examples, len(split.fields), rows, share) == PUBLISHED[name]
    counts = [part.counts() for part in parts]
    for field in split.fields:
        count = np.sum([own[field.name] for own in counts], axis=0)
        # Every row is some value's, and none is out of vocabulary but PEP's unknown times.
        assert (count[1:] > 0).all()
        assert (count[0] > 0) == (field.name == "time")
        assert split.train.vocabularies[field.name].num_rows == field.rows


def test_rows_are_what_training_knows(data_dir: Path):
    name = "renttherunway"
    split, whole = found(name, data_dir, seed=1), found(name, data_dir, seed=1, vocabulary="all")
    for field in split.fields:
        count = split.train.counts()[field.name]
        assert count[0] == 0
        assert (count[1:] > 0).all()
    field = split.train.single[0]
    known = split.train.vocabularies[field].decode(split.test.ids[:, 0])
    values = whole.train.vocabularies[field].decode(whole.test.ids[:, 0])
    train = set(whole.train.vocabularies[field].decode(whole.train.ids[:, 0]))
    assert known == [value if value in train else None for value in values]
    assert found(name, data_dir, seed=2).fingerprint() != split.fingerprint()


def test_movielens_joins_by_hand(data_dir: Path):
    split = found("movielens-1m-clicks", data_dir, vocabulary="all")
    log = split.train
    # user 1 is F, 1, 10, 48067 and took 1193, "One Flew Over the Cuckoo's Nest (1975)", Drama: 5
    folder = data_dir / "ml-1m"
    first = read_movielens(folder).take(slice(0, 1))
    values = {
        name: log.vocabularies[name].decode(first.ids[:, i])[0] for i, name in enumerate(log.single)
    }
    assert values == {
        "user": 1,
        "movie": 1193,
        "gender": "F",
        "age": "1",
        "occupation": "10",
        "zip": "48067",
        "year": "1975",
        "genres": "Drama",
    }
    assert first.labels.tolist() == [1.0]
    bags = read_movielens(folder, genres="multi_hot")
    assert [field.rows - 1 for field in bags.fields if field.multi_hot] == [18]
    # 661 is "James and the Giant Peach (1996)", rated 3; 914 is "My Fair Lady (1964)", also 3;
    # 3408 is "Erin Brockovich (2000)", Drama; 2355 is "Bug's Life, A (1998)".
    own = bags.take(slice(0, 3))
    genres = own.vocabularies["genres"].decode(own.bags["genres"].values)
    assert own.vocabularies["movie"].decode(own.ids[:, 1]) == [1193, 3408, 2355]
    assert genres == ["Drama", "Drama", "Animation", "Children's", "Comedy"]
    assert own.bags["genres"].offsets.tolist() == [0, 1, 2, 5]


@pytest.mark.slow
def test_frappes_negatives_are_drawn_by_the_rule(data_dir: Path):
    file, drawn = (found("frappe", data_dir, seed=seed, vocabulary="all") for seed in (0, 7))
    assert [len(part) for part in drawn.parts()] == [202_027, 57_722, 28_860]
    assert drawn.test.fingerprint() == file.test.fingerprint()
    assert drawn.validation.fingerprint() == file.validation.fingerprint()
    positive = file.train.labels == 1
    assert (drawn.train.ids[positive] == file.train.ids[positive]).all()
    # All but the item stays, and most items are others.
    assert (drawn.train.ids[:, [0, *range(2, 10)]] == file.train.ids[:, [0, *range(2, 10)]]).all()
    assert (drawn.train.ids[~positive, 1] != file.train.ids[~positive, 1]).mean() > 0.99
    assert drawn.train.fingerprint() != file.train.fingerprint()
    for split in (file, drawn):
        taken = np.concatenate([_pairs(part, 1) for part in split.parts()])
        assert not np.isin(_pairs(split.train, 0), taken).any()


def _pairs(log: ClickLog, label: int) -> np.ndarray:
    ids = log.ids[log.labels == label].astype(np.int64)
    return ids[:, 0] * log.field("item").rows + ids[:, 1]


def test_the_samples_have_peps_thresholds(data_dir: Path):
    split = found("criteo-sample", data_dir)
    assert min(count[1:].min() for count in split.train.counts().values() if len(count) > 1) >= 10
    less = found("criteo-sample", data_dir, min_count=2)
    assert sum(field.rows for field in less.fields) > sum(field.rows for field in split.fields)


def test_what_is_missing_is_downloaded_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def arrive(name: str, folder: Path, **_: object) -> None:
        assert name == "ml-1m"
        folder.mkdir()
        ratings = "".join(
            f"{u}::{m}::{1 + 4 * (m % 2)}::{u}\n" for u in (1, 2) for m in range(1, 9)
        )
        (folder / "ratings.dat").write_text(ratings)
        (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
        movies = "".join(f"{m}::Film (19{90 + m})::Drama|War\n" for m in range(1, 9))
        (folder / "movies.dat").write_text(movies)

    monkeypatch.setattr(registry, "fetch", arrive)
    split = load_clicks("movielens-1m-clicks", tmp_path, vocabulary="all")
    assert [len(part) for part in split.parts()] == [13, 1, 2]
    assert split.train.field("movie").rows == 9

    def refuse(*_: object, **__: object) -> None:
        raise DownloadError("no connection")

    monkeypatch.setattr(registry, "fetch", refuse)
    (tmp_path / "ml-1m" / "users.dat").unlink()
    with pytest.raises(DownloadError, match="needs users.dat in .*ml-1m.*no connection"):
        load_clicks("movielens-1m-clicks", tmp_path)


def test_names_and_files_that_are_none(tmp_path: Path, data_dir: Path):
    with pytest.raises(DataNotFoundError, match="expected one of .*did you mean 'frappe'"):
        load_clicks("frape", tmp_path)
    with pytest.raises(DataNotFoundError, match="expected data.npz in .*renttherunway, found none"):
        load_clicks("renttherunway", tmp_path)
    with pytest.raises(
        DataNotFoundError, match=r"ratings.dat or .* and users.dat and movies.dat in .*ml-1m"
    ):
        load_clicks("movielens-1m-clicks", tmp_path, download=False)
    with pytest.raises(DataError, match="min_count needs 'train'"):
        load_clicks("frappe", data_dir, vocabulary="all", min_count=3)

"""The real data sets, where they are on this machine: counts as published, splits as stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bet_torchrec.data import DATASETS, Interactions, load, published_split, random_split
from bet_torchrec.data import temporal_split as by_time


def found(name: str, data_dir: Path) -> Interactions:
    if not (data_dir / name).is_dir():
        pytest.skip(f"{data_dir} has no {name}/")
    return load(name, data_dir=data_dir, download=False)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_as_published(name: str, data_dir: Path):
    data, known = found(name, data_dir), DATASETS[name]
    assert (data.num_users, data.num_items, len(data)) == (
        known.users,
        known.items,
        known.interactions,
    )
    assert data.name == name
    assert data.notes == ()
    assert min(counts.min() for counts in data.counts().values()) >= 1
    key = data.users.astype(np.int64) * data.num_items + data.items
    assert (np.diff(key) > 0).all()


def test_gowallas_stored_results_stay_comparable(data_dir: Path):
    """Fingerprints of the split that results of this project were made with."""
    data = found("gowalla", data_dir)
    split = random_split(data, seed=0)
    assert [part.fingerprint() for part in split.parts()] == [
        *("e0dc60affb459b90", "7694e40698e49d8c", "1d3b564ec1f1ff62"),
    ]
    assert [part.fingerprint() for part in split.by_rank().parts()] == [
        *("f6183e7255f753a2", "04bdff8448e844c3", "0ac14bea285985da"),
    ]
    published = published_split(data)
    assert (len(published.train), len(published.test)) == (810_128, 217_242)


def test_lightgcns_text_form_is_the_same_data(data_dir: Path, tmp_path: Path):
    data = found("gowalla", data_dir)
    (tmp_path / "gowalla").mkdir()
    split = published_split(data)
    for part, name in ((split.train, "train.txt"), (split.test, "test.txt")):
        items = np.split(part.items, np.cumsum(part.counts()["user"])[:-1])
        lines = (" ".join(map(str, [user, *own[::-1]])) for user, own in enumerate(items))
        (tmp_path / "gowalla" / name).write_text("\n".join(lines))
    again = load("gowalla", data_dir=tmp_path, download=False)
    assert again.fingerprint() == data.fingerprint()
    assert (again.test_mark == data.test_mark).all()


def test_movielens_ratings_and_times(data_dir: Path):
    small = found("ml-100k", data_dir)
    assert small.user_labels[[0, -1]].tolist() == [1, 943]
    split = by_time(small, ratios=(0.8, 0.1, 0.1))
    last = np.zeros(small.num_users)
    np.maximum.at(last, split.train.users, split.train.timestamps)
    assert (split.test.timestamps >= last[split.test.users]).all()
    # 348,971 ratings of 4 and 226,310 of 5
    found("ml-1m", data_dir)
    assert len(load("ml-1m", data_dir=data_dir, min_rating=4)) == 575_281

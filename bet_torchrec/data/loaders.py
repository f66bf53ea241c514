"""Interactions from a data set's name or a file, checked and made dense."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from .columns import Column, Columns, RawPairs
from .download import fetch
from .errors import DataError, DataNotFoundError, DownloadError
from .interactions import Interactions
from .npz import read_npz
from .sources import DATASETS, DataSet
from .text import read_text

__all__ = ["DATASETS", "data_directory", "load"]

VARIABLE = "BET_TORCHREC_DATA"
# What a folder may hold, first choice first.
_IN_A_FOLDER = tuple(dict.fromkeys(name for known in DATASETS.values() for name in known.files))
# GroupLens' own files have no header and this order.
MOVIELENS = Columns(user=0, item=1, rating=2, timestamp=3)
_MOVIELENS_FILES = frozenset({"ratings.dat", "u.data"})


def data_directory(data_dir: str | Path | None = None) -> Path:
    """The folder of the data sets, each in a folder of its name.

    ``data_dir`` if given, else $BET_TORCHREC_DATA, else bet_torchrec in the user's cache
    ($XDG_CACHE_HOME, by default ~/.cache). It need not exist.
    """
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "bet_torchrec"


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    min_rating: float | None = None,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    timestamp: Column = None,
    delimiter: str | None = None,
    header: bool | None = None,
    progress: bool | None = None,
) -> Interactions:
    """Interactions of a known data set, or of a file or folder.

    Args:
        name_or_path: "gowalla", "yelp2018", "ml-1m", "ml-100k" (a name wins over a path of that
            name), or a path: a csv, tsv or other text file (also gzipped) with an interaction a
            line, an npz of arrays or one that ``Interactions.save`` wrote, or a folder of
            train.txt and test.txt in LightGCN's form (a line is a user and then all its items).
        data_dir: where the named data sets are, see ``data_directory``.
        download: fetch a named data set that is not there from its public source.
        min_rating: keep what is rated this or more; needs ratings. By default all are kept.
        user, item, rating, timestamp: a column's name, or its position from 0; by default found
            by usual names (user_id, movieId, stars, ...), and without a header the first column is
            the user and the second the item (and the third the rating if ``min_rating`` is given).
        delimiter, header: of a text file, found out by default. Pass header where it is ambiguous.
        progress: show a bar while downloading; None shows it on a terminal only.

    Returns:
        Sorted by user and item. Ids are dense, in the order of the original ids (numeric where
        all are whole numbers); ``user_labels`` and ``item_labels`` have the originals. Users and
        items without any interaction, in the file or after ``min_rating``, are not in it.
        Repeated pairs are dropped (the earliest stays) and ``notes`` says how many.

    Raises:
        DataNotFoundError: there is no such data, and it could not be downloaded (then it is a
            DownloadError).
        DataError: it is damaged, no data, or lacks what was asked of it.
    """
    columns = Columns(user=user, item=item, rating=rating, timestamp=timestamp)
    known = DATASETS.get(str(name_or_path))
    if known is not None:
        folder = data_directory(data_dir) / known.name
        path = _named_file(known, folder, download, progress)
        raw = _read(path, columns, delimiter=delimiter, header=header)
        return _checked(known, raw, folder, min_rating)
    path = _existing(Path(name_or_path).expanduser(), data_directory(data_dir))
    rated = min_rating is not None
    raw = _read(path, columns, delimiter=delimiter, header=header, rated=rated)
    if isinstance(raw, RawPairs):
        return raw.interactions(name=_name(path), min_rating=min_rating)
    if min_rating is not None:
        raise DataError(f"{path} was saved without ratings; give min_rating when it is made")
    return raw


def _named_file(known: DataSet, folder: Path, allowed: bool, progress: bool | None) -> Path:
    """The file of a known data set, downloaded if need be."""
    for attempt in range(2):
        found = next((folder / name for name in known.files if (folder / name).is_file()), None)
        # A lone train.txt is an unfinished download.
        if found is not None and (found.name != "train.txt" or (folder / "test.txt").is_file()):
            return folder if found.name == "train.txt" else found
        if attempt or not allowed:
            break
        try:
            fetch(known.name, folder, sources=known.sources, progress=progress)
        except DataNotFoundError as error:
            raise DownloadError(
                f"{known.name} is not in {folder} and could not be downloaded: {error}. Put "
                f"{' or '.join(known.files)} there, or set {VARIABLE} or data_dir to where it is"
            ) from error
    raise DataNotFoundError(
        f"{known.name}: expected {' or '.join(known.files)} in {folder}, found none; set "
        f"{VARIABLE} or data_dir to the folder that holds {known.name}/"
    )


def _existing(path: Path, home: Path) -> Path:
    for candidate in (path, home / path):
        if candidate.exists():
            return candidate
    close = difflib.get_close_matches(str(path), DATASETS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise DataNotFoundError(
        f"expected one of {', '.join(DATASETS)} or the path of a file, got {str(path)!r}, which is "
        f"neither (looked here and in {home}).{hint}"
    )


def _read(
    path: Path,
    columns: Columns,
    *,
    delimiter: str | None,
    header: bool | None,
    rated: bool = False,
) -> RawPairs | Interactions:
    if path.is_dir():
        if (path / "train.txt").is_file():
            return _read_lightgcn(path)
        found = next((path / name for name in _IN_A_FOLDER if (path / name).is_file()), None)
        if found is None:
            raise DataNotFoundError(
                f"{path} is a folder; expected a file, or a folder with one of "
                f"{', '.join(_IN_A_FOLDER)}"
            )
        path = found
    if path.suffix == ".npz":
        return read_npz(path, columns)
    if path.name.removesuffix(".gz") in _MOVIELENS_FILES and columns == Columns():
        columns, header = MOVIELENS, False
    return read_text(path, columns, delimiter=delimiter, header=header, rated=rated)


def _read_lightgcn(folder: Path) -> RawPairs:
    """train.txt, and test.txt where there is one; a pair in both stays in train."""
    parts = [read_text(folder / "train.txt", Columns(), layout="lists")]
    if (folder / "test.txt").is_file():
        parts.append(read_text(folder / "test.txt", Columns(), layout="lists"))
    if (
        len({part.users.dtype.kind for part in parts}) > 1
        or len({part.items.dtype.kind for part in parts}) > 1
    ):
        raise DataError(f"{folder}: ids in train.txt and test.txt should be of one kind")
    marks = np.repeat(np.arange(len(parts)) == 1, [len(part.users) for part in parts])
    return RawPairs(
        users=np.concatenate([part.users for part in parts]),
        items=np.concatenate([part.items for part in parts]),
        test_mark=marks if len(parts) == 2 else None,
        notes=tuple(note for part in parts for note in part.notes),
    )


def _checked(
    known: DataSet, raw: RawPairs | Interactions, folder: Path, min_rating: float | None
) -> Interactions:
    """A named data set is what its name says, to the last pair."""
    whole = raw.interactions(name=known.name) if isinstance(raw, RawPairs) else raw
    whole = replace(whole, name=known.name)
    marked = None if whole.test_mark is None else int(whole.test_mark.sum())
    if whole.fingerprint() != known.fingerprint or (known.test and marked != known.test):
        raise DataError(
            f"{folder} should hold {known.name} with {known.users:,} users, {known.items:,} items "
            f"and {known.interactions:,} interactions (fingerprint {known.fingerprint}), got "
            f"{whole.num_users:,}, {whole.num_items:,} and {len(whole):,} "
            f"({whole.fingerprint()}): truncated, or another version. Delete it to have it "
            "downloaded again, or load it by its path"
        )
    if min_rating is None:
        return whole
    if not isinstance(raw, RawPairs):
        raise DataError(f"{known.name} was saved without ratings")
    return raw.interactions(name=known.name, min_rating=min_rating)


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name

"""Click sets known by name, each from its own files to a split."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..download import fetch
from ..errors import DataError, DataNotFoundError, DownloadError
from ..loaders import VARIABLE, data_directory
from ..sources import SOURCES
from .avazu import read_avazu
from .coded import read_coded
from .criteo import PEP_MIN_COUNT, read_criteo, read_criteo_encoded
from .libfm import read_libfm
from .log import ClickLog
from .movielens import RATINGS, read_movielens, read_movielens_pep
from .split import ClickSplit, split_given, split_random

FRAPPE_FIELDS = (
    *("user", "item", "daytime", "weekday", "isweekend", "homework"),
    *("cost", "weather", "country", "city"),
)


@dataclass(frozen=True, kw_only=True)
class ClickSet:
    """A click set known by name.

    folder: of its files, in the data directory. files: what has to be there, each or one of
    several. read: makes a split of them, every value with a row; seed: of what is drawn.
    min_count: times that training must have a value, or it is out of vocabulary.
    """

    folder: str
    files: tuple[tuple[str, ...], ...]
    read: Callable[[Path, int], ClickSplit]
    min_count: int = 1


def _dealt(read: Callable[[Path], ClickLog]) -> Callable[[Path, int], ClickSplit]:
    """80/10/10 at random."""
    return lambda folder, seed: split_random(read(folder), seed=seed)


def _encoded(folder: Path, seed: int) -> ClickSplit:
    # 10,000 and 10,000 examples; the seed deals the second file into validation and test.
    files = [folder / f"deeplight_{part}10k_encoded.csv" for part in ("train", "test")]
    log = read_criteo_encoded(files, name="criteo-sample-encoded")
    half = 10_000 + np.random.default_rng(seed).permutation(len(log) - 10_000)
    middle = len(half) // 2
    return split_given(
        log,
        train=slice(0, 10_000),
        validation=np.sort(half[:middle]),
        test=np.sort(half[middle:]),
        how="given train, its test file halved at random",
    )


def read_frappe(folder: Path, seed: int = 0) -> ClickSplit:
    """Frappe as NFM split it: the public validation and test sets, and a rebuilt training set.

    Training's positives are the public ones. Its negatives come from the file where ``seed`` is 0,
    and are drawn anew otherwise, by the rule that the public sets follow: the user and context of
    a positive, and an item that the user has in no part, all equally likely.
    """
    names = ("train.rebuilt", "validation", "test")
    files = [_either(folder, f"frappe.{name}.libfm") for name in names]
    log, sizes = read_libfm(files, FRAPPE_FIELDS, name="frappe")
    if seed:
        log = _redrawn(log, sizes[0], np.random.default_rng(seed))
    ends = np.cumsum(sizes).tolist()
    split = split_given(
        log,
        train=slice(0, ends[0]),
        validation=slice(ends[0], ends[1]),
        test=slice(ends[1], ends[2]),
        how="as published" + (f", training negatives drawn with seed {seed}" if seed else ""),
    )
    return replace(split, seed=seed)


def _redrawn(log: ClickLog, train: int, rng: np.random.Generator) -> ClickLog:
    """The same log with other items in its training negatives. train: examples in training."""
    ids, labels = log.ids.copy(), log.labels
    user, item = (log.single.index(name) for name in ("user", "item"))
    rows = log.field("item").rows
    pairs = ids[:, user].astype(np.int64) * rows + ids[:, item]
    used = np.unique(pairs[labels == 1])
    negatives = np.flatnonzero(labels[:train] == 0)
    while len(negatives):  # rows 1 and up are items; again where the user has it
        drawn = rng.integers(1, rows, len(negatives))
        ids[negatives, item] = drawn
        keys = ids[negatives, user].astype(np.int64) * rows + drawn
        at = np.minimum(np.searchsorted(used, keys), len(used) - 1)
        negatives = negatives[used[at] == keys]
    return ClickLog.from_arrays(
        log.fields, labels=labels, ids=ids, vocabularies=log.vocabularies, name=log.name
    )


def _either(folder: Path, name: str) -> Path:
    """The file, plain or gzipped."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


_MOVIELENS_FILES = (RATINGS, ("users.dat",), ("movies.dat",))

CLICK_SETS: Mapping[str, ClickSet] = {
    "movielens-1m-clicks": ClickSet(
        folder="ml-1m", files=_MOVIELENS_FILES, read=_dealt(read_movielens)
    ),
    "movielens-1m-pep": ClickSet(
        folder="ml-1m", files=_MOVIELENS_FILES, read=_dealt(read_movielens_pep)
    ),
    "frappe": ClickSet(
        folder="frappe",
        files=tuple(
            (f"frappe.{part}.libfm", f"frappe.{part}.libfm.gz")
            for part in ("train.rebuilt", "validation", "test")
        ),
        read=read_frappe,
    ),
    "renttherunway": ClickSet(
        folder="renttherunway",
        files=(("data.npz",),),
        read=_dealt(
            lambda folder: read_coded(
                folder / "data.npz", label="label_misfit", time="day", name="renttherunway"
            )
        ),
    ),
    "epinions": ClickSet(
        folder="epinions",
        files=(("data.npz",),),
        read=_dealt(
            lambda folder: read_coded(
                folder / "data.npz",
                label="label_rating",
                positive=4,
                time="period",
                name="epinions",
            )
        ),
    ),
    "criteo-sample": ClickSet(
        folder="criteo-sample",
        files=(("train.txt",),),
        read=_dealt(lambda folder: read_criteo(folder / "train.txt", name="criteo-sample")),
        min_count=PEP_MIN_COUNT,
    ),
    "criteo-sample-encoded": ClickSet(
        folder="criteo-sample",
        files=(("deeplight_train10k_encoded.csv",), ("deeplight_test10k_encoded.csv",)),
        read=_encoded,
    ),
    "avazu-sample": ClickSet(
        folder="avazu-sample",
        files=(("train.csv",),),
        read=_dealt(lambda folder: read_avazu(folder / "train.csv", name="avazu-sample")),
        min_count=PEP_MIN_COUNT,
    ),
}


def load_clicks(
    name: str,
    data_dir: str | Path | None = None,
    seed: int = 0,
    *,
    vocabulary: Literal["train", "all"] = "train",
    min_count: int | None = None,
    download: bool = True,
    progress: bool | None = None,
) -> ClickSplit:
    """A known click set, split and in memory.

    Args:
        name: one of ``CLICK_SETS``.
        data_dir: where the data sets are, see ``data_directory``.
        seed: of the random split (80/10/10), or of what else is drawn.
        vocabulary: "train" gives rows to what the training part has, and takes all else as out of
            vocabulary; "all" gives every value of the data a row, as most papers count them.
        min_count: times that training must have a value for a row of its own; the set's own by
            default (PEP's for Criteo and Avazu, else 1). Needs vocabulary="train".
        download: fetch MovieLens where it is missing; the others have no public file to fetch.

    Raises:
        DataNotFoundError: no such set, or its files are not there.
        DataError: they are damaged.
    """
    if name not in CLICK_SETS:
        close = difflib.get_close_matches(name, CLICK_SETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataNotFoundError(f"expected one of {', '.join(CLICK_SETS)}, got {name!r}{hint}")
    if vocabulary not in ("train", "all") or (vocabulary == "all" and min_count is not None):
        raise DataError(
            "vocabulary should be 'train' or 'all', and min_count needs 'train', got "
            f"{vocabulary!r} and {min_count}"
        )
    known = CLICK_SETS[name]
    folder = data_directory(data_dir) / known.folder
    missing = _missing(known, folder)
    if missing and download and known.folder in SOURCES:
        try:
            fetch(known.folder, folder, progress=progress)
        except DataNotFoundError as error:
            raise DownloadError(
                f"{name} needs {missing} in {folder}, and it could not be downloaded: {error}"
            ) from error
        missing = _missing(known, folder)
    if missing:
        raise DataNotFoundError(
            f"{name}: expected {missing} in {folder}, found none; set {VARIABLE} or data_dir to "
            f"the folder that holds {known.folder}/"
        )
    split = known.read(folder, seed)
    if vocabulary == "train":
        split = split.with_vocabulary(known.min_count if min_count is None else min_count)
    return split.compact()


def _missing(known: ClickSet, folder: Path) -> str:
    """What a folder lacks, in words; empty where it has all."""
    lacks = [one for one in known.files if not any((folder / name).is_file() for name in one)]
    return " and ".join(" or ".join(one) for one in lacks)

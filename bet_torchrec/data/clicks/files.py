"""Click logs in folders: plain .npy arrays that map into memory, and a header that checks them.

A folder is written under a temporary name and renamed, so that it is there whole or not at all.
Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...strict import StrictError, parse, typed
from ..arrays import read_arrays, write_arrays
from ..errors import DataError, DataNotFoundError
from .fields import Field
from .log import ClickLog
from .split import PARTS, ClickSplit
from .store import Bag, Store
from .vocabulary import Vocabulary

HEADER = "header.json"
_VERSION = 1
_LOG, _SPLIT = "bet_torchrec click log", "bet_torchrec click split"

H = TypeVar("H")


@dataclass(frozen=True, kw_only=True)
class ArrayHeader:
    """One .npy file."""

    dtype: Literal["<f4", "<i4", "<i8"]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LogHeader:
    """What a log's header says. vocabularies: the positions of fields that have one."""

    name: str
    notes: tuple[str, ...]
    examples: int
    fields: tuple[Field, ...]
    dense_names: tuple[str, ...]
    vocabularies: tuple[int, ...]
    arrays: Mapping[str, ArrayHeader]
    fingerprint: str

    def __post_init__(self) -> None:
        if not all(0 <= i < len(self.fields) for i in self.vocabularies):
            raise ValueError(f"vocabularies should be of fields, got {self.vocabularies}")


@dataclass(frozen=True, kw_only=True)
class SplitHeader:
    """What a split's header says. ranked: there are ranks."""

    name: str
    how: str
    seed: int | None
    ranked: bool


def save_log(log: ClickLog, folder: Path) -> Path:
    """Write a log, block by block, with only its own examples and rows as they are named now."""
    return _written(folder, lambda place: _write_log(log, place))


def load_log(folder: Path, *, verify: bool) -> ClickLog:
    """A log over maps of a folder's files."""
    header = _read_header(folder, _LOG, LogHeader)
    try:
        fields = header.fields
        places = [i for i, field in enumerate(fields) if field.multi_hot]
        # By our names alone: a header never says which file is opened.
        known = ["labels", "ids", "dense", "timestamps"]
        known += [f"bag_{i}_{what}" for i in places for what in ("values", "offsets")]
        maps = {
            name: _mapped(folder, name, header.arrays[name], header.examples)
            for name in known
            if name not in ("dense", "timestamps") or name in header.arrays
        }
        bags = {
            fields[i].name: Bag(maps[f"bag_{i}_values"], maps[f"bag_{i}_offsets"]) for i in places
        }
        names = {fields[i].name: f"vocabulary_{i}.npz" for i in header.vocabularies}
        store = Store(
            labels=maps["labels"],
            ids=maps["ids"],
            bags=bags,
            dense=maps.get("dense"),
            timestamps=maps.get("timestamps"),
        )
        log = ClickLog(
            fields=fields,
            store=store,
            rows=slice(0, len(store)),
            dense_names=header.dense_names,
            vocabularies={name: Vocabulary.load(folder / file) for name, file in names.items()},
            name=header.name,
            notes=header.notes,
        )
    except KeyError as error:
        raise DataError(f"{folder} is damaged: {type(error).__name__} {error}") from error
    if verify and log.fingerprint() != header.fingerprint:
        raise DataError(
            f"{folder} is damaged: its arrays have the fingerprint {log.fingerprint()}, its header "
            f"says {header.fingerprint}; make it again"
        )
    return log


def save_split(split: ClickSplit, folder: Path) -> Path:
    """Write the three parts in folders of their own, and the ranks where there are."""

    def write(place: Path) -> None:
        for part, log in zip(PARTS, split.parts(), strict=True):
            (place / part).mkdir()
            _write_log(log, place / part)
        if split.ranks is not None:
            names = [field.name for field in split.fields]
            arrays = {f"field_{i}": split.ranks[name] for i, name in enumerate(names)}
            write_arrays(place / "ranks.npz", arrays)
        header = {"name": split.name, "how": split.how, "seed": split.seed}
        _write_header(place, _SPLIT, {**header, "ranked": split.ranks is not None})

    return _written(folder, write)


def load_split(folder: Path, *, verify: bool) -> ClickSplit:
    """A split over maps of a folder's files."""
    header = _read_header(folder, _SPLIT, SplitHeader)
    train, validation, test = (load_log(folder / part, verify=verify) for part in PARTS)
    ranks = None
    if header.ranked:
        arrays = read_arrays(folder / "ranks.npz")
        wanted = {f"field_{i}": field.name for i, field in enumerate(train.fields)}
        if set(arrays) != set(wanted):
            raise DataError(f"{folder} is damaged: its ranks are {sorted(arrays)}; make it again")
        ranks = {name: arrays[place] for place, name in wanted.items()}
    return ClickSplit(
        train=train,
        validation=validation,
        test=test,
        name=header.name,
        how=header.how,
        seed=header.seed,
        ranks=ranks,
    )


def _write_log(log: ClickLog, place: Path) -> None:
    n = len(log)
    totals = _bag_totals(log)
    arrays: dict[str, NDArray[Any]] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...]) -> None:
        arrays[name] = np.lib.format.open_memmap(
            place / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=shape
        )

    add("labels", "<f4", (n,))
    add("ids", "<i4", (n, len(log.single)))
    if log.store.dense is not None:
        add("dense", "<f4", (n, len(log.dense_names)))
    if log.store.timestamps is not None:
        add("timestamps", "<i8", (n,))
    places = {field.name: i for i, field in enumerate(log.fields)}
    for name in log.multi:
        add(f"bag_{places[name]}_values", "<i4", (totals[name],))
        add(f"bag_{places[name]}_offsets", "<i8", (n + 1,))
    start, used = 0, dict.fromkeys(log.multi, 0)
    for block in log.blocks():
        own = slice(start, start + len(block))
        arrays["labels"][own] = block.labels
        arrays["ids"][own] = block.ids
        if block.dense is not None:
            arrays["dense"][own] = block.dense
        if block.timestamps is not None:
            arrays["timestamps"][own] = block.timestamps
        for name, bag in block.bags.items():
            before = used[name]
            used[name] += len(bag.values)
            arrays[f"bag_{places[name]}_values"][before : used[name]] = bag.values
            ends = arrays[f"bag_{places[name]}_offsets"]
            ends[start + 1 : own.stop + 1] = bag.offsets[1:] + before
        start = own.stop
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    for name, vocabulary in log.vocabularies.items():
        vocabulary.save(place / f"vocabulary_{places[name]}.npz")
    header = {
        "name": log.name,
        "notes": list(log.notes),
        "examples": n,
        "fields": [asdict(field) for field in log.fields],
        "dense_names": list(log.dense_names),
        "vocabularies": sorted(places[name] for name in log.vocabularies),
        "arrays": {k: {"dtype": v.dtype.str, "shape": list(v.shape)} for k, v in arrays.items()},
        "fingerprint": log.fingerprint(),
    }
    _write_header(place, _LOG, header)


def _bag_totals(log: ClickLog) -> dict[str, int]:
    totals = dict.fromkeys(log.multi, 0)
    for block in log.blocks() if totals else ():
        for name, bag in block.bags.items():
            totals[name] += len(bag.values)
    return totals


def _mapped(folder: Path, name: str, wanted: ArrayHeader, examples: int) -> NDArray[Any]:
    """One array of a folder, checked against the header."""
    path = folder / f"{name}.npy"
    dtype, shape = np.dtype(wanted.dtype), wanted.shape
    try:
        # A file can't be mapped where it holds nothing.
        empty = 0 in shape
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{folder} should have {path.name}, and has not") from error
    except Exception as error:  # numpy's parser of headers has errors of many kinds
        raise DataError(
            f"{path} is damaged: {(str(error).splitlines() or ['?'])[0]}; it may be truncated, "
            "make it again"
        ) from error
    if array.dtype != dtype or array.shape != shape:
        raise DataError(
            f"{path} should be {dtype} {shape} by its header, got {array.dtype} {array.shape}; "
            "make it again"
        )
    if name in ("labels", "ids", "dense", "timestamps") and len(array) != examples:
        raise DataError(f"{path} should have {examples} rows, got {len(array)}; make it again")
    return array


def _written(folder: Path, write: Callable[[Path], None]) -> Path:
    """Run write on a temporary folder beside this one, then put it in place."""
    if folder.exists() and not (folder / HEADER).is_file():
        raise DataError(
            f"{folder} exists and holds no saved clicks; choose another folder, or delete it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        write(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write_header(place: Path, kind: str, content: Mapping[str, Any]) -> None:
    header = {"kind": kind, "version": _VERSION, **content}
    text = json.dumps({"sha256": _digest(header), **header}, indent=1, ensure_ascii=False)
    with open(place / HEADER, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_header(folder: Path, kind: str, declared: type[H]) -> H:
    path = folder / HEADER
    try:
        header = parse(path.read_bytes(), dict[str, Any], "it")
        found = header.pop("sha256", None)
        if header.get("kind") != kind:
            raise DataError(f"{path} should be of a {kind}, got {header.get('kind')!r}")
        if header.get("version") != _VERSION:
            raise DataError(
                f"{path} has format version {header.get('version')!r}, this reads up to "
                f"{_VERSION}; upgrade bet_torchrec"
            )
        if found != _digest(header):
            raise DataError(f"{path} is damaged: its content does not match its checksum")
        told = {key: value for key, value in header.items() if key not in ("kind", "version")}
        return typed(told, declared, "header")
    except FileNotFoundError as error:
        raise DataNotFoundError(
            f"{folder} should be a folder that save wrote, with a {HEADER}; there is none"
        ) from error
    except (OSError, StrictError) as error:
        raise DataError(f"{path} is damaged: {error}; make it again") from error


def _digest(header: Mapping[str, Any]) -> str:
    text = json.dumps(header, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

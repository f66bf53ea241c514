"""TorchRec's own binary Criteo files: npy triples of dense values, hashed ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DataNotFoundError
from .check import check_both_classes, checked_dense, checked_labels
from .codes import Builder, Spool
from .criteo import CATEGORIES, INTEGERS
from .fields import Field
from .log import ClickLog

Paths = Path | str | Sequence[Path | str]
_BLOCK = 1 << 16


def read_binary_criteo(
    dense: Paths,
    sparse: Paths,
    labels: Paths,
    *,
    contiguous: bool = False,
    spool: Path | None = None,
    name: str = "criteo-binary",
) -> ClickLog:
    """What TorchRec's BinaryCriteoUtils writes, one triple of files or a triple a day.

    Args:
        dense: float32 (n, K). sparse: integers (n, S). labels: integers (n, 1) or (n,), 0 or 1.
        contiguous: take ids as the rows they are (``sparse_to_contiguous`` made them: 1 is
            infrequent), and leave one triple of int32 ids where it is, mapped. False gives every
            id (``tsv_to_npys`` wrote hashes) a row in a vocabulary.
        spool: folder for copies that are larger than memory.

    Raises:
        DataError: files that are no such arrays or differ in length, labels of -1 (Kaggle's test
            set has none).
    """
    triples = _triples(dense, sparse, labels)
    width, columns = triples[0].dense.shape[1], triples[0].sparse.shape[1]
    integers = INTEGERS if width == len(INTEGERS) else tuple(f"int_{i}" for i in range(width))
    fields = CATEGORIES if columns == len(CATEGORIES) else tuple(f"cat_{i}" for i in range(columns))
    if contiguous:
        return _contiguous(triples, fields, integers, spool, name)
    builder = Builder(fields, dense=integers, spool=spool, name=name)
    for one in triples:
        for start in range(0, len(one.labels), _BLOCK):
            own = slice(start, start + _BLOCK)
            ids = np.empty(one.sparse[own].shape, dtype=np.int32)
            for i, field in enumerate(fields):
                ids[:, i] = builder.codes[field].array(one.sparse[own, i].tolist())
            own_labels = checked_labels(one.labels[own], one.name)
            values = checked_dense(one.dense[own], len(own_labels), one.name)
            builder.add(own_labels, ids, dense=values)
    return builder.finish()


def _contiguous(
    triples: Sequence[_Triple],
    fields: Sequence[str],
    integers: Sequence[str],
    spool: Path | None,
    name: str,
) -> ClickLog:
    rows = np.zeros(len(fields), dtype=np.int64)
    for one in triples:
        for start in range(0, len(one.labels), _BLOCK):
            rows = np.maximum(rows, one.sparse[start : start + _BLOCK].max(axis=0) + 1)
    log = ClickLog.from_arrays(
        [Field(field, int(size)) for field, size in zip(fields, rows, strict=True)],
        labels=_joined([one.labels for one in triples], "<f4", spool),
        ids=_joined([one.sparse for one in triples], "<i4", spool),
        dense=_joined([one.dense for one in triples], "<f4", spool),
        dense_names=integers,
        name=name,
    )
    check_both_classes(log.labels, name)
    return log


def _joined(arrays: Sequence[NDArray[Any]], dtype: str, spool: Path | None) -> NDArray[Any]:
    """All one after the other; a single one of the right type stays where it is."""
    if len(arrays) == 1 and arrays[0].dtype == np.dtype(dtype):
        return arrays[0]
    width = arrays[0].shape[1] if arrays[0].ndim == 2 else None
    joined = Spool(dtype, width, spool)
    for array in arrays:
        for start in range(0, len(array), _BLOCK):
            joined.add(array[start : start + _BLOCK])
    return joined.array()


class _Triple(NamedTuple):
    name: str
    dense: NDArray[Any]
    sparse: NDArray[Any]
    labels: NDArray[Any]


def _triples(dense: Paths, sparse: Paths, labels: Paths) -> list[_Triple]:
    """The files, mapped and checked against each other."""
    lists = [
        [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
        for paths in (dense, sparse, labels)
    ]
    if not lists[0] or len({len(paths) for paths in lists}) != 1:
        raise DataError(
            "expected as many dense, sparse and label files, one of each at least, got "
            f"{', '.join(str(len(paths)) for paths in lists)}"
        )
    triples: list[_Triple] = []
    for paths in zip(*lists, strict=True):
        arrays = [_mapped(path) for path in paths]
        label = arrays[2].reshape(-1) if arrays[2].shape[1:] == (1,) else arrays[2]
        triple = _Triple(str(paths[2]), arrays[0], arrays[1], label)
        kinds = (triple.dense.dtype.kind, triple.sparse.dtype.kind)
        shapes = [array.shape for array in arrays]
        if (triple.dense.ndim, triple.sparse.ndim, label.ndim) != (2, 2, 1) or kinds != ("f", "i"):
            raise DataError(
                f"{paths[0].parent}: expected floats (n, K), integers (n, S) and labels (n, 1), "
                f"got {', '.join(f'{a.dtype} {a.shape}' for a in arrays)}"
            )
        if len({len(array) for array in arrays}) != 1:
            raise DataError(f"{paths[0].parent}: files should have one length, got {shapes}")
        first = triples[0] if triples else triple
        if shapes[0][1:] != first.dense.shape[1:] or shapes[1][1:] != first.sparse.shape[1:]:
            raise DataError(f"{paths[0].parent}: files should have the same columns, got {shapes}")
        triples.append(triple)
    return triples


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"expected a file {path}, found none") from error
    except Exception as error:  # numpy's parser of headers has errors of many kinds
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} should be an npy file of a plain array: {why}") from error

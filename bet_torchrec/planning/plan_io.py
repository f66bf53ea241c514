"""The file of a plan: one safetensors file, no pickle, written whole or not at all.

The header (JSON, in the file's metadata) says what the file is and which version of the format;
a checksum over header and arrays tells a damaged file from a plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from ..errors import PlanFileError
from ..files.tensors import CHECKSUM, TensorFile, TensorFileError, from_bytes
from ..strict import StrictError
from .budget import Budget
from .tables import BasisKind

FORMAT = "bet_torchrec.plan"
VERSION = 2  # 1: without bases. A plan without any is still written so, for older readers

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TableHeader:
    """One table. buckets: (width, rows, precision). ranked: ids are ranks, there is no order.

    basis: from version 2 on.
    """

    name: str
    rows: int
    embedding_dim: int
    buckets: tuple[tuple[int, int, str], ...]
    ranked: bool
    counts_fingerprint: str
    basis: BasisKind | None = None


@dataclass(frozen=True, kw_only=True)
class PlanHeader:
    """All of a plan but its orders, which are the arrays ``order.NUMBER``, int32 (rows,)."""

    tables: tuple[TableHeader, ...]
    budget: Budget
    sizer: str
    seed: int | None
    metadata: Mapping[str, str]


def dump(header: Mapping[str, Any], arrays: Arrays, *, based: bool = False) -> bytes:
    """A file's bytes from a JSON-able header and named arrays. based: some table has a basis."""
    text = json.dumps(header, sort_keys=True)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION if based else 1),
        "header": text,
        "sha256": _checksum(text, arrays),
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save_safetensors(contiguous, metadata))


def parse(data: bytes, *, source: str) -> tuple[PlanHeader, Arrays]:
    """Header and arrays of a file's bytes.

    Args:
        source: what an error should call them.

    Raises:
        PlanFileError: corrupted, foreign, or of a newer version.
    """
    try:
        file = from_bytes(data)
        if file.metadata.get("format") != FORMAT:
            raise PlanFileError(
                f"{source} should be a plan saved by SizePlan.save, got a safetensors file of "
                f"{file.metadata.get('format', 'something else')!r}"
            )
        if (version := file.metadata.get("version", "")) not in ("1", str(VERSION)):
            raise PlanFileError(
                f"{source} should be a plan of format version {VERSION} or older, got {version!r}; "
                "upgrade bet_torchrec to read it"
            )
        header: PlanHeader = file.header(PlanHeader)
        arrays = _orders(file, header)
    except (TensorFileError, StrictError) as error:
        raise _damaged(source, str(error)) from error
    if file.metadata.get(CHECKSUM) != _checksum(file.metadata["header"], arrays):
        raise _damaged(source, "its checksum does not match")
    return header, arrays


def _orders(file: TensorFile, header: PlanHeader) -> Arrays:
    told = {
        f"order.{i}": ("I32", (table.rows,))
        for i, table in enumerate(header.tables)
        if not table.ranked
    }
    found = {name: (stored.dtype, stored.shape) for name, stored in file.tensors.items()}
    if found != told:
        raise TensorFileError(f"its arrays should be {told}, got {found}")
    return {name: file.array(name) for name in found}


def _damaged(source: str, why: str) -> PlanFileError:
    return PlanFileError(
        f"{source} should be a plan saved by SizePlan.save, but {why}; the file is damaged or no "
        "plan: save it again"
    )


def _checksum(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()

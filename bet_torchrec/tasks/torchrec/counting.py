"""How often every row is looked up, in one pass over the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ...errors import InvalidInputError
from ...files import replacing
from ...progress import progress_bar
from ...team import Alone, Team

_BUFFER = 1 << 16  # ids that are counted at once, at least

Features = Callable[[Any], KeyedJaggedTensor]


def features_of(batch: Any) -> KeyedJaggedTensor:
    """A batch's ids: itself, its ``sparse_features``, or the first part that is one."""
    if isinstance(batch, KeyedJaggedTensor):
        return batch
    found = getattr(batch, "sparse_features", None)
    if isinstance(found, KeyedJaggedTensor):
        return found
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, Iterable):
        for part in parts:
            if isinstance(part, KeyedJaggedTensor):
                return part
    raise InvalidInputError(
        f"a batch should be or have a KeyedJaggedTensor, got {type(batch).__name__}: pass "
        "features=, a function from a batch to its KeyedJaggedTensor"
    )


def count_ids(
    batches: Iterable[Any],
    tables: Sequence[Any],
    *,
    features: Features = features_of,
    team: Team | None = None,
    progress: bool = False,
    total: int | None = None,
) -> dict[str, NDArray[np.int64]]:
    """{table: int64 (rows,)}: how often each row is looked up, in id order.

    tables: EmbeddingBagConfigs or EmbeddingConfigs; a table counts the ids of all its features.
    team: ranks whose counts are summed, each over its own batches. total: batches, for the bar.

    Raises:
        InvalidInputError: an id out of a table's range, a feature that no batch has.
        CollectiveError: another rank failed.
    """
    team = Alone() if team is None else team
    counters = {table.name: _Counter(table) for table in tables}
    names = {table.name: list(table.feature_names or [table.name]) for table in tables}

    def count() -> None:
        shown = progress and team.rank == 0
        for batch in progress_bar(batches, desc="counting", unit="batch", total=total, shown=shown):
            ids = features(batch)
            keys = set(ids.keys())
            for table, counter in counters.items():
                for feature in names[table]:
                    if feature not in keys:
                        raise InvalidInputError(
                            f"table {table!r}: expected feature {feature!r} in every batch, got "
                            f"{sorted(keys)}"
                        )
                    counter.add(ids[feature].values())

    team.together("counting ids", count)
    return {name: team.sum(counter.result()) for name, counter in counters.items()}


class _Counter:
    """Counts of one table; ids are gathered so that a large table isn't passed over every batch."""

    def __init__(self, table: Any) -> None:
        self.name, self.rows = table.name, table.num_embeddings
        self.counts = torch.zeros(self.rows, dtype=torch.int64)
        self.waiting: list[Tensor] = []
        self.size = 0

    def add(self, ids: Tensor) -> None:
        self.waiting.append(ids.detach().cpu())
        self.size += ids.numel()
        if self.size >= max(_BUFFER, self.rows // 4):
            self.flush()

    def flush(self) -> None:
        if not self.size:
            return
        ids = torch.cat(self.waiting)
        if int(ids.min()) < 0 or int(ids.max()) >= self.rows:
            wrong = ids[(ids < 0) | (ids >= self.rows)]
            raise InvalidInputError(
                f"table {self.name!r}: ids should be from 0 to {self.rows - 1}, got "
                f"{int(wrong[0])} among the training batches"
            )
        self.counts += torch.bincount(ids, minlength=self.rows)
        self.waiting, self.size = [], 0

    def result(self) -> NDArray[np.int64]:
        self.flush()
        return self.counts.numpy()


def save_counts(path: str | Path, counts: Mapping[str, NDArray[np.int64]]) -> None:
    """Write counts as one npz file, whole or not at all."""
    with replacing(Path(path)) as file:
        np.savez_compressed(file, **dict(counts))  # type: ignore[arg-type]


def load_counts(path: str | Path, tables: Sequence[Any]) -> dict[str, NDArray[np.int64]]:
    """Read counts of these tables.

    Raises:
        InvalidInputError: the file is broken, or of other tables. FileNotFoundError: there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds
        raise InvalidInputError(f"{path} holds no counts ({error}): remove it") from error
    expected = {table.name: table.num_embeddings for table in tables}
    rows = {name: len(counts) for name, counts in found.items()}
    if rows != expected or any(counts.dtype != np.int64 for counts in found.values()):
        raise InvalidInputError(
            f"{path} should hold int64 counts of {expected} rows, got {rows}: remove it"
        )
    return found

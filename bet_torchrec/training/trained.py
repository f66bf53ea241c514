"""A trained model with its tables: evaluated, saved and read back as one thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..models.protocol import EmbeddingModule
from ..outcome import Outcome
from .checkpoint import CheckpointError, load_state, save_state

if TYPE_CHECKING:
    from ..tasks.task import Task

Precisions = Mapping[str, "ArrayLike | str"]


class Sizes(Protocol):
    """The part of a ``SizePlan`` that training needs."""

    def sizes(self, table: str) -> NDArray[np.int32]:
        """int32 (rows,), in id order."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """task: what was learnt. model: its weights. embedding: its tables. outcome: how it went.

    precisions: {table: one precision a row, or one for all}; tables named there are read as
    row-wise quantisation leaves them, in every evaluation. None: fp32.
    """

    task: Task
    model: nn.Module
    embedding: Any
    outcome: Outcome
    precisions: Precisions | None = None

    @property
    def quality(self) -> float:
        """Validation quality of these weights."""
        return self.outcome.quality

    @property
    def served(self) -> EmbeddingModule:
        """The tables as they are read when served."""
        return as_served(self.embedding, self.precisions)

    def evaluate(self, *, part: str = "test", **options: Any) -> Any:
        """The task's metrics; options as its ``evaluate`` takes them."""
        evaluate: Any = self.task.evaluate
        return evaluate(self.model, self.served, part=part, **options)

    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables, rows x embedding_dim each, zero-padded."""
        copies: dict[str, Tensor] = self.embedding.full_tables()
        dims = {table.name: table.embedding_dim for table in self.task.tables}
        return {
            name: nn.functional.pad(copy[:, : dims[name]], (0, max(0, dims[name] - copy.shape[1])))
            for name, copy in copies.items()
        }

    def save(self, path: Path, *, facts: Mapping[str, Any] | None = None) -> None:
        """Write weights and outcome as one safetensors file; ``facts`` go along."""
        tensors = {f"backbone/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"embedding/{k}": v for k, v in self.embedding.state_dict().items()}
        save_state(path, tensors, {**(facts or {}), "outcome": dataclasses.asdict(self.outcome)})

    @classmethod
    def load(
        cls,
        path: Path,
        task: Task,
        model: nn.Module,
        embedding: Any,
        *,
        precisions: Precisions | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Trained:
        """Read weights into ``model`` and ``embedding``, which must be built alike.

        Raises:
            CheckpointError: ``facts`` differ from those saved, or the weights do not fit.
            FileNotFoundError: there is no such file.
        """
        tensors, saved = load_state(path)
        outcome = saved.pop("outcome", None)
        if outcome is None or (facts is not None and saved != dict(facts)):
            raise CheckpointError(f"{path} holds another model than the one asked for: remove it")
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "embedding": {}}
        try:
            for key, value in tensors.items():
                part, name = key.split("/", 1)
                parts[part][name] = value
            model.load_state_dict(parts["backbone"])
            embedding.load_state_dict(parts["embedding"])
            history = tuple((step, quality) for step, quality in outcome["history"])
            ended = Outcome(**{**outcome, "history": history})
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this model: {error}") from error
        model.eval()
        return cls(
            task=task, model=model, embedding=embedding, outcome=ended, precisions=precisions
        )


def as_served(embedding: Any, precisions: Precisions | None) -> EmbeddingModule:
    """The tables as they are read in these precisions."""
    served: EmbeddingModule = embedding if precisions is None else embedding.quantised(precisions)
    return served


def precisions_of(plan: Any) -> dict[str, NDArray[np.str_]] | None:
    """{table: its rows' precisions in id order}, or None where all rows are fp32."""
    planned = getattr(plan, "tables", ())
    if not any(bucket.precision != "fp32" for table in planned for bucket in table.buckets):
        return None
    found = {}
    for table in planned:
        ranked = np.repeat(
            np.array([bucket.precision for bucket in table.buckets]),
            [bucket.rows for bucket in table.buckets],
        )
        rows = ranked.copy()
        if table.order is not None:
            rows[table.order] = ranked
        found[table.name] = rows
    return found

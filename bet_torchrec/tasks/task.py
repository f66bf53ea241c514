"""What is learnt, from what, and how good it is: the seam that everything that trains goes through.

Shapes: D an embedding module's width, d a table's embedding_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ..models.protocol import EmbeddingModule
from ..planning.counts import RowCounts
from ..planning.tables import TableSpec
from ..team import Team

Batch: TypeAlias = Any
"""One step's examples, in a form that only the task knows."""

Part = Literal["validation", "check", "test"]
"""What a quality is over; "check" is a part of validation that is cheap to ask."""


class Report(Protocol):
    """A task's metrics over one part of its data."""

    def mean(self) -> dict[str, float]:
        """{metric: value}."""
        ...


class Task(Protocol):
    """A model to be learnt from data, over any embedding module.

    tables: to be sized. steps_per_epoch: batches that make a pass over the training data.
    On several ranks every rank has its own task object over the same data; ``batch`` then gives
    this rank's part of a step's global batch and ``loss`` is scaled so that the mean over ranks is
    the global batch's loss.
    """

    @property
    def tables(self) -> Sequence[TableSpec]: ...

    @property
    def team(self) -> Team:
        """The ranks that share the work; ``Alone()`` in one process."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    def counts(self) -> Mapping[str, RowCounts]:
        """{table: how often each of its rows occurs in the training data}."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What a result depends on (data, model, loss, metric), JSON-serialisable.

        Enters every header, kept model and checkpoint. How many ranks there are is no part of it.
        """
        ...

    def new_model(self, seed: int) -> nn.Module:
        """The model without its tables, its weights drawn."""
        ...

    def batch(self, seed: int, step: int) -> Batch:
        """A step's examples: a function of (seed, step), so that resuming is exact."""
        ...

    def loss(
        self,
        model: nn.Module,
        embedding: EmbeddingModule,
        batch: Batch,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A scalar to be minimised. generator: of what is random in it, as dropout."""
        ...

    def validate(
        self, model: nn.Module, embedding: EmbeddingModule, *, part: Part = "validation"
    ) -> float:
        """Quality, higher is better; on several ranks the same number on each."""
        ...

    def evaluate(
        self, model: nn.Module, embedding: EmbeddingModule, *, part: Literal["validation", "test"]
    ) -> Report:
        """All metrics of a part."""
        ...


@runtime_checkable
class TellsExamples(Protocol):
    """What a task may tell beside: how its single examples fare, and which rows they read."""

    def rows_of(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{table: ids (V,) and examples (V,), int64}: example examples[v] reads row ids[v]."""
        ...

    def errors(self, model: nn.Module, embedding: EmbeddingModule, batch: Batch) -> Tensor:
        """(B,) squared errors of the predicted probabilities, from 0 to 1, without dropout."""
        ...

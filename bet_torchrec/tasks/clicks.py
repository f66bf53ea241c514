"""Click prediction: a click model over the fields' tables, cross entropy, AUC or log loss.

Shapes: N examples, B of them in a batch, F fields, D an embedding module's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.clicks import ClickBatch, ClickLog, ClickSplit
from ..errors import InvalidInputError
from ..evaluation import ClickMetrics, auc, click_metrics, log_loss
from ..models.clicks import click_model_settings, make_click_model
from ..models.protocol import EmbeddingModule
from ..planning.counts import RowCounts
from ..planning.tables import TableSpec
from ..team import Team, team
from .task import Part

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ClickModelName: TypeAlias = Literal["fm", "deepfm", "autoint", "dlrm", "dcn"]
Pooling: TypeAlias = Literal["mean", "sum"]
ClickMetric: TypeAlias = Literal["auc", "logloss"]

EVALUATED = 1 << 14  # examples at a time, over all ranks
CHECKED = 10  # "check" is every so many-th example of either class


class ClickStep(NamedTuple):
    """clicks: this rank's. examples: what sums are divided by: the global batch's / ranks."""

    clicks: ClickBatch
    examples: float


class ClickTask:
    """One click model on one split, a table for each field; implements ``Task``.

    split: fields, labels and parts. model: one of ``models.clicks.CLICK_MODELS``; model_settings:
    its constructor's (layers, dropout, linear ...), as published unless given.
    embedding_dim: of every table. batch_size: examples a step, over all ranks; the last one of an
    epoch is smaller. l2: weight of half the squared norm of the rows that a batch looks up, a row
    counted as often as it occurs, over the batch size.
    pooling: of the rows of a multi-hot field's values; a field without any reads as zeros.
    metric: of ``validate``, "auc" or "logloss" (which is negated: higher is better everywhere).
    process_group: all its ranks share the work, each with its part of every batch.

    An epoch passes over all training examples in an order drawn from (seed, epoch); it holds one
    permutation, 8 bytes an example, at a time.
    """

    def __init__(
        self,
        split: ClickSplit,
        model: ClickModelName = "deepfm",
        *,
        embedding_dim: int = 16,
        model_settings: Mapping[str, Any] | None = None,
        batch_size: int = 2048,
        l2: float = 0.0,
        pooling: Pooling = "mean",
        metric: ClickMetric = "auc",
        process_group: ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidInputError(f"batch_size should be an int from 1 on, got {batch_size!r}")
        if not 0 <= l2 < float("inf"):
            raise InvalidInputError(f"l2 should be at least 0 and finite, got {l2!r}")
        if pooling not in ("mean", "sum"):
            raise InvalidInputError(f"pooling should be 'mean' or 'sum', got {pooling!r}")
        if metric not in ("auc", "logloss"):
            raise InvalidInputError(f"metric should be 'auc' or 'logloss', got {metric!r}")
        self.split = split
        self.model: ClickModelName = model
        self.model_settings = click_model_settings(model, **(model_settings or {}))
        self.embedding_dim = embedding_dim
        self.batch_size = batch_size
        self.l2 = l2
        self.pooling: Pooling = pooling
        self.metric: ClickMetric = metric
        self.device = torch.device(device)
        self.team: Team = team(process_group)
        self._order: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    @cached_property
    def tables(self) -> tuple[TableSpec, ...]:
        return tuple(
            TableSpec(name=f.name, num_embeddings=f.rows, embedding_dim=self.embedding_dim)
            for f in self.split.fields
        )

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.split.train) // self.batch_size)

    def counts(self) -> dict[str, RowCounts]:
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[str, RowCounts]:
        counted = self.split.train.counts()
        return {name: RowCounts.from_rows(counts) for name, counts in counted.items()}

    def identity(self) -> dict[str, Any]:
        return {
            "task": "clicks",
            "model": self.model,
            "model_settings": self.model_settings,
            "embedding_dim": self.embedding_dim,
            "pooling": self.pooling,
            "loss": {"batch_size": self.batch_size, "l2": self.l2},
            "metric": self.metric,
            "train": self.split.train.fingerprint(),
            "validation": self.split.validation.fingerprint(),
        }

    def new_model(self, seed: int) -> nn.Module:
        train = self.split.train
        module = make_click_model(
            self.model,
            num_fields=len(self.split.fields),
            dim=self.embedding_dim,
            dense_features=len(train.dense_names),
            **self.model_settings,
        )
        module.reset_parameters(torch.Generator().manual_seed(seed))  # type: ignore[operator]
        return module.to(self.device)

    def batch(self, seed: int, step: int) -> ClickStep:
        epoch, step = divmod(step, self.steps_per_epoch)
        rows = self._permutation(seed, epoch)[step * self.batch_size :][: self.batch_size]
        mine = rows[self.team.rank :: self.team.size]
        clicks = self.split.train.batch(mine).to(self.device)
        return ClickStep(clicks, len(rows) / self.team.size)

    def loss(
        self,
        model: nn.Module,
        embedding: EmbeddingModule,
        batch: ClickStep,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        rows, norm = self._rows(embedding, batch.clicks)
        logits = model(rows, batch.clicks.dense, generator=generator)
        loss = F.binary_cross_entropy_with_logits(logits, batch.clicks.labels, reduction="sum")
        if self.l2:
            loss = loss + norm * (self.l2 / 2)
        return loss / batch.examples

    def rows_of(self, batch: ClickStep) -> dict[str, tuple[Tensor, Tensor]]:
        clicks = batch.clicks
        every = torch.arange(clicks.size, device=clicks.labels.device)
        read = dict(zip(clicks.single, ((ids, every) for ids in clicks.ids.T), strict=True))
        for name, (values, offsets) in clicks.bags.items():
            read[name] = values, every.repeat_interleave(offsets.diff())
        return read

    @torch.no_grad()
    def errors(self, model: nn.Module, embedding: EmbeddingModule, batch: ClickStep) -> Tensor:
        was_training = model.training
        model.eval()
        try:
            logits = model(self._rows(embedding, batch.clicks)[0], batch.clicks.dense)
        finally:
            model.train(was_training)
        squared: Tensor = (logits.sigmoid() - batch.clicks.labels).square()
        return squared

    def validate(
        self, model: nn.Module, embedding: EmbeddingModule, *, part: Part = "validation"
    ) -> float:
        """AUC or negative log loss; NaN where a logit is not finite."""
        logits = self.predictions(model, embedding, part=part)
        if not np.isfinite(logits).all():
            return float("nan")
        labels = self.part(part).labels
        return auc(labels, logits) if self.metric == "auc" else -log_loss(labels, logits)

    def evaluate(
        self,
        model: nn.Module,
        embedding: EmbeddingModule,
        *,
        part: Literal["validation", "test"] = "test",
    ) -> ClickMetrics:
        """All metrics of a part, on each rank."""
        return click_metrics(self.part(part).labels, self.predictions(model, embedding, part=part))

    def part(self, part: Part) -> ClickLog:
        """The examples that this part's quality is over."""
        if part == "check":
            return self._check
        if part not in ("validation", "test"):
            raise InvalidInputError(f"part should be 'validation', 'check' or 'test', got {part!r}")
        log: ClickLog = getattr(self.split, part)
        return log

    @cached_property
    def _check(self) -> ClickLog:
        # Of either class, so that a small part still has both.
        clicked = self.split.validation.labels > 0
        chosen = [np.flatnonzero(clicked)[::CHECKED], np.flatnonzero(~clicked)[::CHECKED]]
        return self.split.validation.take(np.sort(np.concatenate(chosen)))

    @torch.no_grad()
    def predictions(
        self, model: nn.Module, embedding: EmbeddingModule, *, part: Part = "test"
    ) -> NDArray[np.float32]:
        """Logits (N,) of a part's examples in their order, in evaluation mode; on each rank.

        Raises:
            InvalidInputError: the part has no examples. CollectiveError: another rank failed.
        """
        log = self.part(part)
        if not len(log):
            raise InvalidInputError(f"{log.name} has no examples: split it with a {part} part")
        was_training = model.training
        model.eval()
        try:
            mine = self.team.together("prediction", lambda: self._predict(model, embedding, log))
        finally:
            model.train(was_training)
        everyone = self.team.gather(mine)
        logits = np.empty(len(log), dtype=np.float32)
        for rank, found in enumerate(everyone):
            logits[self._own(len(log), rank)] = found
        return logits

    def _predict(
        self, model: nn.Module, embedding: EmbeddingModule, log: ClickLog
    ) -> NDArray[np.float32]:
        # All ranks take as many blocks, empty ones too: lookups in sharded tables are collective.
        blocks = -(-len(log) // EVALUATED)
        found = []
        for rows in np.array_split(self._own(len(log), self.team.rank), blocks):
            clicks = log.batch(rows).to(self.device)
            found.append(model(self._rows(embedding, clicks)[0], clicks.dense).float().cpu())
        return torch.cat(found).numpy()

    def _own(self, examples: int, rank: int) -> NDArray[np.int64]:
        """A rank's examples."""
        return np.arange(rank, examples, self.team.size)

    def _rows(self, embedding: EmbeddingModule, clicks: ClickBatch) -> tuple[Tensor, Tensor]:
        """The fields' pooled rows (B, F, D), and the squared norm of all rows looked up."""
        columns = dict(zip(clicks.single, clicks.ids.T.contiguous(), strict=True))
        pooled, norms = [], []
        for field in self.split.fields:
            if field.multi_hot:
                values, offsets = clicks.bags[field.name]
                rows = embedding.lookup(field.name, values)
                pooled.append(pool(rows, offsets, how=self.pooling))
            else:
                rows = embedding.lookup(field.name, columns[field.name])
                pooled.append(rows)
            if self.l2:
                norms.append(rows.square().sum())
        stacked = torch.stack(pooled, dim=1)
        return stacked, torch.stack(norms).sum() if norms else stacked.new_zeros(())

    def _permutation(self, seed: int, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != (seed, epoch):
            drawn = np.random.default_rng([seed, epoch]).permutation(len(self.split.train))
            self._order = (seed, epoch), drawn
        return self._order[1]


def pool(rows: Tensor, offsets: Tensor, *, how: Pooling) -> Tensor:
    """Means or sums (B, D) of rows (V, D) from offsets[b] to offsets[b + 1]; zeros of none."""
    if not len(rows):
        return rows.new_zeros(len(offsets) - 1, rows.shape[1])
    order = torch.arange(len(rows), device=rows.device)
    return F.embedding_bag(order, rows, offsets, mode=how, include_last_offset=True)

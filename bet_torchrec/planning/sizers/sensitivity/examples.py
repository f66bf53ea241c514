"""Squares of per-example gradients, entry by entry: what an entry's loss is measured by.

The gradient of a batch's summed loss at the rows that were looked up is, row by row, each
example's own; squared and added up by id it is the diagonal of the empirical Fisher matrix. Squares
of whole batches' gradients, as Adagrad keeps them, are a poor stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ....axes import Basis, Moments
from ....errors import InvalidInputError

if TYPE_CHECKING:
    from ....models.protocol import EmbeddingModule
    from ....tasks.task import Task


class _Recorder:
    """An embedding module whose reads are leaves that a gradient comes back to."""

    def __init__(self, embedding: EmbeddingModule) -> None:
        self._embedding, self.width = embedding, embedding.width
        self.reads: list[tuple[str, Tensor | None, Tensor]] = []

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        return self._leaf(name, ids, self._embedding.lookup(name, ids))

    def table(self, name: str) -> Tensor:
        return self._leaf(name, None, self._embedding.table(name))

    def _leaf(self, name: str, ids: Tensor | None, rows: Tensor) -> Tensor:
        leaf = rows.detach().requires_grad_()
        self.reads.append((name, ids, leaf))
        return leaf


def squared_gradients(
    task: Task,
    model: nn.Module,
    embedding: EmbeddingModule,
    *,
    batches: int,
    seed: int = 0,
    bases: Mapping[str, Basis] | None = None,
) -> dict[str, Tensor]:
    """{table: (rows, columns)}, the sums over all examples of ``batches`` batches.

    Gradients are of the task's own loss: where that is a mean over B examples, an example's is
    divided by B, a factor common to all entries. A model that reads whole tables (a graph's) has
    no gradient an example there: then it is the batch's, and batches should be small and many.
    Dropout is off. On several ranks each has what its own examples say.

    Args:
        embedding: the trained tables. bases: {table: axes}; its columns are then coordinates.

    Raises:
        InvalidInputError: no batches, or gradients that are not finite.
    """
    bases = bases or {}
    sums: dict[str, Tensor] = {}
    for spec in task.tables:
        basis = bases.get(spec.name)
        columns = embedding.width if basis is None else basis.width
        sums[spec.name] = torch.zeros(spec.num_embeddings, columns)
    for name, ids, gradient in _gradients(task, model, embedding, batches, seed):
        basis = bases.get(name)
        turned = gradient if basis is None else basis.gradient(gradient)
        squares = turned.square().to(sums[name])
        if ids is None:
            sums[name] += squares
        else:
            sums[name].index_add_(0, ids.to(sums[name].device), squares)
    for name, total in sums.items():
        if not total.isfinite().all():
            raise InvalidInputError(
                f"table {name!r}: gradients should be finite, got others: has training diverged?"
            )
    return sums


def gradient_moments(
    task: Task, model: nn.Module, embedding: EmbeddingModule, *, batches: int, seed: int = 0
) -> dict[str, Moments]:
    """{table: second moments of the loss' gradient at its lookups}, (d, d) each.

    As ``squared_gradients``, with what columns have in common kept and rows not told apart: the
    measure that ``column_codes.loss_turn`` turns a table by. A row of a table that is read as a
    whole counts as one lookup a batch.

    Raises:
        InvalidInputError: no batches, or gradients that are not finite.
    """
    found = {spec.name: Moments(spec.embedding_dim) for spec in task.tables}
    for name, _, gradient in _gradients(task, model, embedding, batches, seed):
        moments = found[name]
        moments.add(gradient[:, : moments.dim].cpu())
    return found


def _gradients(
    task: Task, model: nn.Module, embedding: EmbeddingModule, batches: int, seed: int
) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """(table, ids or None, gradient at its rows) of all that some batches look up."""
    if batches < 1:
        raise InvalidInputError(f"batches should be at least 1, got {batches}")
    names = {spec.name for spec in task.tables}
    was_training = model.training
    model.eval()
    try:
        for step in range(batches):
            recorder = _Recorder(embedding)
            loss = task.loss(model, recorder, task.batch(seed, step))
            leaves = [leaf for _, _, leaf in recorder.reads]
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            for (name, ids, _), gradient in zip(recorder.reads, found, strict=True):
                if gradient is not None and name in names:
                    yield name, ids, gradient
    finally:
        model.train(was_training)

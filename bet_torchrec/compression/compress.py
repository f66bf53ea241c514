"""From a trained model to coded tables within budgets of bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..column_codes import choose_codes
from ..errors import InvalidInputError
from ..planning.budget import Budget
from ..training import Trained, TrainingWorkbench, TrainSettings, rounding_epochs
from ..training.rounding import ColumnCodes
from .form import loss_moments
from .result import Compressed, Compression, CompressionReport, Point

if TYPE_CHECKING:
    import torch

    from ..tasks import Task

Bytes = int | Budget


def compress(
    model: nn.Module | Trained,
    *,
    budget: Bytes | Sequence[Bytes],
    task: Task | None = None,
    training: TrainSettings | None = None,
    fine_tune: bool = True,
    batches: int | None = None,
    rank_blocks: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Compression:
    """A trained model with its tables in column codes, within each of the budgets.

    Every table gets axes of its own, turned by what the loss is sensitive to; axes, blocks of ranks
    and the bits of every column are chosen together to cost the loss least, no bits meaning that a
    block's rows end there; then rows, steps and offsets are trained on as they will be read.
    Nothing is searched: the cost is a pass over some examples and the training on.

    Args:
        model: a ``Trained`` of any task, as ``TrainingWorkbench.full()`` gives it; or a user's own
            trained model around an EmbeddingBagCollection, with its ``TorchRecTask``.
        budget: bytes of all that is served of the tables (codes, scales, axes, id maps), as a
            number or ``Budget.bytes(..., purpose="inference")``; or several of them, largest first
            or not, each compressed for itself.
        task: what the model was trained on; a ``Trained`` brings its own.
        training: settings of training on; ``rounding_epochs`` of the task's own unless given.
        fine_tune: False leaves it out. batches: of examples that sensitivity is measured over; 50,
            or an epoch's, unless given. rank_blocks: blocks that a table's ranks may be cut into.

    Raises:
        InvalidInputError: no bytes for serving, or a model that is not the task's.
        InfeasibleBudgetError: fewer bytes than one column a table takes.
    """
    limits = [_limit(each) for each in (budget if isinstance(budget, Sequence) else [budget])]
    if not limits:
        raise InvalidInputError("expected a budget in bytes, or several, got none")
    bench, full = _adopted(model, task, training, seed, device, progress)
    task = bench.task
    tables, counts = full.full_tables(), bench.counts()
    moments = loss_moments(full, batches=batches, seed=seed)
    steps, taken = task.steps_per_epoch, full.outcome.epochs
    settings = training or rounding_epochs(bench.training, steps, trained=taken)
    found = []
    for limit in limits:
        codes = choose_codes(tables, counts, moments, limit=limit, rank_blocks=rank_blocks)
        module = ColumnCodes(codes.tables, codes.coordinates(tables)).to(bench.device)
        before = task.validate(full.model, module)
        best, quality, kept = full, before, codes.tables
        if fine_tune:
            tuned = bench.fit(module, settings=settings, warm=full, seed=seed + 1)
            if tuned.outcome.ok and tuned.quality > before:
                best, quality, kept = tuned, tuned.quality, module.coded()
        point = Point(
            limit=limit,
            bytes=sum(table.nbytes for table in kept.values()),
            before=before,
            after=quality,
        )
        found.append(Compressed(task=task, model=best.model, tables=kept, point=point))
    report = CompressionReport(
        metric=str(getattr(task, "metric", "quality")),
        full_quality=full.quality,
        full_bytes=4 * sum(table.numel() for table in tables.values()),
        rows=sum(len(table) for table in tables.values()),
        points=tuple(each.point for each in found),
    )
    return Compression(forms=tuple(found), report=report)


def _limit(budget: Any) -> int:
    if isinstance(budget, Budget):
        if budget.unit != "bytes" or budget.purpose != "inference":
            raise InvalidInputError(
                "a compressed model is counted in bytes that are served: pass a number of bytes or "
                f'Budget.bytes(..., purpose="inference"), got {budget}'
            )
        return int(budget.amount)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InvalidInputError(f"budget should be a number of bytes from 1 on, got {budget!r}")
    return budget


def _adopted(
    model: Any,
    task: Any,
    training: TrainSettings | None,
    seed: int,
    device: torch.device | str,
    progress: bool,
) -> tuple[TrainingWorkbench, Trained]:
    if isinstance(model, Trained):
        if task is not None and task is not model.task:
            raise InvalidInputError(
                "a Trained brings the task that it was trained on: leave task= out"
            )
        bench = TrainingWorkbench(model.task, seed=seed, device=device, progress=progress)
        quality = model.task.validate(model.model, model.embedding)
        outcome = dataclasses.replace(model.outcome, quality=quality, state="ok")
        return bench, dataclasses.replace(model, outcome=outcome, precisions=None)
    if task is None or not hasattr(task, "parts_of"):
        raise InvalidInputError(
            "model should be a Trained (TrainingWorkbench(task).full()), or a trained module "
            f"around TorchRec's collection with task=TorchRecTask(...), got {type(model).__name__}"
            + ("" if task is None else f" and {type(task).__name__}")
        )
    bench = TrainingWorkbench(task, seed=seed, device=device, progress=progress)
    inner, tables = task.parts_of(model)
    return bench, bench.adopt(inner, tables)

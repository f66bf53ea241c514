"""Trained models, trained on with their rows read as they will be served; what is better stays."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from .recipes import rounding_epochs
from .rounding import RoundedRows
from .settings import TrainSettings
from .trained import Trained
from .turned_embedding import TurnedEmbedding

if TYPE_CHECKING:
    from ..models.protocol import EmbeddingModule
    from .workbench import TrainingWorkbench


def settings_of(bench: TrainingWorkbench, trained: float = 0.0) -> TrainSettings:
    """What models are trained on by; trained: epochs that they took."""
    steps = bench.task.steps_per_epoch
    return bench.rounding or rounding_epochs(bench.training, steps, trained=trained)


def rounded(
    bench: TrainingWorkbench, trained: Trained, settings: TrainSettings | None = None
) -> Trained:
    """See ``TrainingWorkbench.rounded``."""
    if trained.precisions is None or not trained.outcome.ok:
        return trained
    embedding: Any = trained.embedding
    module: RoundedRows | TurnedEmbedding
    if isinstance(embedding, TurnedEmbedding):
        rows: Any = embedding.inner
        module = embedding.around(RoundedRows(rows, trained.precisions))
    else:
        module = RoundedRows(embedding, trained.precisions)
    kept = _copied(embedding)
    found = bench.fit(
        module.to(bench.device),
        settings=settings or settings_of(bench),
        warm=trained,
        seed=bench.seed + 1,
    )
    if found.outcome.ok and found.quality > trained.quality:
        return dataclasses.replace(trained, model=found.model, outcome=found.outcome)
    embedding.load_state_dict(kept)
    return trained


def trained_on(
    bench: TrainingWorkbench, embedding: EmbeddingModule, warm: Trained, *, seed: int
) -> Trained:
    """See ``TrainingWorkbench.trained_on``."""
    module: Any = embedding
    before, kept = bench.task.validate(warm.model, module), _copied(module)
    settings = settings_of(bench, warm.outcome.epochs)
    found = bench.fit(module, settings=settings, warm=warm, seed=seed + 1)
    if found.outcome.ok and found.quality > before:
        return found
    module.load_state_dict(kept)
    outcome = dataclasses.replace(found.outcome, state="ok", quality=before, best_step=0)
    return dataclasses.replace(found, model=warm.model, outcome=outcome)


def _copied(module: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}

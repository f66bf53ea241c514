"""Full trainings, each done once: of plans, of other forms of tables, and of the full tables.

Their facts, which a kept model is found by, are all that it depends on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from ..errors import InvalidInputError
from ..planning.sizers.workbench import Start
from .checkpoint import Checkpointer
from .continued import rounded, settings_of, trained_on
from .fit import DivergedError
from .kept import content
from .settings import TrainSettings
from .sized_embedding import SizedEmbedding
from .trained import Precisions, Sizes, Trained, precisions_of
from .turned_embedding import TurnedEmbedding, planned_embedding

if TYPE_CHECKING:
    from ..models.protocol import EmbeddingModule
    from .workbench import TrainingWorkbench


@runtime_checkable
class Builds(Protocol):
    """The part that is needed here of a ``Sized`` whose tables are of its own form."""

    def build(self, seed: int) -> EmbeddingModule:
        """Its tables, freshly drawn; an ``nn.Module`` too."""
        ...

    def fingerprint(self) -> str:
        """Of all that ``build`` depends on but the seed."""
        ...


def full_model(bench: TrainingWorkbench) -> Trained:
    """The full tables, trained; DivergedError if that goes wrong."""
    settings, seed = bench.pretraining, bench.seed
    empty = partial(SizedEmbedding.full, bench.tables)
    trained = _kept(
        bench, "full", settings, seed, empty, lambda: (None, drawn(empty(), settings, seed))
    )
    if not trained.outcome.ok:
        raise DivergedError(
            f"the full model diverged after {trained.outcome.steps} steps: lower lr (now "
            f"{settings.lr}) or init_std"
        )
    return trained


def final(bench: TrainingWorkbench, plan: Sizes | Builds, *, seed: int, start: Start) -> Trained:
    """A plan's model, trained to convergence; see ``TrainingWorkbench.train_model``."""
    if start not in ("scratch", "full"):
        raise InvalidInputError(f"start should be 'scratch' or 'full', got {start!r}")
    warm = start == "full"
    settings = bench.continuing if warm else bench.training
    if isinstance(plan, Builds):
        return _built(bench, plan, settings, seed, warm=warm)
    sizes = {table.name: plan.sizes(table.name) for table in bench.tables}
    precisions = precisions_of(plan)
    based = {t.name: str(t.basis) for t in getattr(plan, "tables", ()) if t.axes}
    what = content(sizes, precisions) + (content(based, None) if based else "")
    empty = partial(planned_embedding, plan, bench.tables)

    def begin() -> tuple[Trained | None, Any]:
        return bench.full_model.cut(plan)[:2] if warm else (None, drawn(empty(), settings, seed))

    return _kept(bench, what, settings, seed, empty, begin, warm=warm, precisions=precisions)


def _built(
    bench: TrainingWorkbench, plan: Builds, settings: TrainSettings, seed: int, *, warm: bool
) -> Trained:
    continues = warm and getattr(plan, "continues", False)
    if continues:
        settings = settings_of(bench, bench.full().outcome.epochs)
    build = partial(plan.build, seed)
    return _kept(
        bench,
        f"built-{plan.fingerprint()}",
        settings,
        seed,
        build,
        lambda: (bench.full() if warm else None, build()),
        warm=warm,
        continues=continues,
    )


def _kept(
    bench: TrainingWorkbench,
    what: str,
    settings: TrainSettings,
    seed: int,
    empty: Callable[[], Any],
    begin: Callable[[], tuple[Trained | None, Any]],
    *,
    warm: bool = False,
    continues: bool = False,
    precisions: Precisions | None = None,
) -> Trained:
    """Trained and kept, or read back.

    empty: tables to read into. begin: whose model to start from, if any, and tables to train.
    warm: they start from the full model. continues: and come trained.
    """
    start: dict[str, Any] = {"start": "full", "from": _full_facts(bench)} if warm else {}
    rounding = None if precisions is None else bench.rounding
    if rounding is not None:
        start["rounding"] = dataclasses.asdict(rounding)
    if continues:
        start["continues"] = True
    facts = {**_facts(bench, what, settings, seed), **start}

    def load(path: Path) -> Trained:
        model, embedding = bench.task.new_model(seed), empty().to(bench.device)
        return Trained.load(path, bench.task, model, embedding, precisions=precisions, facts=facts)

    def train(*, checkpoint: Checkpointer | None, log: Path | None) -> Trained:
        model, module = begin()
        embedding = module.to(bench.device)
        if continues and model is not None:
            return trained_on(bench, embedding, model, seed=seed)
        trained = bench.fit(
            embedding,
            settings=settings,
            warm=model,
            seed=seed,
            precisions=precisions,
            checkpoint=checkpoint,
            log=log,
            facts={"what": what, **start},
        )
        return trained if rounding is None else rounded(bench, trained, rounding)

    return bench.kept.get(facts, load, train)


def drawn(
    empty: SizedEmbedding | TurnedEmbedding, settings: TrainSettings, seed: int
) -> SizedEmbedding | TurnedEmbedding:
    """The tables with fresh rows."""
    return empty.draw(settings.init_std, torch.Generator().manual_seed(seed))


def _full_facts(bench: TrainingWorkbench) -> dict[str, Any]:
    facts = _facts(bench, "full", bench.pretraining, bench.seed)
    return {**facts, "warm_start": bench.warm_start, "adopted": bench.full_model.adopted}


def _facts(
    bench: TrainingWorkbench, what: str, settings: TrainSettings, seed: int
) -> dict[str, Any]:
    return {
        "what": what,
        "task": dict(bench.task.identity()),
        "settings": dataclasses.asdict(settings),
        "seed": seed,
    }

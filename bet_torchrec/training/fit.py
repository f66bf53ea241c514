"""One loop that trains any task over any embedding module.

Everything random is a function of (seed, step), so a run that was interrupted continues from its
checkpoint to the result it would have had. On several ranks (``task.team``) each takes its part of
the same global batch, and the mean of the ranks' losses is the global batch's loss: sharded tables
come averaged from TorchRec, weights that every rank holds are averaged here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import BetError, InvalidInputError
from ..models.protocol import EmbeddingModule
from ..outcome import Outcome
from ..progress import progress_bar
from .checkpoint import Checkpointer, FileCheckpointer
from .optimizers import MakeOptimizer, adam
from .probe import Hopeless
from .run import Run
from .settings import TrainSettings

if TYPE_CHECKING:
    from ..tasks.task import Task
    from ..team import Team


class DivergedError(BetError, ArithmeticError):
    """The loss or the quality of a model that others depend on is no longer finite."""


def fit(
    task: Task,
    model: nn.Module,
    embedding: EmbeddingModule,
    settings: TrainSettings,
    *,
    seed: int,
    validate: Callable[[], float] | None = None,
    checkpoint: Path | Checkpointer | None = None,
    log: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    extra_loss: Callable[[], Tensor] | None = None,
    make_optimizer: MakeOptimizer = adam,
    on_step: Callable[[int], None] | None = None,
    progress: bool = False,
) -> Outcome:
    """Train model and tables in place; ends with the weights of the best validation loaded.

    validate: the current weights' quality, higher is better; ``task.validate`` of both unless
        given. Called every ``settings.validate_every`` steps and at the end.
    checkpoint: saved at every validation; where it exists, training continues from it. (A path is
        for one process; several ranks need a ``Checkpointer``.) facts: what else the run depends
        on, JSON-serialisable; another run's checkpoint is refused.
    log: JSON lines, one a validation, appended to. progress: a bar on stderr. Of the first rank.
    extra_loss: added to the task's loss at every step.
    make_optimizer: of all weights but those of fused tables, which update themselves; both take
        their learning rate from ``settings`` (times a parameter group's "lr_scale", if it has one).
    on_step: called after every step with the number of steps done; may raise ``Hopeless``.
    Ctrl-C leaves the checkpoint of the last validation behind.

    A loss or quality that is not finite ends training with the state "diverged", a ``Hopeless``
    one with "pruned".

    Raises:
        InvalidInputError: there is nothing to train. CheckpointError: another run's checkpoint.
        CollectiveError: ranks disagree on the run, or another rank's validation failed.
    """
    team = task.team
    run = Run(task, model, embedding, settings, seed, facts or {}, make_optimizer)
    saver = _saver(checkpoint, team)
    if saver is not None:
        run.load(saver)
    first = team.rank == 0
    quality = validate or (lambda: task.validate(model, embedding))
    bar = progress_bar(
        total=run.total,
        initial=run.step,
        desc="training",
        unit="step",
        shown=progress and first,
    )
    try:
        with bar:
            while run.step < run.total and not run.stopped:
                loss = run.train_step(extra_loss)
                bar.update()
                if on_step is not None:
                    on_step(run.step)
                if run.step != run.total and run.step % run.validate_every:
                    continue
                value = team.mean("the loss", loss.item)
                found = team.mean("validation", quality) if math.isfinite(value) else math.nan
                if not math.isfinite(found):
                    return run.diverged()
                run.keep_if_better(found)
                bar.set_postfix(loss=f"{value:.4f}", validation=f"{run.best_quality:.4f}")
                if log is not None and first:
                    _append(Path(log), run.line(value))
                if saver is not None:
                    run.save(saver)
    except Hopeless as hopeless:
        return run.pruned(hopeless.quality)
    return run.outcome()


def _saver(checkpoint: Path | Checkpointer | None, team: Team) -> Checkpointer | None:
    if not isinstance(checkpoint, (str, Path)):
        return checkpoint
    if team.size > 1:
        raise InvalidInputError(
            f"a checkpoint in one file ({checkpoint}) is for one process: pass a Checkpointer"
        )
    return FileCheckpointer(Path(checkpoint))


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

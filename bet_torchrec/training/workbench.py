"""A task as a ``Workbench``: the full model, brief fine-tunes, full trainings.

What is slow is done once: with a ``run_dir``, full models and full trainings are kept there and
read back whenever the same is asked for again.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..outcome import Outcome
from ..planning.counts import RowCounts
from ..planning.sizers.workbench import Start
from ..planning.sizers.workbench import Trained as TrainedLike
from ..planning.tables import TableSpec
from ..tasks.task import Task
from .checkpoint import Checkpointer
from .continued import rounded, trained_on
from .finals import Builds, drawn, final, full_model
from .fit import fit
from .full_model import FullModel, WarmStart
from .kept import KeptModels
from .optimizers import MakeOptimizer, adam
from .probe import ProbeCheck, foreseen, probed
from .recipes import default_recipe
from .settings import TrainSettings
from .sized_embedding import SizedEmbedding
from .trained import Precisions, Sizes, Trained, as_served
from .turned_embedding import TurnedEmbedding, planned_embedding

if TYPE_CHECKING:
    from ..models.protocol import EmbeddingModule


class TrainingWorkbench:
    """Trains and evaluates one task over tables of any kind; implements the sizers' ``Workbench``.

    training, fine_tuning: settings of a training to convergence, and of a probe; by default BET's
        published ones for a ranking, ``recipes.clicks`` for anything else.
    pretraining: of the full tables' training; ``training`` unless given.
    continuing: of a full training that starts from the full tables' rows; ``training`` at the
        probe's learning rate unless given.
    probe_share: of the epochs that the full model took, those of a probe, where that is more than
        ``fine_tuning.max_epochs``. foresight: how much of what a probe's second half gained is
        added to its quality, because wide rows are still learning when narrow ones are done. Both
        as ``recipes.clicks`` has them unless a fine_tuning is given.
    rounding: a full training's last epochs of a plan with precisions below fp32: with rows read as
        these round them, and kept where that is better on validation. The recipe's unless given,
        which is none.
    warm_start: rows are cut as they are ("prefix"), or after turning the tables to their principal
        axes where the model allows it ("rotated").
    check: when a probe with a floor is given up; None never does.
    run_dir: where results are kept. seed: of the full model, of probes, and of ``train`` without
    its own. On several ranks (``task.team``) all make the same calls in the same order and get the
    same results; tables and optimizer state are whole on every rank, run_dir is one that all read.

    A plan with precisions below fp32 trains in fp32 (but for ``rounding``) and is evaluated on its
    rows as quantisation leaves them.
    """

    def __init__(
        self,
        task: Task,
        *,
        training: TrainSettings | None = None,
        fine_tuning: TrainSettings | None = None,
        pretraining: TrainSettings | None = None,
        continuing: TrainSettings | None = None,
        probe_share: float | None = None,
        foresight: float | None = None,
        rounding: TrainSettings | None = None,
        warm_start: WarmStart = "rotated",
        check: ProbeCheck | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> None:
        if warm_start not in ("rotated", "prefix"):
            raise InvalidInputError(
                f"warm_start should be 'rotated' or 'prefix', got {warm_start!r}"
            )
        for what, share in (("probe_share", probe_share), ("foresight", foresight)):
            if share is not None and not 0 <= share <= 1:
                raise InvalidInputError(f"{what} should be from 0 to 1, got {share!r}")
        self.task = task
        recipe = default_recipe(task)
        self.training = training or recipe.training
        self.pretraining = pretraining or self.training
        own = fine_tuning is not None
        self.fine_tuning = fine_tuning or recipe.fine_tuning
        if probe_share is None:
            probe_share = 0.0 if own else recipe.probe_share
        if foresight is None:
            foresight = 0.0 if own else recipe.foresight
        self.probe_share, self.foresight = probe_share, foresight
        self.continuing = continuing or dataclasses.replace(
            self.training, lr=min(self.training.lr, self.fine_tuning.lr)
        )
        self.rounding = rounding or recipe.rounding
        self.warm_start = warm_start
        self.check = check
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.seed = seed
        self.device = torch.device(device)
        self.progress = progress
        folder = None if self.run_dir is None else self.run_dir / "models"
        self.kept = KeptModels(folder, task.team)
        self.full_model = self._new_full_model()

    def _new_full_model(self) -> FullModel:
        return FullModel(
            self.task,
            partial(full_model, self),
            warm_start=self.warm_start,
            seed=self.seed,
            device=self.device,
        )

    @property
    def tables(self) -> tuple[TableSpec, ...]:
        """The tables to be sized."""
        return tuple(self.task.tables)

    def counts(self) -> dict[str, RowCounts]:
        """{table: how often each row occurs in training}."""
        return dict(self.task.counts())

    def identity(self) -> dict[str, Any]:
        """Everything that a quality depends on."""
        settings = ["pretraining", "training", "continuing", "fine_tuning", "check"]
        if self.rounding is not None:
            settings.append("rounding")
        return {
            "task": dict(self.task.identity()),
            "seed": self.seed,
            "warm_start": self.warm_start,
            "probe_share": self.probe_share,
            "foresight": self.foresight,
            "adopted": self.full_model.adopted,
            **{name: _asdict(getattr(self, name)) for name in settings},
        }

    def full(self) -> Trained:
        """The model with full tables, trained to convergence once.

        Raises:
            DivergedError: its training did.
        """
        return self.full_model.trained

    def adopt(self, model: nn.Module, tables: Mapping[str, Tensor]) -> Trained:
        """Take a full model that was trained elsewhere; call it before anything needs the own one.

        model: as the task's ``new_model`` makes them, with its weights. tables: {name: (rows,
        embedding_dim)}. (Of a user's own model both come from ``TorchRecTask.parts_of``.)

        Raises:
            InvalidInputError: tables of other names or shapes, or a full model is there already.
        """
        self.full_model.adopt(model, tables)
        return self.full()

    def build(self, plan: Sizes, *, seed: int | None = None) -> SizedEmbedding | TurnedEmbedding:
        """A plan's tables, freshly drawn with the training's init_std."""
        seed = self.seed if seed is None else seed
        return drawn(planned_embedding(plan, self.tables), self.training, seed).to(self.device)

    def at_rate(self, lr: float) -> TrainingWorkbench:
        """The same, full model and all, with another learning rate in full trainings."""
        other = copy.copy(self)
        other.training = dataclasses.replace(self.training, lr=lr)
        other.continuing = dataclasses.replace(self.continuing, lr=lr)
        if self.rounding is not None:
            other.rounding = dataclasses.replace(self.rounding, lr=lr)
        return other

    def pretrained_at(self, lr: float) -> TrainingWorkbench:
        """The same with a full model of another learning rate."""
        other = copy.copy(self)
        other.pretraining = dataclasses.replace(self.pretraining, lr=lr)
        other.full_model = other._new_full_model()
        return other

    def fit(
        self,
        embedding: EmbeddingModule,
        *,
        settings: TrainSettings | None = None,
        warm: TrainedLike | None = None,
        seed: int | None = None,
        extra_loss: Callable[[], Tensor] | None = None,
        groups: MakeOptimizer | None = None,
        on_step: Callable[[int], None] | None = None,
        floor: float | None = None,
        precisions: Precisions | None = None,
        log: Path | None = None,
        checkpoint: Path | Checkpointer | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Trained:
        """Train the task's model over any embedding module, in place; see ``Workbench.fit``.

        precisions: the tables' when they are evaluated. log, checkpoint, facts: as in ``fit``.
        """
        settings = settings or self.training
        seed = self.seed if seed is None else seed
        model = self.task.new_model(seed)
        if warm is not None:
            model.load_state_dict(warm.model.state_dict())
        module: Any = embedding

        def quality(part: Literal["validation", "check"] = "validation") -> float:
            return self.task.validate(model, as_served(module, precisions), part=part)

        if self.task.team.size == 1 and not any(p.numel() for p in module.parameters()):
            outcome = Outcome.untrained(quality())
        else:
            if floor is not None and self.check is not None:
                steps = settings.max_epochs * self.task.steps_per_epoch
                check = partial(quality, "check")
                on_step = self.check.on_step(on_step, steps=steps, floor=floor, quality=check)
            outcome = fit(
                self.task,
                model,
                embedding,
                settings,
                seed=seed,
                validate=quality,
                checkpoint=checkpoint,
                log=log,
                facts=facts,
                extra_loss=extra_loss,
                make_optimizer=groups or adam,
                on_step=on_step,
                progress=self.progress,
            )
        return Trained(
            task=self.task, model=model, embedding=module, outcome=outcome, precisions=precisions
        )

    def probe_epochs(self) -> int:
        """Of a probe: its settings', or as large a share of the full model's as is asked for."""
        share = self.probe_share and self.probe_share * self.full().outcome.epochs
        return max(self.fine_tuning.max_epochs, math.ceil(share))

    def fine_tune(
        self, plan: Sizes, *, epochs: int | None = None, floor: float | None = None
    ) -> Outcome:
        """What ``fine_tuned`` comes to, or with ``foresight`` what it would."""
        trained = self.fine_tuned(plan, epochs=epochs, floor=floor)
        return foreseen(trained.outcome, self.foresight)

    def fine_tuned(
        self, plan: Sizes, *, epochs: int | None = None, floor: float | None = None
    ) -> Trained:
        """A plan's model after a brief training from the full tables' rows, cut.

        epochs: instead of ``probe_epochs()``; 0 evaluates the bare cut rows.
        floor: with a ``check``, a probe that looks hopeless against it ends as "pruned".
        """
        epochs = self.probe_epochs() if epochs is None else epochs
        return probed(self, plan, epochs=epochs, floor=floor)

    def rounded(self, trained: Trained, settings: TrainSettings | None = None) -> Trained:
        """A sized model trained on with its rows read as its precisions round them, in place.

        settings: ``rounding`` unless given, or ``rounding_epochs`` of ``training``. What was there
        stays where validation likes it better.
        """
        return rounded(self, trained, settings)

    def trained_on(
        self, embedding: EmbeddingModule, warm: Trained, *, seed: int | None = None
    ) -> Trained:
        """Tables that read as they are served, trained on in place with a trained model's weights.

        By ``rounding``, or ``rounding_epochs`` of that model; both are as they came where
        validation likes that better.
        """
        return trained_on(self, embedding, warm, seed=self.seed if seed is None else seed)

    def train(
        self, plan: Sizes | Builds, *, seed: int | None = None, start: Start = "scratch"
    ) -> Outcome:
        """What ``train_model`` comes to."""
        return self.train_model(plan, seed=seed, start=start).outcome

    def train_model(
        self, plan: Sizes | Builds, *, seed: int | None = None, start: Start | None = None
    ) -> Trained:
        """A plan's model, trained to convergence; in fp32 where it builds tables of its own.

        start: "scratch", or "full" for the full tables' rows, cut; as the plan's own metadata say
            unless given, and from scratch where they say nothing. Tables of a plan's
            own start as it builds them: "full" takes the full model's other weights alone.
        """
        if start is None:
            start = getattr(plan, "metadata", {}).get("start", "scratch")
        return final(self, plan, seed=self.seed if seed is None else seed, start=start)


def _asdict(value: Any) -> Any:
    return None if value is None else dataclasses.asdict(value)

"""A task as a ``Workbench``: the full model, brief fine-tunes, full trainings.

What is slow is done once: with a ``run_dir``, full models and full trainings are kept there and
read back whenever the same is asked for again.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..outcome import Outcome
from ..planning.counts import RowCounts
from ..planning.sizers.workbench import Trained as TrainedLike
from ..planning.tables import TableSpec
from ..tasks.task import Task
from .checkpoint import Checkpointer
from .fit import DivergedError, fit
from .kept import KeptModels, content
from .optimizers import MakeOptimizer, adam
from .probe import ProbeCheck
from .recipes import default_recipe, rounding_epochs
from .rounding import RoundedRows
from .settings import TrainSettings
from .sized_embedding import SizedEmbedding
from .trained import Precisions, Trained, as_served, precisions_of
from .turned_embedding import TurnedEmbedding, planned_embedding

if TYPE_CHECKING:
    from ..models.protocol import EmbeddingModule

WarmStart = Literal["rotated", "prefix"]
Form = Callable[[], "SizedEmbedding | TurnedEmbedding"]  # empty tables


class Sizes(Protocol):
    """The part of a ``SizePlan`` that is needed here."""

    def sizes(self, table: str) -> NDArray[np.int32]:
        """int32 (rows,), in id order."""
        ...


@runtime_checkable
class Builds(Protocol):
    """The part that is needed here of a ``Sized`` whose tables are of its own form."""

    def build(self, seed: int) -> EmbeddingModule:
        """Its tables, freshly drawn; an ``nn.Module`` too."""
        ...

    def fingerprint(self) -> str:
        """Of all that ``build`` depends on but the seed."""
        ...


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
        self._adopted: str | None = None  # a digest of the full model's weights
        folder = None if self.run_dir is None else self.run_dir / "models"
        self._kept = KeptModels(folder, task.team)

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
            "adopted": self._adopted,
            **{name: _asdict(getattr(self, name)) for name in settings},
        }

    def full(self) -> Trained:
        """The model with full tables, trained to convergence once.

        Raises:
            DivergedError: its training did.
        """
        return self._full

    @cached_property
    def _full(self) -> Trained:
        sizes = {t.name: np.full(t.num_embeddings, t.embedding_dim, np.int32) for t in self.tables}
        form = partial(SizedEmbedding, sizes)
        trained = self._train_or_load("full", form, self.pretraining, self.seed, None)
        if not trained.outcome.ok:
            raise DivergedError(
                f"the full model diverged after {trained.outcome.steps} steps: lower lr (now "
                f"{self.pretraining.lr}) or init_std"
            )
        return trained

    def adopt(self, model: nn.Module, tables: Mapping[str, Tensor]) -> Trained:
        """Take a full model that was trained elsewhere; call it before anything needs the own one.

        model: as the task's ``new_model`` makes them, with its weights. tables: {name: (rows,
        embedding_dim)}. (Of a user's own model both come from ``TorchRecTask.parts_of``.)

        Raises:
            InvalidInputError: tables of other names or shapes, or a full model is there already.
        """
        if "_full" in self.__dict__:
            raise InvalidInputError("adopt a full model before anything has asked for one")
        sizes = {t.name: np.full(t.num_embeddings, t.embedding_dim, np.int32) for t in self.tables}
        embedding = SizedEmbedding(sizes).to(self.device).load_prefix(tables)
        quality = self.task.validate(model, embedding)
        outcome = Outcome(quality=quality, history=((0, quality),))
        digest = hashlib.sha256()
        for weight in (*model.state_dict().values(), *embedding.state_dict().values()):
            digest.update(weight.detach().cpu().numpy().tobytes())
        self._adopted = digest.hexdigest()[:16]
        self.__dict__["_full"] = Trained(
            task=self.task, model=model, embedding=embedding, outcome=outcome
        )
        return self.full()

    def build(self, plan: Sizes, *, seed: int | None = None) -> SizedEmbedding | TurnedEmbedding:
        """A plan's tables, freshly drawn with the training's init_std."""
        form = partial(planned_embedding, plan, self.tables)
        return self._drawn(form, self.training, self.seed if seed is None else seed)

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
        for made in ("_full", "_warm"):
            other.__dict__.pop(made, None)
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
            found = quality()
            outcome = Outcome(quality=found, history=((0, found),))
        else:
            steps = settings.max_epochs * self.task.steps_per_epoch
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
                on_step=self._watch(on_step, steps, floor, lambda: quality("check")),
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
        outcome = self.fine_tuned(plan, epochs=epochs, floor=floor).outcome
        if not (self.foresight and outcome.ok and len(outcome.history) > 1):
            return outcome
        (_, half), (_, end) = outcome.history
        foreseen = outcome.quality + self.foresight * max(end - half, 0.0)
        return dataclasses.replace(outcome, quality=foreseen)

    def fine_tuned(
        self, plan: Sizes, *, epochs: int | None = None, floor: float | None = None
    ) -> Trained:
        """A plan's model after a brief training from the full tables' rows, cut.

        epochs: instead of ``probe_epochs()``; 0 evaluates the bare cut rows.
        floor: with a ``check``, a probe that looks hopeless against it ends as "pruned".
        """
        epochs = self.probe_epochs() if epochs is None else epochs
        warm, embedding, precisions = self._cut(plan)
        if epochs == 0:
            found = self.task.validate(warm.model, as_served(embedding, precisions))
            outcome = Outcome(quality=found, history=((0, found),))
            model = self.task.new_model(self.seed)
            model.load_state_dict(warm.model.state_dict())
            return Trained(
                task=self.task,
                model=model,
                embedding=embedding,
                outcome=outcome,
                precisions=precisions,
            )
        settings = dataclasses.replace(self.fine_tuning, max_epochs=epochs)
        if self.foresight:
            half = max(1, math.ceil(epochs * self.task.steps_per_epoch / 2))
            settings = dataclasses.replace(settings, validate_every=half, patience=2)
        return self.fit(
            embedding,
            settings=settings,
            warm=warm,
            seed=self.seed + 1,
            floor=floor,
            precisions=precisions,
        )

    def rounded(self, trained: Trained, settings: TrainSettings | None = None) -> Trained:
        """A sized model trained on with its rows read as its precisions round them, in place.

        settings: ``rounding`` unless given, or ``rounding_epochs`` of ``training``. What was there
        stays where validation likes it better.
        """
        if trained.precisions is None or not trained.outcome.ok:
            return trained
        settings = settings or self._rounding_epochs()
        embedding: SizedEmbedding | TurnedEmbedding = trained.embedding
        kept = {name: value.clone() for name, value in embedding.state_dict().items()}
        module: RoundedRows | TurnedEmbedding
        if isinstance(embedding, TurnedEmbedding):
            rows: Any = embedding.inner
            module = embedding.around(RoundedRows(rows, trained.precisions)).to(self.device)
        else:
            module = RoundedRows(embedding, trained.precisions).to(self.device)
        found = self.fit(module, settings=settings, warm=trained, seed=self.seed + 1)
        if found.outcome.ok and found.quality > trained.quality:
            return dataclasses.replace(trained, model=found.model, outcome=found.outcome)
        embedding.load_state_dict(kept)
        return trained

    def trained_on(
        self, embedding: EmbeddingModule, warm: Trained, *, seed: int | None = None
    ) -> Trained:
        """Tables that read as they are served, trained on in place with a trained model's weights.

        By ``rounding``, or ``rounding_epochs`` of that model; both are as they came where
        validation likes that better.
        """
        seed = self.seed if seed is None else seed
        module: Any = embedding
        before = self.task.validate(warm.model, module)
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        settings = self._rounding_epochs(warm.outcome.epochs)
        found = self.fit(module, settings=settings, warm=warm, seed=seed + 1)
        if found.outcome.ok and found.quality > before:
            return found
        module.load_state_dict(kept)
        outcome = dataclasses.replace(found.outcome, state="ok", quality=before, best_step=0)
        return dataclasses.replace(found, model=warm.model, outcome=outcome)

    def train(
        self,
        plan: Sizes | Builds,
        *,
        seed: int | None = None,
        start: Literal["scratch", "full"] = "scratch",
    ) -> Outcome:
        """What ``train_model`` comes to."""
        return self.train_model(plan, seed=seed, start=start).outcome

    def train_model(
        self,
        plan: Sizes | Builds,
        *,
        seed: int | None = None,
        start: Literal["scratch", "full"] | None = None,
    ) -> Trained:
        """A plan's model, trained to convergence; in fp32 where it builds tables of its own.

        start: "scratch", or "full" for the full tables' rows, cut; as the plan's own metadata say
            unless given, and from scratch where they say nothing. Tables of a plan's
            own start as it builds them: "full" takes the full model's other weights alone.
        """
        if start is None:
            start = getattr(plan, "metadata", {}).get("start", "scratch")
        if start not in ("scratch", "full"):
            raise InvalidInputError(f"start should be 'scratch' or 'full', got {start!r}")
        seed = self.seed if seed is None else seed
        if isinstance(plan, Builds):
            return self._train_built(plan, seed, warm=start == "full")
        sizes = {table.name: plan.sizes(table.name) for table in self.tables}
        precisions = precisions_of(plan)
        based = {t.name: str(t.basis) for t in getattr(plan, "tables", ()) if t.axes}
        what = content(sizes, precisions) + (content(based, None) if based else "")
        form = partial(planned_embedding, plan, self.tables)
        if start == "scratch":
            return self._train_or_load(what, form, self.training, seed, precisions)
        return self._train_or_load(what, form, self.continuing, seed, precisions, plan=plan)

    def _cut(
        self, plan: Sizes
    ) -> tuple[Trained, SizedEmbedding | TurnedEmbedding, Precisions | None]:
        """The full model, turned where that is asked for, and a plan's tables cut from its rows."""
        warm, tables = self._warm
        embedding = planned_embedding(plan, self.tables).to(self.device)
        if isinstance(embedding, TurnedEmbedding):
            embedding.load_prefix(tables, self.task.counts())
            with torch.no_grad():  # as of the tables: other hardware's axes may have other signs
                self.task.team.share(list(embedding.state_dict().values()))
        else:
            embedding.load_prefix(tables)
        return warm, embedding, precisions_of(plan)

    @cached_property
    def _warm(self) -> tuple[Trained, dict[str, Tensor]]:
        """The model and full tables that every probe starts from."""
        full = self.full()
        tables, model = full.full_tables(), self.task.new_model(self.seed)
        model.load_state_dict(full.model.state_dict())
        if self.warm_start == "rotated" and hasattr(model, "rotate"):
            tables = model.rotate(tables)  # type: ignore[operator]
        self._alike(model, tables)
        return dataclasses.replace(full, model=model), tables

    def _alike(self, model: nn.Module, tables: Mapping[str, Tensor]) -> None:
        # The first rank's, for all: what other hardware computed may differ in its signs.
        with torch.no_grad():
            self.task.team.share([*tables.values(), *model.state_dict().values()])

    def _drawn(
        self, form: Form, settings: TrainSettings, seed: int
    ) -> SizedEmbedding | TurnedEmbedding:
        generator = torch.Generator().manual_seed(seed)
        return form().draw(settings.init_std, generator).to(self.device)

    def _watch(
        self,
        on_step: Callable[[int], None] | None,
        steps: int,
        floor: float | None,
        quality: Callable[[], float],
    ) -> Callable[[int], None] | None:
        if floor is None or self.check is None:
            return on_step
        check = self.check.on_step(steps=steps, floor=floor, quality=quality)

        def both(step: int) -> None:
            check(step)
            if on_step is not None:
                on_step(step)

        return both

    def _train_or_load(
        self,
        what: str,
        form: Form,
        settings: TrainSettings,
        seed: int,
        precisions: Precisions | None,
        plan: Sizes | None = None,
    ) -> Trained:
        """form: empty tables. plan: of rows to be cut from the full model; None draws them."""
        start: dict[str, Any] = {}
        if plan is not None:
            start = {"start": "full", "from": self._full_facts()}
        rounding = None if precisions is None else self.rounding
        if rounding is not None:
            start["rounding"] = dataclasses.asdict(rounding)
        facts = {**self._facts(what, settings, seed), **start}

        def load(path: Path) -> Trained:
            model = self.task.new_model(seed)
            embedding = form().to(self.device)
            return Trained.load(
                path, self.task, model, embedding, precisions=precisions, facts=facts
            )

        def train(*, checkpoint: Checkpointer | None, log: Path | None) -> Trained:
            warm, embedding = None, self._drawn(form, settings, seed) if plan is None else None
            if plan is not None:
                warm, embedding, _ = self._cut(plan)
            assert embedding is not None
            trained = self.fit(
                embedding,
                settings=settings,
                warm=warm,
                seed=seed,
                precisions=precisions,
                checkpoint=checkpoint,
                log=log,
                facts={"what": what, **start},
            )
            return trained if rounding is None else self.rounded(trained, rounding)

        return self._kept.get(facts, load, train)

    def _train_built(self, plan: Builds, seed: int, *, warm: bool) -> Trained:
        settings = self.continuing if warm else self.training
        start: dict[str, Any] = {"start": "full", "from": self._full_facts()} if warm else {}
        continues = warm and getattr(plan, "continues", False)
        if continues:
            settings = self._rounding_epochs(self.full().outcome.epochs)
            start["continues"] = True
        what = f"built-{plan.fingerprint()}"
        facts = {**self._facts(what, settings, seed), **start}

        def built() -> Any:
            module: Any = plan.build(seed)
            return module.to(self.device)

        def load(path: Path) -> Trained:
            return Trained.load(path, self.task, self.task.new_model(seed), built(), facts=facts)

        def train(*, checkpoint: Checkpointer | None, log: Path | None) -> Trained:
            if continues:
                return self.trained_on(built(), self.full(), seed=seed)
            return self.fit(
                built(),
                settings=settings,
                warm=self.full() if warm else None,
                seed=seed,
                checkpoint=checkpoint,
                log=log,
                facts={"what": what, **start},
            )

        return self._kept.get(facts, load, train)

    def _rounding_epochs(self, trained: float = 0.0) -> TrainSettings:
        steps = self.task.steps_per_epoch
        return self.rounding or rounding_epochs(self.training, steps, trained=trained)

    def _full_facts(self) -> dict[str, Any]:
        facts = self._facts("full", self.pretraining, self.seed)
        return {**facts, "warm_start": self.warm_start, "adopted": self._adopted}

    def _facts(self, what: str, settings: TrainSettings, seed: int) -> dict[str, Any]:
        return {
            "what": what,
            "task": dict(self.task.identity()),
            "settings": dataclasses.asdict(settings),
            "seed": seed,
        }


def _asdict(value: Any) -> Any:
    return None if value is None else dataclasses.asdict(value)

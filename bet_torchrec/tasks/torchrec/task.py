"""A user's own model, built around an EmbeddingBagCollection or an EmbeddingCollection."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ...errors import InvalidInputError
from ...evaluation.clicks import click_metrics
from ...planning.counts import RowCounts
from ...planning.tables import TableSpec, table_specs
from ...team import Team, team
from ..task import Part
from .batches import Batches, Source
from .counting import count_ids, features_of, load_counts, save_counts
from .user_model import Quality, UserModel, evaluating, inner, predict_clicks, slot_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ...planning.plan import SizePlan
    from ...serving.column_codes import CodedTable
    from ...training import Trained

Predict: TypeAlias = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Metric: TypeAlias = 'Literal["auc", "log_loss"] | Callable[[nn.Module, Iterable[Any]], float]'
CHECKED = 10  # "check" is over the first so many-th of the validation batches


class TorchRecTask:
    """Plans, trains and deploys a user's own model; implements ``Task``.

    tables: its EmbeddingBagConfigs (or EmbeddingConfigs, for an EmbeddingCollection).
    model: from a collection of these tables to the model, as
        ``lambda ebc: DLRM(ebc, 13, [64, 16], [64, 1])``. Called once for every training.
    train, validation, test: batches; see ``batches.Batches``. On several ranks each gives its own
        rank's part of the global batches, all of one size.
    predict: (model, batch) -> (logits, labels), (B,) each. Without it batches are TorchRec's
        ``Batch`` and the model is called with dense and sparse features.
    loss: (model, batch) -> a scalar, the mean over the batch; binary cross entropy of ``predict``
        unless given.
    metric: "auc", "log_loss" (its negative), or a function (model, batches) -> a quality, higher
        is better.
    features: batch -> KeyedJaggedTensor, for counting; found by itself in common batches.
    counts_file: where counts are kept, so that they are counted once.
    version: enters ``identity``: change it when the model, the loss or the data change in ways that
        the tables' counts and the weights' shapes don't show.
    is_weighted: bags have weights. device: where batches are moved to and models are made.
    process_group: the ranks that train together, tables whole on each of them; ``deploy`` makes
        what TorchRec shards.

    Raises:
        InvalidInputError: arguments are not what they should be.
    """

    def __init__(
        self,
        tables: Sequence[Any],
        *,
        model: Callable[[nn.Module], nn.Module],
        train: Source,
        validation: Source,
        test: Source | None = None,
        predict: Predict | None = None,
        loss: Loss | None = None,
        metric: Metric = "auc",
        features: Callable[[Any], KeyedJaggedTensor] = features_of,
        counts_file: str | Path | None = None,
        version: str = "",
        is_weighted: bool = False,
        device: torch.device | str = "cpu",
        process_group: ProcessGroup | None = None,
    ) -> None:
        if not callable(metric) and metric not in ("auc", "log_loss"):
            raise InvalidInputError(
                f"metric should be 'auc', 'log_loss' or a function, got {metric!r}"
            )
        self.configs = tuple(tables)
        self._specs = table_specs(self.configs)
        self.device = torch.device(device)
        self._user = UserModel(model, self.configs, is_weighted=is_weighted, device=self.device)
        self._predict, self._loss = predict or predict_clicks, loss
        self.metric, self._features = metric, features
        self._train = Batches(train, "train")
        self._held_out = {"validation": Batches(validation, "validation")}
        if test is not None:
            self._held_out["test"] = Batches(test, "test")
        self._counts_file = None if counts_file is None else Path(counts_file)
        self.version = version
        self.team: Team = team(process_group)
        self._pg = process_group

    @property
    def tables(self) -> tuple[TableSpec, ...]:
        return self._specs

    @property
    def steps_per_epoch(self) -> int:
        return self._train.steps

    def counts(self) -> dict[str, RowCounts]:
        """Of the training batches, all ranks'; counted once, or read from ``counts_file``."""
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[str, RowCounts]:
        path = self._counts_file
        if path is not None and self.team.broadcast(path.is_file()):
            found = load_counts(path, self.configs)
        else:
            found = count_ids(
                self._train.epoch(0, 0),
                self.configs,
                features=self._features,
                team=self.team,
                progress=True,
                total=self._train.known_steps,
            )
            if path is not None:
                self.team.first(f"writing {path}", lambda: save_counts(path, found))
        return {name: RowCounts.from_rows(counts) for name, counts in found.items()}

    def identity(self) -> dict[str, Any]:
        return {**self._identity}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        weights = {k: list(v.shape) for k, v in self.new_model(0).state_dict().items()}
        return {
            "task": "torchrec",
            "model": hashlib.sha256(repr(sorted(weights.items())).encode()).hexdigest()[:16],
            "tables": [[t.name, t.num_embeddings, t.embedding_dim] for t in self._specs],
            "loss": _name(self._loss or self._predict),
            "metric": _name(self.metric),
            "counts": {name: counts.fingerprint() for name, counts in self._counts.items()},
            "version": self.version,
        }

    def new_model(self, seed: int) -> nn.Module:
        """The user's model around a slot: it has no tables of its own."""
        return self._user.slotted(seed)

    def batch(self, seed: int, step: int) -> Any:
        return self._moved(self._train.batch(seed, step))

    def loss(
        self,
        model: nn.Module,
        embedding: Any,
        batch: Any,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        # Dropout and the like draw from torch's global generator.
        with torch.random.fork_rng(devices=[]), slot_of(model).holding(embedding):
            if generator is not None:
                torch.manual_seed(generator.initial_seed())
            if self._loss is not None:
                return self._loss(inner(model), batch)
            logits, labels = self._predict(inner(model), batch)
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def validate(self, model: nn.Module, embedding: Any, *, part: Part = "validation") -> float:
        held_out, steps = self._part("validation" if part == "check" else part), None
        if part == "check":
            steps = -(-held_out.steps // CHECKED)
        if callable(self.metric):
            with evaluating(model, embedding):
                metric, batches = self.metric, self._batches(held_out, steps)
                return self.team.mean("metric", lambda: metric(inner(model), batches))
        metrics = click_metrics(*self._predictions(model, embedding, held_out, steps))
        return metrics.auc if self.metric == "auc" else -metrics.log_loss

    def evaluate(
        self, model: nn.Module, embedding: Any, *, part: Literal["validation", "test"] = "test"
    ) -> Any:
        """AUC, log loss and the rest; of a metric of the user's own, {"quality": its value}."""
        if callable(self.metric):
            return Quality(self.validate(model, embedding, part=part))
        return click_metrics(*self._predictions(model, embedding, self._part(part), None))

    def _predictions(
        self, model: nn.Module, embedding: Any, held_out: Batches, steps: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and logits of all ranks' examples."""

        def predict() -> tuple[np.ndarray, np.ndarray]:
            labels, logits = [], []
            for batch in self._batches(held_out, steps):
                z, y = self._predict(inner(model), batch)
                labels.append(y.flatten().float().cpu().numpy())
                logits.append(z.flatten().float().cpu().numpy())
            return np.concatenate(labels), np.concatenate(logits)

        with evaluating(model, embedding):
            everyone = self.team.gather(self.team.together("prediction", predict))
        labels, logits = zip(*everyone, strict=True)
        return np.concatenate(labels), np.concatenate(logits)

    def _batches(self, held_out: Batches, steps: int | None) -> Iterator[Any]:
        for place, batch in enumerate(held_out.epoch(0, 0)):
            if steps is not None and place >= steps:
                return
            yield self._moved(batch)

    def _part(self, name: str) -> Batches:
        if name not in self._held_out:
            raise InvalidInputError(f"there are no {name} batches: pass {name}= to the task")
        return self._held_out[name]

    def _moved(self, batch: Any) -> Any:
        return batch.to(self.device) if hasattr(batch, "to") else batch

    def parts_of(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """The task's model and tables, from a trained model around TorchRec's own collection.

        For ``TrainingWorkbench.adopt``: no full model needs to be trained then.

        Raises:
            InvalidInputError: it holds no collection of these tables, or other weights.
        """
        return self._user.parts_of(model)

    def deploy(
        self,
        trained: Trained,
        plan: SizePlan,
        *,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> nn.Module:
        """The user's model around a planned collection with the trained weights: real TorchRec.

        What comes out shards by DistributedModelParallel (with
        ``BudgetedEmbeddingBagCollectionSharder``), checkpoints, and quantises (``quantize``).
        options: of the collection, as ``layout``.

        Raises:
            PlanError: the plan is of other tables.
        """
        collection = self.collection(plan, device=device, **options)
        module = self.around(collection, trained.model)
        learnt = trained.embedding.bases() if hasattr(trained.embedding, "bases") else {}
        collection.load_full_tables(
            trained.full_tables(),
            counts=self.counts(),
            bases={name: basis for name, basis in learnt.items() if plan[name].axes},
        )
        return module.to(device).eval()

    def around(self, collection: nn.Module, model: nn.Module) -> nn.Module:
        """The user's model around a collection, with the weights of a model of ``new_model``.

        Raises:
            InvalidInputError: ``model=`` builds other weights this time.
        """
        return self._user.around(collection, model)

    def coded(self, tables: Mapping[str, CodedTable]) -> nn.Module:
        """A collection of coded tables (see ``compress``), for serving.

        Raises:
            InvalidInputError: the model looks up without pooling, or the codes are of other tables.
        """
        return self._user.coded(tables)

    def sharded(
        self, plan: SizePlan, *, draw: int | None = 0, layout: str = "bucketed", **options: Any
    ) -> Any:
        """A planned collection as tables that ``TrainingWorkbench.fit`` trains: TorchRec's own.

        In a process group it is sharded over the ranks; options: see ``sharded.on_ranks``.
        draw: seed of its rows, drawn alike on any number of ranks; None leaves them to
        ``load_full_tables``.
        """
        from .sharded import CollectionTables, on_ranks

        pg = self._pg
        where = {"device": "meta", "row_order": "interleaved"} if pg else {"device": self.device}
        tables = CollectionTables(self.collection(plan, layout=layout, **where))
        if pg is not None:
            on_ranks(tables, pg, self.counts(), device=self.device, **options)
        return tables if draw is None else tables.draw(draw)

    def collection(self, plan: SizePlan, **options: Any) -> Any:
        """A planned collection of the task's tables, its rows freshly drawn."""
        return self._user.collection(plan, **options)


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__qualname__", "function")

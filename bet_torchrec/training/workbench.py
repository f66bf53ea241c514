"""The built-in backbones as a ``Workbench``: pre-trained tables, brief fine-tunes, full trainings.

What is slow is done once: with a ``run_dir``, pre-training and full trainings are kept there and
read back whenever the same is asked for again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..models import make_backbone
from ..planning.tables import TableSpec
from . import settings as recipes
from .bpr import train_bpr
from .checkpoint import Checkpointer
from .kept import KeptModels, content
from .model import TrainedModel, precisions_of, untrained
from .probe import Hopeless, ProbeCheck
from .settings import BackboneName, TrainSettings
from .sized_embedding import SizedEmbedding
from .workplace import Workplace

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..data import Split


class Sizes(Protocol):
    """The part of a ``SizePlan`` that is needed here."""

    def sizes(self, table: str) -> NDArray[np.int32]:
        """int32 (rows,), in id order."""
        ...

    def fingerprint(self) -> str:
        """Equal plans have equal ones."""
        ...


class TrainingWorkbench:
    """Trains and evaluates one backbone on one split; implements the sizers' ``Workbench``.

    split: training items are masked and validation items relevant in every quality here.
    backbone: "lightgcn", "ngcf" or "ncf". embedding_dim: d_max, of every table.
    pretraining, training, fine_tuning: settings of the full tables' training, of a plan's from
        scratch (the same unless given) and of a probe. Without them, BET's published ones.
    warm_start: a probe starts from the pre-trained rows' first entries as they are ("prefix"), or
        after turning the tables to their principal axes where the backbone allows ("rotated").
    check: when a probe with a floor is given up; None never does.
    run_dir: where results are kept. seed: of pre-training, probes, and ``train`` without its own.
    process_group: train and evaluate on all its ranks, each with its part of the graph, of every
        batch and of the users; None is this process alone. All ranks then make the same calls in
        the same order, as ``collective_plan`` does, and get the same results. Tables and
        optimizer state are whole on every rank. run_dir is one that all ranks can read.

    Quality is Eq. 13 on validation. A plan with precisions below fp32 trains in fp32 and is
    evaluated on its rows as quantisation leaves them.
    """

    def __init__(
        self,
        split: Split,
        *,
        backbone: BackboneName = "lightgcn",
        embedding_dim: int = 128,
        pretraining: TrainSettings | None = None,
        training: TrainSettings | None = None,
        fine_tuning: TrainSettings | None = None,
        warm_start: Literal["rotated", "prefix"] = "rotated",
        check: ProbeCheck | None = None,
        run_dir: Path | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if warm_start not in ("rotated", "prefix"):
            raise InvalidInputError(
                f"warm_start should be 'rotated' or 'prefix', got {warm_start!r}"
            )
        if embedding_dim < 1:
            raise InvalidInputError(f"embedding_dim should be at least 1, got {embedding_dim}")
        self.split = split
        self.backbone_name = backbone
        self.embedding_dim = embedding_dim
        self.pretraining = pretraining or recipes.paper(backbone)
        self.training = training or self.pretraining
        self.fine_tuning = fine_tuning or recipes.paper_fine_tuning(backbone)
        self.warm_start = warm_start
        self.check = check
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.seed = seed
        self.device = torch.device(device)
        self.progress = progress
        self.process_group = process_group
        self._place = Workplace(split, process_group, self.device)
        folder = None if self.run_dir is None else self.run_dir / "models"
        self._kept = KeptModels(folder, self._place.team)

    def new_backbone(self, seed: int | None = None) -> nn.Module:
        """A fresh backbone over the training graph; the graph itself is shared."""
        module = make_backbone(self.backbone_name, self._place.graph, dim=self.embedding_dim)
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        module.reset_parameters(generator)  # type: ignore[operator]
        return module.to(self.device)

    @cached_property
    def table_rows(self) -> dict[str, int]:
        """Rows by table name."""
        return dict(self.new_backbone().table_rows)  # type: ignore[arg-type]

    @property
    def tables(self) -> tuple[TableSpec, ...]:
        """The tables to be sized."""
        return tuple(
            TableSpec(name=name, num_embeddings=rows, embedding_dim=self.embedding_dim)
            for name, rows in self.table_rows.items()
        )

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """{table: int64 (rows,)}: how often each row occurs in training, in id order."""
        by_side = self.split.train.counts()
        return {name: by_side[name.split("_")[0]] for name in self.table_rows}

    def pretrained(self) -> TrainedModel:
        """The full model, trained to convergence once."""
        return self._pretrained

    @cached_property
    def _pretrained(self) -> TrainedModel:
        sizes = {n: np.full(r, self.embedding_dim, np.int32) for n, r in self.table_rows.items()}
        return self._train_or_load("full", sizes, self.pretraining, self.seed, None)

    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the pre-trained tables, rows x embedding_dim each, not rotated."""
        return self.pretrained().embedding.full_tables()

    def full_quality(self) -> float:
        """Validation quality of the full model."""
        return self.pretrained().quality

    def fine_tune(
        self, plan: Sizes, *, epochs: int | None = None, floor: float | None = None
    ) -> float:
        """Validation quality after a brief fine-tune from the pre-trained rows' prefixes.

        epochs: instead of ``fine_tuning.max_epochs``; 0 evaluates the bare prefixes.
        floor: with a ``check``, a probe that looks hopeless against it returns its quality then.
        """
        return self.fine_tuned(plan, epochs=epochs, floor=floor).quality

    def fine_tuned(
        self, plan: Sizes, *, epochs: int | None = None, floor: float | None = None
    ) -> TrainedModel:
        """As ``fine_tune``, the model itself (one that was given up has ``stopped="floor"``)."""
        tables, weights = self._warm
        backbone = self.new_backbone()
        backbone.load_state_dict(weights)
        sizes = {name: plan.sizes(name) for name in self.table_rows}
        embedding = SizedEmbedding(sizes).to(self.device).load_prefix(tables)
        precisions = precisions_of(plan)
        epochs = self.fine_tuning.max_epochs if epochs is None else epochs

        def validate(users: ArrayLike | None = None) -> float:
            return self._place.quality(backbone, embedding, precisions, users)

        if epochs == 0 or embedding.num_weights() == 0:
            result = untrained(validate())
        else:
            settings = dataclasses.replace(self.fine_tuning, max_epochs=epochs)
            on_step = None
            if floor is not None and self.check is not None:
                steps = epochs * -(-self.split.train.csr().nnz // settings.batch_size)
                on_step = self.check.on_step(
                    steps=steps,
                    num_users=self.split.train.num_users,
                    floor=floor,
                    validate=validate,
                )
            try:
                result = train_bpr(
                    backbone,
                    embedding,
                    self.split.train,
                    settings,
                    seed=self.seed + 1,
                    validate=validate,
                    on_step=on_step,
                    progress=self.progress,
                    ranks=self._place.ranks,
                )
            except Hopeless as hopeless:
                result = untrained(hopeless.quality, stopped="floor")
        return TrainedModel(
            backbone=backbone, embedding=embedding, result=result, precisions=precisions
        )

    def train(self, plan: Sizes, *, seed: int | None = None) -> float:
        """Validation quality after training from scratch to convergence."""
        return self.train_model(plan, seed=seed).quality

    def train_model(self, plan: Sizes, *, seed: int | None = None) -> TrainedModel:
        """A plan's model, trained from scratch to convergence; see ``TrainedModel.evaluate``."""
        sizes = {name: plan.sizes(name) for name in self.table_rows}
        seed = self.seed if seed is None else seed
        precisions = precisions_of(plan)
        return self._train_or_load(
            content(sizes, precisions), sizes, self.training, seed, precisions
        )

    @cached_property
    def _warm(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Full tables and backbone weights that every probe starts from."""
        tables, backbone = self.full_tables(), self.new_backbone()
        backbone.load_state_dict(self.pretrained().backbone.state_dict())
        if self.warm_start == "rotated":
            tables = backbone.rotate(tables)  # type: ignore[operator]
        weights = {k: v.clone() for k, v in backbone.state_dict().items()}
        return self._place.alike(tables), self._place.alike(weights)

    def _train_or_load(
        self,
        what: str,
        sizes: Mapping[str, NDArray[np.int32]],
        settings: TrainSettings,
        seed: int,
        precisions: Mapping[str, ArrayLike | str] | None,
    ) -> TrainedModel:
        backbone, embedding = self.new_backbone(seed), SizedEmbedding(sizes)
        embedding.draw(settings.init_std, torch.Generator().manual_seed(seed)).to(self.device)
        facts = {
            "what": what,
            "backbone": self.backbone_name,
            "embedding_dim": self.embedding_dim,
            "settings": dataclasses.asdict(settings),
            "seed": seed,
            "train": self.split.train.fingerprint(),
            "validation": self.split.validation.fingerprint(),
        }

        def load(path: Path) -> TrainedModel:
            return TrainedModel.load(path, backbone, embedding, precisions=precisions, facts=facts)

        def validate() -> float:
            return self._place.quality(backbone, embedding, precisions)

        def train(*, checkpoint: Checkpointer | None, log: Path | None) -> TrainedModel:
            if embedding.num_weights() == 0:
                result = untrained(validate())
            else:
                result = train_bpr(
                    backbone,
                    embedding,
                    self.split.train,
                    settings,
                    seed=seed,
                    validate=validate,
                    checkpoint=checkpoint,
                    log=log,
                    progress=self.progress,
                    ranks=self._place.ranks,
                )
            return TrainedModel(
                backbone=backbone, embedding=embedding, result=result, precisions=precisions
            )

        return self._kept.get(facts, load, train)

"""The full model: trained once or elsewhere, and the rows that plans cut from its tables."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..outcome import Outcome
from .sized_embedding import SizedEmbedding
from .trained import Precisions, Sizes, Trained, precisions_of
from .turned_embedding import TurnedEmbedding, planned_embedding

if TYPE_CHECKING:
    from ..tasks.task import Task

WarmStart = Literal["rotated", "prefix"]


class FullModel:
    """The model with full tables, whose training is asked for when it is first needed.

    train: makes it. warm_start: see ``TrainingWorkbench``. seed: of the copies that plans start
    from.
    """

    def __init__(
        self,
        task: Task,
        train: Callable[[], Trained],
        *,
        warm_start: WarmStart,
        seed: int,
        device: torch.device,
    ) -> None:
        self._task, self._train, self._seed, self._device = task, train, seed, device
        self._warm_start = warm_start
        self.adopted: str | None = None  # a digest of weights from elsewhere

    @cached_property
    def trained(self) -> Trained:
        """The model, as it ended."""
        made = self._train()
        del (
            self._train
        )  # it knows the workbench, and large tables should not wait for the collector
        return made

    def adopt(self, model: nn.Module, tables: Mapping[str, Tensor]) -> None:
        """Take one that was trained elsewhere; see ``TrainingWorkbench.adopt``."""
        if "trained" in self.__dict__:
            raise InvalidInputError("adopt a full model before anything has asked for one")
        embedding = SizedEmbedding.full(self._task.tables).to(self._device).load_prefix(tables)
        outcome = Outcome.untrained(self._task.validate(model, embedding))
        digest = hashlib.sha256()
        for weight in (*model.state_dict().values(), *embedding.state_dict().values()):
            digest.update(weight.detach().cpu().numpy().tobytes())
        self.adopted = digest.hexdigest()[:16]
        self.trained = Trained(task=self._task, model=model, embedding=embedding, outcome=outcome)
        del self._train

    def cut(
        self, plan: Sizes
    ) -> tuple[Trained, SizedEmbedding | TurnedEmbedding, Precisions | None]:
        """The model, turned where that is asked for, and a plan's tables cut from its rows."""
        warm, tables = self._warm
        embedding = planned_embedding(plan, self._task.tables).to(self._device)
        if isinstance(embedding, TurnedEmbedding):
            embedding.load_prefix(tables, self._task.counts())
            self._share(embedding.state_dict())
        else:
            embedding.load_prefix(tables)
        return warm, embedding, precisions_of(plan)

    def copy(self) -> nn.Module:
        """A new model with the weights that every plan starts from."""
        model = self._task.new_model(self._seed)
        model.load_state_dict(self._warm[0].model.state_dict())
        return model

    @cached_property
    def _warm(self) -> tuple[Trained, dict[str, Tensor]]:
        full = self.trained
        tables, model = full.full_tables(), self._task.new_model(self._seed)
        model.load_state_dict(full.model.state_dict())
        if self._warm_start == "rotated" and hasattr(model, "rotate"):
            tables = model.rotate(tables)  # type: ignore[operator]
        self._share(tables)
        self._share(model.state_dict())
        return dataclasses.replace(full, model=model), tables

    @torch.no_grad()
    def _share(self, tensors: Mapping[str, Tensor]) -> None:
        # The first rank's, for all: what other hardware computed may differ in its signs.
        self._task.team.share(list(tensors.values()))

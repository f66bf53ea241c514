"""The state of one training run: a step, what is kept, what is saved."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from ..outcome import Outcome
from ..strict import StrictError, typed
from .checkpoint import Checkpointer, CheckpointError
from .optimizers import MakeOptimizer, Optimizers
from .settings import TrainSettings

if TYPE_CHECKING:
    from ..tasks.task import Task


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint says of a run, beside its identity and its tensors."""

    step: int
    best_quality: float | None
    best_step: int
    failures: int
    history: list[tuple[int, float]]
    stopped: str
    seconds: float

    def __post_init__(self) -> None:
        steps = [self.step, self.best_step, self.failures, *(step for step, _ in self.history)]
        if min(steps) < 0 or max(steps) > self.step or self.seconds < 0:
            raise ValueError(f"steps should be 0 to the run's {self.step} and seconds 0 or more")


class Run:
    """A task's model over tables, trained step by step; see ``fit``."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        embedding: Any,
        settings: TrainSettings,
        seed: int,
        facts: Mapping[str, Any],
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.task, self.model, self.embedding = task, model, embedding
        self.settings, self.seed, self.facts = settings, seed, dict(facts)
        self.team = task.team
        self.all = nn.ModuleDict({"embedding": embedding, "backbone": model})
        if self.team.size == 1 and not any(map(_trains, self.all.parameters())):
            raise InvalidInputError("there is nothing to train: every row has size 0")
        self.steps_per_epoch = task.steps_per_epoch
        self.total = settings.max_epochs * self.steps_per_epoch
        self.validate_every = settings.validate_every or self.steps_per_epoch
        self.optimizer = Optimizers(self.all, make_optimizer)
        # Sharded tables name their weights that are whole on every rank, others are all so.
        replicated = getattr(embedding, "replicated", embedding.parameters)
        self.replicated = [*replicated(), *(p for p in model.parameters() if p.requires_grad)]
        self._start_alike()
        self.device = _device(self.all)
        self.generator = torch.Generator(device=self.device)
        self.step = 0
        self.best: dict[str, Tensor] | None = None
        self.best_quality, self.best_step, self.failures = -math.inf, 0, 0
        self.history: list[tuple[int, float]] = []
        self.stopped = ""
        self.began = time.perf_counter()

    def _start_alike(self) -> None:
        if self.team.size == 1:
            return
        shapes = [list(weight.shape) for weight in self.replicated]
        mine = {**self._identity(), "weights on every rank": shapes}
        self.team.agree("seed, settings, data and weights", mine)
        self.team.share(self.replicated)

    def train_step(self, extra_loss: Callable[[], Tensor] | None) -> Tensor:
        batch = self.task.batch(self.seed, self.step)
        self.generator.manual_seed(self._step_seed())
        self.all.train()
        self.optimizer.set_rate(self.settings.lr_at(self.step))
        loss = self.task.loss(self.model, self.embedding, batch, self.generator)
        total = loss if extra_loss is None else loss + extra_loss()
        total.backward()
        self.team.average_gradients(self.replicated)
        self.optimizer.step()
        self.step += 1
        return total.detach()

    def _step_seed(self) -> int:
        if self.team.size == 1:
            return (self.seed << 32) + self.step
        drawn = np.random.SeedSequence([self.seed, self.step, self.team.rank])
        return int(drawn.generate_state(1, np.uint64)[0] >> 1)

    def keep_if_better(self, quality: float) -> None:
        self.history.append((self.step, quality))
        if quality > self.best_quality:
            self.best_quality, self.best_step, self.failures = quality, self.step, 0
            named = self.all.named_parameters()
            self.best = {name: weight.detach().clone() for name, weight in named}
        else:
            self.failures += 1
        if self.failures >= self.settings.patience:
            self.stopped = "patience"

    def outcome(self) -> Outcome:
        """Of a finished run; loads its best weights."""
        if self.best is not None:
            # In place, which sharded tables allow too: of those, names stand for this rank's part.
            with torch.no_grad():
                for name, weight in self.all.named_parameters():
                    weight.copy_(self.best[name])
        self.all.eval()
        return self._outcome(
            quality=self.best_quality if self.history else math.nan,
            best_step=self.best_step if self.history else self.step,
            stopped=self.stopped or "epochs",
        )

    def pruned(self, quality: float) -> Outcome:
        """Of a run that was given up with this quality."""
        self.all.eval()
        return self._outcome(quality=quality, state="pruned", stopped="floor", best_step=self.step)

    def diverged(self) -> Outcome:
        """Of a run that left the finite numbers."""
        self.all.eval()
        return self._outcome(
            quality=math.nan, state="diverged", stopped="diverged", best_step=self.best_step
        )

    def _outcome(self, **more: Any) -> Outcome:
        return Outcome(
            steps=self.step,
            epochs=self.step / self.steps_per_epoch,
            seconds=time.perf_counter() - self.began,
            history=tuple(self.history),
            **more,
        )

    def line(self, loss: float) -> dict[str, Any]:
        """What the log says at a validation."""
        return {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 3),
            "loss": loss,
            "quality": self.history[-1][1] if self.history else None,
            "lr": self.settings.lr_at(self.step - 1),
            "seconds": round(time.perf_counter() - self.began, 3),
        }

    def save(self, saver: Checkpointer) -> None:
        saved = _Saved(
            step=self.step,
            best_quality=self.best_quality if self.history else None,
            best_step=self.best_step,
            failures=self.failures,
            history=self.history,
            stopped=self.stopped,
            seconds=time.perf_counter() - self.began,
        )
        facts = {"run": self._identity(), **dataclasses.asdict(saved)}
        saver.save(self.all, self.optimizer, self.best, facts)

    def load(self, saver: Checkpointer) -> None:
        found = saver.load(self.all, self.optimizer, self._identity())
        if found is None:
            return
        self.best, facts = found
        try:
            told = {name: value for name, value in facts.items() if name != "run"}
            saved = typed(told, _Saved, "a checkpoint's facts")
        except StrictError as error:
            raise CheckpointError(f"{error}: remove the checkpoint to start anew") from error
        self.step, self.failures = saved.step, saved.failures
        self.best_step, self.stopped = saved.best_step, saved.stopped
        if saved.best_quality is not None:
            self.best_quality = saved.best_quality
        self.history = list(saved.history)
        self.began = time.perf_counter() - saved.seconds

    def _identity(self) -> dict[str, Any]:
        facts = {
            **self.facts,
            "task": dict(self.task.identity()),
            "settings": dataclasses.asdict(self.settings),
            "seed": self.seed,
        }
        if self.team.size == 1:  # shards' shapes differ by rank, and a job may restart with more
            named = self.all.state_dict().items()
            facts["weights"] = {name: list(value.shape) for name, value in named}
        return facts


def _trains(weight: Tensor) -> bool:
    return weight.requires_grad and weight.numel() > 0


def _device(model: nn.Module) -> torch.device:
    # A rank may have no weights at all; a backbone's buffers are on every one.
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))

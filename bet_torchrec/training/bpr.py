"""BPR training of a backbone over an embedding module: loss, loop, validation, resume.

Everything random is a function of (seed, step), so a run that was interrupted continues from its
checkpoint to the result it would have had.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..backbones.protocol import BPRTerms
from ..errors import BetError, InvalidInputError
from .checkpoint import (
    CheckpointError,
    load_state,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from .memory import heap_for_large_arrays
from .sampling import BPRSampler
from .settings import TrainSettings

if TYPE_CHECKING:
    from ..data import Interactions


class DivergedError(BetError, ArithmeticError):
    """The loss is no longer finite."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """quality: validation quality of the weights that were kept (NaN without a validation).

    steps, epochs: how far training went. best_step: steps behind the kept weights.
    seconds: of training and validation, over all resumed parts. history: (step, quality) pairs.
    stopped: by "epochs" or "patience".
    """

    quality: float
    steps: int
    epochs: float
    best_step: int
    seconds: float
    history: tuple[tuple[int, float], ...]
    stopped: str


def bpr_loss(terms: BPRTerms, l2: float) -> Tensor:
    """mean softplus(-margin) + l2 / B * (half the squared norm of the batch's rows)."""
    loss = F.softplus(-terms.margin).mean()
    if l2:
        loss = loss + terms.l2 * (l2 / len(terms.margin))
    return loss


def train_bpr(
    backbone: nn.Module,
    embedding: nn.Module,
    train: Interactions,
    settings: TrainSettings,
    *,
    seed: int,
    validate: Callable[[], float] | None = None,
    checkpoint: Path | None = None,
    log: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train in place; ends with the weights of the best validation loaded.

    validate: the current weights' quality, higher is better; called every
        ``settings.validate_every`` steps and at the end. Without it the last weights are kept.
    checkpoint: saved at every validation; where the file exists, training continues from it.
    log: JSON lines, one a validation, appended to. progress: a progress bar on stderr.
    on_step: called after every step with the number of steps done.
    Ctrl-C leaves the checkpoint of the last validation behind.

    Raises:
        DivergedError: the loss is not finite. CheckpointError: the checkpoint is another run's.
    """
    run = _Run(backbone, embedding, train, settings, seed)
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(Path(checkpoint))
    total = settings.max_epochs * run.sampler.steps_per_epoch
    bar = tqdm(total=total, initial=run.step, desc="training", unit="step", disable=not progress)
    with heap_for_large_arrays(), bar:
        while run.step < total and not run.stopped:
            loss = run.train_step()
            bar.update()
            if on_step is not None:
                on_step(run.step)
            last = run.step == total
            if not last and run.step % settings.validate_every:
                continue
            if not math.isfinite(value := loss.item()):
                raise DivergedError(
                    f"the loss is {value} after {run.step} steps: lower lr (now {settings.lr}) "
                    "or init_std"
                )
            if validate is not None:
                run.keep_if_better(validate())
                bar.set_postfix(loss=f"{value:.4f}", best=f"{run.best_quality:.4f}")
            if log is not None:
                _append(Path(log), run.line(value))
            if checkpoint is not None:
                run.save(Path(checkpoint))
    return run.result()


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        backbone: nn.Module,
        embedding: nn.Module,
        train: Interactions,
        settings: TrainSettings,
        seed: int,
    ) -> None:
        self.backbone, self.embedding, self.settings, self.seed = (
            backbone,
            embedding,
            settings,
            seed,
        )
        self.sampler = BPRSampler(
            train, batch_size=settings.batch_size, how=settings.sampler, seed=seed
        )
        self.model = nn.ModuleDict({"embedding": embedding, "backbone": backbone})
        parameters = [p for p in self.model.parameters() if p.requires_grad and p.numel()]
        if not parameters:
            raise InvalidInputError("there is nothing to train: every row has size 0")
        self.device = parameters[0].device
        self.optimizer = torch.optim.Adam(parameters, lr=settings.lr, fused=True)
        self.generator = torch.Generator(device=self.device)
        self.step = 0
        self.best: dict[str, Tensor] | None = None
        self.best_quality, self.best_step, self.failures = -math.inf, 0, 0
        self.history: list[tuple[int, float]] = []
        self.stopped = ""
        self.began = time.perf_counter()

    def train_step(self) -> Tensor:
        users, positives, negatives = (
            torch.from_numpy(ids).to(self.device) for ids in self.sampler.batch(self.step)
        )
        self.generator.manual_seed((self.seed << 32) + self.step)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(self.step)
        terms = self.backbone(self.embedding, users, positives, negatives, generator=self.generator)
        loss = bpr_loss(terms, self.settings.l2)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def keep_if_better(self, quality: float) -> None:
        self.history.append((self.step, quality))
        if quality > self.best_quality:
            self.best_quality, self.best_step, self.failures = quality, self.step, 0
            self.best = {name: value.clone() for name, value in self._weights().items()}
        else:
            self.failures += 1
        if self.failures >= self.settings.patience:
            self.stopped = "patience"

    def result(self) -> TrainResult:
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.eval()
        return TrainResult(
            quality=self.best_quality if self.history else math.nan,
            steps=self.step,
            epochs=self.step / self.sampler.steps_per_epoch,
            best_step=self.best_step if self.history else self.step,
            seconds=time.perf_counter() - self.began,
            history=tuple(self.history),
            stopped=self.stopped or "epochs",
        )

    def line(self, loss: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": round(self.step / self.sampler.steps_per_epoch, 3),
            "loss": loss,
            "quality": self.history[-1][1] if self.history else None,
            "lr": self.settings.lr_at(self.step - 1),
            "seconds": round(time.perf_counter() - self.began, 3),
        }

    def save(self, path: Path) -> None:
        tensors = {f"now/{name}": value for name, value in self._weights().items()}
        tensors |= {f"best/{name}": value for name, value in (self.best or {}).items()}
        state = optimizer_tensors(self.optimizer)
        tensors |= {f"adam/{name}": value for name, value in state.items()}
        facts = {
            "run": self._identity(),
            "step": self.step,
            "best_quality": self.best_quality if self.history else None,
            "best_step": self.best_step,
            "failures": self.failures,
            "history": self.history,
            "stopped": self.stopped,
            "seconds": time.perf_counter() - self.began,
        }
        save_state(path, tensors, facts)

    def load(self, path: Path) -> None:
        tensors, facts = load_state(path)
        if facts.get("run") != self._identity():
            raise CheckpointError(
                f"{path} is the checkpoint of another run ({facts.get('run')}, this is "
                f"{self._identity()}): remove it, or choose another folder"
            )
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for key, value in tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        self.model.load_state_dict(parts["now"])
        self.best = {k: v.to(self.device) for k, v in parts["best"].items()} or None
        restore_optimizer(self.optimizer, parts["adam"])
        self.step, self.failures = facts["step"], facts["failures"]
        self.best_step, self.stopped = facts["best_step"], facts["stopped"]
        if facts["best_quality"] is not None:
            self.best_quality = facts["best_quality"]
        self.history = [(step, quality) for step, quality in facts["history"]]
        self.began = time.perf_counter() - facts["seconds"]

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "settings": dataclasses.asdict(self.settings),
            "pairs": self.sampler.num_pairs,
            "weights": {name: list(value.shape) for name, value in self._weights().items()},
        }


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

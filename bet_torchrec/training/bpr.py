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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import BetError, InvalidInputError
from ..models.protocol import BPRTerms
from .checkpoint import Checkpointer, FileCheckpointer
from .memory import heap_for_large_arrays
from .optimizers import MakeOptimizer, Optimizers, adam
from .ranks import Alone, Ranks
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


def bpr_loss(terms: BPRTerms, l2: float, *, examples: float | None = None) -> Tensor:
    """(sum of softplus(-margin) + l2 * half the squared norm of the batch's rows) / examples.

    examples: B, the number of examples, unless given.
    """
    examples = len(terms.margin) if examples is None else examples
    loss = F.softplus(-terms.margin).sum() / examples
    if l2:
        loss = loss + terms.l2 * (l2 / examples)
    return loss


def train_bpr(
    backbone: nn.Module,
    embedding: nn.Module,
    train: Interactions,
    settings: TrainSettings,
    *,
    seed: int,
    validate: Callable[[], float] | None = None,
    checkpoint: Path | Checkpointer | None = None,
    log: Path | None = None,
    progress: bool = False,
    on_step: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
    make_optimizer: MakeOptimizer = adam,
) -> TrainResult:
    """Train in place; ends with the weights of the best validation loaded.

    validate: the current weights' quality, higher is better; called every
        ``settings.validate_every`` steps and at the end. Without it the last weights are kept.
    checkpoint: saved at every validation; where the file exists, training continues from it.
        (A path is for one process; ranks need a ``Checkpointer``.)
    log: JSON lines, one a validation, appended to. progress: a progress bar on stderr. In a sharded
        run, of the first rank.
    on_step: called after every step with the number of steps done.
    ranks: ``Peers(process_group)`` to train on all ranks of a group, each of which calls this with
        the same arguments and its part of the tables; "batch_size" is the global batch's.
    make_optimizer: of all weights but those of fused tables, which update themselves; both take
        their learning rate from ``settings``.
    Ctrl-C leaves the checkpoint of the last validation behind.

    Raises:
        DivergedError: the loss is not finite. CheckpointError: the checkpoint is another run's.
        CollectiveError: ranks disagree on the run, or another rank's validation failed.
    """
    ranks = Alone() if ranks is None else ranks
    first = ranks.rank == 0
    run = _Run(backbone, embedding, train, settings, seed, ranks, make_optimizer)
    saver = _saver(checkpoint, ranks)
    if saver is not None:
        run.load(saver)
    total = settings.max_epochs * run.sampler.steps_per_epoch
    shown = progress and first
    bar = tqdm(total=total, initial=run.step, desc="training", unit="step", disable=not shown)
    with heap_for_large_arrays(), bar:
        while run.step < total and not run.stopped:
            loss = run.train_step()
            bar.update()
            if on_step is not None:
                on_step(run.step)
            last = run.step == total
            if not last and run.step % settings.validate_every:
                continue
            if not math.isfinite(value := ranks.mean("the loss", loss.item)):
                raise DivergedError(
                    f"the loss is {value} after {run.step} steps: lower lr (now {settings.lr}) "
                    "or init_std"
                )
            if validate is not None:
                run.keep_if_better(ranks.mean("validation", validate))
                bar.set_postfix(loss=f"{value:.4f}", best=f"{run.best_quality:.4f}")
            if log is not None and first:
                _append(Path(log), run.line(value))
            if saver is not None:
                run.save(saver)
    return run.result()


def _saver(checkpoint: Path | Checkpointer | None, ranks: Ranks) -> Checkpointer | None:
    if not isinstance(checkpoint, (str, Path)):
        return checkpoint
    if ranks.size > 1:
        raise InvalidInputError(
            f"a checkpoint in one file ({checkpoint}) is for one process: pass a Checkpointer"
        )
    return FileCheckpointer(Path(checkpoint))


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        backbone: nn.Module,
        embedding: nn.Module,
        train: Interactions,
        settings: TrainSettings,
        seed: int,
        ranks: Ranks,
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.settings, self.seed, self.ranks = settings, seed, ranks
        self.backbone, self.embedding = backbone, embedding
        self.sampler = BPRSampler(
            train, batch_size=settings.batch_size, how=settings.sampler, seed=seed
        )
        self.model = nn.ModuleDict({"embedding": embedding, "backbone": backbone})
        if ranks.size == 1 and not any(map(_trains, self.model.parameters())):
            raise InvalidInputError("there is nothing to train: every row has size 0")
        self.device = _device(self.model)
        self.optimizer = Optimizers(self.model, make_optimizer)
        # Sharded tables name their weights that are whole on every rank, others are all so.
        replicated = getattr(embedding, "replicated", embedding.parameters)
        self.replicated = [*replicated(), *(p for p in backbone.parameters() if p.requires_grad)]
        ranks.start(lambda: self._identity() | {"train": train.fingerprint()}, self.replicated)
        self.generator = torch.Generator(device=self.device)
        self.step = 0
        self.best: dict[str, Tensor] | None = None
        self.best_quality, self.best_step, self.failures = -math.inf, 0, 0
        self.history: list[tuple[int, float]] = []
        self.stopped = ""
        self.began = time.perf_counter()

    def train_step(self) -> Tensor:
        batch = self.sampler.batch(self.step)
        users, positives, negatives = (
            torch.from_numpy(ids).to(self.device) for ids in self.ranks.part(batch)
        )
        self.generator.manual_seed(self.ranks.seed(self.seed, self.step))
        self.model.train()
        self.optimizer.set_rate(self.settings.lr_at(self.step))
        terms = self.backbone(self.embedding, users, positives, negatives, generator=self.generator)
        examples = len(batch.users) / self.ranks.size
        loss = bpr_loss(terms, self.settings.l2, examples=examples)
        loss.backward()
        self.ranks.average(self.replicated)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def keep_if_better(self, quality: float) -> None:
        self.history.append((self.step, quality))
        if quality > self.best_quality:
            self.best_quality, self.best_step, self.failures = quality, self.step, 0
            named = self.model.named_parameters()
            self.best = {name: weight.detach().clone() for name, weight in named}
        else:
            self.failures += 1
        if self.failures >= self.settings.patience:
            self.stopped = "patience"

    def result(self) -> TrainResult:
        if self.best is not None:
            # In place, which sharded tables allow too: of those, names stand for this rank's part.
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    weight.copy_(self.best[name])
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

    def save(self, saver: Checkpointer) -> None:
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
        saver.save(self.model, self.optimizer, self.best, facts)

    def load(self, saver: Checkpointer) -> None:
        found = saver.load(self.model, self.optimizer, self._identity())
        if found is None:
            return
        self.best, facts = found
        self.step, self.failures = facts["step"], facts["failures"]
        self.best_step, self.stopped = facts["best_step"], facts["stopped"]
        if facts["best_quality"] is not None:
            self.best_quality = facts["best_quality"]
        self.history = [(step, quality) for step, quality in facts["history"]]
        self.began = time.perf_counter() - facts["seconds"]

    def _identity(self) -> dict[str, Any]:
        facts = {
            "seed": self.seed,
            "settings": dataclasses.asdict(self.settings),
            "pairs": self.sampler.num_pairs,
        }
        if self.ranks.size == 1:  # shards' shapes differ by rank, and a job may restart with more
            named = self.model.state_dict().items()
            facts["weights"] = {name: list(value.shape) for name, value in named}
        return facts


def _trains(weight: Tensor) -> bool:
    return weight.requires_grad and weight.numel() > 0


def _device(model: nn.Module) -> torch.device:
    # A rank may have no weights at all; a backbone's buffers are on every one.
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

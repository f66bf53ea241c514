"""How the predictor learns from the history (BET Section 3.4, Eq. 11).

Both ways depend on the seed and the history alone, so a resumed search needs no other state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .predictor import FitnessPredictor, Predictor, Scene
from .sampler import Candidates


class Trainer(Protocol):
    """Gives a predictor that has seen the history so far; called once an iteration, in order."""

    def __call__(
        self, scene: Scene, candidates: Candidates, fitness: Sequence[float], seed: int
    ) -> Predictor: ...


@dataclass(frozen=True, kw_only=True)
class FullBatch:
    """Each iteration afresh: ``steps`` Adam steps on all of the history, targets standardised.

    set_shares, final_activation: how the predictor is built, see FitnessPredictor.
    """

    steps: int = 200
    lr: float = 0.01
    weight_decay: float = 1e-3
    set_shares: bool = True
    final_activation: bool = False

    def __call__(
        self, scene: Scene, candidates: Candidates, fitness: Sequence[float], seed: int
    ) -> FitnessPredictor:
        """A predictor in units of fitness."""
        predictor = FitnessPredictor(
            scene,
            set_shares=self.set_shares,
            final_activation=self.final_activation,
            generator=torch.Generator().manual_seed(seed),
        )
        target = torch.tensor(fitness, dtype=torch.float64)
        mean, spread = float(target.mean()), float(target.std(correction=0).clamp(min=1e-6))
        target = ((target - mean) / spread).float()
        sets = predictor.describe(candidates)
        optimizer = torch.optim.AdamW(
            predictor.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            _step(optimizer, predictor(sets), target)
            schedule.step()
        predictor.in_units_of(mean, spread)
        return predictor.eval()


@dataclass(frozen=True, kw_only=True)
class SingleSamples:
    """The paper's: ``updates`` steps an iteration, each on one random entry of the history.

    Adam at ``lr``, times ``decay`` an update, not under ``floor``. Every call replays the whole
    history, which costs two small steps an iteration.
    """

    updates: int = 2
    lr: float = 0.01
    decay: float = 0.9
    floor: float = 0.002
    set_shares: bool = False
    final_activation: bool = True

    def __call__(
        self, scene: Scene, candidates: Candidates, fitness: Sequence[float], seed: int
    ) -> FitnessPredictor:
        predictor = FitnessPredictor(
            scene,
            set_shares=self.set_shares,
            final_activation=self.final_activation,
            generator=torch.Generator().manual_seed(seed),
        )
        optimizer = torch.optim.Adam(predictor.parameters(), lr=self.lr)
        target = torch.tensor(fitness, dtype=torch.float32)
        rng = np.random.default_rng([seed, 1])
        update = 0
        for seen in range(1, len(target) + 1):
            for _ in range(self.updates):
                optimizer.param_groups[0]["lr"] = max(self.lr * self.decay**update, self.floor)
                one = [int(rng.integers(seen))]
                _step(optimizer, predictor(candidates[one]), target[one])
                update += 1
        return predictor.eval()


def _step(optimizer: torch.optim.Optimizer, predicted: Tensor, target: Tensor) -> None:
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(predicted, target).backward()
    optimizer.step()

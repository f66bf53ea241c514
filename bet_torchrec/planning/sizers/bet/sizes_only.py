"""The paper's ablation of the predictor (BET, Table 2): one that sees nothing but sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...settle import bucket_rows
from .predictor import HIDDEN, Predictor, Scene
from .sampler import Candidates


@dataclass(frozen=True, kw_only=True)
class SizesOnly:
    """Each iteration afresh: ``steps`` Adam steps on all of the history, targets standardised.

    What rows have which size is told as the shares of a table's rows at each width: a candidate's
    sizes fall with rank, so that they say as much as one size a row, in a few numbers.
    """

    steps: int = 200
    lr: float = 0.01
    weight_decay: float = 1e-3

    def __call__(
        self, scene: Scene, candidates: Candidates, fitness: Sequence[float], seed: int
    ) -> Predictor:
        """A predictor in units of fitness."""
        target = torch.tensor(fitness, dtype=torch.float64)
        mean, spread = float(target.mean()), float(target.std(correction=0).clamp(min=1e-6))
        target = ((target - mean) / spread).float()
        predictor = SizePredictor(scene, mean, spread, torch.Generator().manual_seed(seed))
        optimizer = torch.optim.AdamW(
            predictor.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        for _ in range(self.steps):
            optimizer.zero_grad()
            predicted = (predictor(candidates) - mean) / spread
            nn.functional.mse_loss(predicted, target).backward()
            optimizer.step()
        return predictor.eval()


class SizePredictor(nn.Module):
    """MLP F W - 64 - 64 - 1 (and the precisions' bits, where there are several) with LeakyReLU."""

    def __init__(
        self, scene: Scene, mean: float, spread: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._rows = torch.tensor([[float(counts.rows)] for counts in scene.counts])
        self._bits = torch.tensor(scene.bits, dtype=torch.float32) / 32.0
        self._unit = (mean, spread)
        tables = len(scene.counts)
        inputs = tables * len(scene.widths) + tables * (len(scene.bits) > 1)
        self.encoder = nn.Sequential(
            nn.Linear(inputs, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU()
        )
        self.decoder = nn.Linear(HIDDEN, 1)
        with torch.no_grad():
            for weight in self.parameters():
                bound = HIDDEN**-0.5 if weight.ndim == 1 else weight.shape[1] ** -0.5
                weight.uniform_(-bound, bound, generator=generator)

    def forward(self, candidates: Candidates) -> Tensor:
        """(m,) predicted fitness."""
        return self.fitness(self.embed(candidates))

    def fitness(self, codes: Tensor) -> Tensor:
        """(m,) predicted fitness of what has these codes."""
        mean, spread = self._unit
        return mean + spread * self.decoder(codes).squeeze(-1)

    def spread(self, codes: Tensor) -> Tensor:
        """(m,) zeros: one network cannot tell."""
        return torch.zeros(len(codes))

    def embed(self, candidates: Candidates) -> Tensor:
        """(m, 64) codes."""
        shares = (bucket_rows(candidates.boundaries).float() / self._rows).flatten(1)
        if len(self._bits) > 1:
            shares = torch.cat([shares, self._bits[candidates.precision]], 1)
        code: Tensor = self.encoder(shares)
        return code

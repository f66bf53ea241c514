"""A workbench that fits tables to targets: what a method trains, in milliseconds and by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from bet_torchrec.outcome import Outcome


class FittingTask:
    """Of a ``FittingWorkbench``: batches of ids, an example being one row of each table."""

    examples = 16

    def __init__(self, bench):
        self.bench, self.steps_per_epoch = bench, bench.steps

    def new_model(self, seed):
        return torch.nn.Module()

    def batch(self, seed, step):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        return {
            name: torch.randint(len(table), (self.examples,), generator=generator)
            for name, table in self.bench.targets.items()
        }

    def rows_of(self, batch):
        return {name: (ids, torch.arange(self.examples)) for name, ids in batch.items()}

    def squared(self, embedding, batch):
        return sum(
            (embedding.lookup(name, ids)[:, : target.shape[1]] - target[ids][:, : embedding.width])
            .square()
            .sum(1)
            for (name, ids), target in zip(batch.items(), self.bench.targets.values(), strict=True)
        )

    def errors(self, model, embedding, batch):
        return 1 - torch.exp(-self.squared(embedding, batch))

    def loss(self, model, embedding, batch, generator=None):
        return self.squared(embedding, batch).mean()

    def validate(self, model, embedding, part="validation"):
        return -float(self.bench.error(embedding))


class FittingWorkbench:
    """Trains any embedding module towards ``targets`` {table: (rows, d)} by squared error.

    full: the targets themselves. quality: minus the error. Keeps the seeds and losses of its fits.
    """

    def __init__(self, targets, *, steps=20, lr=0.05):
        self.targets, self.steps, self.lr = targets, steps, lr
        self.fits = []
        self.task = FittingTask(self)

    def identity(self):
        return {"model": "fitting"}

    def full(self):
        return SimpleNamespace(
            outcome=Outcome(quality=1.0),
            model=torch.nn.Module(),
            full_tables=lambda: {name: table.clone() for name, table in self.targets.items()},
        )

    def fit(
        self,
        embedding,
        *,
        settings=None,
        warm=None,
        seed=None,
        extra_loss=None,
        groups=None,
        on_step=None,
        floor=None,
    ):
        weights = list(embedding.parameters())
        optimizer = groups(weights) if groups else torch.optim.Adam(weights)
        for step in range(1, self.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * group.get("lr_scale", 1.0)
            loss = self.error(embedding) + (extra_loss() if extra_loss else 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_step is not None:
                on_step(step)
        quality = -float(self.error(embedding).detach())
        self.fits.append((embedding, seed, settings, quality))
        return SimpleNamespace(
            outcome=Outcome(quality=quality, steps=self.steps),
            model=torch.nn.Module(),
            embedding=embedding,
        )

    def error(self, embedding):
        return sum(
            (embedding.table(name)[:, : table.shape[1]] - self._cut(table, embedding.width))
            .square()
            .sum()
            for name, table in self.targets.items()
        )

    @staticmethod
    def _cut(table, width):
        return table[:, :width]

"""Who grows: a policy a table, and the rewards that it learns from by REINFORCE with a baseline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEMORY = 5  # a row's last rewards, whose mean is its baseline
BUCKETS = 32  # of counts, by powers of two


class Policy(nn.Module):
    """State (a row's count and size) to the logits of (keep, grow).

    The count's bucket has an embedding of 32, the size is one-hot; linear 512, batch norm, tanh,
    linear 2.
    """

    def __init__(self, levels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.counts = nn.Embedding(BUCKETS, 32)
        self.layers = nn.Sequential(
            nn.Linear(32 + levels, 512), nn.BatchNorm1d(512), nn.Tanh(), nn.Linear(512, 2)
        )
        self._levels = levels
        with torch.no_grad():
            self.counts.weight.normal_(generator=generator)
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    layer.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, counts: Tensor, levels: Tensor) -> Tensor:
        """(n, 2) logits of n rows of these counts and levels."""
        bucket = torch.log2(counts.float() + 1).long().clamp(max=BUCKETS - 1)
        one_hot = nn.functional.one_hot(levels, self._levels).float()
        logits: Tensor = self.layers(torch.cat([self.counts(bucket), one_hot], 1))
        return logits


class Rewards:
    """Rows' last (1 - error), of which a new one's advantage is how far it is above their mean."""

    def __init__(self, rows: int) -> None:
        self._last = torch.zeros(rows, MEMORY)
        self._seen = torch.zeros(rows, dtype=torch.int64)

    def advantage(self, ids: Tensor, gained: Tensor) -> Tensor:
        """(n,) of distinct rows' new (1 - error); 0 of a row's first. Remembers them."""
        seen = self._seen[ids]
        known = seen.clamp(max=MEMORY)
        mean = self._last[ids].sum(1) / known.clamp(min=1)
        self._last[ids, seen % MEMORY] = gained
        self._seen[ids] += 1
        return torch.where(known > 0, gained - mean, 0.0)


def reinforce(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """The loss whose gradient is REINFORCE's: -mean(advantage * log pi(action))."""
    log_pi = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
    return -(advantages.detach() * log_pi).mean()

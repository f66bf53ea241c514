"""The optimizers of one run: torch's, and those that TorchRec fused into the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

MakeOptimizer: TypeAlias = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def adam(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam; its rate is set at every step."""
    return torch.optim.Adam(weights, fused=True)


class Optimizers:
    """One rate and one step for all weights of a model.

    model: whose fused tables (those of modules with a ``fused_optimizer``) update themselves in the
        backward pass and only need the rate. make: of the optimizer of all other weights.

    dense: torch's optimizer, None where there is nothing for it. fused: TorchRec's.
    """

    def __init__(self, model: nn.Module, make: MakeOptimizer = adam) -> None:
        found = (getattr(module, "fused_optimizer", None) for module in model.modules())
        self.fused: list[Any] = [o for o in found if o is not None and len(o.param_groups)]
        # TorchRec marks the weights that its kernels update.
        own = [
            weight
            for weight in model.parameters()
            if weight.requires_grad
            and weight.numel()
            and not hasattr(weight, "_in_backward_optimizers")
        ]
        self.dense = make(own) if own else None

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the coming step; to be called before the forward pass."""
        for optimizer in (*self.fused, *filter(None, [self.dense])):
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
        for optimizer in self.fused:
            optimizer.zero_grad()  # clears nothing: here TorchRec hands the rate to its kernel

    def step(self) -> None:
        """Update the weights that haven't updated themselves, and drop their gradients."""
        if self.dense is not None:
            self.dense.step()
            self.dense.zero_grad(set_to_none=True)

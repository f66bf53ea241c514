"""The optimizers of the fused step as torch and TorchRec see them: their rates and their state.

What they do is done in the backward pass, so a step does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torchrec.optim.keyed import KeyedOptimizerWrapper

Rule: TypeAlias = Literal["sgd", "rowwise_adagrad", "adagrad"]


class _InBackward(torch.optim.Optimizer):
    """One group of all weights, which may be none."""

    def __init__(self, weights: list[Tensor], *, lr: float, eps: float) -> None:
        super().__init__([{"params": weights}], {"lr": lr, "eps": eps})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Nothing: backward did it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: gradients are not kept."""


# Their names are the rules', by which checkpoints know them.
class SGD(_InBackward):
    """No state."""


class RowWiseAdagrad(_InBackward):
    """state: "sum" (rows,), of the mean squared gradients of a row."""


class Adagrad(_InBackward):
    """state: "sum" (rows, width), of the squared gradients."""


RULES: dict[Rule, type[_InBackward]] = {
    "sgd": SGD,
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
}  # in the order of update.cpp


def new_state(rule: Rule, weight: Tensor) -> Tensor | None:
    """A weight's state before the first step, zeros."""
    if rule == "sgd":
        return None
    return torch.zeros_like(weight.detach() if rule == "adagrad" else weight.detach()[:, 0])


class FusedStep(KeyedOptimizerWrapper):
    """What ``FusedOptimizerModule.fused_optimizer`` gives: weights and states by name."""

    def __init__(self, rule: Rule, weights: dict[str, Tensor], *, lr: float, eps: float) -> None:
        super().__init__(weights, lambda params: RULES[rule](params, lr=lr, eps=eps))

    def bind(self, weights: dict[str, Tensor], states: dict[str, Tensor]) -> None:
        """Hold these from now on; a module's tensors may be others after a load or a move."""
        own: Any = self._optimizer
        self.params = weights
        own.param_groups[0]["params"] = list(weights.values())
        own.state.clear()
        for name, weight in weights.items():
            if name in states:
                own.state[weight] = {"sum": states[name]}

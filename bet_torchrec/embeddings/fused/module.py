"""A collection whose update is part of its backward pass, in one process on CPU.

TorchRec's FusedEmbeddingBagCollection for tables of many widths: each row is read and written
once, at its own width, whatever the number of widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ...errors import InvalidInputError
from ..layout import Block
from ..module import BudgetedEmbeddingBagCollection
from ..native.batch import Batch, batch_of
from ..native.calls import IdFault
from .optimizer import RULES, FusedStep, Rule, new_state


class FusedBudgetedEmbeddingBagCollection(nn.Module, FusedOptimizerModule):
    """Trains a BudgetedEmbeddingBagCollection in place: ``backward`` updates the rows looked up.

    Args:
        module: bucketed, fp32 and on the CPU; its weights stay its own and are updated there.
        optimizer: "sgd", "rowwise_adagrad" or "adagrad", as FBGEMM defines them.
        lr: learning rate, which may be set anew between steps. eps: Adagrad's.

    Same input and output as the module. Gradients reach nothing else, and no optimizer step is
    needed, but for bases that train: an optimizer of torch's over ``module.bases.parameters()``
    steps these. Forward passes without gradients change nothing. Bag weights get no gradient.
    Several threads may train at once: their updates take turns.

    Weights are the module's at each call, so it may be copied, pickled, loaded or quantised like
    any other. The optimizer's state is in buffers, which follow the weights, and belongs to
    ``fused_optimizer``, as TorchRec has it: ``save_checkpoint`` and ``fused_optimizer.state_dict``
    have it, the module's ``state_dict`` hasn't.

    Raises:
        InvalidInputError: another layout, dtype or device, or a bad setting; on a call too, where
            the module became one of these, or the batch contradicts itself.
        CompilerError: on the first call, where no C++ compiler is found.
    """

    def __init__(
        self,
        module: BudgetedEmbeddingBagCollection,
        *,
        optimizer: Rule,
        lr: float,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        if optimizer not in RULES:
            raise InvalidInputError(
                f"optimizer should be one of {', '.join(RULES)}, got {optimizer!r}"
            )
        for name, value in (("lr", lr), ("eps", eps)):
            _check_rate(name, value)
        if module.layout != "bucketed":
            raise InvalidInputError(f"layout should be 'bucketed', got {module.layout!r}")
        self.module = module
        self.optimizer: Rule = optimizer
        weights = self._weights()
        self.states = nn.Module()
        for block, weight in zip(self._blocks(), weights, strict=True):
            if (state := new_state(optimizer, weight)) is not None:
                self.states.register_buffer(block.name, state, persistent=False)
        self._fused_optimizer = FusedStep(optimizer, self._named_weights(), lr=lr, eps=eps)
        self._bind()
        self.register_load_state_dict_post_hook(_bind)
        # Makes the output require a gradient, so that backward comes here at all.
        self._reached = torch.ones((), requires_grad=True, device="cpu")

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool; see ``BudgetedEmbeddingBagCollection``."""
        router = self.module.router
        features = router.select(features)
        if features.device().type != "cpu":
            raise InvalidInputError(f"ids should be on the CPU, got {features.device()}")
        batch = batch_of(features, weighted=self.module.is_weighted())
        try:
            values = _Step.apply(self._reached, self, batch)
        except IdFault:
            router.report(features)
            raise
        return self.module.rows(self.module.merger.output(values))

    @property
    def fused_optimizer(self) -> FusedStep:
        """The optimizer: its rates, which count from the next backward on, and its state."""
        self._bind()
        return self._fused_optimizer

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self._group["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        _check_rate("lr", value)
        self._group["lr"] = value

    @property
    def eps(self) -> float:
        """Adagrad's."""
        return float(self._group["eps"])

    @property
    def _group(self) -> dict[str, Any]:
        return self._fused_optimizer._optimizer.param_groups[0]

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs."""
        return self.module.embedding_bag_configs()

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self.module.is_weighted()

    def _blocks(self) -> list[Block]:
        return [block for own in self.module.blocks.values() for block in own]

    def _weights(self) -> list[Tensor]:
        """The module's, checked: nothing but addresses goes to the kernels."""
        if not isinstance(self.module, BudgetedEmbeddingBagCollection):
            raise InvalidInputError(
                f"expected an unsharded collection, got {type(self.module).__name__}: this step is "
                "for one process; give the sharder fused_params instead"
            )
        found: list[Tensor] = []
        for block in self._blocks():
            weight = self.module.weight(block)
            _check_tensor(f"block {block.name!r}: weights", weight)
            if len(weight) != block.rows or weight.shape[1] < block.width:
                raise InvalidInputError(
                    f"block {block.name!r}: weights should be those of the plan, {block.rows} x "
                    f"{block.width}, got {tuple(weight.shape)}"
                )
            found.append(weight)
        return found

    def _states(self) -> list[Tensor]:
        found = [state for _, state in self.states.named_buffers()]
        for state in found:
            _check_tensor("the optimizer's state", state)
        return found

    def _named_weights(self) -> dict[str, Tensor]:
        """The blocks' alone: bases that train are an optimizer of torch's."""
        own = {id(self.module.weight(block)) for block in self._blocks()}
        return {name: weight for name, weight in self.named_parameters() if id(weight) in own}

    def _bind(self) -> None:
        """Hand the module's present tensors to its optimizer."""
        names = {id(weight): name for name, weight in self.named_parameters()}
        states = dict(self.states.named_buffers())
        self._fused_optimizer.bind(
            self._named_weights(),
            {
                names[id(self.module.weight(block))]: states[block.name]
                for block in self._blocks()
                if block.name in states
            },
        )

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> FusedBudgetedEmbeddingBagCollection:
        super()._apply(fn, recurse)
        self._bind()
        return self

    def extra_repr(self) -> str:
        return f"optimizer={self.optimizer!r}, lr={self.lr}"


class _Step(torch.autograd.Function):
    """Rows forward; backward, their update."""

    @staticmethod
    def forward(
        ctx: Any, reached: Tensor, fused: FusedBudgetedEmbeddingBagCollection, batch: Batch
    ) -> Tensor:
        out, places = torch.ops.bet_torchrec.lookup(
            fused._weights(), fused.module.merger.width, *batch, *_tables(fused)
        )
        ctx.fused, ctx.batch, ctx.places = fused, batch, places
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        fused: FusedBudgetedEmbeddingBagCollection = ctx.fused
        torch.ops.bet_torchrec.update_(
            fused._weights(),
            fused._states(),
            gradient.contiguous(),
            ctx.places,
            list(RULES).index(fused.optimizer),
            fused.lr,
            fused.eps,
            *ctx.batch,
            *_tables(fused),
        )
        return None, None, None


def _tables(fused: FusedBudgetedEmbeddingBagCollection) -> tuple[Tensor | None, ...]:
    own = fused.module.router.laid
    return own.slots, own.tables, own.blocks, fused.module.router.map


def _bind(module: FusedBudgetedEmbeddingBagCollection, _: Any) -> None:
    module._bind()


def _check_rate(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InvalidInputError(f"{name} should be positive and finite, got {value}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise InvalidInputError(
            f"{name} should be fp32 on the CPU, contiguous, got {tensor.dtype} on {tensor.device} "
            f"with strides {tensor.stride()}: .float().cpu()"
        )

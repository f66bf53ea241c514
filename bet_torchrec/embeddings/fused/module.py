"""A collection whose update is part of its backward pass, in one process on CPU.

TorchRec's FusedEmbeddingBagCollection for tables of many widths: each row is read and written
once, at its own width, whatever the number of widths.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from ...errors import InvalidInputError
from ..module import BudgetedEmbeddingBagCollection
from .tables import OPTIMIZERS, Feature, KernelTable, Optimizer


class FusedBudgetedEmbeddingBagCollection(nn.Module):
    """Trains a BudgetedEmbeddingBagCollection in place: ``backward`` updates the rows looked up.

    Args:
        module: bucketed, fp32 and on the CPU; its weights stay its own and are updated there.
        optimizer: "sgd", "rowwise_adagrad" or "adagrad", as FBGEMM defines them.
        lr: learning rate, which may be set anew between steps. eps: Adagrad's.

    Same input and output as the module. Gradients reach nothing else, and no optimizer step is
    needed; forward passes without gradients change nothing. Bag weights get no gradient.

    Raises:
        InvalidInputError: another layout, dtype or device, or a bad setting.
        CompilerError: on the first call, where no C++ compiler is found.
    """

    def __init__(
        self,
        module: BudgetedEmbeddingBagCollection,
        *,
        optimizer: Optimizer,
        lr: float,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise InvalidInputError(
                f"optimizer should be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}"
            )
        for name, value in (("lr", lr), ("eps", eps)):
            if not (math.isfinite(value) and value > 0):
                raise InvalidInputError(f"{name} should be positive and finite, got {value}")
        if module.layout != "bucketed":
            raise InvalidInputError(f"layout should be 'bucketed', got {module.layout!r}")
        for own in module.blocks.values():
            for block in own:
                weight = module.weight(block)
                if weight.dtype != torch.float32 or weight.device.type != "cpu":
                    raise InvalidInputError(
                        f"block {block.name!r}: weights should be fp32 on the CPU, got "
                        f"{weight.dtype} on {weight.device}"
                    )
        self.module = module
        self.optimizer: Optimizer = optimizer
        self.lr, self.eps = lr, eps
        self.kernel_tables = {
            table.name: KernelTable(
                module.plan[table.name],
                module.blocks[table.name],
                [module.weight(block).data for block in module.blocks[table.name]],
                optimizer,
                module.router.id_map(table.name),
            )
            for table in module.tables
        }
        # Makes the output require a gradient, so that backward comes here at all.
        self._reached = torch.ones((), requires_grad=True)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool; see ``BudgetedEmbeddingBagCollection``."""
        features = self.module.router.select(features)
        batch = _Batch(self, features)
        return self.module.merger.output(_Step.apply(self._reached, batch))

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The full tables' configs."""
        return self.module.embedding_bag_configs()

    def is_weighted(self) -> bool:
        """Whether bags have weights."""
        return self.module.is_weighted()

    def extra_repr(self) -> str:
        return f"optimizer={self.optimizer!r}, lr={self.lr}"


class _Batch:
    """One batch routed: where every id's row is, and every table's features."""

    def __init__(
        self, fused: FusedBudgetedEmbeddingBagCollection, features: KeyedJaggedTensor
    ) -> None:
        self.fused = fused
        router = fused.module.router
        ids, offsets = features.values().long().contiguous(), features.offsets().long()
        self.size = features.stride()
        weights = features.weights_or_none()
        self.weights = None if weights is None else weights.float().contiguous()
        self.places = torch.empty_like(ids)
        scale = router.scale(features)
        self.features: dict[str, list[Feature]] = {name: [] for name in fused.kernel_tables}
        column = 0
        for number, slot in enumerate(router.slots):
            table = fused.kernel_tables[slot.table]
            own = offsets[number * self.size : (number + 1) * self.size + 1]
            start, end = (int(own[0]), int(own[-1])) if self.size else (0, 0)
            if table.places(ids[start:end], self.places[start:end]) >= 0:
                router.report(features)
            mean = None if scale is None else scale[:, number].contiguous()
            self.features[slot.table].append(Feature(own, column, mean))
            column += table.dim
        self.width = column


class _Step(torch.autograd.Function):
    """Rows forward; backward, their update."""

    @staticmethod
    def forward(ctx: Any, reached: Tensor, batch: _Batch) -> Tensor:
        ctx.batch = batch
        out = torch.empty(batch.size, batch.width)
        if batch.size:
            for name, features in batch.features.items():
                for feature in features:
                    batch.fused.kernel_tables[name].forward(
                        feature, batch.places, batch.weights, out
                    )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        batch, gradient = ctx.batch, gradient.contiguous()
        if batch.size:
            for name, features in batch.features.items():
                batch.fused.kernel_tables[name].update(
                    features,
                    batch.places,
                    batch.weights,
                    gradient,
                    lr=batch.fused.lr,
                    eps=batch.fused.eps,
                )
        return None, None

"""Some examples of a click log as torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading data should not cost torch's import
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClickBatch:
    """B examples. S single-hot fields, K dense columns.

    single: the S names. ids: int64 (B, S). bags: {multi-hot field: (values int64, offsets int64
    (B + 1,))}; example b has values[offsets[b]:offsets[b + 1]]. dense: float32 (B, K), or None.
    labels: float32 (B,), 0 or 1.
    """

    single: tuple[str, ...]
    ids: Tensor
    bags: Mapping[str, tuple[Tensor, Tensor]]
    dense: Tensor | None
    labels: Tensor

    @property
    def size(self) -> int:
        """B."""
        return len(self.labels)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ClickBatch:
        """The same examples on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return ClickBatch(
            single=self.single,
            ids=move(self.ids),
            bags={name: (move(values), move(ends)) for name, (values, ends) in self.bags.items()},
            dense=None if self.dense is None else move(self.dense),
            labels=move(self.labels),
        )

"""One table's blocks as the kernels see them: addresses, widths, and the optimizer's state."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...planning.table_plan import TablePlan
from ..layout import Block
from .kernels import library

Optimizer: TypeAlias = Literal["sgd", "rowwise_adagrad", "adagrad"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "rowwise_adagrad", "adagrad")

_Int64s: TypeAlias = "ctypes.Array[ctypes.c_int64]"


def _int64s(values: Sequence[int]) -> _Int64s:
    return (ctypes.c_int64 * max(1, len(values)))(*values)


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    found = [None if t is None else t.data_ptr() for t in tensors]
    return (ctypes.c_void_p * max(1, len(found)))(*found)


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor's memory, or null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@dataclass(frozen=True)
class Feature:
    """One feature's bags in a batch of V values: where its offsets begin, and its columns.

    offsets: (B + 1,) into the V values. scale: (B,), one factor a bag, or None for ones.
    """

    offsets: Tensor
    column: int
    scale: Tensor | None


class KernelTable:
    """A table for the kernels. weights, states: by block; states are empty under SGD.

    id_map: int32 (rows,), each id's rank; None where ids are ranks.
    """

    def __init__(
        self,
        plan: TablePlan,
        blocks: Sequence[Block],
        weights: Sequence[Tensor],
        optimizer: Optimizer,
        id_map: Tensor | None,
    ) -> None:
        self.rows, self.dim = plan.rows, plan.embedding_dim
        self.weights = list(weights)
        self.optimizer = optimizer
        self.states = [self._state(weight) for weight in weights] if optimizer != "sgd" else []
        self._map = id_map
        self._first = _int64s([b.first_rank for b in blocks])
        self._end = _int64s([b.first_rank + b.rows for b in blocks])
        self._stride = _int64s([b.stride for b in blocks])
        self._rows = _int64s([b.rows for b in blocks])
        self._widths = _int64s([b.width for b in blocks])
        self._blocks = ctypes.c_int64(len(blocks))

    def _state(self, weight: Tensor) -> Tensor:
        return (
            weight.new_zeros(len(weight))
            if self.optimizer == "rowwise_adagrad"
            else (torch.zeros_like(weight))
        )

    def places(self, ids: Tensor, out: Tensor) -> int:
        """Where ids' rows are, into ``out``; the index of the first id out of range, or -1."""
        return int(
            library().bet_places(
                ctypes.c_int64(len(ids)),
                address(ids),
                ctypes.c_int64(self.rows),
                address(self._map),
                self._blocks,
                self._first,
                self._end,
                self._stride,
                self._rows,
                address(out),
            )
        )

    def forward(
        self, feature: Feature, places: Tensor, bag_weights: Tensor | None, out: Tensor
    ) -> None:
        """Pool one feature's rows into its columns of ``out`` (B, columns of all features)."""
        library().bet_forward(
            ctypes.c_int64(len(feature.offsets) - 1),
            address(feature.offsets),
            address(places),
            address(bag_weights),
            address(feature.scale),
            _pointers(self.weights),
            self._widths,
            address(out[:, feature.column :]),
            ctypes.c_int64(out.stride(0)),
            ctypes.c_int64(self.dim),
            ctypes.c_int(torch.get_num_threads()),
        )

    def update(
        self,
        features: Sequence[Feature],
        places: Tensor,
        bag_weights: Tensor | None,
        gradient: Tensor,
        *,
        lr: float,
        eps: float,
    ) -> None:
        """Apply the gradient (B, columns of all features), all features of the table at once."""
        library().bet_update(
            ctypes.c_int(OPTIMIZERS.index(self.optimizer)),
            ctypes.c_int64(len(features)),
            ctypes.c_int64(len(gradient)),
            _pointers([feature.offsets for feature in features]),
            address(places),
            address(bag_weights),
            _pointers([feature.scale for feature in features]),
            address(gradient),
            ctypes.c_int64(gradient.stride(0)),
            _int64s([feature.column for feature in features]),
            self._blocks,
            _pointers(self.weights),
            _pointers(self.states),
            self._widths,
            self._rows,
            ctypes.c_float(lr),
            ctypes.c_float(eps),
            ctypes.c_int(torch.get_num_threads()),
        )

    @property
    def id_map_bytes(self) -> int:
        """Bytes of the id map."""
        return 0 if self._map is None else self._map.nbytes

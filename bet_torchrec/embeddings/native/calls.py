"""Calling the library: tensors as the structs of rows.h, and its faults as our errors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInputError
from .build import library

_INTEGERS = (torch.int32, torch.int64)


class IdFault(Exception):
    """Some id is out of its table's range: (slot, id). Whoever knows names tells the user."""


class Bags(ctypes.Structure):
    """A batch; keeps what it points to."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("features", "bags")),
        *((f"{n}_count", ctypes.c_int64) for n in ("ids", "lengths", "offsets", "weights")),
        *((name, ctypes.c_void_p) for name in ("ids", "lengths", "offsets", "weights")),
        *((f"wide_{name}", ctypes.c_int64) for name in ("ids", "lengths", "offsets")),
    )

    def __init__(
        self,
        features: int,
        bags: int,
        ids: Tensor,
        lengths: Tensor | None,
        offsets: Tensor | None,
        weights: Tensor | None,
    ) -> None:
        ids, lengths, offsets = _plain(ids), _plain(lengths), _plain(offsets)
        if weights is not None:
            weights = weights.detach().float().contiguous()
        self.kept = (ids, lengths, offsets, weights)
        super().__init__(
            features,
            bags,
            *(-1 if t is None else t.numel() for t in self.kept),
            *(None if t is None else t.data_ptr() for t in self.kept),
            *(t is None or t.dtype == torch.int64 for t in self.kept[:3]),
        )


def _plain(values: Any) -> Any:
    if values is None or (values.dtype in _INTEGERS and values.is_contiguous()):
        return values
    if values.dtype not in _INTEGERS:
        raise InvalidInputError(
            f"ids, lengths and offsets should be int32 or int64, got {values.dtype}"
        )
    return values.contiguous()


class Tables(ctypes.Structure):
    """All tables of a collection; keeps what it points to. base + memory[k]: address of block k."""

    _fields_ = (
        ("slots_count", ctypes.c_int64),
        *((n, ctypes.c_void_p) for n in ("slots", "tables", "blocks", "map", "base", "memory")),
    )

    def __init__(
        self,
        memory: Any,
        base: Tensor | None,
        slots: Tensor,
        tables: Tensor,
        blocks: Tensor,
        map: Tensor | None = None,
    ) -> None:
        self.kept = (slots, tables, blocks, map, base, memory)
        super().__init__(
            len(slots),
            slots.data_ptr(),
            tables.data_ptr(),
            blocks.data_ptr(),
            None if map is None else map.data_ptr(),
            None if base is None else base.data_ptr(),
            ctypes.addressof(memory) if isinstance(memory, ctypes.Array) else memory.data_ptr(),
        )


class Fault(ctypes.Structure):
    """What was wrong with a batch."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("problem", "place", "value"))


def run(name: str, bags: Bags, *arguments: Any) -> None:
    """Call a kernel whose first argument is a batch and whose last is its fault.

    Raises:
        InvalidInputError: the batch contradicts itself. IdFault: an id is out of range.
    """
    fault = Fault()
    if getattr(library(), name)(ctypes.byref(bags), *arguments, ctypes.byref(fault)):
        raise _error(bags, fault)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor's memory, or null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def integer(value: int) -> ctypes.c_int64:
    """As the kernels take all their numbers."""
    return ctypes.c_int64(value)


def integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Several of them."""
    return (ctypes.c_int64 * max(1, len(values)))(*values)


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    """Where they lie."""
    return integers([tensor.data_ptr() for tensor in tensors])


def threads() -> ctypes.c_int64:
    """As many as torch would use."""
    return ctypes.c_int64(torch.get_num_threads())


def _error(bags: Bags, fault: Fault) -> Exception:
    place, value, count = fault.place, fault.value, bags.ids_count
    bag_count = bags.features * bags.bags
    said = {
        1: f"lengths should be {bag_count} numbers from 0 on, got {value} "
        + ("of them" if bags.lengths_count != bag_count else f"at {place}"),
        2: f"offsets should be {bag_count + 1} numbers that rise from 0 to the {count} ids, got "
        + (f"{value} of them" if bags.offsets_count != bag_count + 1 else f"{value} at {place}"),
        3: f"lengths or offsets should say as many ids as there are, {count}, got {value} up to "
        f"bag {place}",
        4: f"lengths and offsets should say the same, but bag {place}'s length is {value}",
        5: f"weights should be one an id, {count}, got {value}",
    }
    if fault.problem not in said:
        return IdFault(place, value)
    return InvalidInputError(said[fault.problem] + ": make the KeyedJaggedTensor anew")

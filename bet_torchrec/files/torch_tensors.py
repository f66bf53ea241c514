"""Torch's tensors in and out of tensor files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidInputError
from .tensors import Entry, TensorFile

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
}
_TYPES = {name: dtype for dtype, name in DTYPES.items()}
_PIECE = 1 << 24  # elements copied from a device at once


def entry(name: str, tensor: Tensor) -> Entry:
    """To be written; read from its device when it is, some of it at a time.

    Raises:
        InvalidInputError: a type that safetensors has none for.
    """
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
        raise InvalidInputError(
            f"{name!r} should be a dense tensor of one of {', '.join(DTYPES.values())}, got "
            f"{tensor.dtype}, {tensor.layout}"
        )

    def pieces() -> Iterator[NDArray[np.uint8]]:
        for piece in tensor.detach().reshape(-1).split(_PIECE):
            own = piece.cpu().contiguous()
            if own.ndim and own.stride(-1) != 1:  # one column may have any stride
                own = own.clone(memory_format=torch.contiguous_format)
            yield own.view(torch.uint8).numpy()

    return Entry(name, DTYPES[tensor.dtype], tuple(tensor.shape), pieces)


def read_tensor(file: TensorFile, name: str) -> Tensor:
    """A copy, on the CPU; raises TensorFileError where there is none of this name."""
    raw, stored = file.raw(name), file.tensors[name]
    copy = torch.empty(stored.shape, dtype=_TYPES[stored.dtype])
    if copy.numel():
        copy.view(-1).view(torch.uint8).numpy()[:] = raw
    return copy

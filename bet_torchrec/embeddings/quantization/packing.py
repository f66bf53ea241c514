"""Rows as FBGEMM's inference tables hold them: their types, their bytes, their packing."""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  # registers the operator
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import DataType

from ...errors import InvalidInputError
from ...planning.budget import BITS, MemoryModel
from ...serving.packed import PARAMETERS

DATA_TYPES = {
    "fp32": DataType.FP32,
    "fp16": DataType.FP16,
    "int8": DataType.INT8,
    "int4": DataType.INT4,
    "int2": DataType.INT2,
}
CUDA_ALIGNMENT = 16
# FBGEMM's CUDA kernels want whole words of 4 bytes and 4 columns; in rows of whole 16 bytes these
# cost nothing.
_CUDA_MULTIPLES = {"fp32": 4, "fp16": 4, "int8": 4, "int4": 8, "int2": 16}


def stored_width(width: int, precision: str, alignment: int) -> int:
    """The columns of a block's real table: ``width``, filled up to what FBGEMM's formats need."""
    multiple = MemoryModel.width_multiple(precision)
    if alignment % CUDA_ALIGNMENT == 0:
        multiple = _CUDA_MULTIPLES[precision]
    return -(-width // multiple) * multiple


def row_bytes(width: int, precision: str) -> int:
    """Bytes of a packed row, not aligned."""
    return MemoryModel(unit="bytes", purpose="inference").row_cost(width, precision)


def pack_rows(values: Tensor, precision: str) -> Tensor:
    """fp32 (rows, width) on the CPU -> uint8 (rows, row_bytes).

    Columns that fill up an integer row repeat its first entry, so they have no part in its range.

    Raises:
        InvalidInputError: values that fp16, and with it every integer type, cannot hold.
    """
    values = values.contiguous()
    if precision == "fp32":
        return values.view(torch.uint8)
    if precision == "fp16":
        half = values.half()
        _check_finite(half)
        return half.view(torch.uint8)
    missing = -values.shape[1] % MemoryModel.width_multiple(precision)
    if missing:
        values = torch.cat([values, values[:, :1].expand(-1, missing)], dim=1)
    _check_finite(values)
    packed = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(values, BITS[precision])
    codes, parameters = packed[:, :-PARAMETERS], packed[:, -PARAMETERS:].contiguous()
    _check_finite(parameters.view(torch.half))
    return torch.cat([parameters, codes], dim=1)  # the lookup reads them in this order


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise InvalidInputError(
            "a row has values that fp16 cannot hold (beyond 65504 or not finite), so no precision "
            "below fp32 can store it: has training diverged?"
        )

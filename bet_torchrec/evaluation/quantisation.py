"""What FBGEMM's row-wise quantisation makes of a table, in plain torch.

TorchRec quantises a table for inference with ``FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf``
(torchrec/quant/embedding_modules.py, all of int8, int4 and int2): each row keeps an fp16 scale and
an fp16 bias. Here the same arithmetic, rounding for rounding (FBGEMM, src/QuantUtils.cc):

    bias  = fp16(min of the row)
    scale = fp16((max - bias) / (2**bits - 1)), 1 where that is 0 or its reciprocal overflows
    q     = clamp(round_half_even((x - bias) * (1 / scale)), 0, 2**bits - 1)
    read  = scale * q + bias, rounded to fp32 once

fp16 makes a scale coarse below 6e-5: an int8 row whose values span less than 0.016 loses bits (at a
span of 0.0005 its steps are already 3 % off), int4 below 0.0009, int2 below 0.0002.

A row's values must be within fp16's range (65,504), else its scale or bias is infinite, as it is
in FBGEMM: that is an error here. FBGEMM's operators further need each row's codes and scales to
fill whole 2-byte words (an int8 width must be even, int4 divisible by 4, int2 by 8); the arithmetic
here takes any width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInputError

_BITS = {"int8": 8, "int4": 4, "int2": 2}
_FP16_MAX = 65504.0


def fake_quantise_rows(values: Tensor, precision: str) -> Tensor:
    """Rows as they read after being stored in ``precision``: (rows, width) fp32 -> the same shape.

    precision: fp32, fp16, int8, int4 or int2. Never changes its input.

    Raises:
        InvalidInputError: an unknown precision, no matrix, or values that fp16 cannot hold.
    """
    _check(values, precision)
    values = values.detach().float()
    if precision == "fp32" or not values.numel():
        return values.clone()
    if precision == "fp16":
        read = values.half().float()
        _check_range(read)
        return read
    low, high = values.aminmax(dim=1, keepdim=True)
    return _round_rows(values.clone(), low, high, _BITS[precision])


def fake_quantise_sized(values: Tensor, sizes: Tensor, precision: str) -> Tensor:
    """As ``fake_quantise_rows``, each row's first ``sizes[row]`` entries being the whole row.

    values: (rows, D) fp32, zero beyond a row's size. sizes: (rows,) integers from 0 to D.
    The rest stays zero and has no part in a row's range, so the result is that of quantising each
    width's rows as a table of their own.
    """
    _check(values, precision)
    rows, width = values.shape
    if sizes.shape != (rows,):
        raise InvalidInputError(
            f"expected one size for each of {rows} rows, got shape {tuple(sizes.shape)}"
        )
    if rows and (int(sizes.min()) < 0 or int(sizes.max()) > width):
        raise InvalidInputError(
            f"sizes must be between 0 and {width}, got {int(sizes.min())} to {int(sizes.max())}"
        )
    values = values.detach().float()
    used = torch.arange(width, device=values.device) < sizes[:, None]
    if precision in ("fp32", "fp16") or not values.numel():
        return fake_quantise_rows(values * used, precision)
    low = values.masked_fill(~used, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~used, -torch.inf).amax(dim=1, keepdim=True)
    empty = (sizes == 0)[:, None]
    low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
    return _round_rows(values.clone(), low, high, _BITS[precision]).mul_(used)


def _round_rows(values: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Quantise and read back in place; low, high: (rows, 1)."""
    levels = (1 << bits) - 1
    bias = low.half().float()
    span = high - bias
    scale = torch.where(span == 0, 1.0, span / levels).half().float()
    scale = torch.where(scale == 0, 1.0, scale)
    _check_range(bias)
    _check_range(scale)
    values.sub_(bias).mul_(1 / scale).round_().clamp_(0, levels)
    # scale * q is exact in fp32 (11 + 8 bits), so this rounds once, like FBGEMM's fused form.
    return values.mul_(scale).add_(bias)


def _check(values: Tensor, precision: str) -> None:
    if precision not in ("fp32", "fp16", *_BITS):
        raise InvalidInputError(
            f"expected a precision of fp32, fp16, int8, int4 or int2, got {precision!r}"
        )
    if values.ndim != 2:
        raise InvalidInputError(
            f"expected a table of (rows, width), got shape {tuple(values.shape)}"
        )


def _check_range(read: Tensor) -> None:
    if not read.isfinite().all():
        raise InvalidInputError(
            f"a row has values that fp16 cannot hold (beyond {_FP16_MAX:.0f} or not finite), so no "
            "precision below fp32 can store it: has training diverged?"
        )

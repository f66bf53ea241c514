"""Rounding with a gradient: forward exactly what serving reads, backward as if nothing was rounded.

Of column codes the steps and offsets learn, too, as in LSQ (Esser et al., ICLR 2020) and LSQ+
(Bhalgat et al., 2020). Row-wise forms take theirs from the row itself and so learn with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...evaluation.quantisation import fake_quantise_sized


def coded(values: Tensor, scale: Tensor, offset: Tensor, last: Tensor) -> Tensor:
    """scale * code + offset of the nearest codes 0 .. last; (n, C).

    Gradients of an entry with position p = (value - offset) / scale and code c: inside [0, last]
    the value's is passed on and the scale's is c - p times it; outside, where the code is clipped,
    the value's is 0, the scale's c times it and the offset's all of it.

    Args:
        values: (n, C). scale, offset: (n, C) or (C,), scales above 0. last: the same, 2**bits - 1;
            0 (a column without codes) reads as the offset.
    """
    read: Tensor = _Coded.apply(values, scale, offset, last)
    return read


def codes_of(values: Tensor, scale: Tensor, offset: Tensor, last: Tensor) -> Tensor:
    """The codes that ``coded`` reads, as floats (n, C)."""
    return _clipped((values - offset) / scale, last)


def rounded_rows(rows: Tensor, sizes: Tensor, precision: str) -> Tensor:
    """Rows (n, D) as row-wise quantisation leaves them; the gradient passes as it comes.

    sizes: (n,) how many of its entries each row has; see ``fake_quantise_sized``.
    """
    read: Tensor = _Rounded.apply(rows, sizes, precision)
    return read


def as_half(values: Tensor) -> Tensor:
    """As fp16 keeps them; the gradient passes as it comes."""
    kept: Tensor = _Half.apply(values)
    return kept


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.half().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Tensor, precision: str) -> Tensor:
        return fake_quantise_sized(rows, sizes, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _Coded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, offset: Tensor, last: Tensor) -> Tensor:
        position = (values - offset) / scale
        code = _clipped(position, last)
        ctx.save_for_backward(position, code, last)
        ctx.shapes = scale.shape, offset.shape
        return code * scale + offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        position, code, last = ctx.saved_tensors
        scale_shape, offset_shape = ctx.shapes
        inside = (position >= 0) & (position <= last) & (last > 0)
        kept = gradient * inside
        by_scale = gradient * code - kept * position
        return (
            kept,
            by_scale.sum_to_size(scale_shape),
            (gradient - kept).sum_to_size(offset_shape),
            None,
        )


def _clipped(position: Tensor, last: Tensor) -> Tensor:
    return torch.minimum(position.round().clamp_(min=0), last)

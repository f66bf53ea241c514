"""Dropout masks from a generator of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dropout_mask(
    shape: Sequence[int], share: float, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """fp32 0 with probability ``share`` (to 2^-16), else 1 / (1 - share)."""
    # Four 16-bit draws out of each 64-bit one: four times as fast as bernoulli_ or rand.
    size = torch.Size(shape).numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64, device=device)
    bits.random_(-(2**63), None, generator=generator)
    dropped = round(share * 2**16)
    kept = bits.view(torch.int16)[:size] >= dropped - 2**15
    return (kept * (2**16 / (2**16 - dropped))).view(shape)

"""Sizes from a trained table and one pass over a sample of examples, without a probe."""

from __future__ import annotations

from .choose import Gains, choose_widths
from .examples import gradient_moments, squared_gradients
from .sizer import Sensitivity, entry_losses

__all__ = [
    "Gains",
    "Sensitivity",
    "choose_widths",
    "entry_losses",
    "gradient_moments",
    "squared_gradients",
]

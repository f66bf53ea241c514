"""Root finding for many increasing, positive functions at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MAX_STEPS = 100
BISECT_EVERY = 4  # what interpolation does not settle quickly, halving does


def solve_increasing(
    f: Callable[[Tensor, Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    target: Tensor,
    *,
    start: Tensor,
    ends: tuple[Tensor, Tensor],
    tolerance: Tensor,
) -> Tensor:
    """Find x with f_i(x_i) = target_i for P functions, each within [low_i, high_i].

    The secant method on log f, first with slope one (f is a cost and x the log of a scale, so
    that is nearly right), kept inside a bracket. Problems that are done leave the batch.

    Args:
        f: takes x (n,) and the problems' indices (n,), returns (n,).
        start: (P,) a first guess. ends: (P,), (P,) the values at low and high.
        tolerance: (P,) a value this close to its target is good enough.

    Returns:
        (P,) x; the nearer end where the target is outside what f reaches.
    """
    result = torch.where(target - ends[0] <= ends[1] - target, low, high)
    going = (ends[0] < target - tolerance) & (ends[1] > target + tolerance)
    index = going.nonzero().flatten()
    low, high, x = low[index], high[index], start[index]
    x = torch.minimum(torch.maximum(x, low), high)
    previous_x, previous_g = x, torch.full_like(x, float("nan"))
    narrow = 4 * torch.finfo(x.dtype).eps
    for step in range(1, MAX_STEPS):
        if not len(index):
            break
        value = f(x, index)
        error = value - target[index]
        result[index] = x
        below = error < 0
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        going = (error.abs() > tolerance[index]) & (
            high - low > narrow * torch.maximum(low.abs(), high.abs()).clamp(min=1.0)
        )
        g = (value / target[index]).log()
        slope = (g - previous_g) / (x - previous_x)
        slope = torch.where((slope > 0) & slope.isfinite(), slope, 1.0)
        guess = x - g / slope
        inside = (guess > low) & (guess < high) & (step % BISECT_EVERY != 0)
        previous_x, previous_g = x, g
        x = torch.where(inside, guess, low + (high - low) / 2)
        index, low, high, x, previous_x, previous_g = (
            v[going] for v in (index, low, high, x, previous_x, previous_g)
        )
    return result

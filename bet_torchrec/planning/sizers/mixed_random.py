"""MR: sizes mixed at random, whatever the rows' counts. The baseline that shows what counts add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..fit import FitSpace
from ..plan import SizePlan
from ..settle import settle
from .fixed_precision import one_precision
from .id_maps import spend_unneeded_maps
from .problem import SizingProblem


@dataclass(frozen=True, kw_only=True)
class MixedRandom:
    """Sizes uniform over 1 .. 2*c*d_max - 1, so c*d_max on average, at one share c for all tables.

    Where the upper end would pass d_max (c above a half) they are uniform over
    2*c*d_max - d_max .. d_max, which has the same average. The BET paper states no bounds; these
    are ours. Sizes are rounded down to an allowed width, c is as large as the budget allows, and
    the remainder is handed out row by row. Which row has which size is random, so every table
    needs an id map, and a budget in bytes pays for it. Needs memory a row, and no evaluation.

    precision: of all tables; None takes the first that the budget allows.
    """

    precision: str | None = None

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The plan: deterministic under ``problem.seed``, within one step of one row.

        Raises:
            InvalidInputError: the budget does not allow this precision.
            InfeasibleBudgetError: nothing fits in this precision, id maps included.
        """
        tables = len(problem.tables)
        precision, space = one_precision(problem, self.precision, mapped=(True,) * tables)
        rng = np.random.default_rng([problem.seed, _STREAM])
        draws, orders = [], []
        for table in problem.tables:
            draw = rng.random(table.num_embeddings)
            order = np.argsort(-draw).astype(np.int32)
            draws.append(draw[order[::-1]])  # ascending
            orders.append(order)
        steps = space.steps(torch.zeros(1, tables, dtype=torch.int64))
        low, high = 0.0, 1.0
        for _ in range(50):
            share = (low + high) / 2
            cost = int(steps.cost(_boundaries(problem, space, draws, share)[None])[0])
            low, high = (share, high) if cost <= space.limit else (low, share)
        boundaries = _boundaries(problem, space, draws, low)
        boundaries = settle(boundaries[None], steps, space.limit)[0]
        boundaries = spend_unneeded_maps(
            problem, space, boundaries, [0] * tables, mapped=(True,) * tables
        )
        return problem.plan(boundaries, (precision,) * tables, "mr", orders=orders)


_STREAM = 77  # keeps these draws apart from another sizer's with the same seed


def _boundaries(
    problem: SizingProblem, space: FitSpace, draws: list[NDArray[np.float64]], share: float
) -> torch.Tensor:
    """(F, W) rows of size at least each width at this share c, from draws in [0, 1), ascending."""
    result = torch.zeros(len(draws), len(space.widths), dtype=torch.int64)
    for t, (table, draw) in enumerate(zip(problem.tables, draws, strict=True)):
        mean = share * table.embedding_dim
        # size = floor(first + draw * (last + 1 - first)), uniform over first .. last
        first, last = 1.0, max(2 * mean - 1, 0.0)
        if last > table.embedding_dim:
            first, last = 2 * mean - table.embedding_dim, float(table.embedding_dim)
        widths = np.array(problem.table_widths(t), dtype=np.float64)
        # the last draw below 1 reaches d_max, so a share of 1 means full tables
        needed = (widths - first) / max(last + 1 - first, 1e-12)
        at_least = len(draw) - np.searchsorted(draw, needed, side="left")
        result[t, : len(widths)] = torch.from_numpy(at_least)
        result[t, 0] = len(draw)
    return result

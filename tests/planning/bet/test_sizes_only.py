"""The predictor of the paper's ablation: it learns from sizes, and sees nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from searches import sampler, scene

from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.settle import bucket_rows
from bet_torchrec.planning.sizers.bet import SizesOnly

ROWS, WIDTHS = (60, 90), 6
COUNTS = [RowCounts.from_rows(np.arange(n, 0, -1)) for n in ROWS]


@pytest.fixture
def candidates():
    return sampler(COUNTS, WIDTHS, 150 * 3)(40, np.random.default_rng(1))


def fitness(candidates):
    """The share of users that have full width, less that of items."""
    widest = bucket_rows(candidates.boundaries)[..., -1] / torch.tensor(ROWS)
    return (widest[:, 0] - widest[:, 1]).tolist()


def test_it_foresees_candidates_that_it_has_not_seen(candidates):
    wanted = fitness(candidates)
    seen, unseen = candidates[list(range(30))], candidates[list(range(30, 40))]
    predictor = SizesOnly()(scene(COUNTS, WIDTHS), seen, wanted[:30], 0)
    again = SizesOnly()(scene(COUNTS, WIDTHS), seen, wanted[:30], 0)(candidates).detach()
    found = predictor(unseen).detach()
    assert np.corrcoef(found, wanted[30:])[0, 1] > 0.8
    assert torch.allclose(again[30:], found)
    assert predictor.embed(candidates).shape == (40, 64)


def test_counts_are_hidden_from_it(candidates):
    wanted = fitness(candidates)
    others = [RowCounts.from_rows(np.ones(n, dtype=int)) for n in ROWS]
    one, other = (
        SizesOnly(steps=5)(scene(counts, WIDTHS), candidates, wanted, 0)(candidates)
        for counts in (COUNTS, others)
    )
    assert torch.equal(one, other)


def test_equal_fitness_is_no_error(candidates):
    predictor = SizesOnly(steps=3)(scene(COUNTS, WIDTHS), candidates, [0.5] * 40, 0)
    assert torch.isfinite(predictor(candidates)).all()

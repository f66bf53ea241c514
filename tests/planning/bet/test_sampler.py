"""Closed-form candidates against SciPy's distributions and literal draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.fit import FitSpace
from bet_torchrec.planning.sizers.bet import (
    EXPLORING_FAMILIES,
    CountPower,
    LogNormal,
    PowerLaw,
    Sampler,
    TruncatedExponential,
    TruncatedNormal,
)

SCIPY = {
    PowerLaw: lambda b: stats.powerlaw(a=b),
    TruncatedNormal: lambda b: stats.truncnorm(0, b),
    TruncatedExponential: lambda b: stats.truncexpon(b=b),
    LogNormal: lambda b: stats.lognorm(s=b),
}
COUNTS = RowCounts.from_rows(np.arange(1000, 0, -1) // 7)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("family", SCIPY)
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_families_are_scipys(family, share):
    beta = share * family().beta_max
    reference = SCIPY[family](beta)
    u = np.linspace(0.001, 0.999, 101)
    x = reference.ppf(u)
    beta = double(np.full(101, beta))
    quantile = family().log_quantile(double(np.log(u)), beta, COUNTS)
    assert quantile.exp().numpy() == pytest.approx(x, rel=1e-8)
    survival = family().survival(double(np.log(x))[:, None], beta[:, None], COUNTS)
    assert survival[:, 0].numpy() == pytest.approx(1 - u, abs=1e-9)


def test_count_power_gives_each_count_its_share():
    counts = RowCounts.from_distinct([99, 9, 0], [10, 40, 50])
    x = double([[np.log(100) * 0.5, np.log(10) * 0.5, 0.0, 9.0]])
    survival = CountPower().survival(x, double([[0.5]]), counts)
    assert survival[0].numpy() == pytest.approx([0.1, 0.5, 1.0, 0.0])


def test_same_seed_same_candidates(sampler):
    a, b = (sampler(20, np.random.default_rng(3)).boundaries for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, sampler(20, np.random.default_rng(4)).boundaries)


@pytest.fixture
def sampler():
    return Sampler(make_space(), (COUNTS, COUNTS), EXPLORING_FAMILIES)


def make_space(rows=1000, limit=2 * 1000 * 6):
    return FitSpace(
        widths=torch.arange(1, 33),
        rows=torch.tensor([rows, rows]),
        depth=torch.tensor([32, 32]),
        costs=torch.arange(1, 33)[None],
        limit=limit,
    )


def test_closed_form_agrees_with_iid_draws_in_distribution():
    """Mean boundaries over many literal draws are the closed form's, within sampling noise."""
    space = make_space()
    for family in (PowerLaw(), TruncatedNormal(), TruncatedExponential(), LogNormal()):
        chosen = {
            "shares": torch.full((100, 2), 0.5).double(),
            "family": torch.zeros(100, 2, dtype=torch.int64),
            "beta": torch.full((100, 2), 0.4 * family.beta_max).double(),
            "precision": torch.zeros(100, 2, dtype=torch.int64),
        }
        closed = Sampler(space, (COUNTS, COUNTS), (family,)).fit(**chosen).boundaries[0].double()
        literal = Sampler(space, (COUNTS, COUNTS), (family,), "iid").fit(
            **chosen, rng=np.random.default_rng(0)
        )
        boundaries = literal.boundaries.double()
        assert (literal.boundaries.sum((1, 2)) == space.limit).all()
        # a boundary of n rows out of 1000 has a binomial's deviation, its mean a tenth of that
        error = (boundaries.mean(0) - closed).abs()
        p = closed / 1000
        deviation = (1000 * p * (1 - p)).sqrt() / 10
        assert (error <= 4 * deviation + 1.5).all(), family


def test_iid_sizes_follow_the_distribution():
    """Unscaled sizes of one literal draw against SciPy, by Kolmogorov-Smirnov."""
    space = make_space(limit=2 * 1000 * 12)
    space = FitSpace(**{**vars(space), "widths": torch.arange(1, 2001)})
    space = FitSpace(
        **{
            **vars(space),
            "costs": space.widths[None],
            "limit": 2 * 1000 * 500,
            "depth": torch.tensor([2000, 2000]),
        }
    )
    got = Sampler(space, (COUNTS, COUNTS), (TruncatedExponential(),), "iid").fit(
        shares=torch.full((1, 2), 0.5).double(),
        family=torch.zeros(1, 2, dtype=torch.int64),
        beta=torch.full((1, 2), 2.0).double(),
        precision=torch.zeros(1, 2, dtype=torch.int64),
        rng=np.random.default_rng(5),
    )
    sizes = got.boundaries[0, 0].numpy()  # rows with size >= 1, 2, ...
    of_rows = np.repeat(np.arange(1, 2001), -np.diff(sizes, append=0))
    reference = stats.truncexpon(b=2.0)
    scaled = of_rows / of_rows.mean() * reference.mean()
    assert stats.kstest(scaled, reference.cdf).pvalue > 0.01


def test_cost_does_not_depend_on_rows():
    counts = RowCounts.from_distinct(np.arange(5000, 0, -1), np.full(5000, 200_000))
    space = make_space(rows=10**9, limit=2 * 10**9 * 6)
    candidates = Sampler(space, (counts, counts), EXPLORING_FAMILIES)(50, np.random.default_rng(0))
    assert (candidates.boundaries.sum((1, 2)) == space.limit).all()


def test_mutants_stay_near_their_parents(sampler):
    rng = np.random.default_rng(0)
    parent = sampler(1, rng)
    near = sampler.around(parent, 200, rng)
    drawn = sampler(200, rng)
    assert (near.shares - parent.shares).abs().mean() < (drawn.shares - parent.shares).abs().mean()
    assert (near.family == parent.family).double().mean() > 0.7
    assert (near.boundaries.sum((1, 2)) == sampler.space.limit).all()

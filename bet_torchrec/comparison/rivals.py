"""The published methods that BET is compared with, from a contest to what they want trained."""

from __future__ import annotations

from dataclasses import replace

from ..planning.sizers import (
    CIESS,
    ESAPN,
    MDE,
    MGQE,
    MLET,
    PEP,
    DartsEmb,
    Hashing,
    Magnitude,
    OptEmbed,
    QuotientRemainder,
)
from ..training import TrainSettings
from .contest import Contest, Planned

MDE_ALPHAS = (0.1, 0.2, 0.3)
PEP_STEPS = 1000
ESAPN_STEPS = 500
CIESS_STEPS = 5


def magnitude(contest: Contest) -> list[Planned]:
    return [contest.plan(Magnitude())]


def magnitude_mask(contest: Contest) -> list[Planned]:
    return [contest.plan(Magnitude(form="mask"))]


def pep(contest: Contest) -> list[Planned]:
    return [contest.plan(_pep(contest))]


def pep_mask(contest: Contest) -> list[Planned]:
    return [contest.plan(replace(_pep(contest), form="mask"))]


def _pep(contest: Contest) -> PEP:
    training = contest.bench.training
    settings = _uninterrupted(contest, PEP_STEPS)
    return PEP(steps=PEP_STEPS, settings=settings, init_std=training.init_std)


def _uninterrupted(contest: Contest, steps: int) -> TrainSettings:
    """The training's settings for a run of so many steps, without validation before its end."""
    epochs = -(-steps // contest.bench.task.steps_per_epoch)
    never = max(steps, 1) + 1
    return replace(contest.bench.training, max_epochs=epochs, validate_every=never, patience=never)


def mlet(contest: Contest) -> list[Planned]:
    """One a factor: the finals choose on validation."""
    sizer = MLET(init_std=contest.bench.training.init_std)
    return [*sizer.candidates(contest.problem(sizer))]


def mde(contest: Contest) -> list[Planned]:
    """One an alpha: the finals choose on validation."""
    std = contest.bench.training.init_std
    return [contest.plan(MDE(alpha=alpha, init_std=std)) for alpha in MDE_ALPHAS]


def hashing(contest: Contest) -> list[Planned]:
    return [contest.plan(Hashing(init_std=contest.bench.training.init_std))]


def quotient_remainder(contest: Contest) -> list[Planned]:
    return [contest.plan(QuotientRemainder(init_std=contest.bench.training.init_std))]


def mgqe(contest: Contest) -> list[Planned]:
    return [contest.plan(MGQE(init_std=contest.bench.training.init_std))]


def darts(contest: Contest) -> list[Planned]:
    return [contest.plan(DartsEmb(init_std=contest.bench.training.init_std))]


def optembed(contest: Contest) -> list[Planned]:
    return [contest.plan(OptEmbed(init_std=contest.bench.training.init_std))]


def esapn(contest: Contest) -> list[Planned]:
    """More than the paper's one pass where that has few steps, as with large batches."""
    steps = max(ESAPN_STEPS, contest.bench.task.steps_per_epoch)
    return [contest.plan(ESAPN(steps=steps, init_std=contest.bench.training.init_std))]


def ciess(contest: Contest) -> list[Planned]:
    """As many probes as others have, in episodes of five; the fittest few."""
    steps = min(CIESS_STEPS, contest.probes)
    sizer = CIESS(episodes=contest.probes // steps, steps=steps)
    return [*sizer.visited(contest.problem(sizer))[: contest.finalists]]

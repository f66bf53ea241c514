"""The published methods that BET is compared with, from a contest to what they want trained."""

from __future__ import annotations

from dataclasses import replace

from ..planning.sizers import (
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
    sizer = PEP(init_std=training.init_std)
    assert sizer.steps is not None
    return replace(sizer, settings=_uninterrupted(contest, sizer.steps))


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

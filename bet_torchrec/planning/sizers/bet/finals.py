"""Selective retraining (BET Eq. 14): the best few are trained fully, validation decides."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ....errors import DivergedError
from ...plan import SizePlan
from ..problem import SizingProblem
from ..workbench import Start
from .history import History, Probe

NEAR = 0.25  # of the typical distance between probes: a near-copy


def fittest_apart(history: History, codes: Tensor, number: int) -> list[Probe]:
    """The fittest, without those that are near-copies of a fitter one while there are others.

    codes: (n, q) of the probes that are ok, in order: which are alike, see ``Features``.
    """
    ranked = history.best(len(history.ok))
    places = {probe.iteration: i for i, probe in enumerate(history.ok)}
    distance = torch.cdist(codes, codes)
    apart = distance[distance > 0]
    near = NEAR * float(apart.median()) if len(apart) else 0.0
    chosen: list[Probe] = []
    for probe in ranked:
        others = [places[other.iteration] for other in chosen]
        if not others or float(distance[places[probe.iteration], others].min()) > near:
            chosen.append(probe)
    return (chosen + [probe for probe in ranked if probe not in chosen])[:number]


def choose_finalists(history: History, codes: Tensor, finalists: int) -> list[Probe]:
    """The fittest, and equal sizes in every precision whatever their probes said.

    Equal sizes are always there, so what is chosen cannot be worse than they are on validation.
    """
    chosen = fittest_apart(history, codes, finalists)
    return chosen + [p for p in history.probes if p.strategy == "anchor" and p not in chosen]


def retrain(
    problem: SizingProblem,
    history: History,
    finalists: Sequence[Probe],
    plan_of: Callable[[Probe], SizePlan],
    *,
    starts: Sequence[Start],
    seeds: int,
) -> tuple[Probe, Start, float]:
    """Train each finalist from every start under every seed; the best, its start, its quality.

    Raises:
        DivergedError: no training of any finalist came to a quality.
    """
    team = problem.team
    runs = [
        (probe, (probe.iteration, start, problem.seed + i))
        for probe in finalists
        for start in starts
        for i in range(seeds)
    ]
    for probe, key in tqdm(runs, desc="retraining", disable=not problem.progress or team.rank > 0):
        if key not in history.retrained:
            _, start, seed = key
            outcome = problem.trained(plan_of(probe), seed=seed, start=start)
            team.together("the history", partial(history.add_retrained, key, outcome))
    found = [
        (probe, start, quality)
        for probe in finalists
        for start in starts
        if (quality := history.quality(probe.iteration, start)) is not None
    ]
    if not found:
        raise DivergedError(
            f"all {len(runs)} retrainings of the {len(finalists)} finalists diverged or were given "
            "up; try a smaller learning rate, or finalists=0 to take the fittest as it is"
        )
    return max(found, key=lambda each: each[2])


def warn_of_no_retraining(finalists: int) -> None:
    """Say that there is nothing to retrain with."""
    warnings.warn(
        f"BET(finalists={finalists}) retrained nothing: evaluate= alone cannot, so the plan is the "
        "one with the best probe. Pass train= (plan, seed -> quality) or a workbench to have the "
        "finalists trained in full, or finalists=0 to say that this is meant.",
        stacklevel=2,
    )

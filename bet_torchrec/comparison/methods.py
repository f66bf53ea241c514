"""The methods that are compared, each from a contest to the plans that it wants trained fully.

What is trivial is tuned like what is ours: the same probes, starts, rates and finalists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..compression.form import coded_plan
from ..errors import InfeasibleBudgetError
from ..planning import BET, EqualSizes, MixedRandom, SizePlan
from ..planning.sizers.bet import SizesOnly
from ..planning.sizers.bet.families import EXPLORING_FAMILIES
from ..planning.sizers.bet.sampler import Sampler
from ..planning.sizers.bet.search import Search
from ..planning.sizers.equal_sizes import equal_boundaries
from . import rivals
from .cells import FULL
from .contest import Contest, Planned

ALPHAS = (0.25, 0.5)
PRECISIONS = ("int8", "int4", "int2")
IN_PARAMETERS, IN_BYTES = False, True
CANDIDATES = (20, 40, 60, 80)  # the default is 100 (the paper's Figure 4)
ITERATIONS = (10, 20, 30, 40)  # no more than all methods' probes (Figures 5 and 6)


@dataclass(frozen=True)
class Method:
    """plans: to be trained fully. budgets: of which kinds, ``IN_PARAMETERS``, ``IN_BYTES``."""

    plans: Callable[[Contest], Sequence[Planned]]
    about: str
    budgets: tuple[bool, ...] = (IN_PARAMETERS, IN_BYTES)


def equal(contest: Contest) -> list[Planned]:
    return [contest.plan(EqualSizes(precision=contest.budget.dtypes[0]))]


def uniform(precision: str) -> Callable[[Contest], list[Planned]]:
    return lambda contest: [contest.plan(EqualSizes(precision=precision))]


def mixed_random(contest: Contest) -> list[Planned]:
    return [contest.plan(MixedRandom())]


def by_count(contest: Contest) -> list[SizePlan]:
    problem = contest.problem(EqualSizes())
    sampler = Sampler(problem.space, problem.counts, EXPLORING_FAMILIES)
    plans = []
    for precision, name in enumerate(problem.precisions):
        for alpha in ALPHAS:
            found = sampler.by_count(alpha, precision)
            plans.append(problem.plan(found.boundaries[0], (name,) * len(problem.tables), "count"))
    return _fittest(contest, plans, contest.finalists)


def subset(contest: Contest) -> list[SizePlan]:
    """Equal sizes over the best subset of tables: the one whose loss hurts least goes, in turn."""
    problem, tried = contest.problem(EqualSizes()), {}

    def fitness(plan: SizePlan) -> float:
        outcome = contest.bench.fine_tune(plan)
        if outcome.ok:
            tried[plan] = outcome.quality
        return outcome.quality if outcome.ok else float("-inf")

    kept = tuple(range(len(problem.tables)))
    best = fitness(equal_among(contest, kept))
    left = contest.probes - 1
    while len(kept) > 1 and left > 0:
        smaller = [tuple(t for t in kept if t != out) for out in kept][:left]
        left -= len(smaller)
        found = {tables: fitness(equal_among(contest, tables)) for tables in smaller}
        tables = max(found, key=lambda each: found[each])
        if found[tables] <= best:
            break
        kept, best = tables, found[tables]
    return sorted(tried, key=lambda plan: -tried[plan])[: contest.finalists]


def equal_among(contest: Contest, kept: Sequence[int], precision: str | None = None) -> SizePlan:
    """Equal sizes of these tables; the others are dropped."""
    problem = contest.problem(EqualSizes())
    precision = precision or contest.budget.dtypes[0]
    boundaries = equal_boundaries(problem, precision, kept)
    return problem.plan(boundaries, (precision,) * len(problem.tables), "subset")


def leave_one_out(contest: Contest) -> list[SizePlan]:
    """Equal sizes of all tables but one: with two tables, either alone."""
    tables = range(len(contest.bench.tables))
    kept = [tuple(t for t in tables if t != out) for out in tables if len(tables) > 1]
    plans = [equal_among(contest, each) for each in kept[: contest.probes]]
    return _fittest(contest, plans, contest.finalists)


def random(contest: Contest) -> list[SizePlan]:
    return _searched(contest, "random", strategies=("random",), mutants=0.0, anchored=False)


def bet(contest: Contest) -> list[SizePlan]:
    return _searched(contest, "bet")


def paper(contest: Contest) -> list[SizePlan]:
    return _search(contest, "bet-paper", BET.paper(iterations=contest.probes, finalists=0))


def sizes_only(contest: Contest) -> list[SizePlan]:
    sizer = BET.paper(iterations=contest.probes, finalists=0, trainer=SizesOnly())
    return _search(contest, "bet-sizes", sizer)


def compress(contest: Contest) -> list[Planned]:
    """The trained model's tables in codes, within the budget's bytes; nothing is searched."""
    return [coded_plan(contest.problem(EqualSizes()), contest.bench.full())]


def candidates(number: int) -> Callable[[Contest], list[SizePlan]]:
    return lambda contest: _searched(contest, f"bet-m{number}", candidates=number)


def iterations(number: int) -> Callable[[Contest], list[SizePlan]]:
    def plans(contest: Contest) -> list[SizePlan]:
        return _searched(contest, f"bet-t{number}", iterations=min(number, contest.probes))

    return plans


def _searched(contest: Contest, name: str, **settings: object) -> list[SizePlan]:
    defaults = {"iterations": contest.probes, "finalists": 0, "tolerance": None}
    return _search(contest, name, BET(**{**defaults, **settings}))  # type: ignore[arg-type]


def _search(contest: Contest, name: str, sizer: BET) -> list[SizePlan]:
    """A search's fittest few; they are trained here, so that rates are tuned as everybody's."""
    search = Search(sizer, contest.problem(sizer, name))
    search.run()
    return search.fittest(contest.finalists)


def _fittest(contest: Contest, plans: Sequence[SizePlan], number: int) -> list[SizePlan]:
    if len(plans) <= number:
        return list(plans)
    found = [(contest.bench.fine_tune(plan), plan) for plan in plans]
    ranked = sorted((o.quality, i) for i, (o, _) in enumerate(found) if o.ok)[::-1]
    return [found[i][1] for _, i in ranked[:number]]


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "equal": Method(equal, "equal sizes: a smaller embedding_dim", (IN_PARAMETERS,)),
        "subset": Method(subset, "equal sizes over the best subset of tables", (IN_PARAMETERS,)),
        "leave-one-out": Method(leave_one_out, "equal sizes without one table", (IN_PARAMETERS,)),
        "mr": Method(mixed_random, "mixed random sizes"),
        "count": Method(by_count, "sizes by count^alpha"),
        "random": Method(random, "random search with as many probes"),
        **{
            q: Method(uniform(q), f"equal sizes in {q}: a smaller embedding_dim", (IN_BYTES,))
            for q in PRECISIONS
        },
        "bet": Method(bet, "BET"),
        "bet-paper": Method(paper, "BET as published: deep sets, no anchors"),
        "bet-sizes": Method(sizes_only, "BET as published, its predictor sees sizes only"),
        **{f"bet-m{m}": Method(candidates(m), f"BET of {m} candidates") for m in CANDIDATES},
        **{f"bet-t{t}": Method(iterations(t), f"BET of {t} probes") for t in ITERATIONS},
        "compress": Method(
            compress, "axes, blocks and bits by sensitivity, codes trained on", (IN_BYTES,)
        ),
        "magnitude": Method(rivals.magnitude, "magnitude pruning, as sizes"),
        "magnitude-mask": Method(
            rivals.magnitude_mask, "magnitude pruning, entries anywhere", (IN_PARAMETERS,)
        ),
        "pep": Method(rivals.pep, "PEP, as sizes"),
        "pep-mask": Method(rivals.pep_mask, "PEP, entries anywhere", (IN_PARAMETERS,)),
        "mlet": Method(rivals.mlet, "multi-layer embedding training", (IN_PARAMETERS,)),
        "mde": Method(rivals.mde, "mixed dimensions by popularity", (IN_PARAMETERS,)),
        "mgqe": Method(rivals.mgqe, "product codes, fewer for the tail", (IN_PARAMETERS,)),
        "darts": Method(rivals.darts, "DartsEmb, sizes by expected width"),
        "optembed": Method(rivals.optembed, "OptEmbed, within a budget"),
        "esapn": Method(rivals.esapn, "ESAPN, growth within a budget"),
        "ciess": Method(rivals.ciess, "CIESS, actions scaled to a budget"),
        "hashing": Method(rivals.hashing, "the hashing trick", (IN_PARAMETERS,)),
        "qr": Method(rivals.quotient_remainder, "quotient-remainder", (IN_PARAMETERS,)),
    }
)

DEFAULTS = (
    FULL,
    *(name for name in METHODS if not name.startswith("bet-") and name != "leave-one-out"),
)
"""What is compared unless told: all but BET's variants, and what "subset" tries as well."""


def feasible(contest: Contest, method: Method) -> Sequence[Planned] | None:
    """The method's plans, or None where it has none (within the budget)."""
    try:
        return method.plans(contest) or None
    except InfeasibleBudgetError:
        return None

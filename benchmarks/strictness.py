"""Is a budget ever broken, and how much of it is used? Over random sizing problems.

    python benchmarks/strictness.py --problems 20000 --candidates 5

Each problem is fitted with several random candidates. A problem: 1 to 30 tables of 1 to 10^7 rows,
skewed or flat counts, widths few or many, a budget in parameters, training bytes (any optimizer) or
inference bytes (any precision and alignment), from below the smallest possible to beyond all rows
at full width. Every plan's cost is recomputed from its buckets by the memory model. "Capped" plans
have every row at full width; "coarse" ones leave less unused than the cheapest step of a single
row, which on tiny problems can be over 0.5 %.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import parser, save, setup, show
from tqdm import tqdm

from bet_torchrec.errors import InfeasibleBudgetError
from bet_torchrec.planning import Budget, MemoryModel, RowCounts, TableSpec
from bet_torchrec.planning.budget import OPTIMIZERS, PRECISIONS
from bet_torchrec.planning.sizers.bet import EXPLORING_FAMILIES, Sampler
from bet_torchrec.planning.sizers.problem import SizingProblem


def random_budget(rng: np.random.Generator, amount: int) -> Budget:
    kind = rng.integers(3)
    if kind == 0:
        return Budget.parameters(amount)
    if kind == 1:
        return Budget.bytes(
            amount,
            purpose="training",
            dtype=str(rng.choice(["fp32", "fp16"])),
            optimizer=str(rng.choice(OPTIMIZERS)),
        )
    return Budget.bytes(
        amount,
        purpose="inference",
        dtype=str(rng.choice(PRECISIONS)),
        alignment=int(rng.choice([1, 16])),
    )


def random_counts(rng: np.random.Generator, rows: int) -> RowCounts:
    distinct = int(min(rows, rng.integers(1, 50)))
    values = np.sort(rng.choice(10 * distinct + 10, distinct, replace=False))
    share = rng.dirichlet(np.full(distinct, rng.choice([0.3, 10.0])))
    multiplicity = 1 + rng.multinomial(rows - distinct, share)
    return RowCounts.from_distinct(values, multiplicity)


def random_problem(rng: np.random.Generator) -> dict[str, Any]:
    tables = int(rng.integers(1, 31))
    rows = np.exp(rng.uniform(0, np.log(1e7), tables)).astype(int).clip(1)
    few = (4, 8, 16, 32, 64, 128)
    widths = few if rng.random() < 0.5 else tuple(range(int(rng.integers(0, 2)), 65))
    d_max = widths[-1]
    probe = random_budget(rng, 1)
    model = MemoryModel.for_budget(probe)
    precision = probe.dtypes[0]
    least = sum(model.bucket_cost(widths[0], int(n), precision) for n in rows)
    most = sum(model.bucket_cost(d_max, int(n), precision) for n in rows)
    tightness = rng.choice([rng.uniform(-0.1, 0.2), rng.uniform(0, 1.1)])
    amount = int(least + tightness * (most - least))
    return {
        "tables": tuple(
            TableSpec(name=f"t{i}", num_embeddings=int(n), embedding_dim=d_max)
            for i, n in enumerate(rows)
        ),
        "counts": tuple(random_counts(rng, int(n)) for n in rows),
        "budget": Budget(**{**vars(probe), "amount": max(amount, 0)}),
        "widths": widths,
        "least": least,
        "most": most,
    }


def cheapest_step(problem: SizingProblem, boundaries: np.ndarray) -> int:
    """What the cheapest single row's step up costs, alignment aside."""
    costs = problem.memory.row_costs(problem.widths, problem.precisions[0])
    room = boundaries[:, :-1] > boundaries[:, 1:]
    steps = np.diff(costs)[None, :].repeat(len(boundaries), 0)[room]
    return int(steps.min()) if len(steps) else 0


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--problems", type=int, default=20_000)
    p.add_argument("--candidates", type=int, default=5, help="fits of each problem")
    args = p.parse_args()
    setup(args)
    tally = dict.fromkeys(
        ("plans", "violations", "used >= 99.5 %", "coarse", "capped", "short", "refused"), 0
    )
    wrong_minimum, worst, start = 0, 1.0, time.perf_counter()
    for i in tqdm(range(args.problems), mininterval=5):
        rng = np.random.default_rng([args.seed, i])
        drawn = random_problem(rng)
        least, most = drawn.pop("least"), drawn.pop("most")
        limit = drawn["budget"].limit(drawn["tables"])
        try:
            problem = SizingProblem(**drawn)
        except InfeasibleBudgetError as error:
            tally["refused"] += 1
            named = getattr(error, "smallest", None)
            wrong_minimum += not (limit < least and named == least)
            continue
        sampler = Sampler(problem.fit_space(), problem.counts, EXPLORING_FAMILIES)
        for boundaries in sampler(args.candidates, rng).boundaries.numpy():
            plan = problem.plan(boundaries, (problem.precisions[0],) * len(boundaries), "random")
            cost = plan.cost()
            tally["plans"] += 1
            tally["violations"] += cost > limit
            unused = limit - cost
            if cost >= 0.995 * limit:
                tally["used >= 99.5 %"] += 1
            elif cost == most:
                tally["capped"] += 1
            elif unused < cheapest_step(problem, boundaries) + 2 * problem.memory.table_alignment:
                tally["coarse"] += 1
            else:
                tally["short"] += 1
                worst = min(worst, cost / limit)
    seconds = time.perf_counter() - start
    tally["refused with a wrong minimum"] = wrong_minimum
    show(f"Strictness, {args.problems} problems in {seconds:.0f} s", list(tally), [tally.values()])
    save(args, {**tally, "seconds": seconds, "worst share used": worst})


if __name__ == "__main__":
    main()

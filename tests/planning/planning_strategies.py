"""Hypothesis strategies of planning problems."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from bet_torchrec.planning.budget import OPTIMIZERS, PRECISIONS, Budget
from bet_torchrec.planning.counts import RowCounts
from bet_torchrec.planning.plan import Bucket, SizePlan, TablePlan
from bet_torchrec.planning.tables import TableSpec

WIDTHS = st.sets(st.integers(0, 40), min_size=1, max_size=8).map(lambda w: tuple(sorted({*w, 1})))


@st.composite
def row_counts(draw, rows):
    """Counts of a table: skewed or flat, ranked or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    counts = rng.zipf(draw(st.sampled_from([1.2, 2.0, 8.0])), rows).clip(max=10**6) - 1
    return RowCounts.from_rows(np.sort(counts)[::-1] if draw(st.booleans()) else counts)


BASES = st.sampled_from([None, "fixed", "trained"])
NO_BASES = st.none()


@st.composite
def table_lists(draw, most_rows=300, bases=NO_BASES):
    count = draw(st.integers(1, 4))
    return tuple(
        TableSpec(
            f"table_{i}", draw(st.integers(1, most_rows)), draw(st.integers(1, 40)), draw(bases)
        )
        for i in range(count)
    )


@st.composite
def byte_budgets(draw, amount):
    """A budget in bytes of this amount."""
    if draw(st.booleans()):
        return Budget.bytes(
            amount,
            purpose="training",
            dtype=draw(st.sampled_from(["fp32", "fp16"])),
            optimizer=draw(st.sampled_from(OPTIMIZERS)),
        )
    return Budget.bytes(
        amount,
        purpose="inference",
        dtype=tuple(draw(st.sets(st.sampled_from(PRECISIONS), min_size=1))),
        alignment=draw(st.sampled_from([1, 16])),
    )


@st.composite
def plans(draw):
    """Any plan, with a budget that it fits in, tightly or not."""
    tables = []
    kind = draw(byte_budgets(0)) if draw(st.booleans()) else Budget.parameters(0)
    for spec in draw(table_lists()):
        counts = draw(row_counts(spec.num_embeddings))
        widths = draw(st.sets(st.integers(0, spec.embedding_dim), min_size=1, max_size=6))
        widths = sorted(widths, reverse=True)[: spec.num_embeddings]
        cuts = draw(
            st.lists(
                st.integers(1, max(spec.num_embeddings - 1, 1)),
                min_size=len(widths) - 1,
                max_size=len(widths) - 1,
                unique=True,
            )
        )
        rows = np.diff([0, *sorted(cuts), spec.num_embeddings]).tolist()
        buckets = tuple(
            Bucket(w, n, draw(st.sampled_from(kind.dtypes)))
            for w, n in zip(widths, rows, strict=True)
        )
        tables.append(
            TablePlan(
                spec.name,
                spec.num_embeddings,
                spec.embedding_dim,
                buckets,
                counts.order,
                counts.fingerprint(),
                draw(BASES),
            )
        )
    slack = draw(st.sampled_from([0, 0, 1, 100]))
    return _fitting(tables, kind, slack)


def _fitting(tables, kind, slack):
    from dataclasses import replace

    from bet_torchrec.planning.budget import MemoryModel

    cost = sum(table.cost(MemoryModel.for_budget(kind)) for table in tables)
    return SizePlan(tuple(tables), replace(kind, amount=cost + slack), "by hand", 3, {"a": "b"})

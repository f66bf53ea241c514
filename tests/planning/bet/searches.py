"""What the tests of BET's loop share: a small problem with a known best."""

from __future__ import annotations

import json

import numpy as np
import torch

from bet_torchrec.planning import BET, Budget, BudgetPlanner, TableSpec
from bet_torchrec.planning.fit import FitSpace
from bet_torchrec.planning.sizers.bet import EXPLORING_FAMILIES, FullBatch, Sampler, Scene

TABLES = (
    TableSpec(name="user", num_embeddings=300, embedding_dim=32),
    TableSpec(name="item", num_embeddings=500, embedding_dim=32),
)
COUNTS = {"user": np.arange(300, 0, -1) // 3, "item": np.arange(500, 0, -1) // 5}


def bet(**settings):
    """The default with a predictor that is trained briefly, and no finals."""
    brief = {"trainer": FullBatch(steps=5), "candidates": 20, "explored": 3, "finalists": 0}
    return BET(**{**brief, **settings})


def quality(plan):
    """Best where users hold 70 % of the weights; smooth, deterministic, cheap."""
    share = plan.sizes("user").sum() / plan.parameters()
    return 1.0 - abs(share - 0.7)


def plan(sizer, *, seed=0, budget=None, widths="any", **kwargs):
    planner = BudgetPlanner(
        budget=budget or Budget.sparsity(0.8), widths=widths, sizer=sizer, seed=seed
    )
    if not kwargs.keys() & {"workbench", "evaluate"}:
        kwargs["evaluate"] = quality
    return planner.plan(TABLES, COUNTS, progress=False, **kwargs)


def sampler(counts, widths, limit, precisions=1):
    """Of candidates of tables with these counts, widths 1 to ``widths`` a row."""
    each = torch.arange(1, widths + 1)
    space = FitSpace(
        widths=each,
        rows=torch.tensor([table.rows for table in counts]),
        depth=torch.full((len(counts),), widths),
        costs=each.repeat(precisions, 1),
        limit=limit,
    )
    return Sampler(space, counts, EXPLORING_FAMILIES)


def scene(counts, widths, bits=(32.0,)):
    """What a predictor may know of them."""
    return Scene(counts=counts, widths=torch.arange(1, widths + 1), d_max=widths, bits=bits)


def lines(folder, kind="probe"):
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    without = [{k: v for k, v in line.items() if k != "crc32"} for line in found]
    return [line for line in without if line["kind"] == kind]

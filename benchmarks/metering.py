"""One case of memory.py, measured in the process that runs this.

    python benchmarks/metering.py --case '{"kind": "training", ...}'

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lookup import DIM, FUSED, FullTable, batches, config, fused, halving_plan, masked, own_step
from meter import Meter, live_tensors
from one_process import one_process
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.distributed.types import ShardingType
from torchrec.inference.modules import quantize_embeddings

from bet_torchrec import SizePlan
from bet_torchrec.embeddings import (
    BudgetedEmbeddingBagCollection,
    BudgetedEmbeddingBagCollectionSharder,
    QuantizedBudgetedEmbeddingBagCollection,
    export_tables,
    quantize,
)
from bet_torchrec.planning.budget import Budget, MemoryModel
from bet_torchrec.planning.table_plan import TablePlan

WIDTHS = (4, 8, 16, 32, 64, 128)
FULL, EQUAL, MASK, OWN = "full width", "equal size", "E * mask", "own step"
SMALL = 1000  # rows of the tiny case
BATCH = 10_000


@dataclasses.dataclass(frozen=True)
class Case:
    """One process. kind: "training" or "serving". mapped: ids are no ranks."""

    kind: str
    tables: str
    rows: int
    optimizer: str
    mapped: bool
    device: str


def make_plan(rows: int, mapped: bool, seed: int) -> SizePlan:
    """Half as many rows at every next width; any order of ids."""
    plan = halving_plan(rows, WIDTHS)
    if not mapped:
        return plan
    order = np.random.default_rng(seed).permutation(np.arange(rows, dtype=np.int32))
    return SizePlan(
        (dataclasses.replace(plan["t"], order=order),), plan.budget, plan.sizer, plan.seed
    )


def account(case: Case, plan: SizePlan) -> int:
    """What the tables should take; of a masked table, what it stands for."""
    model = MemoryModel(unit="bytes", purpose="training", optimizer=case.optimizer)
    if case.tables in (FULL, EQUAL):
        width = DIM if case.tables == FULL else equal_width(case, plan)
        return model.bucket_cost(width, case.rows)
    return plan["t"].cost(model)


def equal_width(case: Case, plan: SizePlan) -> int:
    """The widest that fused tables take and the plan's bytes allow."""
    model = MemoryModel(unit="bytes", purpose="training", optimizer=case.optimizer)
    limit = plan["t"].cost(model)
    return max(w for w in range(4, DIM + 1, 4) if model.bucket_cost(w, case.rows) <= limit)


def batch_bytes(case: Case, plan: SizePlan) -> int:
    """What a step needs for the batch alone: routed ids, outputs, in blocks' widths their gradient.

    The gradient of the output was there before the step.
    """
    ids = 8 * BATCH * 8
    if case.tables == EQUAL:
        return ids + 4 * BATCH * equal_width(case, plan)
    if case.tables not in ("bucketed", "prefix"):
        return ids + 4 * BATCH * DIM
    routed = 8 * BATCH * 5 * len(WIDTHS)
    pooled = 2 * sum(WIDTHS) if case.tables == "bucketed" else 0  # prefix: they are the output
    return ids + routed + 4 * BATCH * (DIM + pooled)


def training_step(case: Case, plan: SizePlan) -> Callable[..., None]:
    options = {"optimizer": FUSED[case.optimizer], "learning_rate": 0.01}
    meta = torch.device("meta")
    if case.tables in (FULL, EQUAL):
        width = DIM if case.tables == FULL else equal_width(case, plan)
        module = EmbeddingBagCollection(config(case.rows, width), device=meta)
        return fused(module, FullTable(options), case.device)
    if case.tables == MASK:
        return masked(case.rows, plan, case.optimizer, case.device, whole=True)
    if case.tables == OWN:
        return own_step(BudgetedEmbeddingBagCollection(config(case.rows), plan), case.optimizer)
    module = BudgetedEmbeddingBagCollection(
        config(case.rows), plan, layout=case.tables, device=meta
    )
    sharder = BudgetedEmbeddingBagCollectionSharder(
        options, sharding_types=[ShardingType.TABLE_WISE.value]
    )
    return fused(module, sharder, case.device)


def train(case: Case, seed: int) -> dict[str, Any]:
    """Build, train four steps, and read the meter."""
    meter = Meter(case.device)
    plan = make_plan(case.rows, case.mapped, seed)
    planned = meter.now()
    bags = batches(case.rows, BATCH, "uniform", 4, seed, case.device)
    gradient = torch.randn(BATCH, DIM, device=case.device)
    before, tensors = meter.now(), live_tensors(case.device)
    meter.restart()
    step = training_step(case, plan)
    building, built = meter.peak() - before, meter.now() - before
    for kjt in bags[:3]:
        step(first_bags(kjt, BATCH), gradient)
    touch_states()
    # FBGEMM keeps the ids of the last batch: none of ours.
    step(first_bags(bags[0], 1), gradient[:1])
    tensors = live_tensors(case.device) - tensors
    trained = meter.now() - before
    meter.restart()
    step(first_bags(bags[3], BATCH), gradient)
    peak = meter.peak() - before
    return {
        **dataclasses.asdict(case),
        "account": account(case, plan),
        "plan on the host": 0 if plan["t"].order is None else plan["t"].order.nbytes,
        "resident plan": planned,
        "peak of building": building,
        "built": built,
        "tensors": tensors,
        "resident": trained,
        "peak": peak,
        "batch": batch_bytes(case, plan),
    }


def first_bags(kjt: KeyedJaggedTensor, count: int) -> KeyedJaggedTensor:
    """Bags of one id, as a batch of their own: one that was used remembers offsets and more."""
    values, lengths = kjt.values()[:count], kjt.lengths()[:count]
    return KeyedJaggedTensor(keys=kjt.keys(), values=values, lengths=lengths)


def touch_states() -> None:
    """Zeros that nothing has written are not resident yet; a whole epoch would write them."""
    for thing in gc.get_objects():
        if hasattr(type(thing), "split_optimizer_states"):
            for states in thing.split_optimizer_states():
                for state in states:
                    state.add_(0)


def serve(case: Case, seed: int) -> dict[str, Any]:
    """Write what is trained and its int8 form, each read back in a process of its own."""
    plan = make_plan(case.rows, case.mapped, seed)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        if case.tables == FULL:
            return serve_full(case, files)
        module = BudgetedEmbeddingBagCollection(config(case.rows), plan)
        torch.save(module.state_dict(), files / "state.pt")
        export_tables(module, files / "tables.safetensors")
        plan.save(files / "plan.safetensors")
        served = served_plan(plan["t"])
        made = quantize(module, served)
        made.save(files / "served.safetensors")
        weights = MemoryModel(unit="bytes", purpose="training", optimizer="sgd")
        return {
            **dataclasses.asdict(case),
            "weights": sum(weights.bucket_cost(b.width, b.rows) for b in plan["t"].buckets),
            "id map": plan["t"].cost(weights)
            - sum(weights.bucket_cost(b.width, b.rows) for b in plan["t"].buckets),
            **{path.stem + " file": path.stat().st_size for path in files.iterdir()},
            "account": served.cost(),
            "allocated": sum(made.allocated_bytes().values()),
            **fresh_process(["--load", str(files / "served.safetensors")]),
        }


def served_plan(table: TablePlan) -> SizePlan:
    """The same sizes in int8, rows aligned to 1 byte."""
    buckets = tuple(dataclasses.replace(b, precision="int8") for b in table.buckets)
    table = dataclasses.replace(table, buckets=buckets)
    budget = Budget.bytes(10**15, purpose="inference", dtype="int8", alignment=1)
    cost = table.cost(MemoryModel.for_budget(budget))
    return SizePlan((table,), dataclasses.replace(budget, amount=cost), "halving")


def serve_full(case: Case, files: Path) -> dict[str, Any]:
    module = EmbeddingBagCollection(config(case.rows))
    torch.save(module.state_dict(), files / "state.pt")
    before = live_tensors("cpu")
    made = quantize_embeddings(torch.nn.Sequential(module), torch.qint8, inplace=False)
    torch.save(made.state_dict(), files / "served.pt")
    return {
        **dataclasses.asdict(case),
        "weights": case.rows * DIM * 4,
        "id map": 0,
        **{path.stem + " file": path.stat().st_size for path in files.iterdir()},
        "account": MemoryModel(unit="bytes", purpose="inference", alignment=16).bucket_cost(
            DIM, case.rows, "int8"
        ),
        "allocated": live_tensors("cpu") - before,
        "loaded": None,
    }


def load(path: str) -> dict[str, int]:
    """How much a process grows that reads a file of served tables, and looks rows up."""
    plan = make_plan(SMALL, False, 0)
    tiny = quantize(BudgetedEmbeddingBagCollection(config(SMALL), plan), served_plan(plan["t"]))
    with tempfile.TemporaryDirectory() as folder:
        QuantizedBudgetedEmbeddingBagCollection.load(tiny.save(Path(folder) / "tiny"))
    meter = Meter("cpu")
    made = QuantizedBudgetedEmbeddingBagCollection.load(path)
    found = meter.now()
    order = made.plan["t"].order
    return {"loaded": found, "plan on the host": 0 if order is None else order.nbytes}


def measure(case: Case, seed: int) -> dict[str, Any]:
    """The case, after a tiny one of its kind."""
    of_kind = {"training": train, "serving": serve}[case.kind]
    with one_process(case.device):
        of_kind(dataclasses.replace(case, rows=SMALL), seed)
        return of_kind(case, seed)


def fresh_process(arguments: list[str]) -> dict[str, Any]:
    """What this script prints when it is called with these arguments."""
    # Large arrays in pages of their own, which go back to the system when they are freed.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--case")
    p.add_argument("--load", help="only read a file of served tables")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    case = None if args.load else Case(**json.loads(args.case))
    print(json.dumps(load(args.load) if case is None else measure(case, args.seed)))


if __name__ == "__main__":
    main()

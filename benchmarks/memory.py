"""Bytes really taken by a plan's tables, in training and in serving, against the plan's account.

    python benchmarks/memory.py --threads 1 --out benchmarks/results/memory.json
    python benchmarks/memory.py --device cuda --out benchmarks/results/memory_cuda.json

One table, full width 128, whose plan has widths 4 to 128, half as many rows at each as at the next
narrower one: a tenth of the full table's bytes. Every case runs in a fresh process, after a tiny
one of its kind that loads all libraries. "account" is what the plan's MemoryModel counts: weights,
optimizer state and id map. "tensors" are all that are alive, by their storages. "resident" is the
growth of the process (VmRSS; on CUDA, of the allocator) and "peak" the most in one training step
of 10,000 bags (VmHWM), which "batch" is the own size of: outputs, gradients and routed ids,
computed. Tables train through DistributedModelParallel in one process, "own step" in
FusedBudgetedEmbeddingBagCollection; "E * mask" is plain torch and what published code does, its
account that of the plan it stands for. In the prefix layout a row-wise optimizer keeps a value for
each of a row's blocks, which no account counts. The plan object keeps its order of ids
on the host beside the id map made from it, 4 bytes a row that no account counts either: "and the
plan", and "resident when loaded", have it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from common import parser, save, setup, show
from metering import DIM, EQUAL, FULL, FUSED, MASK, OWN, Case, fresh_process

TRAINED = (FULL, EQUAL, MASK, "bucketed", "prefix", OWN)
MAPPED = ("bucketed", OWN)  # measured with an id map too
MB = 1e6


def cases(args: argparse.Namespace) -> list[Case]:
    found = []
    for rows in args.rows:
        for optimizer in args.optimizers:
            for tables in TRAINED:
                if tables == OWN and args.device == "cuda":
                    continue
                for mapped in (False, True) if tables in MAPPED else (False,):
                    found.append(Case("training", tables, rows, optimizer, mapped, args.device))
        if args.device == "cpu":
            for tables, mapped in ((FULL, False), ("bucketed", False), ("bucketed", True)):
                found.append(Case("serving", tables, rows, "sgd", mapped, "cpu"))
    return found


def run(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Measured in a process of its own."""
    told = json.dumps(dataclasses.asdict(case))
    command = ["--case", told, "--threads", str(args.threads or 1), "--seed", str(args.seed)]
    return fresh_process(command)


def fits(case: Case, device: str) -> bool:
    """Whether the machine has the memory, by rough counts of full-width fp32 tables."""
    tables = {MASK: 4.5, FULL: 1.15 if case.kind == "training" else 2.5}.get(case.tables, 0.5)
    need = tables * case.rows * DIM * 4
    if device == "cuda":
        return need < torch.cuda.get_device_properties(0).total_memory
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return found is not None and need < int(found[1]) * 1024


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, nargs="+", default=[70_000, 1_000_000, 20_000_000])
    p.add_argument("--optimizers", nargs="+", default=list(FUSED), choices=list(FUSED))
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = p.parse_args()
    setup(args)
    measured, skipped = [], []
    for case in cases(args):
        if not fits(case, args.device):
            skipped.append(dataclasses.asdict(case))
            continue
        measured.append(run(case, args))
        print(json.dumps(measured[-1]), file=sys.stderr, flush=True)
    report([m for m in measured if m["kind"] == "training"], args.device)
    report_serving([m for m in measured if m["kind"] == "serving"])
    for case in skipped:
        print(
            f"too large for this machine: {case['kind']}, {case['tables']}, {case['rows']:,} rows"
        )
    save(args, {"measured": measured, "too large": skipped})


def report(found: list[dict[str, Any]], device: str) -> None:
    header = ("rows", "optimizer", "tables", "account, MB", "tensors", "resident", "and the plan")
    header += ("peak", "peak of account + batch", "building")
    show(
        f"Training, {device}",
        header,
        [
            (
                f"{m['rows']:,}",
                m["optimizer"],
                m["tables"] + (", id map" if m["mapped"] else ""),
                f"{m['account'] / MB:,.1f}",
                f"{m['tensors'] / m['account']:.4f}",
                f"{m['resident'] / m['account']:.3f}",
                f"{(m['resident'] + m['resident plan']) / m['account']:.3f}",
                f"{m['peak'] / m['account']:.3f}",
                f"{m['peak'] / (m['account'] + m['batch']):.3f}",
                f"{m['peak of building'] / m['account']:.2f}",
            )
            for m in found
        ],
    )


def report_serving(found: list[dict[str, Any]]) -> None:
    if not found:
        return
    header = ("rows", "tables", "fp32 weights and id map, MB", "state dict file", "export file")
    header += ("int8 account, MB", "allocated", "file", "resident when loaded")
    rows = []
    for m in found:
        kept, mapped = m["weights"], m["weights"] + m["id map"]
        loaded = m["loaded"]
        rows.append(
            (
                f"{m['rows']:,}",
                m["tables"] + (", id map" if m["mapped"] else ""),
                f"{mapped / MB:,.1f}",
                f"{m['state file'] / kept:.3f}",
                f"{m['tables file'] / mapped:.3f}" if "tables file" in m else "",
                f"{m['account'] / MB:,.1f}",
                f"{m['allocated'] / m['account']:.4f}",
                f"{m['served file'] / m['account']:.3f}",
                "" if loaded is None else f"{loaded / m['account']:.3f}",
            )
        )
    show("Serving, ratios to the account", header, rows)


if __name__ == "__main__":
    main()

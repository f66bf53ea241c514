"""bet-torchrec compress: a trained model's tables in coded bytes, without a search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import run_folder
from .model_options import checked_device
from .options import add_run, amount, whole, whole_or_zero


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compress",
        help="a trained model's tables in a fraction of their bytes, without a search",
        description="Train the full model (or read it from --models), code its tables within every "
        "budget in axes, blocks and bits that cost the loss least, train on as they will be read, "
        "and report what was lost on validation: report.json, report.md, curve.png in --run-dir, "
        "and a folder of codes and weights a budget.",
    )
    parser.add_argument("--data", required=True, help="a known set, as frappe or gowalla")
    parser.add_argument("--model", required=True, help="fm, deepfm, dlrm, lightgcn, ...")
    parser.add_argument("--dim", type=whole, help="of the full tables")
    parser.add_argument(
        "--bytes",
        type=_amounts,
        required=True,
        metavar="B[,B...]",
        help="for all that is served of the tables, as 2000000, 512K or 2M; several draw a curve",
    )
    parser.add_argument(
        "--no-fine-tuning", action="store_true", help="codes as they are, nothing trained on"
    )
    parser.add_argument("--data-dir", type=Path, help="default: $BET_TORCHREC_DATA")
    parser.add_argument("--threads", type=whole_or_zero, default=0, help="of torch; 0: its own")
    add_run(parser)
    parser.set_defaults(run=run)


def _amounts(text: str) -> tuple[int, ...]:
    return tuple(amount(part) for part in text.split(","))


def run(args: argparse.Namespace) -> None:
    from ..comparison.cells import Cell, default_dim
    from ..comparison.tasks import make_entry
    from ..compression import compress
    from ..files import holding, replace_file
    from ..training import TrainingWorkbench, rounding_epochs

    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    device = checked_device(args.device)
    dim = args.dim or default_dim(args.data, args.model)
    cell = Cell(
        data=args.data, model=args.model, dim=dim, budget="1", method="full", seed=args.seed
    )
    entry = make_entry(cell, args.data_dir, device)
    with holding(args.run_dir):
        folder = run_folder.start(args.run_dir, args, data=entry.data)
        bench = TrainingWorkbench(
            entry.task,
            training=entry.training,
            fine_tuning=entry.fine_tuning,
            run_dir=args.models or folder,
            seed=args.seed,
            device=device,
            progress=not args.quiet,
        )
        full = bench.full()
        steps, taken = entry.task.steps_per_epoch, full.outcome.epochs
        found = compress(
            full,
            budget=args.bytes,
            training=rounding_epochs(entry.training, steps, trained=taken),
            fine_tune=not args.no_fine_tuning,
            seed=args.seed,
            device=device,
            progress=not args.quiet,
        )
        found.save(folder)
        replace_file(folder / "report.md", str(found.report))
        tested = {
            "full": full.evaluate().mean(),
            **{str(form.point.limit): form.evaluate().mean() for form in found.forms},
        }
        run_folder.write_json(folder / run_folder.METRICS, {"test": tested})
    print(found.report)
    print(folder)

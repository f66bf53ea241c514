"""bet-torchrec compare: methods side by side on a grid of data, models, budgets and seeds."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from .model_options import checked_device
from .options import add_quiet, names, number, whole, whole_or_zero, widths


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="methods side by side under the same budgets; a table and pictures",
        description="Run the cells of a grid that --run-dir has no result of yet, then report. "
        "Methods share probes, finalists, starts and learning rates; validation chooses, test "
        "is looked at once. Several processes may share a --run-dir.",
    )
    grid = parser.add_argument_group("grid")
    grid.add_argument("--data", type=names, required=True, metavar="D,D...", help="known sets")
    grid.add_argument(
        "--models", type=names, required=True, metavar="M,M...", help="fm, deepfm, lightgcn, ..."
    )
    grid.add_argument(
        "--methods",
        type=names,
        metavar="M,M...",
        help="full tables, trivial plans (equal, mr, count, subset, random, int8, int4, int2), "
        "published methods (magnitude, pep, mlet, mde, mgqe, darts, optembed, esapn, ciess, "
        "hashing, qr), compress and bet unless given; each under the budgets that it knows",
    )
    grid.add_argument(
        "--budgets",
        type=names,
        default=("1/16", "1/64"),
        metavar="B,B...",
        help='shares of the full tables in fp32: "1/16" in parameters, "1/16 bytes" served',
    )
    grid.add_argument("--seeds", type=whole, default=3, help="splits and trainings, from 0 on (3)")
    grid.add_argument("--dim", type=whole, help="of the full tables")
    search = parser.add_argument_group("what every method may spend")
    search.add_argument("--probes", type=whole, default=30)
    search.add_argument("--finalists", type=whole, default=3)
    search.add_argument(
        "--widths", type=_widths, metavar="W,W...", help="that rows may have (0,1,...,--dim)"
    )
    search.add_argument("--rates", type=_rates, metavar="R,R...", help="learning rates, tuned over")
    parser.add_argument("--run-dir", type=Path, required=True, help="results and kept models")
    parser.add_argument("--data-dir", type=Path, help="default: $BET_TORCHREC_DATA")
    parser.add_argument("--threads", type=whole_or_zero, default=0, help="of torch; 0: its own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report-only", action="store_true", help="of what is there")
    add_quiet(parser)
    parser.set_defaults(run=run)


def _widths(text: str) -> tuple[int, ...]:
    found = widths(text)
    if isinstance(found, str):
        raise argparse.ArgumentTypeError(f"expected widths as 0,1,2,4, got {text!r}")
    return found


def _rates(text: str) -> tuple[float, ...]:
    return tuple(number(part) for part in text.split(","))


def run(args: argparse.Namespace) -> None:
    from ..comparison import DEFAULTS, Settings, grid, read_results, run_cells
    from ..comparison.report import plot, report
    from ..comparison.run import RESULTS
    from ..files.atomic import replace_file

    cells = grid(
        data=args.data,
        models=args.models,
        methods=args.methods or DEFAULTS,
        budgets=args.budgets,
        seeds=range(args.seeds),
        dim=args.dim,
    )
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    path = args.run_dir / RESULTS
    if not args.report_only:
        settings = Settings(probes=args.probes, finalists=args.finalists, rates=args.rates)
        if args.widths is not None:
            settings = replace(settings, widths=args.widths)
        run_cells(
            cells,
            args.run_dir,
            settings,
            data_dir=args.data_dir,
            device=checked_device(args.device),
            progress=not args.quiet,
        )
    asked = set(cells)
    found = {cell: record for cell, record in read_results(path).items() if cell in asked}
    text = report(found)
    target = args.run_dir / "report.md"
    replace_file(target, text)
    print(text)
    for written in (path, target, *plot(found, args.run_dir)):
        print(written)

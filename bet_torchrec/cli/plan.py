"""bet-torchrec plan: decide a size for every row within a budget."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from . import run_folder
from .inspect import draw, read_probes
from .model_options import add_training, serving_note, workbench_of
from .options import (
    add_budget,
    add_data,
    add_run,
    budget_of,
    describe_split,
    open_split,
    whole,
    whole_or_zero,
    widths,
)

if TYPE_CHECKING:
    from ..planning.sizers import Sizer


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="decide a size for every row within a budget",
        description="Pre-train the backbone, search for sizes within a budget, save the plan.",
    )
    add_data(parser)
    add_budget(parser)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--sizer", default="bet", metavar="NAME", help="bet, es (equal sizes), mr (random), ..."
    )
    search.add_argument(
        "--widths",
        type=widths,
        metavar="W,W...",
        help='widths a row may have, 0 to drop rows, or "any" for 1 to --dim; by default few, '
        "narrow ones among them where the budget is small",
    )
    search.add_argument(
        "--basis",
        choices=("fixed", "trained"),
        help="keep tables of many rows as coordinates in principal axes of their own, which the "
        "budget pays for; by default a row's prefix is its first columns",
    )
    search.add_argument(
        "--paper",
        action="store_true",
        help="BET's published search, with --recipe paper and --widths any unless given; "
        "what still differs is in the help of BET.paper",
    )
    search.add_argument("--iterations", type=whole, help="candidates that are tried (50)")
    search.add_argument("--candidates", type=whole, help="candidates drawn for each try (100)")
    search.add_argument(
        "--finalists", type=whole_or_zero, help="retrained from scratch at the end (5); 0: none"
    )
    search.add_argument(
        "--probe-epochs", type=whole_or_zero, help="of a try's fine-tuning; 0: none"
    )
    search.add_argument(
        "--stop-hopeless", action="store_true", help="end tries early that cannot reach the best"
    )
    search.add_argument("--warm-start", choices=("rotated", "prefix"), default="rotated")
    add_training(parser)
    add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if args.paper:
        args.recipe, args.widths = args.recipe or "paper", args.widths or "any"
    args.widths = args.widths or "auto"
    budget, sizer = budget_of(args), sizer_of(args)
    split = open_split(args)

    from ..planning.planner import BudgetPlanner

    planner = BudgetPlanner(
        budget=budget, widths=args.widths, sizer=sizer, seed=args.seed, basis=args.basis
    )
    bench = workbench_of(args, split, models=args.models or args.run_dir)
    planner.problem(bench.tables, bench.counts())  # an impossible budget fails before any training
    folder = run_folder.start(args.run_dir, args, data=describe_split(split))
    began = time.perf_counter()
    metrics: dict[str, Any] = {}
    if args.sizer == "bet":
        full = bench.full().outcome
        metrics["full_validation_quality"] = full.quality
        metrics["pretraining_seconds"] = round(full.seconds, 3)
    plan = planner.plan(
        bench.tables,
        bench.counts(),
        workbench=bench,
        run_dir=folder,
        resume=folder if args.resume else None,
        progress=not args.quiet,
    )
    plan.save(folder / run_folder.PLAN)
    metrics |= {
        "cost": plan.cost(),
        "limit": plan.limit,
        "parameters": plan.parameters(),
        "seconds": round(time.perf_counter() - began, 3),
        **plan.metadata,
        **serving_note(args.backbone),
    }
    run_folder.write_json(folder / run_folder.METRICS, metrics)
    pictures = draw(plan, read_probes(folder / run_folder.HISTORY), folder)
    if not args.quiet:
        print(plan.summary())
        for note in serving_note(args.backbone).values():
            print(f"note: {note}")
    for path in (folder / run_folder.PLAN, *pictures):
        print(path)


def sizer_of(args: argparse.Namespace) -> Sizer:
    """The sizer with the settings that were given."""
    from ..planning.sizers import BET, SIZERS

    if args.sizer not in SIZERS:
        raise InvalidInputError(f"--sizer should be one of {', '.join(SIZERS)}, got {args.sizer}")
    settings = {
        name: value
        for name in ("iterations", "candidates", "finalists", "probe_epochs", "stop_hopeless")
        if (value := getattr(args, name)) is not None and value is not False
    }
    if args.sizer == "bet":
        return BET.paper(**settings) if args.paper else BET(**settings)
    used = [*settings, *(["paper"] if args.paper else [])]
    if used:
        option = used[0].replace("_", "-")
        raise InvalidInputError(f"--{option} is about --sizer bet, got --sizer {args.sizer}")
    return SIZERS[args.sizer]()

"""bet-torchrec train: train a backbone over a plan's sizes, or over full tables."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..files import holding, replace_file
from . import run_folder
from .evaluate import add_mask, report, save_per_user
from .inspect import find_plan, load_plan
from .model_options import TRAINING, add_training, serving_note, workbench_of
from .options import (
    add_data,
    add_run,
    describe_split,
    open_split,
)

if TYPE_CHECKING:
    from ..data import Split
    from ..outcome import Outcome
    from ..planning.plan import SizePlan
    from ..training import TrainingWorkbench


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a backbone over a plan, or over full tables",
        description="Train from scratch to convergence, keep the best on validation, then test.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--plan",
        type=Path,
        help="a plan file, or the run folder of `plan`, whose data and model are then the default",
    )
    what.add_argument("--full", action="store_true", help="every row at full width")
    add_data(parser, required=False)
    add_training(parser)
    add_mask(parser)
    add_run(parser)
    parser.set_defaults(run=lambda args: run(args, parser))


_FROM_THE_PLAN = (
    *("data", "data_dir", "min_rating", "split", "ratios", "split_seed", "keep_ids"),
    *("user_column", "item_column", "rating_column", "timestamp_column"),
    *("backbone", "dim", "recipe", *(name for name, _, _ in TRAINING)),
)


def adopt_the_plans(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What was not given is as in the plan's own run, where --plan is its folder."""
    known = run_folder.CONFIG
    if args.plan is not None and (args.plan / known).is_file():
        settings = run_folder.config(args.plan, ("plan", "train"))["settings"]
        for name in _FROM_THE_PLAN:
            if getattr(args, name) == parser.get_default(name) and name in settings:
                setattr(args, name, settings[name])
    if args.data is None:
        raise InvalidInputError(
            "--data is required: name a data set or a file, or a run folder of `plan` by --plan"
        )


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    adopt_the_plans(args, parser)
    plan = None if args.full else load_plan(find_plan(args.plan))
    split = open_split(args)
    bench = workbench_of(args, split, models=args.models or args.run_dir)
    if plan is not None:
        check_plan(plan, bench, split)
    with holding(args.run_dir):
        _train(args, plan, split, bench)


def _train(
    args: argparse.Namespace, plan: SizePlan | None, split: Split, bench: TrainingWorkbench
) -> None:
    folder = run_folder.start(args.run_dir, args, data=describe_split(split))
    if plan is not None:
        plan.save(folder / run_folder.PLAN)
    model = bench.full() if plan is None else bench.train_model(plan, seed=args.seed)
    model.save(folder / run_folder.WEIGHTS)
    write_log(folder / run_folder.TRAIN_LOG, model.outcome)
    metrics = model.evaluate(part="test", mask=args.mask)
    save_per_user(folder / run_folder.PER_USER, metrics)
    run_folder.write_json(
        folder / run_folder.METRICS,
        {
            **metrics.mean(),
            "on": metrics.on,
            "masked": metrics.masked,
            "validation_quality": model.quality,
            "parameters": model.embedding.num_weights(),
            **({} if plan is None else {"cost": plan.cost(), "unit": plan.budget.cost_unit}),
            "epochs": model.outcome.epochs,
            "stopped": model.outcome.stopped,
            "seconds": round(model.outcome.seconds, 3),
            **serving_note(args.backbone),
        },
    )
    report(metrics, quiet=args.quiet)
    print(folder)


def check_plan(plan: Any, bench: Any, split: Any) -> None:
    """Raise InvalidInputError unless the plan is of these tables, and made for these counts."""
    wanted = {t.name: (t.num_embeddings, t.embedding_dim) for t in bench.tables}
    got = {t.name: (t.rows, t.embedding_dim) for t in plan.tables}
    if wanted != got:
        raise InvalidInputError(
            f"the plan should be of tables (rows, dim) {wanted}, got {got}: give the --data, "
            "--backbone and --dim that it was made with"
        )
    for name, counts in bench.counts().items():
        ours, its = counts.fingerprint(), plan[name].counts_fingerprint
        if its and ours != its:  # a plan by hand knows no counts
            raise InvalidInputError(
                f"the plan was made for other counts of table {name!r}: give the --data, --split, "
                "--ratios, --split-seed and --keep-ids that it was made with"
            )


def write_log(path: Path, result: Outcome) -> None:
    """train.jsonl: a line a validation, then one that sums up."""
    lines: list[dict[str, Any]] = [
        {"step": step, "quality": quality} for step, quality in result.history
    ]
    summary = dataclasses.asdict(result)
    del summary["history"]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, summary])
    replace_file(path, text)

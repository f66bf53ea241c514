"""bet-torchrec train: train a backbone over a plan's sizes, or over full tables."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import run_folder
from .evaluate import add_mask, report, save_per_user
from .inspect import find_plan, load_plan
from .model_options import add_training, serving_note, workbench_of
from .options import (
    add_data,
    add_run,
    describe_split,
    open_split,
)

if TYPE_CHECKING:
    from ..outcome import Outcome


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a backbone over a plan, or over full tables",
        description="Train from scratch to convergence, keep the best on validation, then test.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--plan", type=Path, help="a plan file, or the run folder of `plan`")
    what.add_argument("--full", action="store_true", help="every row at full width")
    add_data(parser)
    add_training(parser)
    add_mask(parser)
    add_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    plan = None if args.full else load_plan(find_plan(args.plan))
    split = open_split(args)
    bench = workbench_of(args, split, models=args.models or args.run_dir)
    if plan is not None:
        check_plan(plan, bench, split)
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
    from ..errors import InvalidInputError

    wanted = {t.name: (t.num_embeddings, t.embedding_dim) for t in bench.tables}
    got = {t.name: (t.rows, t.embedding_dim) for t in plan.tables}
    if wanted != got:
        raise InvalidInputError(
            f"the plan should be of tables (rows, dim) {wanted}, got {got}: give the --data, "
            "--backbone and --dim that it was made with"
        )
    for name, counts in bench.counts().items():
        ours, its = counts.fingerprint(), plan[name].counts_fingerprint
        if its is not None and ours != its:
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

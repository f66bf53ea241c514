"""bet-torchrec evaluate: a trained run on the test set, alone or against another run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from . import run_folder
from .model_options import workbench_of
from .options import add_quiet, describe_split, open_split

if TYPE_CHECKING:
    from ..evaluation import Metrics

MASKS = ("train", "train+validation")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="a trained run on test; paired t-test against another run",
        description="Rank all items for every test user, exactly. Recall and NDCG at k.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run folder of `train`")
    parser.add_argument("--against", type=Path, metavar="RUN", help="another run to compare with")
    parser.add_argument("--on", choices=("validation", "test"), default="test")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data sets (default: as in training)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: as in training)")
    add_mask(parser)
    add_quiet(parser)
    parser.set_defaults(run=run)


def add_mask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mask",
        choices=MASKS,
        help="interactions that are no candidates on test (default train+validation)",
    )


def run(args: argparse.Namespace) -> None:
    mine = evaluate_run(args.run_dir, args)
    report(mine, quiet=args.quiet)
    if args.against is None:
        return
    other = evaluate_run(args.against, args)
    report(other, quiet=args.quiet)

    from ..evaluation import paired_t_test

    for k in mine.ks:
        for metric in ("recall", "ndcg"):
            print(paired_t_test(mine, other, metric, k))


def evaluate_run(folder: Path, args: argparse.Namespace) -> Metrics:
    """A trained run's metrics: data, split and model as its config.json says."""
    from ..training import SizedEmbedding, Trained
    from ..training.trained import precisions_of
    from ..training.turned_embedding import planned_embedding
    from .inspect import load_plan

    config = run_folder.config(folder, "train")
    settings = argparse.Namespace(**config["settings"])
    settings.data_dir = args.data_dir or settings.data_dir
    settings.quiet = args.quiet
    settings.device = args.device or settings.device
    split = open_split(settings)
    found, trained_on = describe_split(split), config.get("data") or {}
    if found["fingerprint"] != trained_on.get("fingerprint"):
        raise InvalidInputError(
            f"{folder} was trained on data of fingerprint {trained_on.get('fingerprint')}, got "
            f"{found['fingerprint']}: {settings.data} has changed, or --data-dir is another"
        )
    bench = workbench_of(settings, split, models=None)
    plan = None if settings.full else load_plan(folder / run_folder.PLAN)
    if plan is None:
        full = {t.name: np.full(t.num_embeddings, settings.dim, np.int32) for t in bench.tables}
        embedding: Any = SizedEmbedding(full)
    else:
        embedding = planned_embedding(plan, bench.tables)
    model = Trained.load(
        folder / run_folder.WEIGHTS,
        bench.task,
        bench.task.new_model(settings.seed),
        embedding.to(bench.device),
        precisions=None if plan is None else precisions_of(plan),
    )
    return model.evaluate(part=args.on, mask=args.mask)


def report(metrics: Metrics, *, quiet: bool) -> None:
    """Print Recall and NDCG at each k."""
    if not quiet:
        print(f"on {metrics.on}, {metrics.masked} masked, {len(metrics.users):,} users")
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.mean().items()))


def save_per_user(path: Path, metrics: Metrics) -> None:
    """Each user's Recall and NDCG, for tests of one's own."""
    arrays: dict[str, NDArray[Any]] = {"users": metrics.users}
    for k in metrics.ks:
        arrays[f"recall_{k}"], arrays[f"ndcg_{k}"] = metrics.recall[k], metrics.ndcg[k]
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

"""The options about the model and its training, and the workbench that they describe."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from .options import number, whole

if TYPE_CHECKING:
    from ..data import Split
    from ..training import RankingRecipe, TrainingWorkbench

BACKBONES = ("lightgcn", "ngcf", "ncf")


def add_training(parser: argparse.ArgumentParser) -> None:
    """The model and its training: a recipe, and what differs from it."""
    group = parser.add_argument_group("training")
    group.add_argument("--backbone", choices=BACKBONES, default="lightgcn")
    group.add_argument("--dim", type=whole, default=128, help="full width of every table (128)")
    group.add_argument(
        "--recipe",
        choices=("fast", "paper"),
        help="large batches (fast, the default) or BET's published settings (paper); "
        "the options below change single ones",
    )
    for name, kind, text in TRAINING:
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)


def serving_note(backbone: str) -> dict[str, str]:
    """What belongs beside the bytes of a graph model, for metrics.json."""
    if backbone == "ncf":
        return {}
    return {
        "note": f"{backbone} serves propagated rows, dense whatever the table's sizes: serving "
        "from these bytes needs the graph and the propagation, or a dense cache"
    }


TRAINING = (
    ("max_epochs", whole, "end of a full training, if patience does not come first"),
    ("patience", whole, "validations without a better one before a training stops"),
    ("validate_every", whole, "steps between validations"),
    ("batch_size", whole, "examples a step"),
    ("lr", number, "Adam's learning rate at the start"),
    ("lr_decay", number, "its factor every so often"),
    ("l2", number, "weight of the rows' squared norm"),
)


_BPR = ("batch_size", "l2")  # of all trainings; the others are of full ones alone


def recipe_of(args: argparse.Namespace) -> RankingRecipe:
    """The recipe, with what the options change."""
    from ..training import fast, paper

    recipe = (paper if args.recipe == "paper" else fast)(args.backbone)
    own = [name for name, _, _ in TRAINING if name not in _BPR]
    return dataclasses.replace(
        recipe,
        bpr=dataclasses.replace(recipe.bpr, **_given(args, _BPR)),
        training=dataclasses.replace(recipe.training, **_given(args, own)),
    )


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def workbench_of(
    args: argparse.Namespace, split: Split, *, models: Path | None
) -> TrainingWorkbench:
    """The workbench that the options describe; trained models are kept under ``models``."""
    from ..tasks import RankingTask
    from ..training import ProbeCheck, TrainingWorkbench

    recipe, device = recipe_of(args), checked_device(args.device)
    task = RankingTask(split, args.backbone, embedding_dim=args.dim, bpr=recipe.bpr, device=device)
    return TrainingWorkbench(
        task,
        training=recipe.training,
        fine_tuning=recipe.fine_tuning,
        warm_start=getattr(args, "warm_start", "rotated"),
        check=ProbeCheck() if getattr(args, "stop_hopeless", False) else None,
        run_dir=models,
        seed=args.seed,
        device=device,
        progress=not args.quiet,
    )


def checked_device(name: str) -> str:
    """The device that --device names. Raises InvalidInputError for none, or one not here."""
    import torch

    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise InvalidInputError(f"--device should be cpu, cuda or cuda:N, got {name!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("--device cuda needs a CUDA device and a CUDA build of torch")
    return name

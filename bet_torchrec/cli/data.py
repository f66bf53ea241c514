"""bet-torchrec data: load interactions, say what they are, split them, save them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_data, add_quiet, open_data, open_split

if TYPE_CHECKING:
    from ..data import Split

PARTS = ("train", "validation", "test")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "data",
        help="load interactions, print what they are, split and save them",
        description="Load a named data set or a file, print its statistics and its split.",
    )
    add_data(parser, positional=True)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="write the split there: train.npz, validation.npz, test.npz, each loadable as data",
    )
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    interactions = open_data(args)
    split = open_split(args, interactions)
    if not args.quiet:
        print(interactions.summary())
        print(describe_parts(split))
    if args.save is not None:
        for name, part in zip(PARTS, split.parts(), strict=True):
            print(part.save(args.save / f"{name}.npz"))


def describe_parts(split: Split) -> str:
    """How the split was made, and how many interactions each part has."""
    sizes = [len(part) for part in split.parts()]
    total = max(1, sum(sizes))
    parts = (f"{p} {n:,} ({n / total:.1%})" for p, n in zip(PARTS, sizes, strict=True))
    return f"split: {split.how}: {', '.join(parts)}"

"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..data import Interactions, Split
    from ..planning.budget import Budget

COLUMNS = ("user", "item", "rating", "timestamp")
SPLITS = ("random", "published", "temporal")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def whole(text: str, least: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
    return value


def whole_or_zero(text: str) -> int:
    return whole(text, 0)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def amount(text: str) -> int:
    """A count of bytes or parameters: 2000000, 2M (binary), 1.5GiB."""
    body = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = body[-1:] if body[-1:] in _UNITS else ""
    try:
        return int(float(body.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"expected an amount as 2000000, 512K or 2M (powers of 1024), got {text!r}"
        ) from None


def ratios(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected three shares as .5,.25,.25 (train, validation, test), got {text!r}"
        ) from None
    if not (train > 0 and validation >= 0 and test >= 0):
        raise argparse.ArgumentTypeError(
            f"expected shares of at least 0, the first above it, as .5,.25,.25, got {text!r}"
        )
    return train, validation, test


def widths(text: str) -> tuple[int, ...] | Literal["any", "auto"]:
    if text == "any":
        return "any"
    if text == "auto":
        return "auto"
    return tuple(whole(part, 0) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def data_name(text: str) -> str:
    """A known name as it is; a file's path absolute, so that a run is repeatable from anywhere."""
    return str(Path(text).resolve()) if Path(text).is_file() else text


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars, results only")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Where a run goes, its seed, and whether to talk."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--run-dir", type=Path, required=True, help="folder for everything that comes out"
    )
    group.add_argument("--resume", action="store_true", help="continue what --run-dir holds")
    group.add_argument("--seed", type=whole_or_zero, default=0, help="of all that is random (0)")
    group.add_argument(
        "--models",
        type=Path,
        help="folder of trained models, shared by several runs (default: in --run-dir)",
    )
    group.add_argument("--device", default="cpu", help="where to train: cpu (default), cuda, ...")
    add_quiet(parser)


def add_data(
    parser: argparse.ArgumentParser, *, positional: bool = False, required: bool = True
) -> None:
    """Which interactions, and how they are split."""
    group = parser.add_argument_group("data")
    what = (
        "gowalla, yelp2018, ml-1m, ml-100k; a csv, tsv or npz file of user, item pairs; a text "
        "file of lines `user item item ...`; or a folder that holds one of them"
    )
    if positional:
        parser.add_argument("data", type=data_name, help=what)
    else:
        group.add_argument("--data", type=data_name, required=required, help=what)
    group.add_argument(
        "--data-dir", type=Path, help="folder of the data sets (default: $BET_TORCHREC_DATA)"
    )
    group.add_argument("--min-rating", type=number, help="keep ratings from this on")
    for name in COLUMNS:
        text = f"of a file: the {name}'s column, by name or from 0 (default: found out)"
        group.add_argument(f"--{name}-column", type=column, metavar="C", help=text)
    group.add_argument(
        "--split", choices=SPLITS, default="random", help="a user's own random split by default"
    )
    group.add_argument("--ratios", type=ratios, default=(0.5, 0.25, 0.25), metavar="A,B,C")
    group.add_argument("--split-seed", type=whole_or_zero, default=0, help="of the split (0)")
    group.add_argument(
        "--keep-ids",
        action="store_true",
        help="don't relabel rows by rank; the plan then carries an id map",
    )


def open_data(args: argparse.Namespace) -> Interactions:
    """The interactions that the options name."""
    from ..data import load

    columns = {name: getattr(args, f"{name}_column") for name in COLUMNS}
    return load(
        args.data,
        data_dir=args.data_dir,
        min_rating=args.min_rating,
        progress=not args.quiet,
        **columns,
    )


def open_split(args: argparse.Namespace, interactions: Interactions | None = None) -> Split:
    """The split that the options ask for, ids in rank order unless --keep-ids."""
    from ..data import published_split, random_split, temporal_split

    interactions = open_data(args) if interactions is None else interactions
    if args.split == "random":
        split = random_split(interactions, ratios=tuple(args.ratios), seed=args.split_seed)
    elif args.split == "temporal":
        split = temporal_split(interactions, ratios=tuple(args.ratios), seed=args.split_seed)
    else:
        # the published test set stays; the second of the ratios is taken from its training set
        share = args.ratios[1] / (args.ratios[0] + args.ratios[1])
        split = published_split(interactions, validation_share=share, seed=args.split_seed)
    return split if args.keep_ids else split.by_rank()


def describe_split(split: Split) -> dict[str, Any]:
    """What config.json keeps about the data."""
    digest = "-".join(part.fingerprint() for part in split.parts())
    return {
        "name": split.train.name,
        "users": split.train.num_users,
        "items": split.train.num_items,
        "interactions": [len(part) for part in split.parts()],
        "split": split.how,
        "fingerprint": digest,
    }


def add_budget(parser: argparse.ArgumentParser) -> None:
    """How much the tables may take."""
    group = parser.add_argument_group("budget")
    kind = group.add_mutually_exclusive_group(required=True)
    kind.add_argument("--sparsity", type=number, help="keep a share 1 - s of all parameters")
    kind.add_argument("--parameters", type=amount, help="weights to keep")
    kind.add_argument("--bytes", type=amount, help="bytes for everything, as 2000000, 512K, 2M")
    group.add_argument(
        "--purpose", choices=("inference", "training"), help="of --bytes (default inference)"
    )
    group.add_argument(
        "--dtype",
        type=names,
        metavar="D[,D...]",
        help="with --bytes: fp32, fp16, int8, int4, int2; several let the search choose "
        "(default int8 for inference, fp32 for training)",
    )
    group.add_argument("--optimizer", help="with --purpose training: whose state is counted")
    group.add_argument("--alignment", type=whole, help="bytes that inference rows align to (16)")


def budget_of(args: argparse.Namespace) -> Budget:
    """The budget that the options describe."""
    from ..planning.budget import Budget

    if args.bytes is not None:
        purpose: Literal["inference", "training"] = args.purpose or "inference"
        return Budget.bytes(
            args.bytes,
            purpose=purpose,
            dtype=args.dtype or ("int8" if purpose == "inference" else "fp32"),
            optimizer=args.optimizer,
            alignment=args.alignment,
        )
    extra = [n for n in ("purpose", "dtype", "optimizer", "alignment") if getattr(args, n)]
    if extra:
        raise InvalidInputError(
            f"--{extra[0]} is about bytes: use --bytes instead of --sparsity or --parameters"
        )
    if args.parameters is not None:
        return Budget.parameters(args.parameters)
    return Budget.sparsity(args.sparsity)

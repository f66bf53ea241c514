"""What the benchmark scripts share: arguments, one table, one JSON file with where it came from."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bet_torchrec.data import Split, load, random_split
from bet_torchrec.provenance import provenance


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With what every script takes."""
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=None, help="torch threads (default: its own)")
    p.add_argument("--out", type=Path, default=None, help="write the result as JSON here")
    return p


def setup(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)


def ranked_split(name: str, seed: int, data_dir: Path | None = None) -> Split:
    """The per-user random 50/25/25 split with ids in rank order of the training counts."""
    return random_split(load(name, data_dir=data_dir), seed=seed).by_rank()


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    cuda = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{cuda}, torch {torch.__version__}"


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title} ({machine()})\n")
    print("| " + " | ".join(str(x) for x in header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(x) for x in row) + " |", flush=True)


def save(args: argparse.Namespace, result: Any, data: dict[str, Any] | None = None) -> None:
    """Write the result and where it came from, if --out was given."""
    if args.out is None:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        name: value.name if isinstance(value, Path) else value  # paths are this machine's affair
        for name, value in vars(args).items()
        if name not in ("out", "data_dir", "run_dir")
    }
    record = {
        "machine": machine(),
        **provenance(seed=args.seed, settings=settings, data=data),
        "result": result,
    }
    temporary = args.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(args.out)

"""A user's DLRM of 26 tables through TorchRecTask: lines of code, and seconds of counting.

    python benchmarks/torchrec_task.py --threads 1

--examples made-up clicks of 26 features with heavy tails (one id each), tables as Criteo's capped
at --rows, in batches of --batch-size. Lines are those of ``examples/dlrm_budget.py`` between its
two marks: what a user writes from loaders to a served model.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from common import parser, save, setup, show
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from bet_torchrec.tasks.torchrec import count_ids

CRITEO = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194]
CRITEO += [27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--examples", type=int, default=1_000_000)
    p.add_argument("--batch-size", type=int, default=8192)
    p.add_argument("--rows", type=int, default=1_000_000, help="the most of a table")
    args = p.parse_args()
    setup(args)
    rows = [min(n, args.rows) for n in CRITEO]
    names = [f"cat_{i}" for i in range(len(rows))]
    tables = [
        EmbeddingBagConfig(name=name, num_embeddings=n, embedding_dim=16)
        for name, n in zip(names, rows, strict=True)
    ]
    batches = made_up(names, rows, args)
    began = time.perf_counter()
    counts = count_ids(batches, tables)
    seconds = time.perf_counter() - began
    ids = sum(int(c.sum()) for c in counts.values())
    assert ids == sum(batch.values().numel() for batch in batches)
    lines = user_lines(Path(__file__).parent.parent / "examples" / "dlrm_budget.py")
    show(
        f"Counting {args.examples:,} examples of 26 features, {sum(rows):,} rows",
        ["ids", "seconds", "million ids a second", "lines of user code"],
        [[f"{ids:,}", f"{seconds:.2f}", f"{ids / seconds / 1e6:.1f}", lines]],
    )
    save(args, {"ids": ids, "seconds": seconds, "rows": sum(rows), "lines": lines})


def made_up(names: list[str], rows: list[int], args: object) -> list[KeyedJaggedTensor]:
    rng = np.random.default_rng(args.seed)
    limits = np.array(rows)[:, None]
    batches = []
    for _ in range(-(-args.examples // args.batch_size)):
        ids = (rng.random((len(rows), args.batch_size)) ** 4 * limits).astype(np.int64)
        lengths = torch.ones(ids.size, dtype=torch.int32)
        batches.append(KeyedJaggedTensor(names, torch.from_numpy(ids.ravel()), lengths=lengths))
    return batches


def user_lines(path: Path) -> int:
    """Lines of code between the marks, comments and blank ones not counted."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    inside = lines[lines.index("# from here") + 1 : lines.index("# to here")]
    return sum(bool(line) and not line.startswith("#") for line in inside)


if __name__ == "__main__":
    main()

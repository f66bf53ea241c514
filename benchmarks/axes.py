"""Principal axes of a large table in one pass: seconds and peak memory.

    python benchmarks/axes.py --rows 20000000 --dim 128 --out benchmarks/results/axes.json

The table is fp16 in a memory map in a temporary folder (5.1 GB at 2 x 10^7 x 128), written block by
block from a falling spectrum in random directions, with counts of a power law. Measured: the pass
(moments and eigenproblem), and turning every row in place; the peak memory is the process's own
beside what it had before, without the pages of the map, which the system may drop at any time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, save, setup, show

from bet_torchrec.axes import principal_basis, row_blocks, turn_in_place

_BLOCK = 1 << 16


def write_table(path: Path, rows: int, dim: int, seed: int) -> np.ndarray:
    """The map of rows whose axes are none of the columns."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    spectrum = (0.95 ** np.arange(dim)).astype(np.float32)
    # Drawn once and shifted from block to block: drawing 10^9 normals would take longer than all.
    drawn = rng.standard_normal((_BLOCK, dim), dtype=np.float32)
    made = np.memmap(path, dtype=np.float16, mode="w+", shape=(rows, dim))
    for start in range(0, rows, _BLOCK):
        size = min(_BLOCK, rows - start)
        made[start : start + size] = (drawn[:size] * spectrum) @ axes
        drawn = np.roll(drawn, 1, axis=1)
    made.flush()
    return made


def anonymous_kib() -> int:
    """Resident memory that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def watched(blocks: Iterator[Any], peak: list[int]) -> Iterator[Any]:
    """The blocks, and after each what the process held."""
    for block in blocks:
        yield block
        peak[0] = max(peak[0], anonymous_kib())


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=20_000_000)
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--folder", type=Path, help="where the table is made and removed again")
    args = p.parse_args()
    setup(args)

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        table = write_table(Path(folder) / "rows", args.rows, args.dim, args.seed)
        counts = (1e7 / np.arange(1, args.rows + 1)).astype(np.int32).clip(1)
        before = [anonymous_kib()]
        peak = list(before)
        start, cpu = time.perf_counter(), time.process_time()
        basis = principal_basis(watched(row_blocks(table, counts), peak))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        start = time.perf_counter()
        turn_in_place(table, basis)
        turning = time.perf_counter() - start
        kept = np.square(table[:_BLOCK].astype(np.float64)).mean(axis=0)
        energy = float(kept[: args.dim // 8].sum() / kept.sum())
    record = {
        "rows": args.rows,
        "dim": args.dim,
        "table_bytes": args.rows * args.dim * 2,
        "pass_seconds": seconds,
        "pass_cpu_seconds": cpu_seconds,
        "pass_peak_mib": (peak[0] - before[0]) / 1024,
        "turning_seconds": turning,
        "energy_in_first_eighth": energy,
        "threads": torch.get_num_threads(),
    }
    show(
        "Principal axes in one pass",
        ["rows", "dim", "pass s", "its CPU s", "peak MiB", "turning s", "energy in 1/8 of columns"],
        [
            [
                args.rows,
                args.dim,
                f"{seconds:.1f}",
                f"{cpu_seconds:.1f}",
                f"{record['pass_peak_mib']:.0f}",
                f"{turning:.1f}",
                f"{energy:.3f}",
            ]
        ],
    )
    save(args, record, None)


if __name__ == "__main__":
    main()

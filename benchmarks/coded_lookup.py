"""Nanoseconds a lookup: column codes in own axes against FBGEMM's int4 and int2 full tables.

    python benchmarks/coded_lookup.py --threads 1 --out benchmarks/results/coded_lookup.json

One table of --rows rows, full width --dim, a batch of --bags bags of --pooling ids, at random (the
worst for caches) or as Zipf's law has it. TorchRec's quantised collections read full rows row by
row with a scale and a bias each; ours reads so many bytes a row in its own axes and multiplies the
pooled columns by these once a bag. All contenders take the same batches by turns; time is the
process's own on the CPU; a lookup's is the median over batches. Bytes are what the modules hold.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch
from common import parser, save, setup, show
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from bet_torchrec.column_codes import coded_bytes
from bet_torchrec.embeddings.coded import CodedEmbeddingBagCollection
from bet_torchrec.serving.column_codes import CodedBlock, CodedTable, row_bytes

# Bits of the columns: what planning gives a table of 64 columns at 4 and at 2 bytes a row, or so.
BITS = {
    "column codes, 2 bytes": [3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1],
    "column codes, 4 bytes": [4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1],
    "column codes, 8 bytes": [4] * 16,
    "column codes, 16 bytes": [8] * 4 + [6] * 8 + [4] * 12,
}
PLAIN = "column codes, 32 bytes, rows' own columns"
Serve = Callable[[KeyedJaggedTensor], torch.Tensor]


def config(args) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name="t", num_embeddings=args.rows, embedding_dim=args.dim, feature_names=["f"]
    )


def fbgemm(precision: DataType, args) -> tuple[Serve, int]:
    """TorchRec's own quantised collection, rows unaligned."""
    table = dataclasses.replace(config(args), data_type=precision)
    cpu = torch.device("cpu")
    made = QuantEmbeddingBagCollection(
        tables=[table], is_weighted=False, device=cpu, row_alignment=1
    )
    kernel = made._emb_modules[0]
    held = kernel.weights_host if kernel.host_size else kernel.weights_dev
    held.fill_(0x2C)  # scales and biases of .06: no page is empty, no number odd
    return (lambda bags: made(bags).values()), held.numel()


def coded(bits: list[int], args, *, turned: bool) -> tuple[Serve, int]:
    rng = np.random.default_rng(args.seed)
    width = np.array(bits, dtype=np.uint8)
    data = rng.integers(0, 256, (args.rows, row_bytes(width)), dtype=np.uint8)
    scale, offset = rng.random((2, len(bits))).astype(np.float16)
    axes = rng.integers(-127, 128, (len(bits), args.dim), dtype=np.int8) if turned else None
    table = CodedTable("t", args.dim, (CodedBlock(0, width, scale, offset, data),), axes)
    module = CodedEmbeddingBagCollection([config(args)], {"t": table})
    assert module.allocated_bytes() == coded_bytes({"t": table})
    return (lambda bags: module(bags).values()), module.allocated_bytes()


def batches(args, *, zipf: bool) -> list[torch.Tensor]:
    rng = np.random.default_rng(args.seed)
    n = args.bags * args.pooling
    if not zipf:
        return [torch.from_numpy(rng.integers(0, args.rows, n)) for _ in range(args.repeats)]
    weights = np.cumsum(1 / np.arange(1, args.rows + 1))
    shuffled = rng.permutation(args.rows)  # frequent rows are not neighbours
    return [
        torch.from_numpy(shuffled[np.searchsorted(weights, rng.random(n) * weights[-1])])
        for _ in range(args.repeats)
    ]


def measure(made: dict[str, tuple[Serve, int]], args, *, zipf: bool) -> list[dict]:
    lengths = torch.full((args.bags,), args.pooling, dtype=torch.int32)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number, ids in enumerate(batches(args, zipf=zipf)):
        for name, (serve, _) in made.items():
            bags = KeyedJaggedTensor(keys=["f"], values=ids, lengths=lengths)
            start = time.process_time()
            serve(bags)
            if number >= 3:  # the first ones warm up
                seconds[name].append(time.process_time() - start)
    reference = np.array(seconds["int4, TorchRec"])
    return [
        {
            "ids": "zipf" if zipf else "random",
            "pooling": args.pooling,
            "rows": name,
            "bytes": made[name][1],
            "bytes_a_row": made[name][1] / args.rows,
            "ns_a_lookup": float(np.median(took)) * 1e9 / (args.bags * args.pooling),
            "ratio": float(np.median(reference / np.array(took))),
        }
        for name, took in seconds.items()
    ]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--dim", type=int, default=64)
    p.add_argument("--bags", type=int, default=2048)
    p.add_argument("--poolings", type=int, nargs="+", default=[1, 20])
    p.add_argument("--repeats", type=int, default=53)
    args = p.parse_args()
    setup(args)
    made = {
        f"{name}, TorchRec": fbgemm(precision, args)
        for name, precision in (
            ("int8", DataType.INT8),
            ("int4", DataType.INT4),
            ("int2", DataType.INT2),
        )
    }
    made |= {name: coded(bits, args, turned=True) for name, bits in BITS.items()}
    made[PLAIN] = coded([4] * args.dim, args, turned=False)
    found = []
    with torch.inference_mode():
        for pooling in args.poolings:
            args.pooling = pooling
            for zipf in (False, True):
                found += measure(made, args, zipf=zipf)
    show(
        f"Lookups in {args.rows:,} rows x {args.dim}",
        ["ids", "ids a bag", "rows", "bytes a row", "ns a lookup", "against int4"],
        [
            [
                r["ids"],
                r["pooling"],
                r["rows"],
                f"{r['bytes_a_row']:.2f}",
                f"{r['ns_a_lookup']:.1f}",
                f"{r['ratio']:.2f}",
            ]
            for r in found
        ],
    )
    save(args, {"rows": found})


if __name__ == "__main__":
    main()

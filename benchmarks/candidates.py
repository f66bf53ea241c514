"""Candidates sampled, fitted and scored a second, on one core.

    python benchmarks/candidates.py --out benchmarks/results/candidates.json

Two tables with all widths 1 to 128 under a sparsity of 95 %: Gowalla's sizes with its counts (or
power-law counts where the data isn't found), and 10^9 rows. Beside it, for the scale of things,
the same work written out row by row: literal draws, and Eq. 7-10 as a loop over sets. Also: the
largest deviation of the fast predictor from Eq. 7-10 over the candidates compared.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import torch
from common import parser, ranked_split, save, setup, show

from bet_torchrec.errors import BetError
from bet_torchrec.planning import RowCounts
from bet_torchrec.planning.fit import FitSpace
from bet_torchrec.planning.sizers.bet import (
    EXPLORING_FAMILIES,
    PAPER_FAMILIES,
    FitnessPredictor,
    Sampler,
    Scene,
)

WIDTHS = torch.arange(1, 129)


def space(counts: list[RowCounts], limit: int) -> FitSpace:
    return FitSpace(
        widths=WIDTHS,
        rows=torch.tensor([c.rows for c in counts]),
        depth=torch.full((len(counts),), len(WIDTHS)),
        costs=WIDTHS[None],
        limit=limit,
    )


def power_law(rows: int, distinct: int) -> RowCounts:
    values = np.arange(distinct, 0, -1)
    share = values[::-1].astype(float) ** -1.5
    multiplicity = 1 + np.floor((rows - distinct) * share[::-1] / share.sum()).astype(np.int64)
    multiplicity[-1] += rows - multiplicity.sum()
    return RowCounts.from_distinct(values, multiplicity)


def naive_score(predictor: FitnessPredictor, counts: list[RowCounts], sizes: list) -> float:
    codes = []
    for encoder, c in zip(predictor.row_encoders, counts, strict=True):
        frequency = torch.from_numpy(np.repeat(c.values, c.multiplicity) / c.values[0])
        codes.append(encoder(frequency.float()[:, None]))
    codes, sizes = torch.cat(codes), torch.from_numpy(np.concatenate(sizes))
    h = torch.zeros(64)
    for d in WIDTHS.tolist():
        members = codes[sizes == d]
        mean = members.double().mean(0).float() if len(members) else torch.zeros(16)
        h = h + predictor.size_encoder(torch.cat([mean, torch.tensor([d / 128.0])])) / 128
    return predictor.decoder(h).item()


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--data-dir", type=Path)
    p.add_argument("--batch", type=int, default=1000)
    p.add_argument("--repeats", type=int, default=10)
    args = p.parse_args()
    args.threads = 1
    setup(args)
    try:
        by_name = ranked_split("gowalla", args.seed, args.data_dir).train.counts()
        gowalla = [RowCounts.from_rows(c) for c in by_name.values()]
        name = "Gowalla, 70,839 rows"
    except (BetError, OSError):
        gowalla, name = [power_law(29_858, 400), power_law(40_981, 600)], "power law, 70,839 rows"
    huge = [power_law(400_000_000, 20_000), power_law(600_000_000, 20_000)]
    rows, result = [], {}
    for what, counts in ((name, gowalla), ("10^9 rows", huge)):
        limit = int(0.05 * 128 * sum(c.rows for c in counts))
        for families, of in ((PAPER_FAMILIES, "paper's families"), (EXPLORING_FAMILIES, "default")):
            sampler = Sampler(space(counts, limit), counts, families)
            predictor = FitnessPredictor(
                Scene(counts=counts, widths=WIDTHS, d_max=128),
                set_shares=False,
                generator=torch.Generator().manual_seed(args.seed),
            )
            rng = np.random.default_rng(args.seed)
            times = []
            for _ in range(args.repeats + 1):
                start = time.perf_counter()
                candidates = sampler(args.batch, rng)
                drawn = time.perf_counter()
                with torch.no_grad():
                    predictor(candidates)
                times.append((drawn - start, time.perf_counter() - drawn))
                assert (candidates.boundaries.sum((1, 2)) <= limit).all()
            draw, score = np.median(times[1:], axis=0) / args.batch
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            rate = 1 / (draw + score)
            result[f"{what}, {of}"] = {"per_second": rate, "draw_s": draw, "score_s": score}
            rows.append(
                [what, of, f"{rate:,.0f}", f"{draw * 1e6:.1f}", f"{score * 1e6:.1f}", f"{peak:.2f}"]
            )
    counts = gowalla
    limit = int(0.05 * 128 * sum(c.rows for c in counts))
    literal = Sampler(space(counts, limit), counts, PAPER_FAMILIES, "iid")
    predictor = FitnessPredictor(
        Scene(counts=counts, widths=WIDTHS, d_max=128),
        set_shares=False,
        generator=torch.Generator().manual_seed(0),
    )
    rng, n = np.random.default_rng(args.seed), 10
    start = time.perf_counter()
    candidates = literal(n, rng)
    with torch.no_grad():
        slow = []
        for b in candidates.boundaries.numpy():
            sizes = [(np.arange(c.rows)[:, None] < b[t]).sum(1) for t, c in enumerate(counts)]
            slow.append(naive_score(predictor, counts, sizes))
        seconds = (time.perf_counter() - start) / n
        deviation = (predictor(candidates) - torch.tensor(slow)).abs().max().item()
    rows.append([name, "literal draws, Eq. 7-10 row by row", f"{1 / seconds:,.1f}", "", "", ""])
    result["row by row"] = {"per_second": 1 / seconds, "max deviation": deviation}
    show(
        f"Candidates sampled, fitted and scored, {args.batch} at a time; "
        f"fast against row-by-row scores: {deviation:.1e}",
        ["rows", "search space", "a second", "draw and fit, us", "score, us", "peak memory, GB"],
        rows,
    )
    save(args, result)


if __name__ == "__main__":
    main()

"""Full ranking and metrics of all users, against the straightforward way, in one run.

    python benchmarks/evaluation.py [--data gowalla] [--threads 2] [--out evaluation.json]

Inner products (LightGCN, NGCF) and NCF's separable scores at width 128 with random weights, k = 20,
training and validation items masked, Recall and NDCG at 5, 10 and 20. The straightforward way goes
user by user: score all items, drop the masked ones, sort, count hits; for NCF it concatenates the
user's row with every item's and runs the dense layer. It is run on a sample of users and scaled up,
and its lists are compared with ours. Then simulated quantisation of all rows at width 43.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import parser, ranked_split, save, setup, show
from torch import Tensor

from bet_torchrec.data import Split
from bet_torchrec.evaluation import SeparableScores, evaluate, fake_quantise_rows, top_items

WIDTH = 128
KS = (5, 10, 20)


def user_by_user(
    score: Callable[[int], Tensor], split: Split, users: np.ndarray[Any, Any]
) -> tuple[float, list[list[int]]]:
    """Seconds a user, and the lists."""
    seen = (split.train.csr() + split.validation.csr()).tocsr()
    relevant = split.test.csr()
    lists = []
    start = time.perf_counter()
    for user in users:
        scores = score(int(user)).numpy().copy()
        scores[seen[user].indices] = -np.inf
        ranked = np.argsort(-scores, kind="stable")[: max(KS)].tolist()
        lists.append(ranked)
        wanted = set(relevant[user].indices.tolist())
        for k in KS:
            gains = [1 / np.log2(place + 2) for place, v in enumerate(ranked[:k]) if v in wanted]
            ideal = [1 / np.log2(place + 2) for place in range(min(k, len(wanted)))]
            _ = len(gains) / max(1, len(wanted)), sum(gains) / (sum(ideal) or 1.0)
    return (time.perf_counter() - start) / len(users), lists


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds on the clock and seconds of CPU over all threads, medians of several runs.

    Where the clock's are more than the CPU's over the threads, somebody else used the machine.
    """
    clock, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return float(np.median(clock)), float(np.median(cpu))


def compare(
    name: str, scores: Any, score: Callable[[int], Tensor], split: Split, args: Any
) -> dict[str, Any]:
    """Ours on all users against the straightforward way on a sample."""
    rng = np.random.default_rng(args.seed)
    sample = rng.choice(split.train.num_users, args.sample, replace=False)
    each, lists = user_by_user(score, split, sample)
    options: dict[str, Any] = {"k": max(KS), "masked": (split.train, split.validation)}
    if isinstance(scores, tuple):
        ours = top_items(*scores, users=sample, **options)
    else:
        ours = scores.top_items(users=sample, **options)
    same = float(np.mean([len(set(a) & set(b)) for a, b in zip(ours, lists, strict=True)]))
    seconds, cpu = timed(lambda: evaluate(scores, split, on="test", ks=KS), args.repeats)
    slow = each * split.train.num_users
    return {
        "name": name,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "user_by_user_seconds": slow,
        "speed_up": slow / seconds,
        "same_items_of_20": same,
    }


def quantisation(rows: int, generator: torch.Generator) -> list[dict[str, Any]]:
    table = torch.randn(rows, 43, generator=generator) * 0.1
    found = []
    for precision in ("fp16", "int8", "int4", "int2"):
        seconds, _ = timed(partial(fake_quantise_rows, table, precision), repeats=5)
        found.append({"precision": precision, "milliseconds": 1000 * seconds})
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", default="gowalla")
    arguments.add_argument("--sample", type=int, default=40, help="users for the slow way")
    arguments.add_argument("--repeats", type=int, default=3)
    args = arguments.parse_args()
    setup(args)
    split = ranked_split(args.data, args.seed)
    users, items = split.train.num_users, split.train.num_items
    generator = torch.Generator().manual_seed(args.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    left, right = draw(users, WIDTH), draw(items, WIDTH)
    inner = compare("inner product, d 128", (left, right), lambda u: right @ left[u], split, args)

    gmf_users, gmf_items, gmf = draw(users, WIDTH), draw(items, WIDTH), draw(WIDTH)
    layer, bias, top = draw(WIDTH, 2 * WIDTH), draw(WIDTH), draw(WIDTH)

    def plain(user: int) -> Tensor:
        both = torch.cat([left[user].expand(items, -1), right], dim=1)
        return F.relu(F.linear(both, layer, bias)) @ top + (gmf_users[user] * gmf_items) @ gmf

    separable = SeparableScores(
        hidden_users=left @ layer[:, :WIDTH].T + bias,
        hidden_items=right @ layer[:, WIDTH:].T,
        weights=top,
        linear_users=gmf_users * gmf,
        linear_items=gmf_items,
    )
    ncf = compare("NCF, 256-128 and GMF", separable, plain, split, args)

    show(
        f"Exact ranking and metrics, {users:,} users x {items:,} items",
        ("model", "ours, s", "CPU, s", "user by user, s", "times faster", "same of 20"),
        [
            (
                r["name"],
                f"{r['seconds']:.1f}",
                f"{r['cpu_seconds']:.1f}",
                f"{r['user_by_user_seconds']:.0f}",
                f"{r['speed_up']:.0f}",
                f"{r['same_items_of_20']:.2f}",
            )
            for r in (inner, ncf)
        ],
    )
    rounding = quantisation(users + items, generator)
    show(
        f"Simulated quantisation, {users + items:,} rows x 43",
        ("precision", "ms"),
        [(r["precision"], f"{r['milliseconds']:.1f}") for r in rounding],
    )
    save(
        args,
        {"ranking": [inner, ncf], "quantisation": rounding},
        data={"name": split.train.name, "fingerprint": split.train.fingerprint()},
    )


if __name__ == "__main__":
    main()

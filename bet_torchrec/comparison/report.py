"""Results as Markdown tables and pictures: what won, what did not, and what chance explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation import SeedComparison, compare_over_seeds, holm
from .cells import BACKBONES, FULL, Cell, Share
from .pictures import plot_against_bytes
from .published import published

OURS = "bet"
ALSO_OURS = ("compress",)
METRICS = {"auc": "AUC", "log_loss": "log loss", "recall@20": "Recall@20", "ndcg@20": "NDCG@20"}
_LOWER = frozenset({"log_loss"})

Results = Mapping[Cell, Mapping[str, Any]]


@dataclass(frozen=True)
class Duel:
    """Ours against the best rival under one budget; difference above 0: ours is better."""

    data: str
    model: str
    budget: str
    rival: str
    comparison: SeedComparison


def by_metric(results: Results) -> dict[str, Results]:
    """What is compared, AUC of clicks and Recall@20 of rankings, and the cells that it is of."""
    found: dict[str, dict[Cell, Mapping[str, Any]]] = {}
    for cell, record in results.items():
        metric = "recall@20" if cell.model in BACKBONES else "auc"
        found.setdefault(metric, {})[cell] = record
    return dict(found)


def values(results: Results, metric: str, **where: Any) -> dict[int, float]:
    """{seed: test metric} of the cells where all of these hold."""
    return {
        cell.seed: record["test"][metric]
        for cell, record in results.items()
        if "test" in record and all(getattr(cell, k) == v for k, v in where.items())
    }


def duels(results: Results, metric: str, ours: str = OURS) -> list[Duel]:
    """Ours against the rival with the best mean, for each task and budget that both have seeds of.

    The rival is chosen by the same test figures that it is compared on, which favours the rival.
    """
    found = []
    tasks = sorted({(c.data, c.model, c.budget) for c in results if c.method == ours})
    for data, model, budget in tasks:
        mine = values(results, metric, data=data, model=model, budget=budget, method=ours)
        methods = {
            c.method for c in results if (c.data, c.model, c.budget) == (data, model, budget)
        }
        rivals = {}
        for method in sorted(methods - {ours, FULL}):
            other = values(results, metric, data=data, model=model, budget=budget, method=method)
            seeds = sorted(mine.keys() & other.keys())
            if seeds:
                rivals[method] = [[side[s] for s in seeds] for side in (mine, other)]
        if not rivals:
            continue
        sign = -1 if metric in _LOWER else 1
        best = max(rivals, key=lambda method: sign * float(np.mean(rivals[method][1])))
        a, b = rivals[best]
        comparison = compare_over_seeds(np.multiply(sign, a), np.multiply(sign, b))
        found.append(Duel(data, model, budget, best, comparison))
    return found


def report(results: Results, *, ours: str = OURS) -> str:
    """The whole report, Markdown; its first paragraph says where ours does not win.

    Of clicks and rankings together: of one after the other.
    """
    return "\n".join(_report(own, metric, ours) for metric, own in by_metric(results).items())


def _report(results: Results, metric: str, ours: str) -> str:
    fought = duels(results, metric, ours)
    parts = [
        _verdict(fought, _nothing(results, metric, ours), metric, ours),
        _duel_table(fought, metric),
    ]
    for data, model in dict.fromkeys((c.data, c.model) for c in results):
        own = {c: r for c, r in results.items() if (c.data, c.model) == (data, model)}
        parts += [f"### {model} on {data}", *(_table(own, m) for m in _shown(own)), _costs(own)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(results: Results) -> list[str]:
    first: Mapping[str, float] = next((r["test"] for r in results.values() if "test" in r), {})
    return [metric for metric in METRICS if metric in first]


def _nothing(results: Results, metric: str, ours: str) -> list[str]:
    """Where ours has come to nothing, though another method has a result; and why."""
    found = []
    others = {cell.method for cell in results} - {ours, FULL}
    for cell, record in results.items():
        if cell.method != ours or "test" in record:
            continue
        where = {name: getattr(cell, name) for name in ("data", "model", "budget", "seed")}
        if any(values(results, metric, **where, method=other) for other in others):
            why = "infeasible" if "infeasible" in record else "diverged"
            found.append(f"{cell.model} on {cell.data} at {cell.budget}, seed {cell.seed} ({why})")
    return found


def _verdict(fought: Sequence[Duel], nothing: Sequence[str], metric: str, ours: str) -> str:
    """Its rivals are all other methods, those that are our own too, and so are named as that."""
    lost = [d for d in fought if d.comparison.mean_difference <= 0]
    won = len(fought) - len(lost)
    clear = sum(_significant(d, fought) for d in fought if d not in lost)
    said = []
    if fought:
        said.append(
            f"{ours} has the best mean {METRICS[metric]} in {won} of {len(fought)} comparisons "
            f"with the best rival of each budget, {clear} of them beyond chance (p < .05 after "
            "Holm)."
        )
    if lost:
        named = ", ".join(
            f"{d.model} on {d.data} at {d.budget} ({_rival(d.rival, ours)})" for d in lost
        )
        said.append(f"It does not win: {named}.")
    if nothing:
        said.append(f"{ours} comes to nothing where others don't: {'; '.join(nothing)}.")
    return " ".join(said)


def _rival(method: str, ours: str) -> str:
    if method.startswith(f"{OURS}-"):
        return f"{method}, a variant of {OURS}"
    return f"{method}, also ours" if method in {OURS, *ALSO_OURS} - {ours} else method


def _significant(duel: Duel, fought: Sequence[Duel]) -> bool:
    return _adjusted(fought)[fought.index(duel)] < 0.05


def _adjusted(fought: Sequence[Duel]) -> list[float]:
    p = [1.0 if math.isnan(d.comparison.p) else d.comparison.p for d in fought]
    return [float(value) for value in holm(p)] if p else []


def _duel_table(fought: Sequence[Duel], metric: str) -> str:
    if not fought:
        return ""
    rows = []
    for duel, p in zip(fought, _adjusted(fought), strict=True):
        c = duel.comparison
        interval = "" if math.isnan(c.low) else f"[{c.low:+.4f}, {c.high:+.4f}]"
        difference = f"{c.mean_difference:+.4f}"
        chance = "" if math.isnan(c.p) else f"{p:.2g}"
        named = (duel.data, duel.model, duel.budget, duel.rival)
        rows.append([*named, difference, interval, chance, str(c.seeds)])
    name = METRICS[metric]
    header = ["data", "model", "budget", "best rival", name, "95 %", "p (Holm)", "seeds"]
    return markdown([header, *rows])


def _table(results: Results, metric: str) -> str:
    """Methods by budgets: mean and spread over seeds of the test metric."""
    budgets = sorted(
        {c.budget for c in results if c.method != FULL},
        key=lambda text: (Share(text).in_bytes, -Share(text).share),
    )
    methods = list(dict.fromkeys(c.method for c in results if c.method != FULL))
    full = list(values(results, metric, method=FULL).values())
    first = next(iter(results))

    def beside(method: str, budget: str, found: Sequence[float]) -> str:
        theirs = published(first.data, first.model, method, budget, metric)
        return _mean(found) + (f" [{theirs:.4f}]" if theirs is not None and found else "")

    rows = [["full tables", *[beside(FULL, "1", full)] * len(budgets)]] if full else []
    for method in methods:
        row = [
            beside(
                method,
                budget,
                list(values(results, metric, method=method, budget=budget).values()),
            )
            for budget in budgets
        ]
        rows.append([method, *row])
    table = markdown([["", *budgets], *rows])
    note = "; in brackets what was published" if "[" in table else ""
    return f"Test {METRICS[metric]}{note}\n\n{table}"


def _costs(results: Results) -> str:
    """What a method's search and trainings took, means over budgets and seeds."""
    rows = []
    for method in dict.fromkeys(c.method for c in results if c.method != FULL):
        records = [r for c, r in results.items() if c.method == method and "search_seconds" in r]
        if not records:
            continue
        row = [method]
        for name in ("search_seconds", "search_peak_mb", "final_seconds", "trainings"):
            found = [float(r[name]) for r in records if r.get(name) is not None]
            row.append(f"{np.mean(found):.0f}" if found else "")
        rows.append(row)
    if not rows:
        return ""
    header = ["", "search, s", "its peak, MB", "trainings, s", "how many"]
    return (
        "What a cell took (the full model, which all share, is in none; the peak is the whole "
        "process's)\n\n" + markdown([header, *rows])
    )


def _mean(found: Sequence[float]) -> str:
    if not found:
        return ""
    mean = float(np.mean(found))
    return f"{mean:.4f}" + (f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def plot(results: Results, folder: Path) -> list[Path]:
    """One picture a task: the main test metric against bytes, a line a method."""
    written = []
    for metric, alike in by_metric(results).items():
        for data, model in dict.fromkeys((c.data, c.model) for c in alike):
            own = {c: r for c, r in alike.items() if (c.data, c.model) == (data, model)}
            path = folder / f"{data}-{model}.png"
            written.append(plot_against_bytes(own, metric, METRICS[metric], path))
    return written

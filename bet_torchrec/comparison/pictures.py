"""Pictures of results: a test metric against the bytes that a method's tables really take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .cells import FULL, Cell, Share

BYTES = 4  # of a parameter, in fp32


def served_bytes(cell: Cell, record: Mapping[str, Any]) -> int:
    """Of a cell's tables: weights in fp32 unless the budget chose, and the places of entries."""
    if "bytes" in record:
        return int(record["bytes"])
    if cell.method != FULL and Share(cell.budget).in_bytes:
        return int(record["cost"])
    return BYTES * int(record["parameters"])


def plot_against_bytes(
    results: Mapping[Cell, Mapping[str, Any]], metric: str, label: str, path: Path
) -> Path:
    """One task's: a line a method, broken for budgets in bytes; the full model's as a level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    measured = {cell: record for cell, record in results.items() if "test" in record}
    methods = list(dict.fromkeys(cell.method for cell in measured if cell.method != FULL))
    colours = pyplot.get_cmap("tab20")
    for number, method in enumerate(methods):
        for in_bytes in (False, True):
            points = _points(measured, metric, method, in_bytes)
            if points:
                style = "--" if in_bytes else "-"
                named = f"{method}, bytes" if in_bytes else method
                colour = colours(number % 20)
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, marker="o", markersize=3, label=named, color=colour)
    full = [r["test"][metric] for cell, r in measured.items() if cell.method == FULL]
    if full:
        axes.axhline(float(np.mean(full)), color="grey", linewidth=0.8, label="full tables")
    axes.set(xscale="log", xlabel="bytes of all tables, indices included", ylabel=f"test {label}")
    cell = next(iter(results))
    axes.set_title(f"{cell.model} on {cell.data}")
    axes.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _points(
    results: Mapping[Cell, Mapping[str, Any]], metric: str, method: str, in_bytes: bool
) -> list[tuple[float, float]]:
    """(mean bytes, mean metric) of each budget of this kind."""
    points = []
    for budget in {cell.budget for cell in results if cell.method == method}:
        if Share(budget).in_bytes != in_bytes:
            continue
        found = {c: r for c, r in results.items() if (c.method, c.budget) == (method, budget)}
        size = float(np.mean([served_bytes(cell, record) for cell, record in found.items()]))
        points.append((size, float(np.mean([r["test"][metric] for r in found.values()]))))
    return sorted(points)

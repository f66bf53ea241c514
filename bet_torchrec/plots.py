"""Pictures of a plan (sizes against rank, and how the search got there) and of a frontier.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .planning.plan import SizePlan, TablePlan

# Okabe and Ito's colours: told apart by everyone, also in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8a8a8a"
STYLES = ("--", ":", "-.", (0, (8, 2)), (0, (1, 3)))  # one a reference; more are not drawn


def plot_sizes(
    plan: SizePlan,
    path: str | os.PathLike[str],
    *,
    references: Mapping[str, SizePlan] | None = None,
    title: str | None = None,
) -> None:
    """Draw every table's sizes against rank, both logarithmic, and write a PNG.

    ``references`` are other plans to compare with (equal sizes, say), drawn thin in the table's
    colour. Size 0 (dropped) has a line of its own below the others.
    """
    _save(sizes_figure(plan, references=references, title=title), path)


def sizes_figure(
    plan: SizePlan,
    *,
    references: Mapping[str, SizePlan] | None = None,
    title: str | None = None,
) -> Figure:
    """What ``plot_sizes`` writes."""
    figure, axes = _figure()
    floor = 0.5  # where a logarithmic axis shows size 0
    for colour, table in zip(_cycle(len(plan.tables)), plan.tables, strict=True):
        x, y = _steps(table, floor)
        axes.plot(x, y, color=colour, linewidth=2.4, label=f"{table.name} ({table.rows:,} rows)")
        for style, (name, other) in zip(
            ("--", ":", "-."), (references or {}).items(), strict=False
        ):
            twin = next((t for t in other.tables if t.name == table.name), None)
            if twin is not None:
                label = f"{name}: {table.name}"
                axes.plot(*_steps(twin, floor), style, color=colour, linewidth=1.3, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    widths = sorted({bucket.width for table in plan.tables for bucket in table.buckets})
    full = max(table.embedding_dim for table in plan.tables)
    _width_ticks(axes, widths, full, floor)
    axes.set_xlim(1, max(table.rows for table in plan.tables))
    axes.set_xlabel("rank (1 = most frequent)")
    axes.set_ylabel("size (dimensions)")
    axes.set_title(title or _headline(plan), loc="left", fontsize=11)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _legend(figure)
    return figure


def plot_fitness(
    fitness: Sequence[float],
    path: str | os.PathLike[str],
    *,
    iterations: Sequence[int] | None = None,
    kinds: Sequence[str] | None = None,
    references: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """Draw each probe's fitness against its iteration, with the best so far, and write a PNG.

    Args:
        fitness: (probes,) in the order they were made.
        iterations: (probes,) defaults to 0, 1, ...; several probes may share one.
        kinds: (probes,) how each was chosen; told apart by colour.
        references: values to compare with, as named horizontal lines.
    """
    figure = fitness_figure(
        fitness, iterations=iterations, kinds=kinds, references=references, title=title
    )
    _save(figure, path)


def fitness_figure(
    fitness: Sequence[float],
    *,
    iterations: Sequence[int] | None = None,
    kinds: Sequence[str] | None = None,
    references: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """What ``plot_fitness`` writes."""
    if not len(fitness):
        raise ValueError("expected at least one probe to draw, got an empty history")
    values = np.asarray(fitness, dtype=np.float64)
    x = np.arange(len(values)) if iterations is None else np.asarray(iterations)
    labels = ["probe"] * len(values) if kinds is None else list(kinds)
    if len(x) != len(values) or len(labels) != len(values):
        raise ValueError(
            f"expected as many iterations and kinds as probes ({len(values)}), "
            f"got {len(x)} and {len(labels)}"
        )
    figure, axes = _figure()
    best = np.fmax.accumulate(values)
    axes.step(x, best, where="post", color="#333333", linewidth=1.8, label="best so far", zorder=2)
    groups = list(dict.fromkeys(labels))
    for colour, marker, group in zip(_cycle(len(groups)), "osD^vPX" * 9, groups, strict=False):
        mine = np.array([label == group for label in labels])
        axes.scatter(
            x[mine],
            values[mine],
            s=34,
            color=colour,
            marker=marker,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
            label=group,
        )
    top = int(np.nanargmax(values))
    axes.annotate(
        f"{values[top]:.4f}",
        (x[top], values[top]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )
    for line, (name, value) in zip(STYLES, (references or {}).items(), strict=False):
        axes.axhline(value, color=GREY, linewidth=1.3, linestyle=line, label=f"{name} {value:.4f}")
    axes.margins(y=0.12)
    axes.set_xlabel("iteration")
    axes.set_ylabel("fitness (quality / full model's quality)")
    axes.locator_params(axis="x", integer=True)
    axes.set_title(title or f"{len(values)} probes", loc="left", fontsize=11)
    _legend(figure)
    return figure


def plot_frontier(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    reference: tuple[str, float] | None = None,
    quality: str = "quality",
    title: str | None = None,
) -> None:
    """Draw quality against bytes a row, a logarithmic axis, and write a PNG.

    Args:
        curves: {name: (bytes a row, qualities)}, both (points,), the former rising.
        reference: a name and its quality, as a line across.
    """
    figure, axes = _figure()
    marks = zip(curves.items(), _cycle(len(curves)), "osD^vPX" * 9, strict=False)
    for (name, (x, y)), colour, marker in marks:
        axes.plot(x, y, color=colour, marker=marker, markersize=5, label=name)
    if reference is not None:
        name, value = reference
        axes.axhline(value, color=GREY, linestyle="--", label=f"{name} {value:.4f}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("bytes a row, all counted")
    axes.set_ylabel(quality)
    axes.set_title(title or "quality by bytes", loc="left", fontsize=11)
    _legend(figure)
    _save(figure, path)


def _steps(table: TablePlan, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """A table's sizes as a staircase over ranks 1..rows; two points a bucket, whatever N is."""
    ends = np.cumsum([bucket.rows for bucket in table.buckets])
    starts = np.concatenate(([1], ends[:-1] + 1))
    widths = np.maximum([bucket.width for bucket in table.buckets], floor)
    return np.stack([starts, ends], axis=1).ravel(), np.repeat(widths, 2)


def _width_ticks(axes: Axes, widths: Sequence[int], full: int, floor: float) -> None:
    powers = [2**k for k in range(int(np.log2(full)) + 1) if 2**k >= max(1, widths[0])]
    ticks = [w for w in widths if w > 0] if len(widths) <= 9 else powers
    ticks = sorted({*ticks, full})
    drops = 0 in widths
    axes.set_yticks([floor, *ticks] if drops else ticks)
    axes.set_yticklabels((["0"] if drops else []) + [str(tick) for tick in ticks])
    axes.yaxis.set_tick_params(which="minor", left=False)
    axes.set_ylim(floor * 0.9 if drops else ticks[0] * 0.8, full * 1.25)


def _headline(plan: SizePlan) -> str:
    cost, limit = plan.cost(), plan.limit
    unit = "bytes" if plan.budget.unit == "bytes" else "parameters"
    return f"{plan.sizer}: {cost:,} of {limit:,} {unit} ({cost / max(limit, 1):.2%})"


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # takes half a second, so only where something is drawn

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _legend(figure: Figure) -> None:
    # Below the axes: nowhere inside is surely free of points.
    entries = len(figure.axes[0].get_legend_handles_labels()[1])
    columns = entries if entries <= 3 else 2 if entries == 4 else 3
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    figure.savefig(path, dpi=150, format="png")

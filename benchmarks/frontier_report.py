"""What the frontier's lines say: a table of bytes a row, and a picture a data set and model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

STEPS = (16.0, 12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5)
STAGES = ("before", "after")
Group = tuple[str, str, int]


def groups(lines: Iterable[Mapping[str, Any]]) -> dict[Group, list[Mapping[str, Any]]]:
    found: dict[Group, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        found[line["data"], line["model"], line["dim"]].append(line)
    return dict(found)


def best_within(
    lines: Sequence[Mapping[str, Any]], method: str, bytes_a_row: float, stage: str
) -> list[Mapping[str, Any]]:
    """Each seed's best on validation among a method's settings within so many bytes."""
    by_seed: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if line["method"] != method or line["bytes_a_row"] > bytes_a_row * (1 + 1e-9):
            continue
        best = by_seed.get(line["seed"])
        if best is None or line[stage]["validation"] > best[stage]["validation"]:
            by_seed[line["seed"]] = line
    return [by_seed[seed] for seed in sorted(by_seed)]


def methods(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(line["method"] for line in lines))


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: test AUC (and log loss) of each method's best on validation within the bytes."""
    parts = []
    for (data, model, dim), own in groups(lines).items():
        seeds = sorted({line["seed"] for line in own})
        full = [line for line in own if (line["method"], line["setting"]) == ("full", "fp32")]
        parts.append(f"## {data}, {model}, d {dim}, {len(seeds)} seeds\n")
        if full:
            parts.append(f"Full fp32, {4 * dim} bytes a row: {_cell(full, 'before')}\n")
        for stage, words in zip(STAGES, ("as they are", "trained on"), strict=True):
            names = methods(own)
            parts.append(f"\nTest AUC / log loss, {words}, within bytes a row:\n")
            parts.append("| bytes a row | " + " | ".join(names) + " |")
            parts.append("|---" * (len(names) + 1) + "|")
            for step in STEPS:
                cells = [_cell(best_within(own, name, step, stage), stage) for name in names]
                if any(cells):
                    parts.append(f"| {step:g} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts) + "\n"


def _cell(lines: Sequence[Mapping[str, Any]], stage: str) -> str:
    if not lines:
        return ""
    aucs = [line[stage]["auc"] for line in lines]
    spread = f" ± {stdev(aucs):.4f}" if len(aucs) > 1 else ""
    loss = mean(line[stage]["log_loss"] for line in lines)
    return f"{mean(aucs):.4f}{spread} / {loss:.4f}"


def pictures(lines: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """A PNG a data set and model: each method's best by bytes a row, the full table dashed."""
    from matplotlib.figure import Figure

    from bet_torchrec.plots import COLOURS, GREY

    written = []
    for (data, model, dim), own in groups(lines).items():
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        shared = None
        for number, (stage, words) in enumerate(
            zip(STAGES, ("as they are", "trained on"), strict=True)
        ):
            axes = figure.add_subplot(1, 2, number + 1, sharey=shared)
            shared = axes
            for colour, marker, method in zip(COLOURS, "os^Dv", methods(own), strict=False):
                steps, values = [], []
                for step in sorted(
                    {line["bytes_a_row"] for line in own if line["method"] == method}
                ):
                    best = best_within(own, method, step, stage)
                    steps.append(step)
                    values.append(mean(line[stage]["auc"] for line in best))
                label = None if number else method
                axes.plot(steps, values, color=colour, marker=marker, ms=4, label=label)
            full = [
                line[stage]["auc"]
                for line in own
                if (line["method"], line["setting"]) == ("full", "fp32")
            ]
            if full:
                axes.axhline(mean(full), color=GREY, linestyle="--", linewidth=1.2)
                low = min(line["after"]["auc"] for line in own)
                axes.set_ylim(bottom=max(low, mean(full) - 0.04), top=mean(full) + 0.004)
            axes.set_xscale("log", base=2)
            axes.set_xlim(0.4, 4.4 * dim)
            axes.set_xticks([0.5, 1, 2, 4, 8, 16, 4 * dim])
            axes.set_xticklabels(["½", "1", "2", "4", "8", "16", str(4 * dim)])
            axes.set_xlabel("bytes a row, all counted")
            axes.set_title(f"{data}, {model}, {words}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(True, color="#e6e6e6", linewidth=0.8)
        figure.axes[0].set_ylabel("test AUC")
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
        path = out.with_name(f"{out.stem}_{data}_{model}.png")
        figure.savefig(path, dpi=130, format="png")
        written.append(path)
    return written

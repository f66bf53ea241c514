"""The pictures are written, are PNGs, and refuse what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bet_torchrec.planning import (
    Budget,
    BudgetPlanner,
    EqualSizes,
    MixedRandom,
    SizePlan,
    TableSpec,
)
from bet_torchrec.plots import plot_fitness, plot_sizes

PNG = b"\x89PNG\r\n\x1a\n"


def make_plan(sizer: object, widths: tuple[int, ...] = (0, 1, 2, 4, 8)) -> SizePlan:
    tables = [
        TableSpec(name=name, num_embeddings=rows, embedding_dim=8)
        for name, rows in (("user", 40), ("item", 7))
    ]
    counts = {t.name: np.arange(t.num_embeddings)[::-1] for t in tables}
    planner = BudgetPlanner(budget=Budget.parameters(60), widths=widths, sizer=sizer, seed=1)  # type: ignore[arg-type]
    return planner.plan(tables, counts)


@pytest.mark.parametrize("sizer", [EqualSizes(), MixedRandom()])
def test_sizes_are_drawn_with_references_and_dropped_rows(tmp_path: Path, sizer: object):
    plot_sizes(make_plan(sizer), tmp_path / "a.png", references={"es": make_plan(EqualSizes())})
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_fitness_is_drawn(tmp_path: Path):
    plot_fitness(
        [0.5, 0.7, 0.6],
        tmp_path / "a.png",
        iterations=[0, 1, 1],
        kinds=["random", "predicted", "predicted"],
        references={"equal sizes": 0.55},
    )
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_fitness_refuses_nothing_and_odd_lengths(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one probe"):
        plot_fitness([], tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"as many iterations and kinds as probes \(2\), got 2 and 1"
    ):
        plot_fitness([0.1, 0.2], tmp_path / "a.png", kinds=["random"])
    assert not (tmp_path / "a.png").exists()

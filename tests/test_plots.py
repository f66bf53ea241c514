"""The pictures show what they are given, are written whole, and refuse what cannot be drawn."""

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
from bet_torchrec.plots import fitness_figure, plot_fitness, plot_sizes, sizes_figure


def make_plan(sizer: object, widths: tuple[int, ...] = (0, 1, 2, 4, 8)) -> SizePlan:
    tables = [
        TableSpec(name=name, num_embeddings=rows, embedding_dim=8)
        for name, rows in (("user", 40), ("item", 7))
    ]
    counts = {t.name: np.arange(t.num_embeddings)[::-1] for t in tables}
    planner = BudgetPlanner(budget=Budget.parameters(60), widths=widths, sizer=sizer, seed=1)  # type: ignore[arg-type]
    return planner.plan(tables, counts)


def drawn(figure) -> dict[str, list[tuple[float, float]]]:
    """{label: the points of its line}."""
    (axes,) = figure.axes
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


@pytest.mark.parametrize("sizer", [EqualSizes(), MixedRandom()])
def test_every_bucket_is_a_step_dropped_rows_at_a_half(sizer: object):
    plan, equal = make_plan(sizer), make_plan(EqualSizes())
    lines = drawn(sizes_figure(plan, references={"es": equal}))
    for table in plan.tables:
        points = lines[f"{table.name} ({table.rows} rows)"]
        ranked = np.sort(table.sizes())[::-1]
        assert points[0][0] == 1
        assert points[-1][0] == table.rows
        assert all(size == max(ranked[int(rank) - 1], 0.5) for rank, size in points)
    assert lines["es: item"][0][1] == max(equal["item"].sizes().max(), 0.5)


def test_fitness_shows_every_probe_and_the_best_so_far():
    figure = fitness_figure(
        [0.5, 0.7, 0.6],
        iterations=[0, 1, 2],
        kinds=["random", "predicted", "predicted"],
        references={"equal sizes": 0.55},
    )
    lines = drawn(figure)
    assert lines["best so far"] == [(0, 0.5), (1, 0.7), (2, 0.7)]
    assert [y for _, y in lines["equal sizes 0.5500"]] == [0.55, 0.55]
    points = {c.get_label(): c.get_offsets().tolist() for c in figure.axes[0].collections}
    assert points == {"random": [[0, 0.5]], "predicted": [[1, 0.7], [2, 0.6]]}


def test_pictures_are_written(tmp_path: Path):
    from matplotlib.image import imread

    plot_sizes(make_plan(EqualSizes()), tmp_path / "sizes.png")
    plot_fitness([0.5, 0.7], tmp_path / "fitness.png")
    for name in ("sizes.png", "fitness.png"):
        pixels = imread(tmp_path / name)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 5


def test_fitness_refuses_nothing_and_odd_lengths(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one probe"):
        plot_fitness([], tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"as many iterations and kinds as probes \(2\), got 2 and 1"
    ):
        plot_fitness([0.1, 0.2], tmp_path / "a.png", kinds=["random"])
    assert not (tmp_path / "a.png").exists()

"""A comparison's cells, methods, results and report, on a tiny click task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bet_torchrec.comparison import METHODS, Cell, Settings, Share, grid, read_results, run_cells
from bet_torchrec.comparison import run as running
from bet_torchrec.comparison.report import duels, markdown, plot, report
from bet_torchrec.comparison.results import append_result
from bet_torchrec.comparison.tasks import Entry
from bet_torchrec.data.clicks import generate_clicks, split_random
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.planning import TableSpec
from bet_torchrec.tasks import ClickTask
from bet_torchrec.training import clicks

SETTINGS = Settings(probes=4, finalists=1, widths=(0, 1, 2, 4, 8), rates=(5e-3,))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The tasks of a grid are small ones, made up; which were asked for."""
    asked: list[Cell] = []

    def entry(cell: Cell, data_dir: Path | None, device: str) -> Entry:
        asked.append(cell)
        log = generate_clicks(3000, fields=(300, 50, 8), seed=cell.seed)
        split = split_random(log, seed=cell.seed).by_rank()[0]
        task = ClickTask(split, "fm", embedding_dim=cell.dim, batch_size=256, device=device)
        recipe = clicks(5e-3)
        training = dataclasses.replace(recipe.training, max_epochs=3)
        return Entry(task, training, recipe.fine_tuning, 0.3, (5e-3,), {"name": cell.data})

    monkeypatch.setattr(running, "make_entry", entry)
    return asked


def cells_of(*methods: str, budgets=("1/4", "1/8 bytes"), seeds=(0,)) -> list[Cell]:
    return grid(
        data=["made-up"], models=["fm"], methods=methods, budgets=budgets, seeds=seeds, dim=8
    )


def test_every_method_stays_within_its_budget_and_is_done_once(tiny, tmp_path: Path):
    cells = cells_of("full", *METHODS)
    assert {c.method for c in cells if c.budget == "1/4"} == {
        name for name, method in METHODS.items() if False in method.budgets
    }
    path = run_cells(cells, tmp_path, SETTINGS, progress=False)
    found = read_results(path)
    assert set(found) == set(cells)
    for cell, record in found.items():
        assert 0.4 < record["test"]["auc"] < 1
        assert record["settings"]["probes"] == 4
        if cell.method != "full":
            assert record["cost"] <= record["limit"]
            assert record["start"] in ("scratch", "full")
            assert record["validation"] > 0.5
    assert len(tiny) == 1  # one task for all
    before = path.read_bytes()
    assert run_cells(cells, tmp_path, SETTINGS, progress=False).read_bytes() == before
    text = report(found)
    assert "| full tables |" in text
    assert text.startswith("bet has the best mean AUC in ")
    assert [picture.name for picture in plot(found, tmp_path)] == ["made-up-fm.png"]


def test_nobody_is_given_more_than_others(tiny, tmp_path: Path):
    """A search may probe as often as random search, and train one plan more: equal sizes."""
    found = read_results(
        run_cells(cells_of("random", "bet", budgets=("1/4",)), tmp_path, SETTINGS, progress=False)
    )
    plans = {cell.method: record["plans"] for cell, record in found.items()}
    assert plans["random"] == 1
    assert plans["bet"] <= 2
    histories = list(tmp_path.rglob("history.jsonl"))
    lines = [path.read_text().count('"probe"') for path in histories]
    assert lines == [4, 4]


@pytest.mark.parametrize("text", ["", "x", "2", "0", "1/0", "1/4 bits", "1/4 bytes more"])
def test_budgets_that_are_none(text: str):
    with pytest.raises(InvalidInputError, match="a budget should be a share"):
        Share(text)


def test_budgets_are_shares_of_full_tables_in_fp32():
    tables = [TableSpec("a", 100, 8), TableSpec("b", 10, 8)]
    assert Share("1/16").budget(tables, ()).limit(tables) == 55
    served = Share("1/16 bytes").budget(tables, ("int8", "int4"))
    assert (served.limit(tables), served.dtypes, served.alignment) == (220, ("int8", "int4"), 1)


def test_unknown_methods_are_named():
    with pytest.raises(InvalidInputError, match=r"methods should be among .* got \['magic'\]"):
        cells_of("magic")


def result(cell: Cell, auc: float) -> dict:
    return {"cell": cell.asdict(), "test": {"auc": auc}}


def made_up(ours: list[float], rival: list[float]) -> dict[Cell, dict]:
    found = {}
    for seed, pair in enumerate(zip(ours, rival, strict=True)):
        for method, auc in zip(("bet", "equal"), pair, strict=True):
            cell = Cell(data="d", model="fm", dim=8, budget="1/16", method=method, seed=seed)
            found[cell] = result(cell, auc)
    return found


def test_the_report_says_first_what_is_lost_and_what_chance_explains():
    (won,) = duels(made_up([0.81, 0.82, 0.83], [0.80, 0.81, 0.82]), "auc")
    assert (won.rival, won.comparison.seeds) == ("equal", 3)
    assert won.comparison.mean_difference == pytest.approx(0.01)
    text = report(made_up([0.81, 0.82, 0.83], [0.80, 0.81, 0.8199]))
    assert text.splitlines()[0].endswith("1 of them beyond chance (p < .05 after Holm).")
    noisy = report(made_up([0.81, 0.80, 0.83], [0.80, 0.81, 0.82])).splitlines()[0]
    assert "1 of 1 comparisons with the best rival of each budget, 0 of them beyond" in noisy
    lost = report(made_up([0.79, 0.79], [0.80, 0.81])).splitlines()[0]
    assert lost.endswith("It does not win: fm on d at 1/16 (equal).")
    assert np.isnan(duels(made_up([0.81], [0.80]), "auc")[0].comparison.p)


def test_a_torn_last_line_is_left_out_and_others_are_not(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    records = [json.dumps(record) for record in made_up([0.8], [0.7]).values()]
    path.write_text("\n".join(records) + "\n" + records[0][:20])
    assert len(read_results(path)) == 2
    append_result(path, json.loads(records[1]))  # takes the torn one's place
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        json.loads(record) for record in (*records, records[1])
    ]
    path.write_text(records[0][:20] + "\n" + "\n".join(records) + "\n")
    with pytest.raises(InvalidInputError, match="line 1"):
        read_results(path)
    assert read_results(tmp_path / "none.jsonl") == {}


def test_markdown_by_hand():
    assert markdown([["", "x"], ["a", "1"]]) == "|  | x |\n|---|---|\n| a | 1 |"

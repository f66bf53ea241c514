"""A comparison's cells, methods, results and report, on a tiny click task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bet_torchrec import comparison, data
from bet_torchrec.cli import main
from bet_torchrec.comparison import (
    DEFAULTS,
    METHODS,
    Cell,
    Settings,
    Share,
    grid,
    read_results,
    rivals,
    run_cells,
)
from bet_torchrec.comparison import run as running
from bet_torchrec.comparison.memory import Peak
from bet_torchrec.comparison.pictures import served_bytes
from bet_torchrec.comparison.published import published
from bet_torchrec.comparison.report import duels, markdown, plot, report
from bet_torchrec.comparison.results import append_result
from bet_torchrec.comparison.run import run_cell
from bet_torchrec.comparison.tasks import Entry, make_entry
from bet_torchrec.data import generate
from bet_torchrec.data.clicks import generate_clicks, split_random
from bet_torchrec.errors import InvalidInputError
from bet_torchrec.outcome import Outcome
from bet_torchrec.planning import TableSpec
from bet_torchrec.tasks import ClickTask
from bet_torchrec.training import TrainingWorkbench, clicks

SETTINGS = Settings(
    probes=4, finalists=1, widths=(0, 1, 2, 4, 8), rates=(5e-3,), rounding=False
)  # which would take most of the time


RIVALS = {name for name, m in METHODS.items() if m.plans.__module__ == rivals.__name__}
"""Those of papers, which tests/tasks/test_rivals.py runs, each in a cell."""
SETTINGS_OF_BET = {f"bet-{m}" for m in ("m40", "m60", "m80", "t20", "t30", "t40")}


DIVERGED = SimpleNamespace(outcome=Outcome.diverged())


def tiny_entry(cell: Cell) -> Entry:
    log = generate_clicks(3000, fields=(300, 50, 8), seed=cell.seed)
    split = split_random(log, seed=cell.seed).by_rank()[0]
    task = ClickTask(split, "fm", embedding_dim=cell.dim, batch_size=256)
    recipe = clicks(5e-3)
    training = dataclasses.replace(recipe.training, max_epochs=3)
    return Entry(task, training, recipe.fine_tuning, (5e-3,), {"name": cell.data})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The tasks of a grid are small ones, made up; which were asked for."""
    asked: list[Cell] = []

    def entry(cell: Cell, data_dir: Path | None, device: str) -> Entry:
        asked.append(cell)
        return tiny_entry(cell)

    monkeypatch.setattr(running, "make_entry", entry)
    return asked


def cells_of(*methods: str, budgets=("1/4", "1/8 bytes"), seeds=(0,)) -> list[Cell]:
    return grid(
        data=["made-up"], models=["fm"], methods=methods, budgets=budgets, seeds=seeds, dim=8
    )


def test_every_method_stays_within_its_budget_and_is_done_once(tiny, tmp_path: Path):
    asked = [name for name in METHODS if name not in {*SETTINGS_OF_BET, *RIVALS}]
    cells = cells_of("full", *asked)
    assert {c.method for c in cells if c.budget == "1/4"} == {
        name for name in asked if False in METHODS[name].budgets
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


def test_what_is_coded_is_trained_on_and_told_like_the_others(tiny, tmp_path: Path):
    cells = cells_of("int4", "compress", budgets=("1/4", "1/16 bytes", "1/100000 bytes"))
    found = read_results(run_cells(cells, tmp_path, SETTINGS, progress=False))
    assert {cell.budget for cell in found} == {"1/16 bytes", "1/100000 bytes"}
    equal, ours = (found[cell] for cell in cells if cell.budget == "1/16 bytes")
    assert found[cells[-1]]["infeasible"]  # not even axes fit
    assert set(equal) <= set(ours)  # every figure, and bytes with the codes' places
    assert (ours["start"], ours["trainings"], equal["trainings"]) == ("full", 1, 2)
    assert 0.9 * ours["limit"] < ours["cost"] == ours["bytes"] <= ours["limit"]
    assert ours["parameters"] * 4 <= ours["cost"] + 3
    assert ours["summary"].startswith("compress: ")
    kept = list((tmp_path / "made-up-fm-8-0" / "models").glob("built-*.safetensors"))
    again = run_cell(cells[1], tiny_entry(cells[1]), tmp_path, SETTINGS)
    assert (again["validation"], again["test"]) == (ours["validation"], ours["test"])
    assert list((tmp_path / "made-up-fm-8-0" / "models").glob("built-*.safetensors")) == kept


def test_everybody_is_trained_through_the_rounding(tiny, tmp_path: Path):
    cells = cells_of("int2", budgets=("1/16 bytes",))
    found = [
        read_results(run_cells(cells, tmp_path / str(on), settings, progress=False))[cells[0]]
        for on in (False, True)
        for settings in [dataclasses.replace(SETTINGS, rounding=on)]
    ]
    without, with_it = found
    assert (without["settings"]["rounding"], with_it["settings"]["rounding"]) == (False, True)
    assert with_it["validation"] > without["validation"]


@pytest.mark.parametrize("text", ["", "x", "2", "0", "1/0", "1/4 bits", "1/4 bytes more"])
def test_budgets_that_are_none(text: str):
    with pytest.raises(InvalidInputError, match="a budget should be a share"):
        Share(text)


def test_budgets_are_shares_of_full_tables_in_fp32():
    tables = [TableSpec("a", 100, 8), TableSpec("b", 10, 8)]
    assert Share("1/16").budget(tables, ()).limit(tables) == 55
    served = Share("1/16 bytes").budget(tables, ("int8", "int4"))
    assert (served.limit(tables), served.dtypes, served.alignment) == (220, ("int8", "int4"), 1)


@pytest.mark.parametrize(
    ("backbone", "rates"), [("lightgcn", (0.03, 0.06)), ("ncf", (0.005, 0.01))]
)
def test_little_data_is_ranked_in_enough_steps(backbone, rates, monkeypatch):
    known = generate(num_users=200, num_items=80, interactions=3000, seed=0)
    monkeypatch.setattr(data, "load", lambda name, data_dir: known)
    entry = make_entry(
        Cell(data="ml-100k", model=backbone, dim=8, budget="1/4", method="equal", seed=0)
    )
    assert 9 <= entry.task.steps_per_epoch <= 11
    assert entry.rates == rates
    assert entry.training.lr == rates[0]


def test_unknown_methods_are_named():
    with pytest.raises(InvalidInputError, match=r"methods should be among .* got \['magic'\]"):
        cells_of("magic")


def result(cell: Cell, auc: float) -> dict:
    return {"cell": cell.asdict(), "test": {"auc": auc}}


def made_up(
    ours: list[float], rival: list[float], name: str = "equal", budget: str = "1/16"
) -> dict[Cell, dict]:
    found = {}
    for seed, pair in enumerate(zip(ours, rival, strict=True)):
        for method, auc in zip(("bet", name), pair, strict=True):
            cell = Cell(data="d", model="fm", dim=8, budget=budget, method=method, seed=seed)
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


def test_clicks_and_rankings_in_one_file_are_reported_one_after_the_other(tmp_path: Path):
    results = made_up([0.8, 0.8], [0.7, 0.7])
    for cell, record in made_up([0.2, 0.2], [0.3, 0.3]).items():
        ranking = dataclasses.replace(cell, model="lightgcn")
        results[ranking] = {**record, "parameters": 9, "test": {"recall@20": record["test"]["auc"]}}
    said = [line for line in report(results).splitlines() if line.startswith("bet has")]
    assert [line[:38] for line in said] == [
        "bet has the best mean AUC in 1 of 1 co", "bet has the best mean Recall@20 in 0 o",
    ]  # fmt: skip
    for record in results.values():
        record["parameters"] = 9
    assert [p.name for p in plot(results, tmp_path)] == ["d-fm.png", "d-lightgcn.png"]


def test_losing_to_what_is_our_own_is_losing_and_so_is_coming_to_nothing(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    results = made_up([0.8, 0.8], [0.9, 0.9], "compress", "1/16 bytes")
    results |= made_up([0.8, 0.8], [0.7, 0.7]) | made_up([0.8, 0.8], [0.8, 0.8], "pep", "1/64")
    results |= made_up([0.8, 0.8], [0.81, 0.81], "bet-t40", "1/4")
    nothing = made_up([0.0], [0.6], "int2", "1/99 bytes")
    nothing[next(iter(nothing))].pop("test")
    for record in (results | nothing).values():
        if "test" not in record:
            record["infeasible"] = True
        append_result(path, record)
    assert report(read_results(path)).splitlines()[0] == (
        "bet has the best mean AUC in 1 of 4 comparisons with the best rival of each budget, 1 of "
        "them beyond chance (p < .05 after Holm). It does not win: fm on d at 1/16 bytes "
        "(compress, also ours), fm on d at 1/4 (bet-t40, a variant of bet), fm on d at 1/64 (pep). "
        "bet comes to nothing where others don't: fm on d at 1/99 bytes, seed 0 (infeasible)."
    )
    # Seen from the other of ours.
    first = report(results, ours="compress").splitlines()[0]
    assert "compress has the best mean AUC in 1 of 1" in first


def test_by_default_all_rivals_are_compared(tmp_path: Path, monkeypatch, capsys):
    assert set(DEFAULTS) > RIVALS
    assert {"full", "equal", "mr", "int4", "random", "compress", "bet"} < set(DEFAULTS)
    assert not any(name.startswith("bet-") for name in DEFAULTS)
    ran: list[Cell] = []
    monkeypatch.setattr(comparison, "run_cells", lambda cells, *_, **__: ran.extend(cells))
    argv = ["compare", "--data", "frappe", "--models", "fm", "--budgets", "1/16,1/16 bytes"]
    assert main([*argv, "--seeds", "1", "--run-dir", str(tmp_path), "--quiet"]) == 0
    asked = {(cell.method, Share(cell.budget).in_bytes) for cell in ran if cell.method != "full"}
    methods = [name for name in DEFAULTS if name != "full"]
    assert asked == {(name, kind) for name in methods for kind in METHODS[name].budgets}


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


def test_figures_stand_beside_the_published_ones_and_costs_below():
    def cell(method, budget):
        return Cell(data="gowalla", model="lightgcn", dim=128, budget=budget, method=method, seed=0)

    test = {"recall@20": 0.2, "ndcg@20": 0.1}
    spent = {"search_seconds": 12.4, "search_peak_mb": 700, "final_seconds": 3, "trainings": 4}
    text = report(
        {
            cell("equal", "1/20"): {"test": test, **spent},
            cell("equal", "1/10 bytes"): {"test": test, **spent, "search_peak_mb": None},
            cell("bet", "1/20"): {"test": test},
        }
    )
    assert "| equal | 0.2000 [0.1085] | 0.2000 |" in text
    assert "| bet | 0.2000 [0.1374] |  |" in text
    assert "| equal | 12 | 700 | 3 | 4 |" in text


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("gowalla", "ngcf", "bet", "1/20", "ndcg@20"), None),  # a misprint there
        (("gowalla", "ngcf", "bet", "0.05", "recall@20"), 0.1172),
        (("gowalla", "ngcf", "bet", "0.05 bytes", "recall@20"), None),
        (("frappe", "fm", "full", "1", "auc"), 0.9671),
        (("frappe", "fm", "bet", "1/16", "auc"), None),
    ],
)
def test_published_figures(where, value):
    assert published(*where) == value


def test_pictures_count_what_is_really_served():
    def cell(budget, method="pep-mask"):
        return Cell(data="d", model="fm", dim=8, budget=budget, method=method, seed=0)

    assert served_bytes(cell("1/4"), {"parameters": 10, "cost": 10}) == 40
    assert served_bytes(cell("1/4"), {"parameters": 10, "cost": 10, "bytes": 99}) == 99
    assert served_bytes(cell("1/4 bytes"), {"parameters": 10, "cost": 25}) == 25
    assert served_bytes(cell("1", "full"), {"parameters": 10}) == 40


def test_the_peak_is_of_the_stretch_that_was_watched():
    before = Peak(torch.device("cpu"))
    block = np.ones(50 << 17)  # 50 MB
    with_block = before.megabytes()
    del block
    after = Peak(torch.device("cpu")).megabytes()
    if with_block is None or after is None:
        pytest.skip("this system does not tell a process's peak")
    assert with_block - after >= 45


def test_a_method_that_diverges_leaves_the_others_their_results(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingWorkbench, "train_model", lambda *_, **__: DIVERGED)
    cells = cells_of("equal", "full", budgets=("1/4",))
    found = read_results(run_cells(cells, tmp_path, SETTINGS, progress=False))
    equal, full = (found[cell] for cell in cells)
    assert equal["diverged"].startswith("all 2 trainings diverged")
    assert full["test"]["auc"] > 0.5
    assert "| full tables |" in report(found)

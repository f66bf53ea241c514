"""Running a grid: cell by cell, each resumable, results appended as they come."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DivergedError
from ..planning.sizers import FormPlan, Start
from ..progress import progress_bar
from ..provenance import provenance
from ..training import TrainingWorkbench, rounding_epochs
from .cells import FULL, Cell, Share
from .contest import Contest
from .memory import Peak
from .methods import METHODS, feasible
from .results import append_result, read_results
from .tasks import Entry, make_entry

RESULTS = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods share; see ``Contest``. rates: None for the task's own.

    rounding: under budgets in bytes all full trainings end with epochs with rows read as they will
    be served, as many for all, kept where validation likes them; compress has no other training.
    """

    probes: int = 30
    finalists: int = 3
    starts: tuple[Start, ...] = ("scratch", "full")
    rates: tuple[float, ...] | None = None
    widths: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    dtypes: tuple[str, ...] = ("int8", "int4", "int2")
    rounding: bool = True


def run_cells(
    cells: Iterable[Cell],
    folder: Path,
    settings: Settings | None = None,
    *,
    data_dir: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Run what ``folder`` has no result of yet; returns the results' file.

    Several processes may share a folder, each with cells of its own.
    """
    settings = settings or Settings()
    path = folder / RESULTS
    done = read_results(path)
    todo = [cell for cell in cells if cell not in done]
    entries: dict[tuple[str, str, int, int], Entry] = {}
    with progress_bar(todo, desc="cells", shown=progress) as bar:
        for cell in bar:
            bar.set_postfix_str(f"{cell.data} {cell.model} {cell.budget} {cell.method} {cell.seed}")
            group = (cell.data, cell.model, cell.dim, cell.seed)
            if group not in entries:
                entries = {group: make_entry(cell, data_dir, device)}  # one at a time in memory
            record = run_cell(cell, entries[group], folder, settings, device=device)
            append_result(path, record)
    return path


def run_cell(
    cell: Cell, entry: Entry, folder: Path, settings: Settings, *, device: str = "cpu"
) -> dict[str, Any]:
    """One cell's record; its models are kept in the folder of its task, which others share."""
    began = time.perf_counter()
    shared = folder / f"{cell.data}-{cell.model}-{cell.dim}-{cell.seed}"
    bench = TrainingWorkbench(
        entry.task,
        training=entry.training,
        fine_tuning=entry.fine_tuning,
        probe_share=entry.probe_share,
        foresight=entry.foresight,
        run_dir=shared,
        seed=cell.seed,
        device=device,
    )
    if settings.rounding and cell.method != FULL and Share(cell.budget).in_bytes:
        steps, taken = entry.task.steps_per_epoch, bench.full().outcome.epochs
        bench.rounding = rounding_epochs(entry.training, steps, trained=taken)
    widths = tuple(width for width in settings.widths if width <= cell.dim)
    contest = Contest(
        bench=bench,
        budget=Share(cell.budget).budget(bench.tables, settings.dtypes),
        widths=widths,
        probes=settings.probes,
        finalists=settings.finalists,
        starts=settings.starts,
        rates=settings.rates or entry.rates,
        seed=cell.seed,
        run_dir=shared / cell.key,
    )
    record = {
        "cell": cell.asdict(),
        **_measured(cell, contest),
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    origin = provenance(seed=cell.seed, settings=asdict(settings), data=entry.data)
    return {**record, **{k: origin[k] for k in ("settings", "data", "versions", "git", "started")}}


def _measured(cell: Cell, contest: Contest) -> dict[str, Any]:
    parameters = sum(table.parameters for table in contest.bench.tables)
    if cell.method == FULL:
        trained = contest.full()
        return {
            "parameters": parameters,
            "validation": trained.quality,
            "test": trained.evaluate().mean(),
            "epochs": trained.outcome.epochs,
        }
    searching = time.perf_counter()
    contest.bench.full()  # what all methods stand on is nobody's cost
    pretraining = time.perf_counter() - searching
    memory = Peak(contest.bench.device)
    plans = feasible(contest, METHODS[cell.method])
    searching = time.perf_counter() - searching - pretraining
    searched = memory.megabytes()
    if plans is None:
        return {"infeasible": True}
    try:
        final = contest.final(plans)
    except DivergedError as error:  # the rest of a long grid is worth having
        return {"diverged": str(error)}
    return {
        "parameters": final.plan.parameters(),
        "cost": final.plan.cost(),
        # with the places of entries that lie anywhere, which papers don't count
        **({"bytes": final.plan.bytes()} if isinstance(final.plan, FormPlan) else {}),
        "limit": final.plan.limit,
        "validation": final.quality,
        "test": final.trained.evaluate().mean(),
        "epochs": final.trained.outcome.epochs,
        "start": final.start,
        "lr": final.rate,
        "plans": len(plans),
        "search_seconds": round(searching, 2),
        "search_peak_mb": searched,
        "final_seconds": round(contest.spent["finals"], 2),
        "trainings": int(contest.spent["trainings"]),
        "summary": final.plan.summary(),
    }

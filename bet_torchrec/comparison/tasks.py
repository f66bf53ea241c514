"""Tasks by name, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tasks import ClickTask, RankingTask, Task
from ..training import TrainSettings, clicks, fast, of_size
from .cells import BACKBONES, Cell

CLICK_BATCH = 4096
CLICK_L2 = {
    "movielens-1m-clicks": 1e-2,
    "frappe": 0.0,
    "renttherunway": 3e-2,
}  # found on full models' validation
OTHER_L2 = 1e-2
CLICK_RATES = {
    "movielens-1m-clicks": (5e-3,),
    "frappe": (1e-2,),
    "renttherunway": (1e-3,),
    "epinions": (1e-3,),
}
OTHER_RATES = (3e-3,)


@dataclass(frozen=True)
class Entry:
    """task: what is learnt. training, fine_tuning, probe_share, foresight: of its models and of
    probes. rates: that full trainings are tuned over. data: what identifies the data."""

    task: Task
    training: TrainSettings
    fine_tuning: TrainSettings
    rates: tuple[float, ...]
    data: dict[str, Any]
    probe_share: float = 0.0
    foresight: float = 0.0


def make_entry(cell: Cell, data_dir: Path | None = None, device: str = "cpu") -> Entry:
    """The task of a cell, on a split of its seed with ids in rank order."""
    if cell.model in BACKBONES:
        return _ranking(cell, data_dir, device)
    from ..data.clicks import load_clicks

    split = load_clicks(cell.data, data_dir=data_dir, seed=cell.seed).by_rank()[0].compact()
    model: Any = cell.model
    task = ClickTask(
        split,
        model,
        embedding_dim=cell.dim,
        batch_size=CLICK_BATCH,
        device=device,
        l2=CLICK_L2.get(cell.data, OTHER_L2),
    )
    rates = CLICK_RATES.get(cell.data, OTHER_RATES)
    recipe = clicks(rates[0])
    return Entry(
        task,
        recipe.training,
        recipe.fine_tuning,
        rates,
        {"name": cell.data, "fingerprint": split.fingerprint()},
        recipe.probe_share,
        recipe.foresight,
    )


def _ranking(cell: Cell, data_dir: Path | None, device: str) -> Entry:
    from ..data import load, random_split

    split = random_split(load(cell.data, data_dir=data_dir), seed=cell.seed).by_rank()
    backbone: Any = cell.model
    recipe = of_size(backbone, len(split.train))
    task = RankingTask(
        split,
        backbone,
        embedding_dim=cell.dim,
        bpr=recipe.bpr,
        device=device,
    )
    rate = recipe.training.lr
    digest = "-".join(part.fingerprint() for part in split.parts())
    return Entry(
        task,
        recipe.training,
        recipe.fine_tuning,
        (rate, rate / 2 if recipe == fast(backbone) else 2 * rate),
        {"name": cell.data, "fingerprint": digest},
    )

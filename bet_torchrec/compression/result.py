"""What ``compress`` gives back: coded tables with their model, and what was lost by budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..column_codes import CodedEmbedding
from ..errors import InvalidInputError
from ..files import replace_file
from ..serving.column_codes import CodedTable, write_coded_tables
from ..training.checkpoint import save_state

CODES = "codes.safetensors"
MODEL = "model.safetensors"
REPORT = "report.json"
CURVE = "curve.png"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One budget. limit, bytes: what was asked for and what is used. before, after: validation
    quality with the tables coded, and trained on so (never less than before)."""

    limit: int
    bytes: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """metric: of all qualities, higher is better. full_quality, full_bytes: of the model as it
    came, its tables in fp32. rows: of all tables. points: one a budget, in the order asked for."""

    metric: str
    full_quality: float
    full_bytes: int
    rows: int
    points: tuple[Point, ...]

    def __str__(self) -> str:
        """A Markdown table."""
        full = f"{self.full_bytes:,} | {self.full_bytes / self.rows:.2f}"
        lines = [
            "| bytes | bytes a row | of fp32 | validation, coded | trained on | lost |",
            "|---|---|---|---|---|---|",
            f"| {full} | 1 | {self.full_quality:.5f} | | |",
        ]
        for point in self.points:
            share = self.full_bytes / point.bytes
            lines.append(
                f"| {point.bytes:,} | {point.bytes / self.rows:.2f} | 1/{share:.1f} | "
                f"{point.before:.5f} | {point.after:.5f} | {self.full_quality - point.after:+.5f} |"
            )
        return f"Quality ({self.metric}) on validation\n\n" + "\n".join(lines) + "\n"

    def asdict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)

    def plot(self, path: str | Path) -> Path:
        """Draw quality against bytes a row, before and after training on, as a PNG."""
        from ..plots import plot_frontier

        ranked = sorted(self.points, key=lambda point: point.bytes)
        bytes_a_row = [point.bytes / self.rows for point in ranked]
        plot_frontier(
            {
                "coded": (bytes_a_row, [point.before for point in ranked]),
                "trained on": (bytes_a_row, [point.after for point in ranked]),
            },
            path,
            reference=("as it came, fp32", self.full_quality),
            quality=f"validation {self.metric}",
        )
        return Path(path)


@dataclass(frozen=True, eq=False, kw_only=True)
class Compressed:
    """One budget's model. model: the task's, trained on with its tables. tables: the codes, by
    table. point: what it costs and what was lost."""

    task: Any
    model: nn.Module
    tables: Mapping[str, CodedTable]
    point: Point

    @property
    def bytes(self) -> int:
        """All that is served of the tables."""
        return self.point.bytes

    def embedding(self) -> CodedEmbedding:
        """The tables as an embedding module, for the task's ``evaluate`` and for serving."""
        return CodedEmbedding(self.tables)

    def evaluate(self, *, part: str = "test", **options: Any) -> Any:
        """The task's metrics of the coded tables."""
        return self.task.evaluate(self.model, self.embedding(), part=part, **options)

    def deploy(self) -> nn.Module:
        """A TorchRec user's own model around a collection of the coded tables, for serving.

        Raises:
            InvalidInputError: the task is none of a user's own model, or it does not pool.
        """
        if not hasattr(self.task, "coded"):
            raise InvalidInputError(
                f"deploy is for a TorchRecTask, got {type(self.task).__name__}: look rows up in "
                "embedding(), or read the saved codes with bet_torchrec.serving"
            )
        made: nn.Module = self.task.around(self.task.coded(self.tables), self.model)
        return made.eval()

    def save(self, folder: str | Path) -> Path:
        """Write codes, model weights and the point into a folder, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_coded_tables(self.tables, folder / CODES)
        save_state(folder / MODEL, dict(self.model.state_dict()), {"point": asdict(self.point)})
        return folder


@dataclass(frozen=True, eq=False, kw_only=True)
class Compression:
    """forms: one a budget, in the order asked for. report: what was lost at each."""

    forms: tuple[Compressed, ...]
    report: CompressionReport

    @property
    def model(self) -> nn.Module:
        """The first budget's."""
        return self.forms[0].model

    @property
    def tables(self) -> Mapping[str, CodedTable]:
        """The first budget's."""
        return self.forms[0].tables

    def save(self, folder: str | Path) -> Path:
        """Write every budget's folder (named by its bytes), the report and its picture."""
        folder = Path(folder)
        for form in self.forms:
            form.save(folder / str(form.point.limit))
        replace_file(folder / REPORT, json.dumps(self.report.asdict(), indent=2) + "\n")
        self.report.plot(folder / CURVE)
        return folder

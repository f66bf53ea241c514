"""A trained backbone with its tables: evaluated, saved and read back as one thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..evaluation import KS, Metrics, evaluate
from ..models.protocol import Scores
from .bpr import TrainResult
from .checkpoint import CheckpointError, load_state, save_state
from .sized_embedding import SizedEmbedding

if TYPE_CHECKING:
    from ..data import Split


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel:
    """backbone: its weights. embedding: its tables. result: how training went.

    precisions: {table: one precision a row, or one for all}; tables named there are read as
    row-wise quantisation leaves them, in every evaluation. None: fp32.
    """

    backbone: nn.Module
    embedding: SizedEmbedding
    result: TrainResult
    precisions: Mapping[str, ArrayLike | str] | None = None

    @property
    def quality(self) -> float:
        """Validation quality (Eq. 13) of these weights."""
        return self.result.quality

    def scores(self) -> Scores:
        """What ``evaluation.evaluate`` ranks by."""
        return model_scores(self.backbone, self.embedding, self.precisions)

    def evaluate(
        self,
        split: Split,
        *,
        on: Literal["validation", "test"] = "test",
        mask: Literal["train", "train+validation"] | None = None,
        ks: Sequence[int] = KS,
        users: ArrayLike | None = None,
    ) -> Metrics:
        """Every user's Recall and NDCG; arguments as in ``evaluation.evaluate``."""
        return evaluate(self.scores(), split, on=on, mask=mask, ks=ks, users=users)

    def save(self, path: Path, *, facts: Mapping[str, Any] | None = None) -> None:
        """Write weights and result as one safetensors file; ``facts`` go along."""
        tensors = {f"backbone/{k}": v for k, v in self.backbone.state_dict().items()}
        tensors |= {f"embedding/{k}": v for k, v in self.embedding.state_dict().items()}
        save_state(path, tensors, {**(facts or {}), "result": dataclasses.asdict(self.result)})

    @classmethod
    def load(
        cls,
        path: Path,
        backbone: nn.Module,
        embedding: SizedEmbedding,
        *,
        precisions: Mapping[str, ArrayLike | str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> TrainedModel:
        """Read weights into ``backbone`` and ``embedding``, which must be built alike.

        Raises:
            CheckpointError: ``facts`` differ from those saved, or the weights do not fit.
            FileNotFoundError: there is no such file.
        """
        tensors, saved = load_state(path)
        result = saved.pop("result", None)
        if result is None or (facts is not None and saved != dict(facts)):
            raise CheckpointError(f"{path} holds another model than the one asked for: remove it")
        result["history"] = tuple((step, quality) for step, quality in result["history"])
        try:
            for part, module in (("backbone", backbone), ("embedding", embedding)):
                own = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(part)}
                module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"the weights in {path} do not fit: {error}") from error
        return cls(
            backbone=backbone.eval(),
            embedding=embedding,
            result=TrainResult(**result),
            precisions=precisions,
        )


def model_scores(
    backbone: nn.Module,
    embedding: SizedEmbedding,
    precisions: Mapping[str, ArrayLike | str] | None = None,
) -> Scores:
    """Scores in evaluation mode, over quantised rows if ``precisions`` says so."""
    was_training = backbone.training
    backbone.eval()
    try:
        tables = embedding if precisions is None else embedding.quantised(precisions)
        return backbone.scores(tables)  # type: ignore[operator]
    finally:
        backbone.train(was_training)


def precisions_of(plan: Any) -> dict[str, NDArray[np.str_]] | None:
    """{table: its rows' precisions in id order}, or None where all rows are fp32."""
    planned = getattr(plan, "tables", ())
    if not any(bucket.precision != "fp32" for table in planned for bucket in table.buckets):
        return None
    found = {}
    for table in planned:
        ranked = np.repeat(
            np.array([bucket.precision for bucket in table.buckets]),
            [bucket.rows for bucket in table.buckets],
        )
        rows = ranked.copy()
        if table.order is not None:
            rows[table.order] = ranked
        found[table.name] = rows
    return found


def untrained(quality: float, *, stopped: str = "epochs") -> TrainResult:
    """The result of no training at all."""
    return TrainResult(
        quality=quality,
        steps=0,
        epochs=0.0,
        best_step=0,
        seconds=0.0,
        history=((0, quality),),
        stopped=stopped,
    )

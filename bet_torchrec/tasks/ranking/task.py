"""Ranking from users' interactions: a backbone, BPR, exact full ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...errors import InvalidInputError
from ...evaluation import KS, Metrics
from ...models import BipartiteGraph, PartitionedGraph, make_backbone
from ...models.protocol import BPRTerms, EmbeddingModule, Scores
from ...planning.counts import RowCounts
from ...planning.tables import TableSpec
from ...team import Team, team
from ..task import Part
from .sampling import BPRSampler, SamplerName
from .sharded_evaluation import evaluate_together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ...data import Split

BackboneName: TypeAlias = Literal["lightgcn", "ngcf", "ncf"]
PAPER_L2: Mapping[BackboneName, float] = {"lightgcn": 1e-4, "ngcf": 1e-3, "ncf": 1e-2}
CHECKED_USERS = 6  # "check" is over every so many-th user


@dataclass(frozen=True, kw_only=True)
class BPR:
    """How BPR draws its batches and what its rows cost it; the defaults are BET's published ones.

    batch_size: triples a step, over all ranks. sampler: "users" draws distinct users with one of
    their items each, "pairs" passes over all interactions. l2: weight of half the squared norm of
    the batch's rows.
    """

    batch_size: int = 10_000
    sampler: SamplerName = "users"
    l2: float = 1e-4

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise InvalidInputError(
                f"batch_size should be an int of at least 1, got {self.batch_size!r}"
            )
        if self.sampler not in ("users", "pairs"):
            raise InvalidInputError(f"sampler should be 'users' or 'pairs', got {self.sampler!r}")
        if not 0 <= self.l2 < float("inf"):
            raise InvalidInputError(f"l2 should be at least 0 and finite, got {self.l2!r}")

    @classmethod
    def paper(cls, backbone: BackboneName = "lightgcn") -> BPR:
        """BET's for this backbone."""
        return cls(l2=PAPER_L2[backbone])


class Triples(NamedTuple):
    """users, positives, negatives: int64 ids, (B,) each, this rank's. examples: what sums are
    divided by: the global batch's triples / ranks."""

    users: Tensor
    positives: Tensor
    negatives: Tensor
    examples: float


def bpr_loss(terms: BPRTerms, l2: float, *, examples: float | None = None) -> Tensor:
    """(sum of softplus(-margin) + l2 * half the squared norm of the batch's rows) / examples.

    examples: B, the number of examples, unless given.
    """
    examples = len(terms.margin) if examples is None else examples
    loss = F.softplus(-terms.margin).sum() / examples
    if l2:
        loss = loss + terms.l2 * (l2 / examples)
    return loss


class RankingTask:
    """One backbone on one split; implements ``Task``.

    split: training items are masked and validation items relevant in every quality here.
    backbone: "lightgcn", "ngcf" or "ncf". embedding_dim: d_max, of every table. bpr: the loss's
    settings, BET's for the backbone unless given. process_group: all its ranks share the work,
    each with its part of the graph, of every batch and of the users.
    Quality is Eq. 13 of the BET paper: the mean over users of the mean over k in {5, 10, 20} of
    (Recall@k + NDCG@k) / 2.
    """

    def __init__(
        self,
        split: Split,
        backbone: BackboneName = "lightgcn",
        *,
        embedding_dim: int = 128,
        bpr: BPR | None = None,
        process_group: ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if embedding_dim < 1:
            raise InvalidInputError(f"embedding_dim should be at least 1, got {embedding_dim}")
        self.split = split
        self.backbone: BackboneName = backbone
        self.embedding_dim = embedding_dim
        self.bpr = BPR.paper(backbone) if bpr is None else bpr
        self.device = torch.device(device)
        self.team: Team = team(process_group)
        self._pg = process_group
        self._samplers: dict[int, BPRSampler] = {}

    @cached_property
    def graph(self) -> BipartiteGraph:
        """Of the training interactions; in a group this rank's part of it."""
        interactions = self.split.train.csr()
        if self._pg is None:
            return BipartiteGraph(interactions).to(self.device)
        return PartitionedGraph(interactions, self._pg).to(self.device)

    @cached_property
    def _sides(self) -> dict[str, str]:
        return dict(self.new_model(0).table_sides)  # type: ignore[arg-type]

    @property
    def tables(self) -> tuple[TableSpec, ...]:
        rows = {"user": self.split.train.num_users, "item": self.split.train.num_items}
        return tuple(
            TableSpec(name=name, num_embeddings=rows[side], embedding_dim=self.embedding_dim)
            for name, side in self._sides.items()
        )

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler(0).steps_per_epoch

    def counts(self) -> dict[str, RowCounts]:
        by_side = {k: RowCounts.from_rows(v) for k, v in self.split.train.counts().items()}
        return {name: by_side[side] for name, side in self._sides.items()}

    def identity(self) -> dict[str, Any]:
        return {
            "task": "ranking",
            "model": self.backbone,
            "embedding_dim": self.embedding_dim,
            "loss": {"bpr": dataclasses.asdict(self.bpr)},
            "metric": "mean of recall and ndcg at 5, 10, 20",
            "train": self.split.train.fingerprint(),
            "validation": self.split.validation.fingerprint(),
        }

    def new_model(self, seed: int) -> nn.Module:
        """A fresh backbone over the training graph; the graph itself is shared."""
        module = make_backbone(self.backbone, self.graph, dim=self.embedding_dim)
        module.reset_parameters(torch.Generator().manual_seed(seed))  # type: ignore[operator]
        return module.to(self.device)

    def batch(self, seed: int, step: int) -> Triples:
        drawn = self._sampler(seed).batch(step)
        rank, size = self.team.rank, self.team.size
        users, positives, negatives = (
            torch.from_numpy(np.ascontiguousarray(ids[rank::size])).to(self.device) for ids in drawn
        )
        return Triples(users, positives, negatives, len(drawn.users) / size)

    def loss(
        self,
        model: nn.Module,
        embedding: EmbeddingModule,
        batch: Triples,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        terms = model(embedding, *batch[:3], generator=generator)
        return bpr_loss(terms, self.bpr.l2, examples=batch.examples)

    def rows_of(self, batch: Triples) -> dict[str, tuple[Tensor, Tensor]]:
        """Of users and their positives; a graph's model reads other rows as well."""
        every = torch.arange(len(batch.users), device=batch.users.device)
        sides = {"user": batch.users, "item": batch.positives}
        return {name: (sides[side], every) for name, side in self._sides.items()}

    @torch.no_grad()
    def errors(self, model: nn.Module, embedding: EmbeddingModule, batch: Triples) -> Tensor:
        """Of the probability that the positive is preferred, which should be 1."""
        was_training = model.training
        model.eval()
        try:
            margin = model(embedding, *batch[:3]).margin
        finally:
            model.train(was_training)
        squared: Tensor = (1 - margin.sigmoid()).square()
        return squared

    def validate(
        self, model: nn.Module, embedding: EmbeddingModule, *, part: Part = "validation"
    ) -> float:
        if part == "check":
            users = np.arange(0, self.split.train.num_users, CHECKED_USERS)
            return self.evaluate(model, embedding, part="validation", users=users).quality()
        return self.evaluate(model, embedding, part=part).quality()

    def evaluate(
        self,
        model: nn.Module,
        embedding: EmbeddingModule,
        *,
        part: Literal["validation", "test"] = "test",
        mask: Literal["train", "train+validation"] | None = None,
        ks: Sequence[int] = KS,
        users: ArrayLike | None = None,
    ) -> Metrics:
        """Every user's Recall and NDCG; arguments as in ``evaluation.evaluate``."""
        return evaluate_together(
            scores_of(model, embedding),
            self.split,
            self.team,
            on=part,
            mask=mask,
            ks=ks,
            users=users,
        )

    def _sampler(self, seed: int) -> BPRSampler:
        if seed not in self._samplers:
            self._samplers = {  # one at a time: it holds an epoch's permutation
                seed: BPRSampler(
                    self.split.train,
                    batch_size=self.bpr.batch_size,
                    how=self.bpr.sampler,
                    seed=seed,
                )
            }
        return self._samplers[seed]


def scores_of(model: nn.Module, embedding: EmbeddingModule) -> Scores:
    """A backbone's scores in evaluation mode, what ``evaluation.evaluate`` ranks by."""
    was_training = model.training
    model.eval()
    try:
        return model.scores(embedding)  # type: ignore[operator]
    finally:
        model.train(was_training)

"""The sizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ....errors import InvalidInputError
from ...plan import SizePlan
from ..checks import check_positive
from ..forms import workbench_of
from ..mixed_dimensions import equal_popularity
from ..problem import SizingProblem
from ..survivors import entries_as_sizes
from ..wished import plan_of_wishes
from .evolution import Evolution, Genes
from .supernet import AdamBesideSGD, SuperNet


@dataclass(frozen=True, kw_only=True)
class OptEmbed:
    """A supernet whose rows may go and whose prefixes all work, then evolution over widths.

    One training of the supernet, with a loss that raises the thresholds under which rows are
    dropped; then widths are tried on its validation without any training (``task.validate``, its
    brief "check" part); the best are the plan's, to be trained from scratch.

    The budgeted variant (the default, ours): a field is a block of a table's rows that are looked
    up equally often, widths are drawn so that they meet the budget on average, and what is over it
    is never tried. ``OptEmbed.paper()`` has one width a table and no budget: it ends where
    validation is best, and InfeasibleBudgetError says what that takes where it is too much.

    budgeted: which. blocks: of a table's rows, at most. evolution: the search over widths.
    sparsity: weight of the thresholds' loss; the paper's are 1e-4, 1e-5 and 1e-6.
    threshold_rate: the thresholds' learning rate (plain SGD; 1e-4 in the paper), as a multiple of
        the tables' (Adam).
    settings: of the supernet's training, as the workbench takes them. init_std: of its entries at
        first. precision: of the plan's tables; None takes the first that the budget allows.
    """

    budgeted: bool = True
    blocks: int = 8
    evolution: Evolution = field(default_factory=lambda: Evolution(generations=10))
    sparsity: float = 1e-5
    threshold_rate: float = 1e-2
    settings: Any = None
    init_std: float = 0.01
    precision: str | None = None
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, int) or self.blocks < 1:
            raise InvalidInputError(f"blocks should be an int from 1 on, got {self.blocks!r}")
        if not isinstance(self.evolution, Evolution):
            raise InvalidInputError(f"evolution should be an Evolution(), got {self.evolution!r}")
        if not 0 <= self.sparsity < math.inf:
            raise InvalidInputError(f"sparsity should be at least 0, got {self.sparsity!r}")
        check_positive(self, "threshold_rate", "init_std")

    @classmethod
    def paper(cls, **changes: Any) -> OptEmbed:
        """One width a table, 30 generations, no budget."""
        return cls(**{"budgeted": False, "blocks": 1, "evolution": Evolution(), **changes})

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The plan; deterministic under ``problem.seed``.

        Raises:
            MissingEvaluationError: the problem has no workbench.
            InfeasibleBudgetError: nothing fits, or not what is asked for.
        """
        bench = workbench_of(problem, "OptEmbed")
        net = SuperNet(self._initial(problem), seed=problem.seed)
        trained = bench.fit(
            net,
            settings=self.settings,
            seed=problem.seed,
            extra_loss=lambda: self.sparsity * net.sparser(),
            groups=self._optimizer(net),
        )
        fields = Fields(problem, problem.team.broadcast(net.kept()), self.blocks)
        room = entries_as_sizes(problem, self.precision)

        def quality(genes: Genes) -> float:
            return bench.task.validate(trained.model, net.cut(fields.sizes(genes)), part="check")

        genes, found = self.evolution.run(
            lambda rng: fields.draw(rng, room if self.budgeted else None),
            lambda genes: not self.budgeted or fields.entries(genes) <= room,
            quality,
            fields.alike(room if self.budgeted else None),
            np.random.default_rng(problem.seed),
        )
        genes = problem.team.broadcast(genes)
        dropped = sum(int((~kept).sum()) for kept in fields.kept.values())
        notes = {"supernet": f"{found:.6g}", "rows dropped by thresholds": str(dropped)}
        return plan_of_wishes(
            problem,
            fields.sizes(genes),
            "optembed",
            budgeted=self.budgeted,
            precision=self.precision,
            metadata=notes,
        )

    def _initial(self, problem: SizingProblem) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(problem.seed)
        return {
            table.name: torch.randn(table.num_embeddings, table.embedding_dim, generator=generator)
            * self.init_std
            for table in problem.tables
        }

    def _optimizer(self, net: SuperNet) -> Callable[..., torch.optim.Optimizer]:
        thresholds = {id(weight) for weight in net.thresholds.parameters()}

        def make(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
            own = [weight for weight in weights if id(weight) in thresholds]
            others = [weight for weight in weights if id(weight) not in thresholds]
            plain: dict[str, Any] = {"params": own, "plain": True, "lr_scale": self.threshold_rate}
            return AdamBesideSGD([{"params": others}, plain])

        return make


class Fields:
    """What genes stand for: a width a block of a table's rows, as indices into its own widths.

    kept: {table: (R,) whether a row is there}; the others have size 0.
    """

    def __init__(
        self, problem: SizingProblem, kept: dict[str, NDArray[np.bool_]], blocks: int
    ) -> None:
        self.kept = kept
        self._widths: list[NDArray[np.int64]] = []
        self._rows: list[tuple[str, NDArray[np.int64]]] = []
        for t, (table, counts) in enumerate(zip(problem.tables, problem.counts, strict=True)):
            order = np.arange(counts.rows) if counts.order is None else counts.order
            by_rank = order.astype(np.int64)
            for ids in np.split(by_rank, equal_popularity(counts, blocks)[:-1]):
                self._rows.append((table.name, ids))
                self._widths.append(np.array(problem.table_widths(t), dtype=np.int64))
        self._there = np.array([int(kept[name][ids].sum()) for name, ids in self._rows])

    def sizes(self, genes: Genes) -> dict[str, NDArray[np.int64]]:
        """{table: (R,)} in id order."""
        found = {name: np.zeros(len(kept), dtype=np.int64) for name, kept in self.kept.items()}
        for (name, ids), widths, gene in zip(self._rows, self._widths, genes, strict=True):
            found[name][ids] = widths[gene] * self.kept[name][ids]
        return found

    def entries(self, genes: Genes) -> int:
        """Of all rows that are there."""
        each = [widths[gene] for widths, gene in zip(self._widths, genes, strict=True)]
        return int((self._there * each).sum())

    def draw(self, rng: np.random.Generator, room: int | None) -> Genes:
        """Uniform up to full width, or to twice what ``room`` entries are a row on average."""
        most = np.array([float(widths[-1]) for widths in self._widths])
        if room is not None:
            most = np.minimum(most, 2 * room / max(int(self._there.sum()), 1))
        wanted = rng.random(len(most)) * (most + 1)
        return self._at_most(wanted)

    def alike(self, room: int | None) -> Genes:
        """One width for all, the widest that ``room`` has entries for (or the narrowest)."""
        fitting = self._at_most(np.zeros(len(self._widths)))
        for width in sorted({int(w) for widths in self._widths for w in widths}):
            genes = self._at_most(np.full(len(self._widths), float(width)))
            if room is None or self.entries(genes) <= room:
                fitting = genes
        return fitting

    def _at_most(self, wanted: NDArray[np.float64]) -> Genes:
        """The widest width of each that is no more than wanted, or the narrowest."""
        each = [
            max(int(np.searchsorted(widths, want, side="right")) - 1, 0)
            for widths, want in zip(self._widths, wanted, strict=True)
        ]
        return np.array(each, dtype=np.int64)

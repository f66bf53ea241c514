"""DartsEmb: a row's width as a soft choice, learnt beside the weights (Liu et al., 2019).

Shapes: R rows of a table, d its columns, K widths to choose from, D columns of a read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InvalidInputError
from ..plan import SizePlan
from .checks import check_positive
from .forms import workbench_of
from .problem import SizingProblem
from .weights import TableWeights
from .wished import plan_of_wishes


@dataclass(frozen=True, kw_only=True)
class DartsEmb:
    """Every row mixes prefixes of some widths; the mixture's weights are learnt, then cut.

    Two levels, by turns: a step of the tables and the model, then one of the architecture's weights
    on the next batch, whose examples that step has not seen (first-order DARTS; the original halves
    the training set once, the next pass here mixes the halves again). The widths share a table,
    whose prefixes they are.

    budgeted: the variant of ours, which sizes rows in proportion to their expected width. False is
    the published end: the likeliest width of each row; InfeasibleBudgetError says what it takes
    where that is more than the budget.
    options: the widths; the published sets are {1, 2, 8}, {2, 4, 16} and {4, 8, 32}. None takes all
        that the problem allows. rate: of the architecture's weights, as a multiple of the tables'.
    settings: of the search, as the workbench takes them. init_std: of the tables' entries at first.
    precision: of the plan's tables; None takes the first that the budget allows.
    """

    budgeted: bool = True
    options: tuple[int, ...] | None = None
    rate: float = 1.0
    settings: Any = None
    init_std: float = 0.01
    precision: str | None = None
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.options is not None:
            object.__setattr__(self, "options", tuple(self.options))
            if list(self.options) != sorted({w for w in self.options if _whole(w)}) or not (
                self.options
            ):
                raise InvalidInputError(
                    f"options should be widths from 1 on that rise, got {self.options!r}"
                )
        check_positive(self, "rate", "init_std")

    def __call__(self, problem: SizingProblem) -> SizePlan:
        """The plan; deterministic under ``problem.seed``.

        Raises:
            MissingEvaluationError: the problem has no workbench.
            InfeasibleBudgetError: nothing fits, or not what is asked for.
        """
        bench = workbench_of(problem, "DartsEmb")
        generator = torch.Generator().manual_seed(problem.seed)
        tables = {}
        for table in problem.tables:
            drawn = torch.randn(table.num_embeddings, table.embedding_dim, generator=generator)
            tables[table.name] = drawn * self.init_std
        embedding = MixedPrefixes(tables, self._options(problem))
        trained = bench.fit(
            embedding, settings=self.settings, seed=problem.seed, groups=self._turns(embedding)
        )
        wanted = problem.team.broadcast(
            embedding.expected() if self.budgeted else embedding.likeliest()
        )
        return plan_of_wishes(
            problem,
            wanted,
            "darts",
            budgeted=self.budgeted,
            precision=self.precision,
            metadata={"supernet": f"{trained.outcome.quality:.6g}"},
        )

    def _options(self, problem: SizingProblem) -> dict[str, tuple[int, ...]]:
        """Each table's, at least one."""
        found = {}
        for t, table in enumerate(problem.tables):
            options = self.options or tuple(w for w in problem.table_widths(t) if w)
            fitting = tuple(w for w in options if w <= table.embedding_dim)
            found[table.name] = fitting or (table.embedding_dim,)
        return found

    def _turns(self, embedding: MixedPrefixes) -> Callable[..., torch.optim.Optimizer]:
        choices = {id(weight) for weight in embedding.choices.parameters()}

        def make(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
            own = [weight for weight in weights if id(weight) in choices]
            others = [weight for weight in weights if id(weight) not in choices]
            return TakingTurns([{"params": others}, {"params": own, "lr_scale": self.rate}])

        return make


def _whole(width: Any) -> bool:
    return isinstance(width, int) and width >= 1


class TakingTurns(torch.optim.Adam):
    """Adam whose groups take turns: a step moves the weights of one, the others stay."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__(groups)
        self._steps = 0

    def step(self, closure: Any = None) -> Any:
        turn = self._steps % len(self.param_groups)
        self._steps += 1
        for number, group in enumerate(self.param_groups):
            if number != turn:
                for weight in group["params"]:
                    weight.grad = None  # which Adam leaves alone, its moments too
        return super().step(closure)


class MixedPrefixes(nn.Module):
    """Rows as mixtures of their own prefixes; fits ``models.EmbeddingModule``.

    tables: {name: (R, d)}, the entries at first. options: {name: K widths}, rising.
    A row reads as sum_k p_k (its first w_k entries), p the softmax of its K weights, 0 at first:
    column c is scaled by the probability of a width above c.
    """

    def __init__(self, tables: Mapping[str, Tensor], options: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.width = max(table.shape[1] for table in tables.values())
        self.options = {name: tuple(widths) for name, widths in options.items()}
        self.values = TableWeights({name: table.clone() for name, table in tables.items()})
        self.choices = TableWeights(
            {name: torch.zeros(len(table), len(options[name])) for name, table in tables.items()}
        )

    def table(self, name: str) -> Tensor:
        return self._mixed(name, self.values[name], self.choices[name])

    def lookup(self, name: str, ids: Tensor) -> Tensor:
        values, choices = F.embedding(ids, self.values[name]), F.embedding(ids, self.choices[name])
        return self._mixed(name, values, choices)

    def _mixed(self, name: str, values: Tensor, choices: Tensor) -> Tensor:
        widths = torch.tensor(self.options[name], device=values.device)
        columns = torch.arange(values.shape[1], device=values.device)
        prefixes = (columns < widths[:, None]).to(values.dtype)  # (K, d)
        mixed = values * (choices.softmax(-1) @ prefixes)
        missing = self.width - mixed.shape[1]
        return F.pad(mixed, (0, missing)) if missing else mixed

    @torch.no_grad()
    def expected(self) -> dict[str, NDArray[np.float64]]:
        """{table: (R,) the widths' means}."""
        found = {}
        for name, choices in self.choices.items():
            widths = torch.tensor(self.options[name], dtype=torch.float64)
            found[name] = (choices.detach().cpu().double().softmax(-1) @ widths).numpy()
        return found

    @torch.no_grad()
    def likeliest(self) -> dict[str, NDArray[np.int64]]:
        """{table: (R,) the likeliest widths, the narrower of two alike}."""
        found = {}
        for name, choices in self.choices.items():
            found[name] = np.array(self.options[name])[choices.cpu().numpy().argmax(axis=1)]
        return found

    @torch.no_grad()
    def full_tables(self) -> dict[str, Tensor]:
        """Copies of the tables as they are read."""
        return {name: self.table(name).clone() for name in self.values}

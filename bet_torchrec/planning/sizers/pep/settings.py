"""The sizer."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from ....errors import InvalidInputError
from ...plan import SizePlan
from ..checks import check_positive
from ..forms import FormPlan, form_plan, workbench_of
from ..magnitude import AnswerAs, check_form
from ..problem import SizingProblem
from ..survivors import MaskedTables, affordable_entries, entries_as_sizes, sizes_plan
from .pruning import EnoughPruned, Pruned, Pruning
from .threshold import Granularity, SoftThreshold

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PEP:
    """Learnable embedding sizes (ICLR 2021): prune by learnt thresholds, then retrain what is left.

    Tables and thresholds train together until no more entries survive than the budget has; the
    survivors go back to their *initial* values and are trained anew under the mask (the lottery
    ticket). Which training is best is for validation to say; the published code stops on the test
    set.

    The paper's thresholds reach a target when they do, if they do (``PEP.paper()``). The default is
    budgeted: what may survive falls by a schedule to the target, and all thresholds are raised by
    one common factor as far as that takes, so that the learnt s decide what survives and the
    budget how much. It meets any target, exactly at step ``steps``.

    granularity: what shares a threshold. start: every threshold's s at first; the paper's are -15
        (MovieLens-1M) and -150 (Criteo, Avazu). At -150 the sigmoid's gradient is 0 in fp32, and
        weight decay alone moves s.
    steps: of the pruning run; None for the paper's, as long as ``settings`` last.
    threshold_rate: the thresholds' learning rate, as a multiple of the tables' (which it is in the
        paper). On Frappe with FM, 1/64 of the entries, .1 gave a validation AUC of .854 where 1
        gave .832; at 1/16 they were alike. weight_decay: of the thresholds' s, which pulls them
        towards 0 and so prunes.
    form: "mask" keeps entries where they are (the paper's), "sizes" gives a row as many dimensions
        as entries of it survive, scaled to the budget: a ``SizePlan`` of real tables.
    settings: of the pruning run, as the workbench takes them; it should last ``steps`` and not
        stop while quality falls. None: the workbench's own.
    init_std: of the tables' initial entries. every: steps between looks at the survivors.
    precision: of the sizes' tables; None takes the first that the budget allows.
    """

    granularity: Granularity = "feature_dimension"
    start: float = -15.0
    steps: int | None = 1000
    threshold_rate: float = 0.1
    weight_decay: float = 0.0
    form: AnswerAs = "sizes"
    settings: Any = None
    init_std: float = 0.01
    every: int = 10
    precision: str | None = None
    needs_evaluation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_form(self.form)
        if self.granularity not in get_args(Granularity):
            raise InvalidInputError(
                f"granularity should be one of {', '.join(get_args(Granularity))}, "
                f"got {self.granularity!r}"
            )
        check_positive(self, "threshold_rate", "init_std")
        if not math.isfinite(self.start) or not 0 <= self.weight_decay < math.inf:
            raise InvalidInputError(
                "start should be finite and weight_decay at least 0, got "
                f"{self.start!r} and {self.weight_decay!r}"
            )
        if not isinstance(self.every, int) or self.every < 1:
            raise InvalidInputError(f"every should be an int from 1 on, got {self.every!r}")
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise InvalidInputError(f"steps should be an int from 1 on or None, got {self.steps!r}")

    @classmethod
    def paper(cls, **changes: Any) -> PEP:
        """The published pruning: thresholds learn alone, at the tables' rate and from -15.

        The paper trains with Adam at 1e-3 and batches of 1024 until the target is met; both are the
        workbench's here. weight_decay is ours (1e-5): the paper names none, but from -150 no other
        force moves s. Where training ends before the target, the entries that are largest against
        their thresholds are kept, and the answer says so.
        """
        return cls(**{"steps": None, "threshold_rate": 1.0, "weight_decay": 1e-5, **changes})

    def __call__(self, problem: SizingProblem) -> SizePlan | FormPlan:
        """The masked tables or the plan; deterministic under ``problem.seed``.

        Raises:
            MissingEvaluationError: the problem has no workbench.
            InfeasibleBudgetError: nothing fits.
        """
        if self.form == "mask":
            target = affordable_entries(problem, "pep")
        else:
            target = entries_as_sizes(problem, self.precision)
        return self.answer(problem, self.prune(problem, [target])[target])

    def prune(self, problem: SizingProblem, targets: Iterable[int]) -> dict[int, Pruned]:
        """{target: masks that keep no more entries than it}, all from one run."""
        bench = workbench_of(problem, "PEP")
        embedding = SoftThreshold(
            self.initial(problem), granularity=self.granularity, start=self.start
        )
        pruning = Pruning(embedding, targets, every=self.every, steps=self.steps)
        with contextlib.suppress(EnoughPruned):
            bench.fit(
                embedding,
                settings=self.settings,
                seed=problem.seed,
                groups=self._optimizer(embedding),
                on_step=pruning.on_step,
            )
        found: dict[int, Pruned] = problem.team.broadcast(pruning.finish())
        for target, pruned in found.items():
            if not pruned.met:
                _log.warning(
                    "pep: more than %d entries survived %d steps: the largest against their "
                    "thresholds are kept; train longer, or give steps=, or raise start, "
                    "threshold_rate or weight_decay",
                    target,
                    pruned.step,
                )
        return found

    def answer(self, problem: SizingProblem, pruned: Pruned) -> SizePlan | FormPlan:
        """What masks come to: the initial entries under them, or sizes."""
        notes = {
            "pruned": f"after {pruned.step} steps" if pruned.met else "by score, target not met",
            "granularity": self.granularity,
        }
        if self.form == "mask":
            form = MaskedTables.of(pruned.masks, self.initial(problem))
            return form_plan(problem, form, "pep", notes=notes)
        survivors = {name: mask.sum(axis=1) for name, mask in pruned.masks.items()}
        return sizes_plan(problem, survivors, "pep", precision=self.precision, metadata=notes)

    def initial(self, problem: SizingProblem) -> dict[str, Tensor]:
        """{table: (R, d)} as they are before any training, from ``problem.seed``."""
        generator = torch.Generator().manual_seed(problem.seed)
        return {
            table.name: torch.randn(table.num_embeddings, table.embedding_dim, generator=generator)
            * self.init_std
            for table in problem.tables
        }

    def _optimizer(self, embedding: SoftThreshold) -> Any:
        """Adam with the thresholds as a group of their own."""
        shared = [] if embedding.shared is None else [embedding.shared]
        thresholds = {id(weight) for weight in (*shared, *embedding.thresholds.parameters())}

        def make(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
            own = [weight for weight in weights if id(weight) in thresholds]
            others = [weight for weight in weights if id(weight) not in thresholds]
            group: dict[str, Any] = {
                "params": own,
                "lr_scale": self.threshold_rate,
                "weight_decay": self.weight_decay,
            }
            return torch.optim.Adam([{"params": others}, group])

        return make

"""What a sizer may use and what it answers, as protocols: the seam between the wings.

A sizer that must train something never imports a model or a training loop. It is handed a
``Workbench``, or the user's own functions, inside the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from ...outcome import Outcome
from ..plan import SizePlan

if TYPE_CHECKING:
    from ...models.protocol import EmbeddingModule
    from ...tasks.task import Task
    from .problem import SizingProblem

Start = Literal["scratch", "full"]
"""Where a plan's training starts: from fresh rows, or from the full tables' rows, cut."""

Evaluate = Callable[[SizePlan], float]
"""plan -> validation quality after a user's own brief fine-tune; higher is better."""

Train = Callable[[SizePlan, int], float]
"""(plan, seed) -> validation quality after a user's own full training."""


class Trained(Protocol):
    """A trained model with its tables.

    model, embedding: as they ended. outcome: how training went.
    """

    @property
    def model(self) -> torch.nn.Module: ...
    @property
    def embedding(self) -> EmbeddingModule: ...
    @property
    def outcome(self) -> Outcome: ...

    def full_tables(self) -> Mapping[str, torch.Tensor]:
        """Copies of the tables by name, rows x embedding_dim each, zero-padded."""


class Sized(Protocol):
    """What a sizer decided, with an account of its own; SizePlan is one.

    A method whose rows share parameters (codebooks, projections, factors) returns its own.
    """

    def cost(self) -> int:
        """What it costs, exactly, in the budget's ``cost_unit``."""

    def build(self, seed: int) -> EmbeddingModule:
        """Its tables as a module that trains, freshly drawn."""

    def fingerprint(self) -> str:
        """Of all that ``build`` depends on but the seed: what a trained model is kept under."""


class Workbench(Protocol):
    """Trains and evaluates the task's model for a sizer. Quality: higher is better.

    On several ranks all of them make the same calls in the same order, and get the same answers.
    """

    @property
    def task(self) -> Task:
        """What is learnt."""

    def identity(self) -> Mapping[str, Any]:
        """What the answers depend on (task, settings, seed), JSON-serialisable."""

    def full(self) -> Trained:
        """The model with full tables, trained once and kept."""

    def fit(
        self,
        embedding: EmbeddingModule,
        *,
        settings: Any = None,
        warm: Trained | None = None,
        seed: int | None = None,
        extra_loss: Callable[[], torch.Tensor] | None = None,
        groups: Callable[..., Any] | None = None,
        on_step: Callable[[int], None] | None = None,
        floor: float | None = None,
    ) -> Trained:
        """Train the task's model over any embedding module, in place.

        Args:
            settings: of the training; None is the one from scratch. warm: whose model's weights
                to start from (the tables are ``embedding``'s own affair). seed: None is the
                workbench's. extra_loss: added to the task's at every step. groups: makes the
                optimizer from the weights. on_step: called after every step with their number.
            floor: as in ``fine_tune``.
        """

    def fine_tune(
        self, plan: SizePlan, *, epochs: int | None = None, floor: float | None = None
    ) -> Outcome:
        """A brief training from the full tables' rows, cut to the plan's sizes.

        Args:
            epochs: None for the workbench's own; 0 evaluates the bare cut rows. floor: a quality
                under which nobody cares, so that a hopeless one may stop early ("pruned").
        """

    def train(
        self,
        plan: SizePlan | Sized,
        *,
        seed: int | None = None,
        start: Start = "scratch",
    ) -> Outcome:
        """A full training: from scratch, or from the full tables' rows, cut.

        A ``Sized`` of its own form starts as it builds its tables, beside the full model's other
        weights for "full".
        """


class Sizer(Protocol):
    """A method that turns a problem into a plan: a frozen dataclass of hyper-parameters.

    Where rows share parameters the answer is a ``Sized`` of its own. A sizer that cannot do
    without ``evaluate`` or a workbench says so by a class attribute ``needs_evaluation = True``.
    """

    def __call__(self, problem: SizingProblem) -> SizePlan | Sized: ...

"""Every error that this package raises on purpose; each is also the built-in one it resembles."""

from __future__ import annotations


class BetError(Exception):
    """The base of all errors of this package: catch it to catch them all."""


class InvalidInputError(BetError, ValueError):
    """An argument is not what was expected. Says what was expected, what came, what to do."""


class IdRangeError(InvalidInputError, IndexError):
    """An id is negative or not below its table's rows."""


class MissingEvaluationError(BetError, TypeError):
    """A sizer that has to try plans out was given no way to do so."""


class InfeasibleBudgetError(BetError, ValueError):
    """No plan fits the budget.

    Attributes:
        smallest: the smallest possible budget, in ``unit``. limit: what the budget allows.
        unit: "bytes" or "parameters".
    """

    def __init__(self, message: str, *, smallest: int, limit: int, unit: str) -> None:
        super().__init__(message)
        self.smallest = smallest
        self.limit = limit
        self.unit = unit

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses process boundaries: the default would drop the keyword arguments.
        return _infeasible, (str(self), self.smallest, self.limit, self.unit)


def _infeasible(message: str, smallest: int, limit: int, unit: str) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(message, smallest=smallest, limit=limit, unit=unit)


class PlanError(BetError, ValueError):
    """A plan contradicts itself, its tables or its budget."""


class PlanFileError(BetError, ValueError):
    """A file is no plan: corrupted, foreign, or written by a newer version."""


class ShardingError(BetError, ValueError):
    """This sharding would train wrongly, or not at all; says what to change."""


class CollectiveError(BetError, RuntimeError):
    """The ranks of a process group disagree, or one of them failed."""


class DivergedError(BetError, ArithmeticError):
    """Every training that was to be compared left the finite numbers."""

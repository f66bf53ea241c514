"""The axes that a loss asks for: where an error costs as much along every column as its square.

Dropping or rounding changes row e by some d; to second order that costs d H d' / 2, H the second
moment of the loss' gradient at a lookup of the table. Principal axes of the rows as H measures
them (of e H^(1/2), weighted by counts) keep the most by a prefix, as plain principal axes do in the
plain measure, and errors of coordinates no longer depend on each other.

Shapes: n rows, d columns, w axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..axes import Basis, Moments
from ..errors import InvalidInputError
from ..serving.column_codes import AXIS_UNIT

RIDGE = 1e-3
"""Share of H's mean that every direction costs at least: what was not seen to matter may yet."""
_UNSEEN = 1e-20  # of a table that no example has looked up: next to nothing


@dataclass(frozen=True, eq=False)
class Turn:
    """coordinates = rows @ into, rows = coordinates @ axes; a prefix of both is as good a turn.

    into: fp32 (d, w). axes: fp32 (w, d). energy: float64 (w,), what an error of one in a
    column costs the loss a lookup; None where nobody has measured it.
    """

    into: Tensor
    axes: Tensor
    energy: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, basis: Basis) -> Turn:
        """As the basis turns rows."""
        return cls(basis.coordinates(torch.eye(basis.dim)), basis.axes)

    @classmethod
    def none(cls, gradients: Moments) -> Turn:
        """Rows as they are; energy is what an error of a column costs the loss."""
        own = torch.eye(gradients.dim)
        costs = np.diag(gradients.matrix()) / max(gradients.weight, 1.0)
        return cls(own, own, costs + RIDGE * costs.mean())

    def coordinates(self, rows: Tensor) -> Tensor:
        """(n, d) -> (n, w)."""
        return rows @ self.into.to(rows)

    def rounded(self) -> Turn:
        """With all axes in 127ths, and the coordinates that go with these.

        An axis may be of any length, so its largest entry is made one; what energy says is then of
        coordinates in that unit. Rounded axes are only axes a little tilted: all of them together
        still give every row back.
        """
        largest = self.axes.double().abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        axes = (self.axes.double() / largest * AXIS_UNIT).round() / AXIS_UNIT
        into = torch.linalg.pinv(axes)
        energy = None if self.energy is None else self.energy / largest.flatten().numpy() ** 2
        return Turn(into.float(), axes.float(), energy)


def loss_turn(rows: Moments, gradients: Moments, *, width: int | None = None) -> Turn:
    """The axes in which a prefix of every row costs the loss least, most first.

    rows: of the table, weighted by counts. gradients: of the loss at its lookups. Coordinates have
    a mean square of one each, weighted alike; ``energy`` tells columns apart.

    Raises:
        InvalidInputError: moments of different columns, or rows that are never looked up.
    """
    if rows.dim != gradients.dim:
        raise InvalidInputError(
            f"expected gradients of {rows.dim} columns, as the rows have, got {gradients.dim}"
        )
    if rows.weight <= 0:
        raise InvalidInputError("expected counts above 0 for some row, got zeros for all")
    root, back = _roots(gradients)
    second = rows.matrix() / rows.weight
    energy, vectors = np.linalg.eigh(root @ second @ root)
    order = np.argsort(-energy, kind="stable")[: rows.dim if width is None else width]
    energy, vectors = energy[order].clip(min=0), vectors[:, order]
    # Columns without energy keep their unit, as there is nothing to bring to one.
    spread = np.sqrt(np.where(energy > energy.max(initial=0) * 1e-12, energy, 1.0))
    into, axes = root @ vectors / spread, (vectors * spread).T @ back
    largest = np.abs(axes).argmax(axis=1)
    sign = np.sign(axes[np.arange(len(axes)), largest])
    sign[sign == 0] = 1
    return Turn(
        torch.from_numpy((into * sign).astype(np.float32)),
        torch.from_numpy((axes * sign[:, None]).astype(np.float32)),
        energy,
    )


def _roots(gradients: Moments) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The square root of H with its ridge, and that one's inverse."""
    measure = gradients.matrix() / max(gradients.weight, 1.0)
    mean = float(np.trace(measure)) / len(measure)
    measure = measure + np.eye(len(measure)) * (RIDGE * mean if mean > 0 else _UNSEEN)
    values, vectors = np.linalg.eigh(measure)
    roots = np.sqrt(values)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T

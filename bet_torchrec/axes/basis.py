"""A basis as a value: what turns coordinates into rows, and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class Basis:
    """row = coordinates @ axes[:size]: a prefix of the coordinates is a row's best short form.

    axes: fp32 (w, d), w of at most d axes (or more, of a factorisation that trains wide), most
    important first. energy: float64 (w,), the mean square along each axis, weighted by counts;
    None where nobody has measured it.
    """

    axes: Tensor
    energy: Tensor | None = None

    def __post_init__(self) -> None:
        # A value: never the memory of a weight that trains on.
        axes = self.axes.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
        if axes.ndim != 2 or not axes.numel() or not axes.isfinite().all():
            raise InvalidInputError(
                "axes should be a finite matrix (width, dim) with at least one entry, got "
                f"{self.axes.dtype} of shape {tuple(self.axes.shape)}"
            )
        energy = self.energy
        if energy is not None:
            energy = energy.detach().to(device="cpu", dtype=torch.float64).contiguous()
            if energy.shape != axes.shape[:1]:
                raise InvalidInputError(
                    f"energy should be one number an axis, {len(axes)}, got {tuple(energy.shape)}"
                )
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "energy", energy)

    @property
    def width(self) -> int:
        """w, the most coordinates that a row may have."""
        return self.axes.shape[0]

    @property
    def dim(self) -> int:
        """d, a row's columns."""
        return self.axes.shape[1]

    def cut(self, width: int) -> Basis:
        """The first axes alone."""
        if not 1 <= width <= self.width:
            raise InvalidInputError(f"width should be from 1 to {self.width}, got {width}")
        return Basis(self.axes[:width], None if self.energy is None else self.energy[:width])

    def resized(self, width: int) -> Basis:
        """The first axes alone, or after all of them others that are orthonormal to them.

        Raises:
            InvalidInputError: there are not that many.
        """
        if width <= self.width:
            return self.cut(width)
        if width > self.dim:
            raise InvalidInputError(f"width should be at most {self.dim} columns, got {width}")
        every = torch.cat([self.axes.T, torch.eye(self.dim)], dim=1).double()
        rest = torch.linalg.qr(every).Q.T[self.width : width]
        return Basis(torch.cat([self.axes, rest.float()]))

    def coordinates(self, rows: Tensor) -> Tensor:
        """(n, d) -> (n, w), what comes nearest to the rows; exact for w = d orthonormal axes."""
        return rows @ self._into.to(rows)

    def rows(self, coordinates: Tensor) -> Tensor:
        """(n, any k up to w) -> (n, d): of k coordinates by the first k axes."""
        return coordinates @ self.axes[: coordinates.shape[1]].to(coordinates)

    def gradient(self, gradient: Tensor) -> Tensor:
        """A loss' gradient by rows, (n, d), as its gradient by coordinates, (n, w)."""
        return gradient @ self.axes.T.to(gradient)

    @cached_property
    def _into(self) -> Tensor:
        """(d, w): rows to coordinates."""
        axes = self.axes.double()
        gram = axes @ axes.T
        if torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-5):
            return self.axes.T
        return torch.linalg.pinv(axes).float()

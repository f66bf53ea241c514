"""What becomes of a table's axes when it goes to another plan."""

from __future__ import annotations

import torch

from ...axes import Basis
from ...errors import InvalidInputError
from ...team import Team
from .rows import TableRows


def turns(old: TableRows, new: TableRows, *, principal: bool) -> bool:
    """Whether rows have to be turned: entries of one side are none of the other's.

    Raises:
        InvalidInputError: tables of unlike dims, one of which has a basis.
    """
    based = [side for side in (old, new) if side.plan.axes]
    if not based:
        return False
    dims = old.plan.embedding_dim, new.plan.embedding_dim
    if dims[0] != dims[1]:
        raise InvalidInputError(
            f"table {new.plan.name!r}: with a basis, source and target should have one "
            f"embedding_dim, got {dims[0]} and {dims[1]}"
        )
    if not (max(old.plan.widths) and max(new.plan.widths)):
        return False  # nothing is kept on one of the sides
    return len(based) < 2 or (principal and new.plan.axes > 0)


def carry_axes(old: TableRows, new: TableRows, ranks: Team) -> None:
    """Give the target the source's axes, and what an optimizer keeps of them."""
    if old.axes is None or new.axes is None:
        return
    assert new.bases is not None
    new.bases.put({new.plan.name: Basis(old.axes).resized(new.plan.axes)})
    put_alike(new, ranks)
    source, target = old.states.of(old.axes.detach()), new.states.of(new.axes.detach())
    if source is None or target is None or source.rule != target.rule:
        return
    roles, shared = source.roles(), min(old.plan.axes, new.plan.axes)
    target.prepare(roles)
    for name, role in roles.items():
        if role == "single":
            target.set_single(name, source.state[name])
            continue
        theirs, own = (
            side.view(name, axes.detach())
            for side, axes in ((source, old.axes), (target, new.axes))
        )
        own[:shared] = theirs[:shared].to(own)


def put_alike(new: TableRows, ranks: Team) -> Basis:
    """The first rank's axes of the target's table for all, as they are now."""
    assert new.axes is not None
    axes = new.axes.detach()
    with torch.no_grad():
        ranks.share([axes])
    return Basis(axes)

"""A batch feature by feature: the ids that an unpooled lookup has a row for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from ...errors import InvalidInputError
from ..routing import Slot


def bags_of(features: KeyedJaggedTensor, slots: Sequence[Slot]) -> tuple[JaggedTensor, ...]:
    """Ids and lengths of each slot's feature; batch sizes may differ between features.

    Raises:
        InvalidInputError: a feature is missing.
    """
    given = _by_feature(features)
    missing = dict.fromkeys(slot.feature for slot in slots if slot.feature not in given)
    if missing:
        wanted = dict.fromkeys(slot.feature for slot in slots)
        raise InvalidInputError(
            f"expected features {', '.join(wanted)}, got {', '.join(given)}: "
            f"{', '.join(missing)} missing"
        )
    return tuple(given[slot.feature] for slot in slots)


def _by_feature(features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
    """Unlike ``to_dict``, of a batch without examples too."""
    if torch.compiler.is_compiling():  # it alone tells a graph what the lengths add up to
        return dict(features.to_dict())
    keys = features.keys()
    ids = features.values().split(features.length_per_key())
    if features.variable_stride_per_key():
        lengths = features.lengths().split(features.stride_per_key())
    else:
        lengths = features.lengths().view(len(keys), features.stride()).unbind()
    return {
        key: JaggedTensor(values=own, lengths=long)
        for key, own, long in zip(keys, ids, lengths, strict=True)
    }


def named(
    slots: Sequence[Slot],
    bags: Sequence[JaggedTensor],
    rows: Sequence[Tensor],
    *,
    need_indices: bool,
) -> dict[str, JaggedTensor]:
    """Each slot's rows under its name, in the bags that its ids came in.

    need_indices: with the ids as weights.
    """
    return {
        slot.key: JaggedTensor(
            values=own, lengths=bag.lengths(), weights=bag.values() if need_indices else None
        )
        for slot, bag, own in zip(slots, bags, rows, strict=True)
    }

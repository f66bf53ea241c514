"""What TorchRec's planner cannot know of: room for id maps, and tables that are several blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    Storage,
    StorageReservation,
    Topology,
)
from torchrec.distributed.types import ModuleSharder

from ...errors import ShardingError
from ..parts import Collection


class IdMapReservation(StorageReservation):
    """Sets aside what every rank's id maps take, which TorchRec's planner cannot know of.

    For ``EmbeddingShardingPlanner(storage_reservation=IdMapReservation())``. It is also the one
    object of ours that TorchRec hands a planner's constraints to, and refuses those of a table
    that reach none of its blocks: TorchRec would ignore them in silence.

    rest: reserves all else; TorchRec's default unless given.
    """

    def __init__(self, rest: StorageReservation | None = None) -> None:
        self._rest = HeuristicalStorageReservation(percentage=0.15) if rest is None else rest
        self._last: Topology | None = None

    def reserve(
        self,
        topology: Topology,
        batch_size: int,
        module: nn.Module,
        sharders: list[ModuleSharder[nn.Module]],
        constraints: dict[str, ParameterConstraints] | None = None,
    ) -> Topology:
        """TorchRec's hook: a copy of the topology with less room.

        Raises ShardingError for constraints by the name of a table of several widths.
        """
        ours = [part for part in module.modules() if isinstance(part, Collection)]
        for part in ours:
            _check_reached(part, constraints or {})
        reserved = self._rest.reserve(topology, batch_size, module, sharders, constraints)
        maps = sum(part.id_map_bytes for part in ours)
        on_device = maps if topology.compute_device != "cpu" else 0
        for device in reserved.devices:
            device.storage -= Storage(hbm=on_device, ddr=maps)  # the host always has one
        self._last = copy.deepcopy(reserved)
        return reserved

    @property
    def last_reserved_topology(self) -> Topology | None:
        """TorchRec's hook: a copy of what ``reserve`` returned last."""
        return copy.deepcopy(self._last)


def _check_reached(module: Collection, constraints: Mapping[str, ParameterConstraints]) -> None:
    for table, own in module.blocks.items():
        left = [block.name for block in own if block.name not in constraints]
        if table in constraints and left:
            raise ShardingError(
                f"constraints of table {table!r} would be ignored: its blocks {', '.join(left)} "
                "are what TorchRec's planner knows. Give it sharding_constraints(module, "
                f"constraints={{{table!r}: ...}}), which reach all of them"
            )

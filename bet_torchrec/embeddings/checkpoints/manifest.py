"""What a model's checkpoint holds, in words: collections, tensors, optimizer states; and whether
two of them fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ...errors import BetError, InvalidInputError
from ...planning.plan import SizePlan
from ...planning.table_plan import TablePlan
from ..optimizer_state import OptimizerStates, Role
from ..parts import Collection, Part, parts_of


class CheckpointMismatchError(BetError, ValueError):
    """A checkpoint is of another plan, layout, optimizer or model; says what differs."""


@dataclass(frozen=True)
class CollectionFacts:
    """One budgeted collection. plan: its fingerprint. strides: of its blocks, by table."""

    plan: str
    layout: str
    row_order: str
    strides: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of the model, sharded or not.

    dtype: torch's, like "float32". rule: of its optimizer, None without. roles: its states.
    columns: (first, width) of its shards.
    """

    shape: tuple[int, ...]
    dtype: str
    rule: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    columns: tuple[tuple[int, int], ...] = ()

    def state_shape(self, role: Role) -> tuple[int, ...]:
        """Of a state, in all: row-wise ones have a column a shard."""
        if role == "row" and len(self.shape) != 2:
            raise ValueError(f"a tensor of shape {self.shape} has no state a row")
        return {"entry": self.shape, "row": (*self.shape[:1], len(self.columns)), "single": (1,)}[
            role
        ]


@dataclass(frozen=True)
class Manifest:
    """By module path, and by the tensors' names in the model's state_dict."""

    collections: Mapping[str, CollectionFacts]
    tensors: Mapping[str, TensorFacts]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that is stored, weights and states, by ``weights_key`` and ``state_key``.

        Raises:
            ValueError: states that the tensors cannot have.
        """
        found = {}
        for name, facts in self.tensors.items():
            found[weights_key(name)] = facts.shape
            for state, role in facts.roles.items():
                found[state_key(name, state)] = facts.state_shape(role)
        return found


def weights_key(name: str) -> str:
    """What a checkpoint calls a tensor of the model."""
    return f"model.{name}"


def state_key(name: str, state: str) -> str:
    """What a checkpoint calls an optimizer's state of a tensor."""
    return f"optimizer.{name}.{state}"


def collections(root: nn.Module) -> dict[str, Collection]:
    """The budgeted collections inside a module, by path."""
    return {path: part for path, part in root.named_modules() if isinstance(part, Collection)}


def tensors(root: nn.Module) -> Iterator[tuple[str, Tensor, list[Part]]]:
    """(name, tensor, what this rank holds of it) of everything that a model saves."""
    for name, value in root.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise InvalidInputError(
                f"a model's state should be tensors, got {name!r} of type {type(value).__name__}"
            )
        yield name, value, list(parts_of(value))


def manifest(root: nn.Module, states: OptimizerStates) -> Manifest:
    """What this rank holds."""
    found = {}
    for name, value, parts in tensors(root):
        held = [one for part in parts if (one := states.of(part.values)) is not None]
        shape = tuple(value.size())  # ShardedTensor.shape warns
        found[name] = TensorFacts(
            shape=shape,
            dtype=str(value.dtype).removeprefix("torch."),
            rule=held[0].rule if held else None,
            roles=held[0].roles() if held else {},
            columns=_cuts(parts) if len(shape) == 2 else (),
        )
    own = {
        path: CollectionFacts(
            c.plan.fingerprint(),
            c.layout,
            c.row_order,
            {table: tuple(block.stride for block in own) for table, own in c.blocks.items()},
        )
        for path, c in collections(root).items()
    }
    return Manifest(own, found)


def merged(parts: Sequence[Manifest]) -> Manifest:
    """What all ranks hold together."""
    together = {}
    for name, facts in parts[0].tensors.items():
        everyone = [part.tensors[name] for part in parts if name in part.tensors]
        together[name] = TensorFacts(
            shape=facts.shape,
            dtype=facts.dtype,
            rule=next((one.rule for one in everyone if one.rule), None),
            roles={state: role for one in everyone for state, role in one.roles.items()},
            columns=tuple(sorted({cut for one in everyone for cut in one.columns})),
        )
    return Manifest(parts[0].collections, together)


def check(
    saved: Manifest,
    plans: Mapping[str, SizePlan],
    own: Manifest,
    own_plans: Mapping[str, SizePlan],
    *,
    optimizer_state: bool,
) -> None:
    """Raise CheckpointMismatchError unless a checkpoint can be read into a model.

    plans, own_plans: by collection path.
    """
    _check_names("budgeted collections", saved.collections, own.collections)
    for path, facts in own.collections.items():
        _check_collection(path, saved.collections[path], plans[path], facts, own_plans[path])
    _check_names("tensors", saved.tensors, own.tensors)
    for name, tensor in own.tensors.items():
        theirs = saved.tensors[name]
        if theirs.shape != tensor.shape:
            raise CheckpointMismatchError(
                f"{name!r}: the checkpoint has shape {theirs.shape}, the model {tensor.shape}"
            )
        if theirs.dtype != tensor.dtype and not all("float" in t.dtype for t in (theirs, tensor)):
            raise CheckpointMismatchError(
                f"{name!r}: the checkpoint has {theirs.dtype}, the model {tensor.dtype}, which "
                "holds other numbers"
            )
        if optimizer_state:
            _check_optimizer(name, theirs, tensor)


def _check_names(what: str, saved: Iterable[str], own: Iterable[str]) -> None:
    more, less = sorted(set(saved) - set(own)), sorted(set(own) - set(saved))
    if more or less:
        raise CheckpointMismatchError(
            f"checkpoint and model should have the same {what}: only in the checkpoint "
            f"{more[:3]}{_more(more)}, only in the model {less[:3]}{_more(less)}"
        )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""


def _check_collection(
    path: str, saved: CollectionFacts, plan: SizePlan, own: CollectionFacts, own_plan: SizePlan
) -> None:
    where = f"collection {path!r}: " if path else ""
    _check_names(f"tables in {path or 'the collection'}", saved.strides, own.strides)
    for name in own.strides:
        found = [
            f"{what} {theirs!r} in the checkpoint, {ours!r} in the model"
            for what, theirs, ours in (
                ("layout", saved.layout, own.layout),
                ("row_order", saved.row_order, own.row_order),
            )
            if theirs != ours
        ]
        found += _plan_differences(plan[name], own_plan[name])
        if not found and saved.strides[name] != own.strides[name]:
            found.append("another version of this package, which interleaved rows differently")
        if found:
            raise CheckpointMismatchError(
                f"{where}table {name!r}: {'; '.join(found)}. Build the collection as it was saved "
                "(read_checkpoint(path) has its plan), load it, and migrate() it to the new one"
            )


def _plan_differences(saved: TablePlan, own: TablePlan) -> Iterator[str]:
    for what, theirs, ours in (
        ("rows", saved.rows, own.rows),
        ("embedding_dim", saved.embedding_dim, own.embedding_dim),
        ("rows by width", _rows_by_width(saved), _rows_by_width(own)),
        ("basis", saved.basis, own.basis),
    ):
        if theirs != ours:
            yield f"{what} {theirs} in the checkpoint, {ours} in the model"
    if saved.rows == own.rows and not _same_order(saved, own):
        yield "ids have another order of ranks"


def _rows_by_width(plan: TablePlan) -> dict[int, int]:
    return {bucket.width: bucket.rows for bucket in plan.buckets}


def _same_order(a: TablePlan, b: TablePlan) -> bool:
    if a.order is None or b.order is None:
        return a.order is b.order
    return bool((a.order == b.order).all())


def _check_optimizer(name: str, saved: TensorFacts, own: TensorFacts) -> None:
    advice = "; load_checkpoint(..., optimizer_state=False) reads the weights alone"
    if saved.rule != own.rule:
        raise CheckpointMismatchError(
            f"{name!r}: the checkpoint has the state of optimizer {saved.rule or 'none'}, the "
            f"model is trained by {own.rule or 'none'}: give the same optimizer{advice}"
        )
    theirs, ours = ({k: r for k, r in f.roles.items() if r != "single"} for f in (saved, own))
    if theirs and ours and theirs != ours:  # empty before the first step
        raise CheckpointMismatchError(
            f"{name!r}: the checkpoint has the optimizer states {sorted(theirs)}, the model "
            f"{sorted(ours)}: give the optimizer the same options{advice}"
        )
    if "row" in theirs.values() and saved.columns != own.columns:
        raise CheckpointMismatchError(
            f"{name!r}: its optimizer keeps a value a row and shard, the checkpoint's shards have "
            f"the columns (first, width) {list(saved.columns)}, the model's {list(own.columns)}: "
            f"shard the same columns, or migrate() a model sharded as the checkpoint{advice}"
        )


def _cuts(parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({(part.column, part.values.shape[1]) for part in parts}))

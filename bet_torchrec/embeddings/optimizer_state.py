"""What optimizers keep of weights, fused in FBGEMM's kernels or not.

Optimizers know parameters, not tables: a parameter of torch may be one shard or several of them
stacked, and FBGEMM keeps the state of all its tables in one buffer. What they have in common is
memory: a shard's weights lie inside the weights of one of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrec.optim.clipping import GradientClippingOptimizer
from torchrec.optim.fused import EmptyFusedOptimizer, FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from ..errors import InvalidInputError

Role: TypeAlias = Literal["entry", "row", "single"]  # a value a weight, a row, or in all
Optimizers: TypeAlias = Optimizer | Iterable[Optimizer] | None

_RULES = {"rowwiseadagrad": "row_wise_adagrad"}


@dataclass(frozen=True, eq=False)
class Held:
    """Weights as one optimizer holds them, and its state of them.

    rule: how they are updated, like "adagrad", whoever implements it. state: tensors by the names
    that torch gives them. fused: FBGEMM's tables, else None. store: where a torch optimizer looks
    for state, by weight. device: of new single values.
    """

    weight: Tensor
    rule: str
    state: MutableMapping[str, Any]
    fused: Any = None
    store: MutableMapping[Tensor, Any] | None = None
    device: torch.device | None = None

    def roles(self) -> dict[str, Role]:
        """{name of a state: what there is one value of}."""
        return {name: self._role(name, value) for name, value in self.state.items() if _some(value)}

    def view(self, name: str, part: Tensor) -> Tensor:
        """The state of a part of these weights, in place: shaped as the part, or (rows,)."""
        state = self.state[name]
        start = (part.data_ptr() - self.weight.data_ptr()) // self.weight.element_size()
        if self._role(name, state) == "row":
            width = self.weight.shape[1]
            return state.view(-1)[start // width :][: part.shape[0]]
        # Strides of the part: it may leave columns out that only pad a row.
        return state.view(-1)[start:].as_strided(part.shape, part.stride())

    def set_single(self, name: str, value: Tensor) -> None:
        """Set a state that is one value, where this optimizer has it."""
        if name in self.state:
            self.state[name].fill_(value.item())
        if hasattr(self.fused, "iter_cpu"):
            self.fused.iter_cpu.copy_(self.fused.iter)  # FBGEMM counts on both sides

    def prepare(self, roles: Mapping[str, Role]) -> None:
        """Make room for these states, and forget any others: an optimizer may be new or used."""
        for name, value in self.state.items():
            if name not in roles and _some(value):
                value.zero_()
        if self.store is not None and roles:
            for name, role in roles.items():
                if name not in self.state:
                    self.state[name] = self._zeros(role)
            self.store[self.weight] = self.state

    def _zeros(self, role: Role) -> Tensor:
        weight = self.weight.detach()
        if role == "entry":
            return torch.zeros_like(weight)
        if role == "row":
            return weight.new_zeros(len(weight), 1)
        return torch.zeros((), device=self.device)

    def _role(self, name: str, value: Any) -> Role:
        if not isinstance(value, Tensor):
            raise InvalidInputError(
                f"an optimizer's state should be tensors, got {name!r} of type "
                f"{type(value).__name__} from {self.rule}"
            )
        if name == "step" or (value.numel() == 1 and value.ndim == 0 != self.weight.ndim):
            return "single"
        if value.shape == self.weight.shape:
            return "entry"
        if self.weight.ndim == 2 and tuple(value.shape) in _one_a_row(self.weight):
            return "row"
        raise InvalidInputError(
            f"an optimizer's state should be shaped as its weights {tuple(self.weight.shape)} or "
            f"hold a value a row, got {name!r} of {tuple(value.shape)} from {self.rule}"
        )


class OptimizerStates:
    """The states of all optimizers of a module: those fused into it or applied in its backward
    pass, found by themselves, and those given.
    """

    def __init__(self, module: nn.Module, optimizers: Optimizers = None) -> None:
        self._starts: list[tuple[str, int]] = []
        self._held: list[Held] = []
        fused = [m.fused_optimizer for m in module.modules() if isinstance(m, FusedOptimizerModule)]
        backward = {
            id(optimizer): optimizer
            for weight in module.parameters()
            for optimizer in getattr(weight, "_in_backward_optimizers", ())
        }
        given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers or ())
        for optimizer in (*fused, *backward.values(), *given):  # the fused first: they update
            for held in _held(optimizer):
                if held.weight.numel() and self.of(held.weight) is None:
                    at = _address(held.weight)
                    place = bisect.bisect(self._starts, at)
                    self._starts.insert(place, at)
                    self._held.insert(place, held)

    def of(self, weight: Tensor) -> Held | None:
        """Who holds this part of the weights; None if no optimizer does."""
        device, address = _address(weight)
        place = bisect.bisect(self._starts, (device, address)) - 1
        if place < 0 or self._starts[place][0] != device:
            return None
        held = self._held[place]
        return held if address < self._starts[place][1] + held.weight.nbytes else None

    def forget_caches(self) -> None:
        """Before weights are written: rows that FBGEMM caches on the device would come back."""
        fused = {id(held.fused): held.fused for held in self._held if held.fused is not None}
        for tables in fused.values():
            tables.reset_cache_states()


def _held(optimizer: Optimizer) -> Iterator[Held]:
    if isinstance(optimizer, CombinedOptimizer):
        for _, inner in optimizer.optimizers:
            yield from _held(inner)
    elif isinstance(optimizer, KeyedOptimizerWrapper | GradientClippingOptimizer):
        yield from _held(optimizer._optimizer)  # neither keeps anything of its own
    elif hasattr(optimizer, "_emb_module"):
        yield from _fused(optimizer._emb_module)
    elif isinstance(optimizer, KeyedOptimizer) and not isinstance(optimizer, EmptyFusedOptimizer):
        raise InvalidInputError(
            "optimizer should be one of torch, TorchRec's KeyedOptimizerWrapper or "
            f"CombinedOptimizer, or a fused one, got {type(optimizer).__name__}, which keeps state "
            "of its own: give the optimizer that it wraps, and put what its schedule needs in facts"
        )
    elif not isinstance(optimizer, EmptyFusedOptimizer):
        name = type(optimizer).__name__.lower()
        for group in optimizer.param_groups:
            on_device = group.get("fused") or group.get("capturable")
            for weight in group["params"]:
                yield Held(
                    weight,
                    _RULES.get(name, name),
                    optimizer.state.get(weight, {}),
                    store=optimizer.state,
                    device=weight.device if on_device else torch.device("cpu"),
                )


def _fused(tables: Any) -> Iterator[Held]:
    tables.flush()  # a cache on the device may hold newer rows
    rule = tables.optimizer.value.removeprefix("exact_")
    # FBGEMM itself says which rules count steps: those whose counter it saves.
    counts = {} if "iter" in tables._non_persistent_buffers_set else {"step": tables.iter}
    weights = tables.split_embedding_weights()
    states = tables.get_optimizer_state() or [{}] * len(weights)
    for weight, state in zip(weights, states, strict=True):
        yield Held(weight, rule, {**state, **counts}, fused=tables)


def _address(weight: Tensor) -> tuple[str, int]:
    return str(weight.device), weight.data_ptr()


def _some(value: Any) -> bool:
    return value is not None


def _one_a_row(weight: Tensor) -> tuple[tuple[int, ...], ...]:
    return (weight.shape[0],), (weight.shape[0], 1)

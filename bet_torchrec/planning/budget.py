"""A memory budget, and what a row of a width really costs under it.

All costs are whole numbers, bytes or parameters, so that "within the budget" is exact. What the
bytes are: DESIGN of FBGEMM's tables (fbgemm_gpu 1.8, split and int-nbit table-batched embeddings):
training tables are unpadded and keep their optimizer state in fp32 whatever the weights are;
inference tables keep an fp16 scale and bias in every integer row, pad rows to an alignment and
whole tables to 128 bytes. TorchRec's own estimator scales state with the weight type and
under-counts, so it is not used here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from .tables import BasisKind, Table, table_specs

PRECISIONS = ("fp32", "fp16", "int8", "int4", "int2")
TRAINING_PRECISIONS = ("fp32", "fp16")
OPTIMIZERS = ("sgd", "rowwise_adagrad", "adagrad", "adam", "lamb", "partial_rowwise_adam")

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
_SCALE_AND_BIAS = 4  # bytes, fp16 each, in every integer row
_MOST = 10**30  # of a budget; shares of it are computed as floats
_FP32 = 4  # bytes a weight of a basis, whatever the rows' type is
_ID_MAP = 4  # bytes a row, one int32 permutation
_TABLE_ALIGNMENT = 128  # bytes, inference
FUSED_MULTIPLE = 4  # widths that FBGEMM's fused training kernels take are multiples of it
_STATE = {  # optimizer: (bytes a weight, bytes a row), fp32
    "sgd": (0, 0),
    "rowwise_adagrad": (0, 4),
    "adagrad": (4, 0),
    "adam": (8, 0),
    "lamb": (8, 0),
    "partial_rowwise_adam": (4, 4),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much all tables together may take. Make one by ``bytes``, ``parameters``, ``sparsity``.

    amount: bytes, parameters, or the sparsity (a share of 0 to 1 that is *not* kept).
    dtypes: the precisions a table may have; several only for inference.
    optimizer: training only. alignment: bytes an inference row is rounded up to.
    world_size: ranks, each of which holds all id maps and bases. fused_kernels: training rows are
    padded to whole groups of FUSED_MULTIPLE weights.
    """

    amount: int | float
    unit: Literal["bytes", "parameters", "sparsity"]
    purpose: Literal["training", "inference"] | None = None
    dtypes: tuple[str, ...] = ("fp32",)
    optimizer: str | None = None
    alignment: int = 1
    world_size: int = 1
    fused_kernels: bool = False

    def __post_init__(self) -> None:
        if self.unit == "sparsity":
            object.__setattr__(self, "amount", _sparsity(self.amount))
        elif self.unit in ("bytes", "parameters"):
            object.__setattr__(self, "amount", _whole(self.amount, self.unit))
        else:
            raise InvalidInputError(
                f"a budget's unit should be bytes, parameters or sparsity, got {self.unit!r}"
            )
        if self.unit == "bytes":
            self._check_bytes()
        elif any(getattr(self, f.name) != f.default for f in fields(self)[2:]):
            raise InvalidInputError(
                f"a budget in {self.unit} counts weights only and takes no purpose, dtype, "
                "optimizer, alignment, world_size or fused_kernels; use Budget.bytes for those"
            )

    @classmethod
    def bytes(
        cls,
        n: int,
        *,
        purpose: Literal["training", "inference"],
        dtype: str | Iterable[str],
        optimizer: str | None = None,
        alignment: int | None = None,
        world_size: int = 1,
        fused_kernels: bool = False,
    ) -> Budget:
        """n bytes for everything: weights, optimizer state, alignment, id maps and bases.

        Args:
            purpose: "training" (weights and optimizer state) or "inference" (quantised tables).
            dtype: one of PRECISIONS, or for inference several to choose from table by table.
                Training takes fp32 or fp16.
            optimizer: one of OPTIMIZERS, for training.
            alignment: bytes an inference row is rounded up to: 16 (the default) on CUDA and in
                TorchRec on CPU, 1 on CPU when asked for.
            world_size: ranks that the tables are sharded over. Rows lie on one of them, id maps
                and bases on all, and all are counted.
            fused_kernels: count, and have, training rows of any width as FBGEMM's fused kernels
                (sharded tables with an optimizer of their own) need them: whole groups of 4
                weights. Only for widths that 4 does not divide; dense kernels need it not.
        """
        dtypes = (dtype,) if isinstance(dtype, str) else tuple(dtype)
        if alignment is None:
            alignment = 16 if purpose == "inference" else 1
        return cls(
            amount=n,
            unit="bytes",
            purpose=purpose,
            dtypes=dtypes,
            optimizer=optimizer,
            alignment=alignment,
            world_size=world_size,
            fused_kernels=fused_kernels,
        )

    @classmethod
    def parameters(cls, n: int) -> Budget:
        """n weights, whatever they are stored in: a row costs its width."""
        return cls(amount=n, unit="parameters")

    @classmethod
    def sparsity(cls, s: float) -> Budget:
        """Keep a share 1 - s of the tables' own rows x embedding_dim; 0 <= s < 1."""
        return cls(amount=s, unit="sparsity")

    @property
    def cost_unit(self) -> Literal["bytes", "parameters"]:
        """What ``limit`` and all costs are counted in."""
        return "bytes" if self.unit == "bytes" else "parameters"

    def limit(self, tables: Iterable[Table]) -> int:
        """The most that the tables may cost together, in ``cost_unit``."""
        if self.unit != "sparsity":
            return int(self.amount)
        full = sum(table.parameters for table in table_specs(tables))
        return math.floor((1 - _as_fraction(float(self.amount))) * full)

    def describe(self) -> str:
        """One line, as in "2097152 bytes, inference, int8, rows aligned to 16"."""
        if self.unit == "sparsity":
            return f"sparsity {self.amount:g}"
        words = [f"{self.amount} {self.unit}"]
        if self.unit == "bytes":
            words += [str(self.purpose), "/".join(self.dtypes)]
            words += [self.optimizer] if self.optimizer else []
            words += [f"rows aligned to {self.alignment}"] if self.purpose == "inference" else []
            words += ["fused kernels"] if self.fused_kernels else []
            words += [f"{self.world_size} ranks"] if self.world_size > 1 else []
        return ", ".join(words)

    def _check_bytes(self) -> None:
        if self.purpose not in ("training", "inference"):
            raise InvalidInputError(
                "a budget in bytes should say what of: purpose='training' or 'inference', "
                f"got {self.purpose!r}"
            )
        training = self.purpose == "training"
        allowed = TRAINING_PRECISIONS if training else PRECISIONS
        unknown = [dtype for dtype in self.dtypes if dtype not in allowed]
        if unknown or not self.dtypes or len(set(self.dtypes)) != len(self.dtypes):
            raise InvalidInputError(
                f"dtype for {self.purpose} should be {'one' if training else 'one or several'} "
                f"of {', '.join(allowed)}, each once, got {self.dtypes!r}"
            )
        if training and len(self.dtypes) > 1:
            raise InvalidInputError(
                f"dtype for training should be a single one, got {self.dtypes!r}; "
                "several are for purpose='inference'"
            )
        if training and self.optimizer not in OPTIMIZERS:
            raise InvalidInputError(
                f"a training budget counts the optimizer's state: optimizer should be one of "
                f"{', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if not training and self.optimizer is not None:
            raise InvalidInputError(
                f"an inference budget has no optimizer, got {self.optimizer!r}; leave it out or "
                "say purpose='training'"
            )
        if self.alignment not in (1, 2, 4, 8, 16, 32, 64, 128) or (training and self.alignment > 1):
            raise InvalidInputError(
                "alignment should be "
                + ("1, training rows are not padded" if training else "a power of 2 up to 128")
                + f", got {self.alignment!r}"
            )
        if isinstance(self.world_size, bool) or not (
            isinstance(self.world_size, int) and self.world_size >= 1
        ):
            raise InvalidInputError(
                f"world_size should be a number of ranks, 1 or more, got {self.world_size!r}"
            )
        if self.fused_kernels and not training:
            raise InvalidInputError("fused_kernels=True is for purpose='training'")


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """What rows, buckets, id maps and bases cost, in whole bytes or parameters.

    FBGEMM quantises rows of whole 2-byte words only, so an integer row of another width costs
    what the next wider one does that ``width_multiple`` divides; a fit then takes that one.
    """

    unit: Literal["bytes", "parameters"]
    purpose: Literal["training", "inference"] | None = None
    optimizer: str | None = None
    alignment: int = 1
    world_size: int = 1
    fused_kernels: bool = False

    @classmethod
    def for_budget(cls, budget: Budget) -> MemoryModel:
        """The model that a budget counts by."""
        return cls(
            unit=budget.cost_unit,
            purpose=budget.purpose,
            optimizer=budget.optimizer,
            alignment=budget.alignment,
            world_size=budget.world_size,
            fused_kernels=budget.fused_kernels,
        )

    @property
    def table_alignment(self) -> int:
        """A bucket, which is one real table, is rounded up to this."""
        return _TABLE_ALIGNMENT if self.purpose == "inference" else 1

    def row_cost(self, width: int, precision: str = "fp32") -> int:
        """One row of this width; 0 for width 0, which is stored nowhere."""
        return int(self.row_costs([width], precision)[0])

    def row_costs(self, widths: Sequence[int], precision: str = "fp32") -> NDArray[np.int64]:
        """int64, one cost a width."""
        if precision not in PRECISIONS:
            raise InvalidInputError(
                f"precision should be one of {', '.join(PRECISIONS)}, got {precision!r}"
            )
        width = np.asarray(widths, dtype=np.int64)
        if self.unit == "parameters":
            return width.copy()
        if self.purpose == "training":
            if self.fused_kernels:
                width = -(-width // FUSED_MULTIPLE) * FUSED_MULTIPLE
            cost = width * BITS[precision] // 8
            a_weight, a_row = _STATE[str(self.optimizer)]
            cost = cost + a_weight * width + a_row
        else:
            multiple = self.width_multiple(precision)
            cost = -(-width // multiple) * multiple * BITS[precision] // 8
            cost = cost + (_SCALE_AND_BIAS if precision.startswith("int") else 0)
            cost = -(-cost // self.alignment) * self.alignment
        return np.where(width > 0, cost, 0)

    def bucket_cost(self, width: int, rows: int, precision: str = "fp32") -> int:
        """All rows of one bucket, rounded up to ``table_alignment``."""
        cost = self.row_cost(width, precision) * int(rows)
        return -(-cost // self.table_alignment) * self.table_alignment

    def id_map_cost(self, rows: int) -> int:
        """The permutation of a table whose ids are no ranks: for every row, on every rank."""
        return _ID_MAP * int(rows) * self.world_size if self.unit == "bytes" else 0

    def basis_cost(self, basis: BasisKind | None, width: int, dim: int) -> int:
        """The axes, width x dim in fp32, of a table whose widest row has ``width`` coordinates.

        Every rank has them. Trained ones have the optimizer's state in training: what it keeps a
        weight and, each axis being a row, a row.
        """
        if basis is None:
            return 0
        if self.unit == "parameters":
            return width * dim
        a_weight, a_row = 0, 0
        if self.purpose == "training" and basis == "trained":
            a_weight, a_row = _STATE[str(self.optimizer)]
        return width * ((_FP32 + a_weight) * dim + a_row) * self.world_size

    @staticmethod
    def width_multiple(precision: str) -> int:
        """FBGEMM's integer rows have a width that this divides."""
        return {"int8": 2, "int4": 4, "int2": 8}.get(precision, 1)


def _whole(amount: Any, unit: str) -> int:
    number = -1
    if not isinstance(amount, bool):
        try:
            number = operator.index(amount)
        except TypeError:
            if isinstance(amount, float) and amount.is_integer():
                number = int(amount)
    if not 0 <= number <= _MOST:
        raise InvalidInputError(
            f"a budget in {unit} should be a whole number from 0 to 1e30, got {str(amount)[:40]}"
        )
    return number


def _sparsity(amount: Any) -> float:
    try:
        value = float(amount)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(amount, (bool, str)) or not 0 <= value < 1:
        raise InvalidInputError(
            f"a sparsity should be a share from 0 to below 1, as in 0.95, got {amount!r}"
        )
    return value


def _as_fraction(value: float) -> Fraction:
    """What was meant by a float: 0.95 is 19/20 and 1 - 0.9 is 1/10, not the nearest binary."""
    simple = Fraction(value).limit_denominator(10**6)
    if abs(float(simple) - value) <= 4e-16:
        return simple
    return Fraction(repr(value))

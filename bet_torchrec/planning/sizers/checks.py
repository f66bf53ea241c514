"""Checks that the sizers' settings share."""

from __future__ import annotations

import math

from ...errors import InvalidInputError


def check_positive(settings: object, *names: str) -> None:
    """Refuse settings of these names that are not positive and finite.

    Raises:
        InvalidInputError: says which, and what it is.
    """
    for name in names:
        value = getattr(settings, name)
        if not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"{name} should be positive and finite, got {value!r}")

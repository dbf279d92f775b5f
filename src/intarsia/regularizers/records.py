"""Regularizers by name, and as JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from intarsia.errors import InputError
from intarsia.regularizers.iel import IEL
from intarsia.regularizers.ita import ITA
from intarsia.regularizers.l2 import L2
from intarsia.regularizers.protocol import Regularizer

REGULARIZERS: Mapping[str, Callable[[float], Regularizer]] = {"ita": ITA, "iel": IEL, "l2": L2}
"""By the name in records."""


def regularizer_record(regularizer: Regularizer) -> dict[str, Any]:
    """As JSON; ``build_regularizer(**record)`` is the inverse."""
    return {"method": regularizer.kind, "strength": regularizer.strength}


def build_regularizer(method: str, strength: float) -> Regularizer:
    """ITA(alpha=strength), IEL(beta=strength) or L2(alpha=strength).

    Raises:
        InputError: there is no such regularizer.
    """
    if method not in REGULARIZERS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(REGULARIZERS)}")
    return REGULARIZERS[method](strength)

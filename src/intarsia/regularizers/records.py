"""Regularizers by name, and as JSON."""

from typing import Any, Literal

from intarsia.errors import InputError
from intarsia.regularizers.iel import IEL
from intarsia.regularizers.ita import ITA

Method = Literal["ita", "iel"]


def regularizer_record(regularizer: ITA | IEL) -> dict[str, Any]:
    """As JSON; ``build_regularizer(**record)`` is the inverse."""
    return {"method": regularizer.kind, "strength": regularizer.strength}


def build_regularizer(method: str, strength: float) -> ITA | IEL:
    """ITA(alpha=strength) or IEL(beta=strength)."""
    match method:
        case "ita":
            return ITA(strength)
        case "iel":
            return IEL(strength)
    raise InputError(f"unknown method {method!r}: expected ita or iel")

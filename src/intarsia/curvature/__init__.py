"""Curvature at theta0: how it is estimated, and what it predicts. A new one is one file here and one line below.

Names are imported when they are first used: ``choices`` alone needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.curvature.protocol import Curvature, Estimate, Metric

    CURVATURES: dict[str, Estimate]

__all__ = ["CURVATURES", "Curvature", "Estimate", "Metric"]


def _curvatures() -> "dict[str, Estimate]":
    """Name -> how it is estimated."""
    from intarsia.curvature.fisher import diagonal_fisher  # noqa: PLC0415  loads torch

    return {"diagonal": diagonal_fisher}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _curvatures() if name == "CURVATURES" else getattr(import_module(f"{__name__}.protocol"), name)
    globals()[name] = value
    return value

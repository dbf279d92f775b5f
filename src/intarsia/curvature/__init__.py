"""Curvature at theta0: how it is estimated, and what it predicts. A new one is one file here and one line below.

Names are imported when they are first used: ``choices`` alone needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intarsia.curvature.protocol import Curvature, Diagonalized, Estimate, Metric

    CURVATURES: dict[str, Estimate]
    STORED: dict[str, type[Curvature]]

__all__ = ["CURVATURES", "STORED", "Curvature", "Diagonalized", "Estimate", "Metric"]


def _curvatures() -> "dict[str, Estimate]":
    """Name -> how it is estimated."""
    from intarsia.curvature.fisher import diagonal_fisher  # noqa: PLC0415  loads torch
    from intarsia.curvature.kronecker.ekfac import ekfac  # noqa: PLC0415
    from intarsia.curvature.kronecker.kfac import kfac  # noqa: PLC0415

    return {"diagonal": diagonal_fisher, "kfac": kfac, "ekfac": ekfac}


def _stored() -> "dict[str, type[Curvature]]":
    """Name -> what it is read back as."""
    from intarsia.curvature.fisher import DiagonalFisher  # noqa: PLC0415  loads torch
    from intarsia.curvature.kronecker.ekfac import EigenCorrected  # noqa: PLC0415
    from intarsia.curvature.kronecker.kfac import KroneckerFactors  # noqa: PLC0415

    return {kind.kind: kind for kind in (DiagonalFisher, KroneckerFactors, EigenCorrected)}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    tables = {"CURVATURES": _curvatures, "STORED": _stored}
    value = tables[name]() if name in tables else getattr(import_module(f"{__name__}.protocol"), name)
    globals()[name] = value
    return value

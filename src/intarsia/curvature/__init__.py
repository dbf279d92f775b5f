"""Curvature at theta0: how it is estimated, and what it predicts. A new one is one file here and one line below."""

from intarsia.curvature.fisher import diagonal_fisher
from intarsia.curvature.protocol import Curvature, Estimate, Metric

CURVATURES: dict[str, Estimate] = {"diagonal": diagonal_fisher}
"""Name -> how it is estimated."""

__all__ = ["CURVATURES", "Curvature", "Estimate", "Metric"]

"""Curvatures and Fisher estimators by name."""

from typing import Literal

Estimator = Literal["exact", "rademacher", "mc"]
CurvatureKind = Literal["diagonal", "kfac", "ekfac"]
CurvatureOf = Literal["tasks", "reference"]

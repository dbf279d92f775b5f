"""Curvatures and Fisher estimators by name."""

from typing import Literal

Estimator = Literal["exact", "rademacher", "mc"]
CurvatureKind = Literal["diagonal", "kfac", "ekfac", "shampoo", "soap"]
CurvatureOf = Literal["tasks", "reference"]

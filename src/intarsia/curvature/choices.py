"""The Fisher estimators by name."""

from typing import Literal

Estimator = Literal["exact", "rademacher", "mc"]

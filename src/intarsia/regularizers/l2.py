"""A plain L2 in place of the Fisher: what the curvature is worth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from intarsia.curvature.fisher import UniformMetric
from intarsia.curvature.protocol import Metric
from intarsia.regularizers.ita import ITA
from intarsia.regularizers.quadratic import Quadratic


@dataclass(frozen=True)
class L2(ITA):
    """alpha/2 |tau|^2: ITA with ones for a Fisher, in the first task too."""

    kind: ClassVar[str] = "l2"

    def bind(self, metric: Metric | None, total: Mapping[str, Tensor] | None = None, tasks: int = 1) -> Quadratic:
        """No Fisher is asked for."""
        return Quadratic(self.alpha, UniformMetric(1.0))

"""A plain L2 in place of the Fisher: what the curvature is worth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from intarsia.regularizers.ita import ITA
from intarsia.regularizers.quadratic import DiagonalQuadratic


@dataclass(frozen=True)
class L2(ITA):
    """alpha/2 |tau|^2: ITA with ones for a Fisher, in the first task too."""

    kind: ClassVar[str] = "l2"

    def bind(
        self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None = None, tasks: int = 1
    ) -> DiagonalQuadratic:
        """No Fisher is asked for."""
        return DiagonalQuadratic(self.alpha, 1.0)

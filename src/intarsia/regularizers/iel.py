"""IEL: incremental ensemble learning (Eq. 15, 18, 19)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from intarsia.curvature.fisher import UniformMetric
from intarsia.curvature.protocol import Metric
from intarsia.regularizers.protocol import FLOOR, check_strength
from intarsia.regularizers.quadratic import Quadratic


@dataclass(frozen=True)
class IEL:
    """Incremental ensemble learning: beta times the gap Omega, seen from the current task vector.

    The exact gradient of beta Omega is 1/T of the published row; published betas go with the row as it stands, and so
    does this code.

    Args:
        beta: strength, 0 or more.

    Raises:
        InputError: beta is negative or not finite.
    """

    beta: float = 20.0
    kind: ClassVar[str] = "iel"
    through_mean: ClassVar[bool] = True
    fisher_over: ClassVar[Literal["others", "seen"]] = "seen"

    def __post_init__(self) -> None:
        check_strength("beta", self.beta)

    @property
    def strength(self) -> float:
        """Beta."""
        return self.beta

    def bind(self, metric: Metric | None, total: Mapping[str, Tensor] | None = None, tasks: int = 1) -> Quadratic:
        """Beta T Omega, up to a constant; the first task counts as T = 2 with S = 0."""
        tasks = max(tasks, 2)
        return Quadratic(self.beta, UniformMetric(FLOOR) if metric is None else metric, 1 - 1 / tasks, total, tasks)

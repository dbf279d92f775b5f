"""ITA: individual training (Eq. 11, 12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from intarsia.curvature.fisher import UniformMetric
from intarsia.curvature.protocol import Metric
from intarsia.regularizers.protocol import FLOOR, check_strength
from intarsia.regularizers.quadratic import Quadratic


@dataclass(frozen=True)
class ITA:
    """Individual training: a task vector is held near theta0, alone, by the *other* tasks' Fisher.

    Args:
        alpha: strength, 0 or more.

    Raises:
        InputError: alpha is negative or not finite.

    Example:
        >>> penalty = ITA(0.02).bind(fisher.mean())
        >>> penalty.step(adapter)
    """

    alpha: float = 0.02
    kind: ClassVar[str] = "ita"
    through_mean: ClassVar[bool] = False
    fisher_over: ClassVar[Literal["others", "seen"]] = "others"

    def __post_init__(self) -> None:
        check_strength("alpha", self.alpha)

    @property
    def strength(self) -> float:
        """Alpha."""
        return self.alpha

    def bind(self, metric: Metric | None, total: Mapping[str, Tensor] | None = None, tasks: int = 1) -> Quadratic:
        """alpha/2 |tau|_F^2; without another task the floor alone stands for F."""
        return Quadratic(self.alpha, UniformMetric(FLOOR) if metric is None else metric)

"""ITA: individual training (Eq. 11, 12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from intarsia.regularizers.protocol import FLOOR, check_strength
from intarsia.regularizers.quadratic import DiagonalQuadratic


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

    def bind(
        self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None = None, tasks: int = 1
    ) -> DiagonalQuadratic:
        """alpha/2 sum F tau^2; without another task the floor alone stands for F."""
        return DiagonalQuadratic(self.alpha, FLOOR if fisher is None else fisher)

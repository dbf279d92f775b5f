"""ITA: individual training (Eq. 11, 12)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from intarsia.regularizers.quadratic import DiagonalQuadratic, check_strength


@dataclass(frozen=True)
class ITA(DiagonalQuadratic):
    """Individual training (Eq. 11, 12): a task vector is held near theta0, alone, by the *other* tasks' Fisher.

    Args:
        alpha: strength, 0 or more.
        fisher: mean Fisher by weight name, floored; None (no other task yet) stands for the floor alone.
        floor: what stands in for the Fisher where there is none.

    Raises:
        InputError: alpha is negative.

    Example:
        >>> penalty = ITA(0.02, fisher.mean())
        >>> penalty.step(adapter, scale=1.0)
    """

    alpha: float = 0.02
    fisher: Mapping[str, Tensor] | None = None
    floor: float = 1e-5
    kind: ClassVar[str] = "ita"

    def __post_init__(self) -> None:
        check_strength("alpha", self.alpha)

    @property
    def strength(self) -> float:
        """Alpha."""
        return self.alpha

    def on(self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None, tasks: int) -> Self:
        """This regularizer for one task of a stream; ITA looks at the Fisher alone."""
        return replace(self, fisher=fisher)

    def quadratic(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha F, 0)."""
        fisher = like.new_full((), self.floor) if self.fisher is None else self.fisher[name]
        return self.alpha * fisher, like.new_zeros(())

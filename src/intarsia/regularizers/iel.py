"""IEL: incremental ensemble learning (Eq. 15, 18, 19)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from intarsia.regularizers.quadratic import DiagonalQuadratic, check_strength


@dataclass(frozen=True)
class IEL(DiagonalQuadratic):
    """Incremental ensemble learning (Eq. 15, 18, 19): beta times the gap Omega, seen from the current task vector.

    Args:
        beta: strength, 0 or more; the gradient is the published row, T times the exact one of beta Omega.
        fisher: mean Fisher of all tasks seen, this one included, by weight name, floored.
        total: S, the sum of the earlier task vectors; None for the first task.
        tasks: T, this task included; the first task counts as T = 2 with S = 0.
        floor: what stands in for the Fisher where there is none.

    Raises:
        InputError: beta is negative.
    """

    beta: float = 20.0
    fisher: Mapping[str, Tensor] | None = None
    total: Mapping[str, Tensor] | None = None
    tasks: int = 2
    floor: float = 1e-5
    kind: ClassVar[str] = "iel"

    def __post_init__(self) -> None:
        check_strength("beta", self.beta)

    @property
    def strength(self) -> float:
        """Beta."""
        return self.beta

    def on(self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None, tasks: int) -> Self:
        """This regularizer for task number ``tasks`` of a stream."""
        return replace(self, fisher=fisher, total=total, tasks=max(tasks, 2))

    def quadratic(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """(beta F (1 - 1/T), beta F S/T)."""
        fisher = like.new_full((), self.floor) if self.fisher is None else self.fisher[name]
        pull = like.new_zeros(()) if self.total is None else self.beta * fisher * self.total[name] / self.tasks
        return self.beta * fisher * (1 - 1 / self.tasks), pull

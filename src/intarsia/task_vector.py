"""Task vectors: tau = theta - theta0, by weight name, and their algebra.

A task vector is what fine-tuning on one task adds to the pre-trained weights (Ilharco et al., arXiv 2212.04089). Here
it is a read-only mapping ``canonical weight name -> dense tensor (out, in)``, over the trainable weights only.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor

from intarsia.numerics import wide


class TaskVector(Mapping[str, Tensor]):
    """tau by weight name, with ``+``, ``-``, scalar ``*``, inner product and norm.

    Args:
        weights: canonical weight name -> dense update, each of the shape of its weight in theta0.

    Example:
        >>> tau = TaskVector({"blocks.0.mlp.fc1.weight": torch.ones(2, 3)})
        >>> float((tau - 0.5 * tau).norm())
        1.2247...
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return f"TaskVector({len(self)} weights, norm {float(self.norm()):.4g})"

    def __add__(self, other: Self) -> "TaskVector":
        self._check(other)
        return TaskVector({name: tau + other[name] for name, tau in self.items()})

    def __sub__(self, other: Self) -> "TaskVector":
        self._check(other)
        return TaskVector({name: tau - other[name] for name, tau in self.items()})

    def __mul__(self, factor: float) -> "TaskVector":
        return TaskVector({name: factor * tau for name, tau in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def inner(self, other: Mapping[str, Tensor], metric: Mapping[str, Tensor] | None = None) -> Tensor:
        """<tau, other> = sum of tau * metric * other, a scalar in float64.

        Args:
            other: the other vector, same names and shapes.
            metric: a positive diagonal (say a Fisher), same names and shapes; the identity if None.

        Raises:
            ValueError: the names or shapes differ.
        """
        self._check(other)
        total = torch.zeros((), dtype=torch.float64)
        for name, tau in self.items():
            product = wide(tau) * wide(other[name])
            total = total + (product if metric is None else product * wide(metric[name])).sum().cpu()
        return total

    def norm(self, metric: Mapping[str, Tensor] | None = None) -> Tensor:
        """|tau| = sqrt(<tau, tau>), a scalar in float64."""
        return self.inner(self, metric).sqrt()

    def cosine(self, other: Self) -> Tensor:
        """<tau, other> / (|tau| |other|), a scalar; 0 where one of them is the zero vector."""
        norms = self.norm() * other.norm()
        return self.inner(other) / norms if norms > 0 else torch.zeros_like(norms)

    def _check(self, other: Mapping[str, Tensor]) -> None:
        if self.keys() != other.keys():
            odd = sorted(self.keys() ^ other.keys())
            raise ValueError(
                f"task vectors over different weights: {odd[0]!r} is in one of them only ({len(odd)} such)"
            )
        for name, tau in self.items():
            if tau.shape != other[name].shape:
                raise ValueError(f"{name}: shapes {tuple(tau.shape)} and {tuple(other[name].shape)} differ")


def weighted_sum(vectors: Iterable[TaskVector], weights: Iterable[float]) -> TaskVector:
    """sum_t w_t tau_t of one vector or more, and as many weights."""
    first, *others = (weight * vector for vector, weight in zip(vectors, weights, strict=True))
    return sum(others, start=first)

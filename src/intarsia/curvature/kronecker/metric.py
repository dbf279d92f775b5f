"""The metrics of Kronecker-factored curvatures: quadratic forms that see what the weights of a layer do together.

    KFAC     F tau = B tau A + floor tau                              B (O, O), A (I, I)
    EKFAC    F tau = L (d * (L^T tau R)) R^T                          L (O, O), R (I, I) orthogonal, d (O, I)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intarsia.numerics import eigen, wide

SMALL = 512
"""Sides up to which a matrix is decomposed on the CPU: a card has nothing to do in parallel there."""


@dataclass(frozen=True)
class KroneckerMetric:
    """F tau = B tau A + floor tau, weight by weight.

    Args:
        outputs: B (O, O), positive semi-definite, by weight name.
        inputs: A (I, I), likewise.
        floor: added to the diagonal.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    floor: float
    _eigen: dict[str, tuple[Tensor, Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """|tau|_F^2 / 2, a scalar in float64."""
        terms = list[Tensor]()
        for name, tau in vector.items():
            x = wide(tau)
            turned = wide(self.outputs[name]) @ x @ wide(self.inputs[name])
            terms.append((x * (turned + self.floor * x)).sum().cpu())
        return 0.5 * torch.stack(terms).sum()

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """B tau A + floor tau (O, I)."""
        return torch.add(self.outputs[name] @ tau @ self.inputs[name], tau, alpha=self.floor)

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """A diagonal c above F, and d = c tau - F tau: c is a product of bounds on B and A, plus the floor."""
        c = _bound(self.outputs[name])[:, None] * _bound(self.inputs[name]) + self.floor
        return c, c * tau - self.gradient(name, tau)

    def bases(self, name: str) -> tuple[Tensor, Tensor]:
        """Eigenvectors of B and of A; they are found once."""
        left, right, _ = self._decomposed(name)
        return left, right

    def diagonal(self, name: str) -> Tensor:
        """Products of the eigenvalues of B and A, plus the floor (O, I)."""
        return self._decomposed(name)[2]

    def _decomposed(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        if name not in self._eigen:
            (of_b, left), (of_a, right) = eigenbasis(self.outputs[name]), eigenbasis(self.inputs[name])
            self._eigen[name] = left, right, of_b[:, None] * of_a + self.floor
        return self._eigen[name]


@dataclass(frozen=True)
class EigenMetric:
    """F tau = L (d * (L^T tau R)) R^T, weight by weight.

    Args:
        left: L (O, O), orthogonal, by weight name.
        right: R (I, I), likewise.
        diagonals: d (O, I), positive, the floor in it.
    """

    left: Mapping[str, Tensor]
    right: Mapping[str, Tensor]
    diagonals: Mapping[str, Tensor]

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """|tau|_F^2 / 2, a scalar in float64."""
        terms = list[Tensor]()
        for name, tau in vector.items():
            turned = wide(self.left[name]).T @ wide(tau) @ wide(self.right[name])
            terms.append((wide(self.diagonals[name]) * turned.square()).sum().cpu())
        return 0.5 * torch.stack(terms).sum()

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """F tau (O, I)."""
        left, right = self.bases(name)
        return left @ (self.diagonals[name] * (left.T @ tau @ right)) @ right.T

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """A diagonal c above F, and d = c tau - F tau: c is that of the least p q^T above d with q its column means."""
        (left, right), found = self.bases(name), self.diagonals[name]
        q = found.mean(0)
        p = (found / q).amax(1)
        c = _bound(left * p @ left.T)[:, None] * _bound(right * q @ right.T)
        return c, c * tau - self.gradient(name, tau)

    def bases(self, name: str) -> tuple[Tensor, Tensor]:
        """L and R."""
        return self.left[name], self.right[name]

    def diagonal(self, name: str) -> Tensor:
        """d (O, I)."""
        return self.diagonals[name]


def eigenbasis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), none below zero, and eigenvectors (n, n) of a factor, in its type, where it is."""
    there = factor.cpu() if len(factor) <= SMALL else factor
    values, vectors = eigen(there, 0.0)
    return values.to(factor), vectors.to(factor)


def _bound(factor: Tensor) -> Tensor:
    """Sums of absolute values of the rows: a diagonal above a symmetric matrix (Gershgorin)."""
    return factor.abs().sum(1)

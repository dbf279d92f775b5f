"""The metrics of Kronecker-factored curvatures: quadratic forms that see what the weights of a layer do together.

- KFAC: F tau = B tau A + floor tau, with B (O, O) and A (I, I);
- EKFAC: F tau = L (d * (L^T tau R)) R^T, with L (O, O) and R (I, I) orthogonal, d (O, I).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intarsia.numerics import eigen, wide

SMALL = 512
"""Sides up to which a matrix is decomposed on the CPU: a card has nothing to do in parallel there."""


@dataclass(frozen=True)
class EigenForm:
    """A metric's form of one weight (see ``adapters.protocol.Form``).

    Args:
        left: L (O, O), orthogonal.
        right: R (I, I), orthogonal.
        diagonal: d (O, I), positive, the floor in it.
        product: B, A and the floor, where the form is B tau A + floor tau.
    """

    left: Tensor
    right: Tensor
    diagonal: Tensor
    product: tuple[Tensor, Tensor, float] | None = None
    _rows: list[tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=list)

    def of_rows(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """Of m -> <diag(m) theta0, F diag(m) theta0>: eigenvalues (O,) and eigenvectors (O, O); found once."""
        if not self._rows:
            self._rows.append(eigenbasis(self.between_rows(theta0)))
        return self._rows[0]

    def between_rows(self, theta0: Tensor) -> Tensor:
        """H (O, O): B * (W A W^T) + floor |W|^2 by rows; or sum_a (l_a l_a^T) * (W R d_a R^T W^T), l_a columns of L."""
        if self.product is not None:
            b, a, floor = self.product
            return b * (theta0 @ a @ theta0.T) + floor * torch.diag(theta0.square().sum(1))
        turned, found = theta0 @ self.right, theta0.new_zeros(len(theta0), len(theta0))
        for column, d in zip(self.left.T, self.diagonal, strict=True):
            weighted = column[:, None] * turned
            found.addmm_(weighted * d, weighted.T)
        return found


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
    _forms: dict[str, EigenForm] = field(init=False, repr=False, default_factory=dict)

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

    def form(self, name: str) -> EigenForm:
        """In the eigenvectors of B and A; they are found once."""
        if name not in self._forms:
            b, a = self.outputs[name], self.inputs[name]
            (of_b, left), (of_a, right) = eigenbasis(b), eigenbasis(a)
            self._forms[name] = EigenForm(left, right, of_b[:, None] * of_a + self.floor, (b, a, self.floor))
        return self._forms[name]


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
    _forms: dict[str, EigenForm] = field(init=False, repr=False, default_factory=dict)

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """|tau|_F^2 / 2, a scalar in float64."""
        terms = list[Tensor]()
        for name, tau in vector.items():
            turned = wide(self.left[name]).T @ wide(tau) @ wide(self.right[name])
            terms.append((wide(self.diagonals[name]) * turned.square()).sum().cpu())
        return 0.5 * torch.stack(terms).sum()

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """F tau (O, I)."""
        left, right = self.left[name], self.right[name]
        return left @ (self.diagonals[name] * (left.T @ tau @ right)) @ right.T

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """A diagonal c above F, and d = c tau - F tau: c is that of the least p q^T above d with q its column means."""
        left, right, found = self.left[name], self.right[name], self.diagonals[name]
        q = found.mean(0)
        p = (found / q).amax(1)
        c = _bound(left * p @ left.T)[:, None] * _bound(right * q @ right.T)
        return c, c * tau - self.gradient(name, tau)

    def form(self, name: str) -> EigenForm:
        """In L and R."""
        if name not in self._forms:
            self._forms[name] = EigenForm(self.left[name], self.right[name], self.diagonals[name])
        return self._forms[name]


def eigenbasis(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), none below zero, and eigenvectors (n, n) of a factor, in its type, where it is."""
    there = factor.cpu() if len(factor) <= SMALL else factor
    values, vectors = eigen(there, 0.0)
    return values.to(factor), vectors.to(factor)


def _bound(factor: Tensor) -> Tensor:
    """Sums of absolute values of the rows: a diagonal above a symmetric matrix (Gershgorin)."""
    return factor.abs().sum(1)

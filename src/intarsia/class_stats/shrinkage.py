"""Covariances of few images: shrunk, and factorized so that nothing can fail.

A user's network gives features that are collinear, constant, huge or tiny, and fewer images than features. So features
are centered in float64 before any product, no spread that is rounding is divided by, and what is solved with is an
eigendecomposition whose eigenvalues are clipped. Convention: features (N, D) as rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.numerics import eigen

SMALLEST = 1e-6
"""Smallest eigenvalue of a correlation, and smallest share of the features' typical spread that a feature has."""

ROUNDING = 1e-5
"""Share of a feature's own size below which its spread is a network's rounding error in float32."""

CHUNK = 4096
"""Features in float64 at a time: what is held beside them all stays small."""


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of features (N, D), in float64."""
    mean = torch.stack([some.double().sum(0) for some in features.split(CHUNK)]).sum(0) / len(features)
    squares = [(some.double() - mean).square().sum(0) for some in features.split(CHUNK)]
    return mean, torch.stack(squares).sum(0) / len(features)


def spread(variance: Tensor, mean_square: Tensor) -> Tensor:
    """Standard deviations (D,) that may be divided by: those that are rounding are replaced by what rounding makes.

    Args:
        variance: (D,).
        mean_square: (D,) of the features as they are, not centered: their size.
    """
    deviation, typical = variance.sqrt(), variance.mean().sqrt()
    least = torch.maximum(ROUNDING * mean_square.sqrt(), SMALLEST * typical)
    return torch.maximum(deviation, torch.where(least > 0, least, torch.ones_like(least)))


@dataclass(frozen=True)
class Covariance:
    """S = scale V diag(values) V^T scale: scales of the features, and the eigendecomposition of their correlation.

    Args:
        scale: (D,) float64.
        values: (D,) of the correlation, all positive.
        vectors: (D, D), V.
    """

    scale: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def shrunk(cls, scatter: Tensor, freedom: int, mean_square: Tensor | None = None) -> "Covariance":
        """Of a scatter, shrunk on standardised features towards independence.

        By as much as oracle approximating shrinkage says (OAS, Chen et al. 2010, eq. 23): little where images are
        many, and with fewer images than features it still is positive definite.

        Args:
            scatter: (D, D), of residuals.
            freedom: how many residuals are free: images less classes.
            mean_square: (D,) of the features; what varies less than their rounding is taken to vary as much as that,
                independently. Unknown if None.

        Raises:
            DivergenceError: the scatter is not finite.
        """
        covariance = scatter.double() / max(freedom, 1)
        variance = covariance.diagonal().clamp_min(0)
        scale = spread(variance, torch.zeros_like(variance) if mean_square is None else mean_square.double())
        correlation = covariance / scale[:, None] / scale
        correlation.diagonal().fill_(1.0)
        width, square = len(scale), correlation.square().mean()
        excess = (freedom + 1) * (square - 1 / width)
        shrinkage = float(((square + 1) / excess).clamp(max=1)) if excess > 0 else 1.0
        shrunk = (1 - shrinkage) * correlation
        shrunk.diagonal().fill_(1 + SMALLEST)
        return cls(scale, *eigen(shrunk, SMALLEST))

    def dense(self) -> Tensor:
        """S (D, D)."""
        return self.scale[:, None] * ((self.vectors * self.values) @ self.vectors.T) * self.scale

    def solve(self, right: Tensor, ridge: float = 0.0) -> Tensor:
        """(S + ridge diag S)^-1 right, (D, K); the diagonal of the correlation is 1."""
        inside = self.vectors.T @ (right / self.scale[:, None])
        return self.vectors @ (inside / (self.values + ridge)[:, None]) / self.scale[:, None]

    def whitening(self) -> Tensor:
        """W (D, D) with W W^T = S^-1: centered features f W have covariance 1 if theirs is S."""
        return self.vectors / self.scale[:, None] / self.values.sqrt()

    def basis(self) -> Tensor:
        """L (D, D), lower triangular with a positive diagonal: S = L L^T, by QR of the root."""
        upper = torch.linalg.qr(self.values.sqrt()[:, None] * self.vectors.T, mode="r").R
        return self.scale[:, None] * (upper * torch.where(upper.diagonal() < 0, -1.0, 1.0)[:, None]).T


def basis_of(scatter: Tensor, freedom: int) -> Tensor:
    """Lower triangular root (D, D) of the shrunk covariance of a scatter, in the scatter's type.

    Args:
        scatter: (D, D), of residuals.
        freedom: how many residuals are free: images less classes.

    Raises:
        DivergenceError: the scatter is not finite.
    """
    return Covariance.shrunk(scatter, freedom).basis().to(scatter.dtype)

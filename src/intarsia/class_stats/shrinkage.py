"""Covariances of few images: shrunk, and their Cholesky factor."""

import torch
from torch import Tensor

SMALLEST = 1e-6


def basis_of(scatter: Tensor, freedom: int) -> Tensor:
    """Cholesky factor of the shrunk covariance of a scatter, in the scatter's type.

    Shrunk on standardised features, towards independence, by as much as oracle approximating shrinkage says (OAS, Chen
    et al. 2010, eq. 23): little where images are many, and with fewer images than features it still is a basis.

    Args:
        scatter: (D, D), of residuals.
        freedom: how many residuals are free: images less classes.
    """
    covariance = scatter.double() / max(freedom, 1)
    scale = covariance.diagonal().sqrt() + SMALLEST
    correlation = covariance / scale[:, None] / scale
    width = len(scale)
    square, mean = correlation.square().mean(), correlation.diagonal().mean()
    excess = (freedom + 1) * (square - mean**2 / width)
    shrinkage = float(((square + mean**2) / excess).clamp(max=1)) if excess > 0 else 1.0
    shrunk = (1 - shrinkage) * correlation
    shrunk.diagonal().add_(shrinkage * mean + SMALLEST)
    return (scale[:, None] * torch.linalg.cholesky(shrunk)).to(scatter.dtype)

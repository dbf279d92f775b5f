"""Classes as Gaussians that share one covariance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.class_stats.shrinkage import Covariance, spread

LEAST_APART = 0.1
"""Share of the variance among class means that is never taken for chance."""


@dataclass(frozen=True)
class Gaussians:
    """Classes as Gaussians that share one covariance: what a discriminant needs of them.

    Args:
        centres: (C, D) float64.
        scatter: (D, D) float64, sum over the images of (f - class mean)(f - class mean)^T.
        freedom: images less classes.
    """

    centres: Tensor
    scatter: Tensor
    freedom: int

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, *, shrunken: bool = False) -> "Gaussians":
        """Of features (N, D) with labels (N,) in 0 .. classes - 1; every class has one.

        ``shrunken``: the means of classes with few images are drawn to the others (``shrunken_means``).
        """
        features = features.double()
        centres = torch.stack([features[labels == c].mean(0) for c in range(classes)])
        residual = features - centres[labels]
        found = cls(centres, residual.T @ residual, len(features) - classes)
        if shrunken and classes > 1:
            counts = torch.bincount(labels, minlength=classes).to(centres)
            return cls(shrunken_means(found, counts), found.scatter, found.freedom)
        return found

    @classmethod
    def join(cls, parts: Sequence["Gaussians"]) -> "Gaussians":
        """The classes of several tasks after one another, with the covariance of all."""
        scatter = sum((p.scatter for p in parts[1:]), parts[0].scatter)
        return cls(torch.cat([p.centres for p in parts]), scatter, sum(p.freedom for p in parts))

    def covariance(self) -> Covariance:
        """Within classes, shrunk."""
        return Covariance.shrunk(*spread_out(self.centres, self.scatter, self.freedom), self.mean_square())

    def variance(self) -> Tensor:
        """Of each feature within classes, (D,)."""
        return self.scatter.diagonal() / max(self.freedom, 1)

    def mean_square(self) -> Tensor:
        """Of each feature, (D,), all classes equally likely."""
        return self.centres.square().mean(0) + self.variance()


def spread_out(centres: Tensor, scatter: Tensor, freedom: int) -> tuple[Tensor, int]:
    """Scatter (D, D) within classes and its freedom; of the class means (C, D) if all classes have but one image."""
    if freedom or len(centres) == 1:
        return scatter, freedom
    away = centres - centres.mean(0)
    return away.T @ away, len(centres) - 1


def shrunken_means(classes: Gaussians, counts: Tensor) -> Tensor:
    """Class means (C, D), each drawn to the middle of all by as much as chance moves it.

    m_c -> m + n_c / (n_c + k) (m_c - m), k the variance within classes over that of the true means, both averaged over
    standardised features: empirical Bayes, as James and Stein (1961) have it. A mean of two images lies far out by
    chance alone, and a discriminant seldom answers what lies far out.

    Args:
        classes: two or more.
        counts: (C,) images of each.
    """
    within = classes.variance()
    unit = spread(within, classes.mean_square()).square()
    apart, chance = float((classes.centres.var(0) / unit).sum()), float((within / unit).sum())
    true = max(apart - chance * float((1 / counts).mean()), LEAST_APART * apart)
    if true == 0:
        return classes.centres
    middle = classes.centres.mean(0)
    return middle + (classes.centres - middle) * (counts / (counts + chance / true))[:, None]

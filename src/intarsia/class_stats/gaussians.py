"""Classes as Gaussians that share one covariance, and what each class's own covariance adds to it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.class_stats.shrinkage import Covariance, spread

RANK = 32
"""Directions of each class's own covariance that are kept."""
ITERATIONS = 2
"""Of the search for them."""
LEAST_APART = 0.1
"""Share of the variance among class means that is never taken for chance."""


@dataclass(frozen=True)
class Gaussians:
    """Classes as Gaussians that share one covariance: what a discriminant needs of them.

    Args:
        centres: (C, D) float64.
        scatter: (D, D) float64, sum over the images of (f - class mean)(f - class mean)^T.
        freedom: images less classes.
        factors: (C, r, D) of each class's own covariance: factors^T factors is nearly it. A small part of it is used,
            so their precision is any. None if unknown.
    """

    centres: Tensor
    scatter: Tensor
    freedom: int
    factors: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, *, shrunken: bool = False) -> "Gaussians":
        """Of features (N, D) with labels (N,) in 0 .. classes - 1; every class has one.

        ``shrunken``: the means of classes with few images are drawn to the others (``shrunken_means``).
        """
        features, centres = features.double(), class_means(features, labels, classes)
        residual = features - centres[labels]
        found = cls(centres, residual.T @ residual, len(features) - classes)
        found = replace(found, factors=leading(residual, labels, classes, found.covariance()))
        if shrunken and classes > 1:
            counts = torch.bincount(labels, minlength=classes).to(centres)
            return replace(found, centres=shrunken_means(found, counts))
        return found

    @classmethod
    def join(cls, parts: Iterable["Gaussians"]) -> "Gaussians":
        """The classes of several tasks after one another, with the covariance of all; own ones if all have theirs.

        One scatter is held beside their sum, if they are made one by one.
        """
        centres, own, scatter, freedom = [], [], None, 0
        for part in parts:
            scatter = part.scatter.clone() if scatter is None else scatter.add_(part.scatter)
            centres.append(part.centres)
            own += [] if part.factors is None else [part.factors]
            freedom += part.freedom
        if scatter is None:
            raise ValueError("no classes to join")
        rank = max((factors.shape[1] for factors in own), default=0)
        own = [F.pad(factors, (0, 0, 0, rank - factors.shape[1])) for factors in own]
        return cls(torch.cat(centres), scatter, freedom, torch.cat(own) if len(own) == len(centres) else None)

    def to(self, kind: torch.dtype) -> "Gaussians":
        """In another type."""
        factors = None if self.factors is None else self.factors.to(kind)
        return Gaussians(self.centres.to(kind), self.scatter.to(kind), self.freedom, factors)

    def double(self) -> "Gaussians":
        """In double precision, but for the factors."""
        return Gaussians(self.centres.double(), self.scatter.double(), self.freedom, self.factors)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        found = {"centres": self.centres, "scatter": self.scatter, "freedom": torch.tensor(self.freedom)}
        return found if self.factors is None else {**found, "factors": self.factors}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Gaussians":
        """The inverse of ``tensors``."""
        return cls(tensors["centres"], tensors["scatter"], int(tensors["freedom"]), tensors.get("factors"))

    def covariance(self) -> Covariance:
        """Within classes, shrunk."""
        return Covariance.shrunk(*spread_out(self.centres, self.scatter, self.freedom), self.mean_square())

    def variance(self) -> Tensor:
        """Of each feature within classes, (D,)."""
        return self.scatter.diagonal() / max(self.freedom, 1)

    def mean_square(self) -> Tensor:
        """Of each feature, (D,), all classes equally likely."""
        return self.centres.square().mean(0) + self.variance()


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(C, D) float64, of features (N, D) with labels (N,) in 0 .. classes - 1; every class has one."""
    features = features.double()
    return torch.stack([features[labels == c].mean(0) for c in range(classes)])


def leading(residual: Tensor, labels: Tensor, classes: int, within: Covariance) -> Tensor:
    """Factors (C, r, D) of each class's covariance, r the lesser of ``RANK`` and D.

    All of it where a class has no more images; their other factors are zero. Else its leading directions, seen in
    features that are white within all classes: by subspace iteration from a fixed start (Halko et al., arXiv
    0909.4061, algorithm 4.4). Unlike eigenvectors the result does not jump when features change by their rounding.

    Args:
        residual: (N, D) features less their class's mean.
        labels: (N,) in 0 .. classes - 1.
        classes: C.
        within: their covariance.
    """
    most, width = int(torch.bincount(labels).max()), residual.shape[1]
    rank = min(RANK, width)
    start = torch.randn(most, rank, generator=torch.Generator().manual_seed(0), dtype=residual.dtype)
    found, to_white = residual.new_zeros(classes, rank, width), within.whitening()
    for c in range(classes):
        own = residual[labels == c]
        white = own @ to_white
        basis = start[: len(own), : len(own)].to(own)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(white @ (white.T @ basis)).Q
        found[c, : basis.shape[1]] = basis.T @ own / math.sqrt(max(len(own) - 1, 1))
    return found


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

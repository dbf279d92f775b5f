"""Classes as Gaussians that share one covariance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.class_stats.shrinkage import Covariance


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
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> "Gaussians":
        """Of features (N, D) with labels (N,) in 0 .. classes - 1; every class has one."""
        features = features.double()
        centres = torch.stack([features[labels == c].mean(0) for c in range(classes)])
        residual = features - centres[labels]
        return cls(centres, residual.T @ residual, len(features) - classes)

    @classmethod
    def join(cls, parts: Sequence["Gaussians"]) -> "Gaussians":
        """The classes of several tasks after one another, with the covariance of all."""
        scatter = sum((p.scatter for p in parts[1:]), parts[0].scatter)
        return cls(torch.cat([p.centres for p in parts]), scatter, sum(p.freedom for p in parts))

    def covariance(self) -> Covariance:
        """Within classes, shrunk."""
        within = self.scatter.diagonal() / max(self.freedom, 1)
        return Covariance.shrunk(self.scatter, self.freedom, self.centres.square().mean(0) + within)

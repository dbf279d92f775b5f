"""Features whitened, and heads on them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.heads.head import Head

RIDGE = 0.01


CHUNK = 4096
"""Features whitened at a time: what is held beside them all stays small."""


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) unmix, with covariance near the identity; and heads to and fro."""

    mean: Tensor
    unmix: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Whitening":
        """Standardised, then by the Cholesky factor of the inverse correlation, ridge added."""
        mean, scale = features.mean(0), features.std(0, correction=0).double() + 1e-12
        correlation = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
        for some in features.split(CHUNK):
            white = (some - mean).double() / scale
            correlation.addmm_(white.T, white, alpha=1 / len(features))
        correlation.diagonal().add_(RIDGE)
        unmix = torch.linalg.cholesky(torch.linalg.inv(correlation)) / scale[:, None]
        return cls(mean, unmix.to(features.dtype))

    def features(self, features: Tensor) -> Tensor:
        """With a column of ones beside them, (N, D + 1)."""
        white = features.new_ones(len(features), features.shape[1] + 1)
        for some, into in zip(features.split(CHUNK), white.split(CHUNK), strict=True):
            into[:, :-1] = (some - self.mean) @ self.unmix
        return white

    def inward(self, head: Head) -> Head:
        """The head on whitened features with the same logits."""
        inside = torch.linalg.solve(self.unmix.double(), head.weight.double().T).T.to(head.weight.dtype)
        return Head(inside, head.bias + head.weight @ self.mean)

    def outward(self, head: Head) -> Head:
        """The head on plain features with the same logits."""
        weight = head.weight @ self.unmix.T
        return Head(weight, head.bias - weight @ self.mean)

"""Features whitened, and heads on them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.class_stats.shrinkage import CHUNK, moments, spread
from intarsia.heads.head import Head
from intarsia.numerics import eigen

RIDGE = 0.01
"""Added to the correlation's diagonal."""


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) unmix, with covariance near the identity; and heads to and fro.

    Args:
        mean: (D,) float64.
        unmix: (D, D) float64, (R + ridge)^(-1/2) of standardised features, R their correlation.
        mix: (D, D) float64, its inverse.
    """

    mean: Tensor
    unmix: Tensor
    mix: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Whitening":
        """Of features (N, D), N one or more: standardised, then by the inverse root of their correlation.

        Raises:
            DivergenceError: a feature is not finite.
        """
        mean, variance = moments(features)
        scale = spread(variance, mean.square() + variance)
        correlation = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
        for some in features.split(CHUNK):
            white = (some.double() - mean) / scale
            correlation.addmm_(white.T, white, alpha=1 / len(features))
        correlation.diagonal().add_(RIDGE)
        values, vectors = eigen(correlation, RIDGE)
        unmix, mix = ((vectors * root) @ vectors.T for root in (values.rsqrt(), values.sqrt()))
        return cls(mean, unmix / scale[:, None], mix * scale)

    def features(self, features: Tensor) -> Tensor:
        """With a column of ones beside them, (N, D + 1); centered in float64."""
        white = features.new_ones(len(features), features.shape[1] + 1)
        unmix = self.unmix.to(features)
        for some, into in zip(features.split(CHUNK), white.split(CHUNK), strict=True):
            into[:, :-1] = (some.double() - self.mean).to(features) @ unmix
        return white

    def inward(self, head: Head) -> Head:
        """The head on whitened features with the same logits."""
        weight = head.weight.double()
        return Head((weight @ self.mix.T).to(head.weight), (head.bias + weight @ self.mean).to(head.bias))

    def outward(self, head: Head) -> Head:
        """The head on plain features with the same logits."""
        weight = head.weight.double() @ self.unmix.T
        return Head(weight.to(head.weight), (head.bias - weight @ self.mean).to(head.bias))

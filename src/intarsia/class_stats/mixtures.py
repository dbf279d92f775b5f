"""The paper's class statistics: for every class a mixture of diagonal Gaussians on its features at theta0.

Axis by axis in plain features they draw images that there are none of: heads aligned on draws from one covariance
within classes (``statistics``) are 10 points better on `chalk`, 5 on `sketches`. So only the paper protocol has them.
Convention: C classes, K components, D feature width.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from intarsia.class_stats.gaussians import class_means
from intarsia.numerics import check_finite

COMPONENTS = 5
IMAGES_PER_COMPONENT = 5
FLOOR = 1e-4
"""Of a variance, in units of the features' mean variance within classes."""


@dataclass(frozen=True)
class Mixtures:
    """A mixture for every class.

    Args:
        weights: (C, K), rows sum to 1; a class with fewer components has zeros.
        means: (C, K, D).
        variances: (C, K, D); variances, not standard deviations.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def sample(self, per_class: int, generator: torch.Generator) -> Tensor:
        """(C * per_class, D), class by class."""
        which = torch.multinomial(self.weights, per_class, replacement=True, generator=generator)
        noise = torch.randn(*which.shape, self.means.shape[-1], generator=generator, dtype=self.means.dtype)
        which = which[:, :, None].expand_as(noise)
        return torch.addcmul(self.means.gather(1, which), self.variances.gather(1, which).sqrt(), noise).flatten(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Mixtures":
        """The inverse of ``tensors``."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def fit_mixtures(
    features: Tensor, labels: Tensor, classes: int, *, components: int = COMPONENTS, seed: int
) -> Mixtures:
    """Fit a mixture to every class.

    Args:
        features: (N, D) at theta0.
        labels: (N,) in 0 .. classes - 1; every class has one.
        classes: C.
        components: at most so many per class; a class of n images gets at most n // 5, and at least one.
        seed: of the mixtures' start.

    Raises:
        DivergenceError: a feature is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  slow to import
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    check_finite(features, "features")
    centres = class_means(features, labels, classes)
    residuals = features.double() - centres[labels]  # centered, or squares of a large common mean drown the rest
    size = residuals.square().mean().sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    weights = features.new_zeros(classes, components)
    means, variances = (features.new_ones(classes, components, features.shape[1]) for _ in range(2))
    for c in range(classes):
        own = (residuals[labels == c] / size).numpy()
        k = max(1, min(components, len(own) // IMAGES_PER_COMPONENT))
        if len(own) == 1:
            weights[c, 0], means[c, 0], variances[c, 0] = 1.0, centres[c], size**2
            continue
        mixture = GaussianMixture(
            k, covariance_type="diag", init_params="k-means++", random_state=seed + c, reg_covar=FLOOR
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture after 100 steps is good enough to draw from
            mixture.fit(own)
        weights[c, :k] = torch.from_numpy(mixture.weights_)
        means[c, :k] = torch.from_numpy(mixture.means_) * size + centres[c]
        variances[c, :k] = torch.from_numpy(mixture.covariances_) * size**2
    return Mixtures(weights, means, variances)

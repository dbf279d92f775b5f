"""Class statistics: for every class a mixture of diagonal Gaussians on its features at theta0.

They stand in for the images of a class once those are gone: heads are aligned, and their Fisher taken, on features
drawn from them (METHOD.md section 3). Convention: C classes, K components, D feature width.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

IMAGES_PER_COMPONENT = 5


@dataclass(frozen=True)
class ClassStatistics:
    """Mixtures of several classes.

    Args:
        weights: (C, K), rows sum to 1; a class with fewer components has zeros.
        means: (C, K, D).
        variances: (C, K, D), variances, not standard deviations.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, classes: slice) -> "ClassStatistics":
        """The statistics of some classes."""
        return ClassStatistics(self.weights[classes], self.means[classes], self.variances[classes])

    def sample(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw features (C * per_class, D) and their labels (C * per_class,), class by class."""
        component = torch.multinomial(self.weights, per_class, replacement=True, generator=generator)  # (C, n)
        rows = torch.arange(len(self))[:, None]
        noise = torch.randn(len(self), per_class, self.means.shape[-1], generator=generator)
        drawn = self.means[rows, component] + self.variances[rows, component].sqrt() * noise
        return drawn.flatten(0, 1), rows.expand(-1, per_class).flatten()

    def log_density(self, features: Tensor) -> Tensor:
        """Log p(f | c) of features (N, D) under every class, (N, C)."""
        x = features[:, None, None]  # (N, 1, 1, D)
        gaussian = -0.5 * ((x - self.means).square() / self.variances + (2 * torch.pi * self.variances).log()).sum(-1)
        return torch.logsumexp(gaussian + self.weights.log(), -1)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {"weights": self.weights, "means": self.means, "variances": self.variances}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassStatistics":
        """The inverse of ``tensors``."""
        return cls(tensors["weights"], tensors["means"], tensors["variances"])

    @classmethod
    def join(cls, parts: Sequence["ClassStatistics"]) -> "ClassStatistics":
        """The classes of several tasks after one another; fewer components are padded with weight 0."""
        k = max(p.weights.shape[1] for p in parts)
        return cls(
            torch.cat([_pad(p.weights, k, 0.0) for p in parts]),
            torch.cat([_pad(p.means, k, 0.0) for p in parts]),
            torch.cat([_pad(p.variances, k, 1.0) for p in parts]),
        )


def fit_statistics(
    features: Tensor, labels: Tensor, classes: int, *, components: int = 5, seed: int
) -> ClassStatistics:
    """Fit a mixture to every class.

    Args:
        features: (N, D) at theta0.
        labels: (N,) in 0 .. classes - 1.
        classes: C.
        components: at most so many a class; a class of n images gets at most n // 5, and at least one.
        seed: of the mixtures' start.

    Raises:
        ValueError: a class has no image.
    """
    width = features.shape[1]
    weights = torch.zeros(classes, components)
    means, variances = torch.zeros(classes, components, width), torch.ones(classes, components, width)
    for c in range(classes):
        own = features[labels == c].double().numpy()
        if len(own) == 0:
            raise ValueError(f"class {c} has no image to take statistics from")
        k = max(1, min(components, len(own) // IMAGES_PER_COMPONENT))
        if len(own) == 1:
            weights[c, 0], means[c, 0] = 1.0, torch.from_numpy(own[0])
            continue
        mixture = GaussianMixture(
            k, covariance_type="diag", init_params="k-means++", random_state=seed + c, reg_covar=1e-4
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture after 100 steps is good enough to draw from
            mixture.fit(own)
        weights[c, :k] = torch.from_numpy(mixture.weights_)
        means[c, :k] = torch.from_numpy(mixture.means_)
        variances[c, :k] = torch.from_numpy(mixture.covariances_)
    return ClassStatistics(weights, means, variances)


def _pad(tensor: Tensor, components: int, value: float) -> Tensor:
    missing = components - tensor.shape[1]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor.new_full((len(tensor), missing, *tensor.shape[2:]), value)], 1)

"""Class statistics: for every class a mixture of Gaussians on its features at theta0.

They stand in for the images of a class once those are gone: heads are aligned, and their Fisher taken, on features
drawn from them (METHOD.md section 3). The Gaussians are diagonal in the task's *basis*: coordinates in which the
features of a class, all classes of the task together, vary alike and independently. Axis by axis in plain features they
would draw images that there are none of: a head aligned on those is 10 points worse on `chalk`, 5 on `sketches`.
Convention: C classes, K components, D feature width, G tasks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sklearn.covariance import oas
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

IMAGES_PER_COMPONENT = 5
SMALLEST = 1e-6


@dataclass(frozen=True)
class ClassStatistics:
    """Mixtures of several classes.

    Args:
        weights: (C, K), rows sum to 1; a class with fewer components has zeros.
        means: (C, K, D), in the coordinates of the class's basis.
        variances: (C, K, D), likewise; variances, not standard deviations.
        bases: (G, D, D), lower triangular: features = basis @ coordinates.
        basis: (C,), which of the bases is a class's own.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    bases: Tensor
    basis: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, classes: slice) -> "ClassStatistics":
        """The statistics of some classes."""
        used, basis = self.basis[classes].unique(return_inverse=True)
        return ClassStatistics(
            self.weights[classes], self.means[classes], self.variances[classes], self.bases[used], basis
        )

    def sample(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw features (C * per_class, D) and their labels (C * per_class,), class by class."""
        component = torch.multinomial(self.weights, per_class, replacement=True, generator=generator)  # (C, n)
        rows = torch.arange(len(self))[:, None]
        noise = torch.randn(len(self), per_class, self.means.shape[-1], generator=generator)
        drawn = self.means[rows, component] + self.variances[rows, component].sqrt() * noise  # (C, n, D)
        for group, basis in enumerate(self.bases):
            drawn[self.basis == group] @= basis.T
        return drawn.flatten(0, 1), rows.expand(-1, per_class).flatten()

    def log_density(self, features: Tensor) -> Tensor:
        """Log p(f | c) of features (N, D) under every class, (N, C)."""
        found = features.new_empty(len(features), len(self))
        for group, basis in enumerate(self.bases):
            own = self.basis == group
            x = torch.linalg.solve_triangular(basis, features.T, upper=False).T[:, None, None]  # (N, 1, 1, D)
            means, variances = self.means[own], self.variances[own]
            gaussian = -0.5 * ((x - means).square() / variances + (2 * torch.pi * variances).log()).sum(-1)
            volume = basis.diagonal().log().sum()
            found[:, own] = torch.logsumexp(gaussian + self.weights[own].log(), -1) - volume
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {
            "weights": self.weights,
            "means": self.means,
            "variances": self.variances,
            "bases": self.bases,
            "basis": self.basis,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassStatistics":
        """The inverse of ``tensors``."""
        basis = tensors["basis"].long()
        return cls(tensors["weights"], tensors["means"], tensors["variances"], tensors["bases"], basis)

    @classmethod
    def join(cls, parts: Sequence["ClassStatistics"]) -> "ClassStatistics":
        """The classes of several tasks after one another; fewer components are padded with weight 0."""
        k = max(p.weights.shape[1] for p in parts)
        first = [sum(len(p.bases) for p in parts[:i]) for i in range(len(parts))]
        return cls(
            torch.cat([_pad(p.weights, k, 0.0) for p in parts]),
            torch.cat([_pad(p.means, k, 0.0) for p in parts]),
            torch.cat([_pad(p.variances, k, 1.0) for p in parts]),
            torch.cat([p.bases for p in parts]),
            torch.cat([p.basis + n for p, n in zip(parts, first, strict=True)]),
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
    if len(missing := set(range(classes)) - set(labels.tolist())):
        raise ValueError(f"class {min(missing)} has no image to take statistics from")
    basis = _within_class_basis(features, labels, classes)
    coordinates = torch.linalg.solve_triangular(basis, features.double().T, upper=False).T
    width = features.shape[1]
    weights = torch.zeros(classes, components)
    means, variances = torch.zeros(classes, components, width), torch.ones(classes, components, width)
    for c in range(classes):
        own = coordinates[labels == c].numpy()
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
    return ClassStatistics(
        weights, means, variances, basis[None].to(features.dtype), torch.zeros(classes, dtype=torch.long)
    )


def _within_class_basis(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cholesky factor (D, D), float64, of the covariance within classes.

    Shrunk as oracle approximating shrinkage says (OAS, Chen et al. 2010), on standardised features: with fewer images
    than features it still is one.
    """
    x = features.double()
    own = torch.stack([x[labels == c].mean(0) for c in range(classes)])
    residual = x - own[labels]
    scale = residual.square().mean(0).sqrt() + SMALLEST
    if not bool(residual.any()):  # one image each, or all alike
        return torch.diag(scale)
    found, _ = oas((residual / scale).numpy(), assume_centered=True)
    correlation = torch.from_numpy(found)
    correlation.diagonal().add_(SMALLEST)  # for features that do not vary
    return scale[:, None] * torch.linalg.cholesky(correlation)


def _pad(tensor: Tensor, components: int, value: float) -> Tensor:
    missing = components - tensor.shape[1]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor.new_full((len(tensor), missing, *tensor.shape[2:]), value)], 1)

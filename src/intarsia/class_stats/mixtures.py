"""Class statistics: for every class a mixture of Gaussians on its features at theta0, for every task their scatter.

They stand in for the images of a class once those are gone: heads are aligned, and their Fisher taken, on them
(docs/method.md section 3). The Gaussians are diagonal in the task's *basis*: coordinates in which the features of a
class, all classes of the task together, vary alike and independently. Axis by axis in plain features they would draw
images that there are none of: a head aligned on those is 10 points worse on `chalk`, 5 on `sketches`.
Convention: C classes, K components, D feature width.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.shrinkage import basis_of

IMAGES_PER_COMPONENT = 5


@dataclass(frozen=True)
class ClassStatistics:
    """Mixtures of the classes of one task, and the scatter within them.

    Args:
        weights: (C, K), rows sum to 1; a class with fewer components has zeros.
        means: (C, K, D), in the coordinates of the basis.
        variances: (C, K, D), likewise; variances, not standard deviations.
        scatter: (D, D), sum over the task's images of (f - class mean)(f - class mean)^T, plain features.
        freedom: images less classes: scatter / freedom is the covariance within classes.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    scatter: Tensor
    freedom: int

    def __len__(self) -> int:
        return len(self.weights)

    @cached_property
    def basis(self) -> Tensor:
        """(D, D), lower triangular: ``basis_of`` the scatter; features = basis @ coordinates.

        A function of the scatter, and as large: it is not stored. Means and variances on disk are in its coordinates,
        so that a change of ``basis_of`` is a change of the pool's format.
        """
        return basis_of(self.scatter, self.freedom)

    def centres(self) -> Tensor:
        """The mean of every class in plain features, (C, D)."""
        return (self.weights[..., None] * self.means).sum(1) @ self.basis.T

    def gaussians(self) -> Gaussians:
        """The classes with one covariance."""
        return Gaussians(self.centres().double(), self.scatter.double(), self.freedom)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**found, "freedom": torch.tensor(self.freedom)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassStatistics":
        """The inverse of ``tensors``."""
        found = {field.name: tensors[field.name] for field in fields(cls) if field.name != "freedom"}
        return cls(**found, freedom=int(tensors["freedom"]))


def sample(tasks: Sequence[ClassStatistics], per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw features (C * per_class, D) and their labels (C * per_class,), task by task and class by class.

    Args:
        tasks: one and more; C is the number of their classes together.
        per_class: features of each class.
        generator: of the draws.
    """
    components = [torch.multinomial(t.weights, per_class, replacement=True, generator=generator) for t in tasks]
    classes, like = sum(map(len, tasks)), tasks[0].means
    drawn = torch.randn(classes, per_class, like.shape[-1], generator=generator)  # (C, n, D), used in place
    drawn = drawn.to(like.dtype)
    for task, which, own in zip(tasks, components, drawn.split([len(t) for t in tasks]), strict=True):
        picked = which[:, :, None].expand_as(own)
        own.mul_(task.variances.sqrt().gather(1, picked)).add_(task.means.gather(1, picked))
        own.copy_(own @ task.basis.T)
    return drawn.flatten(0, 1), torch.arange(classes).repeat_interleave(per_class)


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
        DivergenceError: a feature is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  slow to import
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    if len(missing := set(range(classes)) - set(labels.tolist())):
        raise ValueError(f"class {min(missing)} has no image to take statistics from")
    plain = Gaussians.of(features, labels, classes)
    scatter, freedom = plain.scatter.to(features.dtype), plain.freedom
    basis = basis_of(scatter, freedom)
    residuals = features.double() - plain.centres[labels]  # centered, or squares of a large common mean drown the rest
    coordinates, centres = (
        torch.linalg.solve_triangular(basis.double(), x.T, upper=False).T for x in (residuals, plain.centres)
    )
    width = features.shape[1]
    weights = torch.zeros(classes, components)
    means, variances = torch.zeros(classes, components, width), torch.ones(classes, components, width)
    for c in range(classes):
        own = coordinates[labels == c].numpy()
        k = max(1, min(components, len(own) // IMAGES_PER_COMPONENT))
        if len(own) == 1:
            weights[c, 0], means[c, 0] = 1.0, centres[c]
            continue
        mixture = GaussianMixture(
            k, covariance_type="diag", init_params="k-means++", random_state=seed + c, reg_covar=1e-4
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture after 100 steps is good enough to draw from
            mixture.fit(own)
        weights[c, :k] = torch.from_numpy(mixture.weights_)
        means[c, :k] = torch.from_numpy(mixture.means_) + centres[c]
        variances[c, :k] = torch.from_numpy(mixture.covariances_)
    return ClassStatistics(weights, means, variances, scatter, freedom)

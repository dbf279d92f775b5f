"""How a change of the trainable weights moves the features, as an affine map fitted on images that were seen both ways.

Heads are made on features at theta0; a composed model has others, and no image is left to see them. What is known of
the classes is therefore carried along by such maps (semantic drift compensation, Yu et al., arXiv 2004.00440).
Convention: features (N, D) as rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.shrinkage import moments, spread
from intarsia.numerics import check_finite, eigen

RIDGES = tuple(10.0 ** (half / 2 - 3) for half in range(10))
"""Of which a fit takes one: 0.001 to 31.6, half a decade apart."""


@dataclass(frozen=True)
class FeatureDrift:
    """x -> x matrix + offset: what a change of the weights adds to features x.

    Args:
        matrix: (D, D).
        offset: (D,).
    """

    matrix: Tensor
    offset: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, D) -> where they drift to, (N, D)."""
        return features + features @ self.matrix.to(features) + self.offset.to(features)

    def then(self, other: "FeatureDrift") -> "FeatureDrift":
        """Both as one, this one first; double precision."""
        matrix, later = self.matrix.double(), other.matrix.double()
        return FeatureDrift(matrix + later + matrix @ later, other(self.offset.double()))

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {"matrix": self.matrix, "offset": self.offset}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FeatureDrift":
        """The inverse of ``tensors``."""
        return cls(tensors["matrix"], tensors["offset"])

    @classmethod
    def weighted(cls, drifts: Sequence["FeatureDrift"], weights: Sequence[float]) -> "FeatureDrift":
        """sum_t w_t drift_t, added in the order given; at least one."""
        matrix, offset = torch.zeros_like(drifts[0].matrix), torch.zeros_like(drifts[0].offset)
        for drift, weight in zip(drifts, weights, strict=True):
            matrix, offset = matrix.add(drift.matrix, alpha=weight), offset.add(drift.offset, alpha=weight)
        return cls(matrix, offset)


def fit_drift(before: Tensor, after: Tensor, ridges: Sequence[float] = RIDGES) -> FeatureDrift:
    """Ridge regression of after - before on before, standardised, the offset free.

    argmin |Y - X M|^2 + r N |M|^2 on centered X and Y. Of the ridges r the one is taken under which images that were
    left out would be predicted best, by generalized cross-validation (Golub, Heath and Wahba 1979):
    N |Y - X M|^2 / (N - 1 - tr H)^2, H the matrix that makes X M of Y. Few images of many features need a ridge that
    is a hundred times that of many images of few.

    Args:
        before: (N, D).
        after: (N, D) of the same images, with other weights.
        ridges: at least one.

    Raises:
        DivergenceError: a feature is not finite.
    """
    x, drift, count = before.double(), after.double() - before.double(), len(before)
    check_finite(drift, "features before and after a change of the weights")
    mean, variance = moments(x)
    scale = spread(variance, mean.square() + variance)
    shift = drift.mean(0)
    white, away = (x - mean) / scale, drift - shift
    values, vectors = eigen(white.T @ white, 0.0)
    inside = vectors.T @ (white.T @ away)
    squares, total = inside.square().sum(1), away.square().sum()

    def left_out(ridge: float) -> float:
        shrunk = 1 / (values + ridge * count)
        free = count - 1 - (values * shrunk).sum()
        return float((total - (squares * shrunk * (2 - values * shrunk)).sum()).clamp_min(0) / free.square())

    chosen = min(ridges, key=left_out)
    matrix = vectors @ (inside / (values + chosen * count)[:, None]) / scale[:, None]
    offset = shift - mean @ matrix
    return FeatureDrift(matrix.to(before.dtype), offset.to(before.dtype))


def compensate(classes: Gaussians, drift: FeatureDrift, start: Tensor | None = None) -> Gaussians:
    """Where classes drift to: c -> c + s M + m, scatter -> (I + M)^T scatter (I + M), factors -> factors (I + M).

    Args:
        classes: as they were last known.
        drift: what happens to them.
        start: (C, D) s, where the drift was fitted, if that is not where the classes are now.
    """
    start = classes.centres if start is None else start
    onward = torch.eye(len(drift.offset), dtype=torch.float64, device=start.device) + drift.matrix.double()
    return Gaussians(
        classes.centres + start @ drift.matrix.double() + drift.offset.double(),
        onward.T @ classes.scatter @ onward,
        classes.freedom,
        None if classes.factors is None else classes.factors @ onward.to(classes.factors),
    )

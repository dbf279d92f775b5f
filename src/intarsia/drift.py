"""How a task vector moves the features, as an affine map fitted on its own task's images.

Heads are made on features at theta0; a composed model has others, and no image is left to see them. To first order in
the task vectors f(theta0 + sum_t w_t tau_t) - f(theta0) is the sum of w_t times what tau_t does alone, so every module
keeps an affine estimate of that, and the heads of all tasks can be carried along into any composition (semantic drift
compensation, Yu et al., arXiv 2004.00440, for task vectors).
Convention: features (N, D) as rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.05
SMALLEST = 1e-6


@dataclass(frozen=True)
class FeatureDrift:
    """x -> x matrix + offset: what a task vector adds to features x at theta0.

    Args:
        matrix: (D, D).
        offset: (D,).
    """

    matrix: Tensor
    offset: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, D) at theta0 -> where they drift to, (N, D)."""
        return features + features @ self.matrix + self.offset

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


def fit_drift(before: Tensor, after: Tensor, coefficient: float) -> FeatureDrift:
    """Fit the drift of a whole task vector to features seen with a part of it.

    Ridge regression of after - before on before, standardised, the offset free: argmin |Y - X M|^2 + 0.05 N |M|^2 on
    centred X and Y.

    Args:
        before: (N, D) at theta0.
        after: (N, D) of the same images, with ``coefficient`` times the task vector added.
        coefficient: how much of it; the drift is scaled up to 1.
    """
    x, drift = before.double(), (after.double() - before.double()) / coefficient
    mean, scale = x.mean(0), x.std(0, correction=0) + SMALLEST
    white = (x - mean) / scale
    gram = white.T @ white
    gram.diagonal().add_(RIDGE * len(x))
    matrix = torch.linalg.solve(gram, white.T @ (drift - drift.mean(0))) / scale[:, None]
    offset = drift.mean(0) - mean @ matrix
    return FeatureDrift(matrix.to(before.dtype), offset.to(before.dtype))

"""The curvature's diagonal in the eigenbasis of Kronecker factors: EKFAC (arXiv 1806.03884).

The eigenvectors L of B and R of A (of KFAC) are taken once, on the images of the first task, the *reference set*. In
that basis the curvature is taken as diagonal:

    D = sum over images of (L^T G R)^2,        F tau = L (D / N * (L^T tau R)) R^T

It is the best of all that are diagonal there, its trace is exact, and as the basis stays, D adds up over tasks without
any further approximation. Taken on the reference set alone it needs nothing of another task: modules do not depend on
the order of the tasks, and the first one is regularized too (DELTA, arXiv 2605.18993).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.curvature.choices import Estimator
from intarsia.curvature.estimators import share_of
from intarsia.curvature.kronecker.kfac import Head, KroneckerFactors, kfac, pulled_back, under
from intarsia.curvature.kronecker.metric import EigenMetric, eigenbasis
from intarsia.curvature.protocol import Curvature
from intarsia.curvature.squares import add_squares
from intarsia.numerics import Precision, wide


@dataclass(frozen=True)
class EigenCorrected:
    """A diagonal in fixed bases, as a sum over images.

    Args:
        left: weight name -> L (O, O), orthogonal.
        right: weight name -> R (I, I), orthogonal.
        sums: weight name -> D (O, I), the sum over images of (L^T G R)^2.
        count: number of images N.
    """

    left: Mapping[str, Tensor]
    right: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    count: int
    kind: ClassVar[str] = "ekfac"

    @property
    def error(self) -> float | None:
        """Not estimated."""
        return None

    def __add__(self, other: Self) -> Self:
        """Of both sets of images: sums and counts add.

        Raises:
            ValueError: they are over different weights or in different bases.
        """
        self._check(other)
        sums = {name: d + other.sums[name] for name, d in self.sums.items()}
        return replace(self, sums=sums, count=self.count + other.count)

    def __sub__(self, other: Self) -> Self:
        """Without a set of images: the inverse of ``+`` up to rounding, never below zero."""
        self._check(other)
        sums = {name: (d - other.sums[name]).clamp_min(0) for name, d in self.sums.items()}
        return replace(self, sums=sums, count=self.count - other.count)

    def _check(self, other: Self) -> None:
        if self.sums.keys() != other.sums.keys():
            raise ValueError("curvatures over different weights cannot be added")
        for one, another in ((self.left, other.left), (self.right, other.right)):
            if not all(u is another[name] or torch.equal(u, another[name].to(u)) for name, u in one.items()):
                raise ValueError("curvatures in different eigenbases cannot be added: estimate one `like` the other")

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        parts = (self.left, self.right, self.sums)
        left, right, sums = ({n: x.to(device) for n, x in part.items()} for part in parts)
        return replace(self, left=left, right=right, sums=sums)

    def mean(self, floor: float = 1e-5, *, unit: bool = False) -> EigenMetric:
        """D / N + floor in the bases; with ``unit``, scaled to a mean of 1 over all weights before the floor.

        Raises:
            ValueError: no image was counted.
        """
        if self.count < 1:
            raise ValueError("a curvature of no images has no mean")
        divisor = float(self.count)
        if unit:
            numbers = sum(d.numel() for d in self.sums.values())
            divisor = max(float(sum(wide(d).sum() for d in self.sums.values())) / numbers, 1e-30)
        return EigenMetric(self.left, self.right, {name: d / divisor + floor for name, d in self.sums.items()})

    def tensors(self) -> Mapping[str, Tensor]:
        """``L.``, ``R.`` and ``D.<weight name>``."""
        parts = {"L": self.left, "R": self.right, "D": self.sums}
        return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], count: int) -> Self:
        """The inverse of ``tensors``."""
        return cls(under("L", tensors), under("R", tensors), under("D", tensors), count)


def ekfac(
    backbone: Backbone,
    head: Head | None,
    batches: Iterable[Tensor],
    *,
    estimator: Estimator = "rademacher",
    probes: int = 1,
    generator: torch.Generator | None = None,
    precision: Precision = "fp32",
    like: Curvature | None = None,
) -> EigenCorrected:
    """The diagonal in the eigenbases of ``like``, or of the factors of the batches themselves if it is None.

    Args:
        backbone: theta0.
        head: see ``kfac``.
        batches: normalised images (B, channels, size, size), on the backbone's device; kept in memory.
        estimator: see ``kfac``.
        probes: see ``kfac``.
        generator: see ``kfac``.
        precision: of the products.
        like: a curvature of this kind, whose bases are taken, or the factors, which are then not made again.

    Raises:
        ValueError: probes below 1, or no image at all.
        InputError: a layer sees something else than whole images.
    """
    how: dict[str, Any] = {"estimator": estimator, "probes": probes, "precision": precision}
    kept, later = list(batches), None
    if generator is not None:  # draws that do not depend on whether the bases are known
        later = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
    if isinstance(like, EigenCorrected):
        left, right = like.left, like.right
    else:
        given = isinstance(like, KroneckerFactors)
        made = like if given else kfac(backbone, head, kept, generator=generator, **how)
        left, right = ({n: eigenbasis(x)[1] for n, x in part.items()} for part in (made.outputs, made.inputs))
    sums = {name: torch.zeros_like(w) for name, w in backbone.trainable.items()}
    share = share_of(estimator, probes)

    def receive(name: str, a: Tensor, g: Tensor) -> None:
        add_squares(sums[name], a.to(right[name]) @ right[name], g.to(left[name]) @ left[name], share)

    count = pulled_back(backbone, head, kept, receive, {**how, "generator": later})
    return EigenCorrected(left, right, sums, count)

"""Diagonal Fisher information of a classifier at theta0.

For a trainable weight W (O, I), summed over images x and classes c seen so far (docs/method.md sections 3 and 5):

    F = sum_x sum_c p_c(x) (d log p_c(x) / dW)^2

squared per image, over all of its tokens and all calls of the weight together; ``estimators`` says how the sum over
classes is taken.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.curvature.choices import Estimator
from intarsia.curvature.estimators import share_of
from intarsia.curvature.protocol import Curvature
from intarsia.curvature.squares import add_squares
from intarsia.curvature.taps import pull_back
from intarsia.numerics import Precision, wide
from intarsia.parallel.processes import current


class DiagonalMetric(dict[str, Tensor]):
    """A positive diagonal by weight name, (O, I) each: |tau|_F^2 = sum F tau^2."""

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """|tau|_F^2 / 2, a scalar in float64."""
        terms = [(wide(self[name]) * wide(tau).square()).sum().cpu() for name, tau in vector.items()]
        return 0.5 * torch.stack(terms).sum()

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """F tau (O, I), elementwise."""
        return self[name] * tau

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """(F, 0): it is its own bound."""
        return self[name], torch.zeros_like(tau)


@dataclass(frozen=True)
class UniformMetric:
    """One number for every weight: |tau|_F^2 = scale |tau|^2."""

    scale: float

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """|tau|_F^2 / 2, a scalar in float64."""
        return 0.5 * self.scale * torch.stack([wide(tau).square().sum().cpu() for tau in vector.values()]).sum()

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """Scale tau (O, I)."""
        return self.scale * tau

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, 0): it is its own bound."""
        return torch.full_like(tau, self.scale), torch.zeros_like(tau)


@dataclass(frozen=True)
class DiagonalFisher:
    """A diagonal Fisher as a sum over images, so that tasks of different sizes add up right.

    Args:
        sums: weight name -> sum over images of squared gradients, (O, I).
        count: number of images N.
        error: relative standard error |F_odd - F_even| / |F| from two halves of the images; None if not estimated.
    """

    sums: Mapping[str, Tensor]
    count: int
    error: float | None = None
    kind: ClassVar[str] = "diagonal"

    def __add__(self, other: "DiagonalFisher") -> "DiagonalFisher":
        """The Fisher of both sets of images: sums and counts add."""
        if self.sums.keys() != other.sums.keys():
            raise ValueError("Fishers over different weights cannot be added")
        return DiagonalFisher({n: f + other.sums[n] for n, f in self.sums.items()}, self.count + other.count)

    def __sub__(self, other: "DiagonalFisher") -> "DiagonalFisher":
        """Take a set of images out again; the inverse of ``+`` up to rounding, never below zero."""
        sums = {n: (f - other.sums[n]).clamp_min(0) for n, f in self.sums.items()}
        return DiagonalFisher(sums, self.count - other.count)

    def to(self, device: torch.device) -> "DiagonalFisher":
        """The same on another device."""
        return DiagonalFisher({n: f.to(device) for n, f in self.sums.items()}, self.count, self.error)

    def mean(self, floor: float = 1e-5, *, unit: bool = False) -> DiagonalMetric:
        """F by weight name: sums / N + floor; with ``unit``, scaled to mean 1 over all weights before the floor.

        Raises:
            ValueError: no image was counted.
        """
        if self.count < 1:
            raise ValueError("a Fisher of no images has no mean")
        divisor = self.scale() if unit else float(self.count)
        return DiagonalMetric({name: f / divisor + floor for name, f in self.sums.items()})

    def scale(self) -> float:
        """Mean of the sums over all trainable weights; above zero, though one class leaves all of them zero."""
        numbers = sum(f.numel() for f in self.sums.values())
        return max(float(sum(wide(f).sum() for f in self.sums.values())) / numbers, 1e-30)

    def tensors(self) -> Mapping[str, Tensor]:
        """What is stored, beside the count."""
        return self.sums

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], count: int) -> "DiagonalFisher":
        """The inverse of ``tensors``."""
        return cls(tensors, count)


def diagonal_fisher(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor] | None,
    batches: Iterable[Tensor],
    *,
    estimator: Estimator = "rademacher",
    probes: int = 1,
    generator: torch.Generator | None = None,
    precision: Precision = "fp32",
    like: Curvature | None = None,
) -> DiagonalFisher:
    """Diagonal Fisher of ``head(backbone(x))`` by the backbone's trainable weights.

    Args:
        backbone: theta0.
        head: features (B, D) -> logits (B, C); the reference heads of all classes seen so far. Of the features
            themselves, the diagonal of J^T J, if None.
        batches: normalised images (B, channels, size, size), on the backbone's device.
        estimator: ``exact``, ``rademacher`` or ``mc``.
        probes: independent draws averaged, for the random ones.
        generator: their source of randomness, on the CPU.
        precision: of the products; logits and sums are float32.
        like: not looked at: diagonals add up whatever they are.

    Returns:
        Sums over all images, and the relative standard error of two half-sample estimates.

    Raises:
        ValueError: probes below 1, or no batch at all.
        InputError: a layer sees something else than whole images.

    Example:
        >>> fisher = diagonal_fisher(Backbone.load(), head, [images], generator=torch.Generator().manual_seed(0))
    """
    weight = share_of(estimator, probes)
    halves = [{name: torch.zeros_like(w) for name, w in backbone.trainable.items()} for _ in range(2)]
    count = 0
    for images in batches:
        first = count  # images are numbered from it on, and go to the two halves by parity

        def squares(name: str, a: Tensor, g: Tensor, first: int = first) -> None:
            for parity in range(2):
                chosen = slice((parity - first) % 2, None, 2)
                add_squares(halves[parity][name], a[chosen], g[chosen], weight)

        how = {"estimator": estimator, "probes": probes, "generator": generator, "precision": precision}
        pull_back(backbone, head, images, squares, **how)
        count += len(images)
    if (here := current()).count > 1:
        images_of_all = torch.tensor([count], device=next(iter(halves[0].values())).device)
        here.sum_([images_of_all])
        for half in halves:
            here.sum_(half.values())
        count = int(images_of_all)
    if count == 0:
        raise ValueError("a Fisher needs at least one image")
    sums = {name: f + halves[1][name] for name, f in halves[0].items()}
    return DiagonalFisher(sums, count, _half_sample_error(halves, sums))


def _half_sample_error(halves: list[dict[str, Tensor]], sums: dict[str, Tensor]) -> float:
    apart = sum(float(wide(f - halves[1][n]).square().sum()) for n, f in halves[0].items())
    size = sum(float(wide(f).square().sum()) for f in sums.values())
    return (apart / size) ** 0.5 if size > 0 else 0.0

"""What a curvature is: a stand-in for the Hessian at theta0 that regularizers measure task vectors with.

A curvature is kept as a sum over images, so that tasks of different sizes add up right; its mean is a *metric*, the
positive semi-definite quadratic form of the regularizers (docs/method.md sections 2, 4 and 5). A new one is one file
here and one line in the package's table.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from intarsia.adapters.protocol import Form
from intarsia.backbones.backbone import Backbone
from intarsia.curvature.choices import Estimator
from intarsia.numerics import Precision


@runtime_checkable
class Metric(Protocol):
    """F, a quadratic form over task vectors, weight by weight: |tau|_F^2 = sum_n <tau_n, F_n tau_n>."""

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """|tau|_F^2 / 2, a scalar in float64."""
        ...

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """F_n tau (O, I): of ``value`` by one weight; linear in tau."""
        ...

    def quadratic(self, name: str, tau: Tensor) -> tuple[Tensor, Tensor]:
        """(c, d), each (O, I): sum(c x^2 / 2 - d x) touches <x, F_n x> / 2 at x = tau and lies nowhere below it.

        What an adapter's closed-form proximal step takes (``Adapter.proximal``). A diagonal F is its own c, with d = 0,
        and the step is exact; any other F has a c, diagonal, with diag(c) - F_n positive semi-definite, d = c tau - F_n
        tau, and the step is stable at any strength.
        """
        ...


@runtime_checkable
class Diagonalized(Protocol):
    """A metric that knows the bases where it is diagonal: the proximal steps of ``Exact`` adapters are exact in it."""

    def form(self, name: str) -> Form:
        """F_n."""
        ...


@runtime_checkable
class Curvature(Protocol):
    """A curvature at theta0, summed over images."""

    kind: ClassVar[str]
    """Its name in records."""

    @property
    def count(self) -> int:
        """Number of images N."""
        ...

    @property
    def error(self) -> float | None:
        """Relative standard error, where one is estimated."""
        ...

    def __add__(self, other: Self, /) -> Self:
        """Of both sets of images."""
        ...

    def __sub__(self, other: Self, /) -> Self:
        """Without a set of images: the inverse of ``+`` up to rounding."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        ...

    def mean(self, floor: float = 1e-5, *, unit: bool = False) -> Metric:
        """Sums / N + floor; with ``unit``, scaled to a mean diagonal of 1 over all weights before the floor."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """What is stored, beside the count."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], count: int) -> Self:
        """The inverse of ``tensors``."""
        ...


class Estimate(Protocol):
    """How a curvature of ``head(backbone(x))`` is estimated; see ``fisher.diagonal_fisher``.

    The Fisher of the logits' softmax, or the Gauss-Newton matrix J^T J of the features themselves if ``head`` is None.
    """

    def __call__(
        self,
        backbone: Backbone,
        head: Callable[[Tensor], Tensor] | None,
        batches: Iterable[Tensor],
        *,
        estimator: Estimator = "rademacher",
        probes: int = 1,
        generator: torch.Generator | None = None,
        precision: Precision = "fp32",
        like: Curvature | None = None,
    ) -> Curvature:
        """Sums over all images of the batches; ``like`` is what they are to be added to, if there is anything."""
        ...

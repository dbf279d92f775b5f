"""A curvature per layer as a Kronecker product of two small factors: KFAC (arXiv 1503.05671).

Of an image with tokens n, layer inputs a_n and gradients g_n of <outputs, v>, a random v, the weight's gradient is
G = sum_n g_n a_n^T, and the layer's block of the curvature is E vec(G) vec(G)^T. With

    B = mean over images of sum_n g_n g_n^T    (O, O)        A = mean over images of mean_n a_n a_n^T    (I, I)

KFAC puts tau -> B tau A in its place. It is exact where there is one token and g does not depend on a (a last linear
layer), else as good as g and a are independent of each other and from token to token. (The mean is over the tokens that
reach the outputs: in a last block that is read at its class token, over that one.) Where features are a mean of tokens,
they are not independent: what the tokens of an image have in common adds up in G, and KFAC misses it.

By default it is of the Gauss-Newton matrix J^T J of the features (no head: TAK, arXiv 2602.17385, which takes it of
normalized features; the heads here read features as they are).

Tasks add up factor by factor: with shares n_u / N of the images, (sum_u n_u/N B_u) x (sum_u n_u/N A_u) stands for
sum_u n_u/N (B_u x A_u). The memory does not grow with the number of tasks; what is lost is how B_u and A_u vary
together over the tasks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.curvature.choices import Estimator
from intarsia.curvature.estimators import share_of
from intarsia.curvature.kronecker.metric import KroneckerMetric
from intarsia.curvature.protocol import Curvature
from intarsia.curvature.taps import Receive, pull_back
from intarsia.numerics import Precision, wide

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KroneckerFactors:
    """Factors as sums over images.

    Args:
        outputs: weight name -> sum of g g^T (O, O) over images and their tokens.
        inputs: weight name -> sum over images of the mean over their tokens of a a^T (I, I).
        count: number of images N.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    count: int
    kind: ClassVar[str] = "kfac"

    @property
    def error(self) -> float | None:
        """Not estimated."""
        return None

    def __add__(self, other: Self) -> Self:
        """Of both sets of images: sums and counts add (see the module for what that approximates)."""
        return self._with(other, 1)

    def __sub__(self, other: Self) -> Self:
        """Without a set of images: the inverse of ``+`` up to rounding."""
        return self._with(other, -1)

    def _with(self, other: Self, sign: int) -> Self:
        if self.outputs.keys() != other.outputs.keys():
            raise ValueError("curvatures over different weights cannot be added")
        outputs = {n: torch.add(b, other.outputs[n], alpha=sign) for n, b in self.outputs.items()}
        inputs = {n: torch.add(a, other.inputs[n], alpha=sign) for n, a in self.inputs.items()}
        return replace(self, outputs=outputs, inputs=inputs, count=self.count + sign * other.count)

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        outputs, inputs = ({n: x.to(device) for n, x in part.items()} for part in (self.outputs, self.inputs))
        return replace(self, outputs=outputs, inputs=inputs)

    def mean(self, floor: float = 1e-5, *, unit: bool = False) -> KroneckerMetric:
        """B tau A + floor tau; with ``unit``, scaled to a mean diagonal of 1 over all weights before the floor.

        Raises:
            ValueError: no image was counted.
        """
        if self.count < 1:
            raise ValueError("a curvature of no images has no mean")
        inputs = {name: a / self.count for name, a in self.inputs.items()}
        unit_of = self._mean_diagonal(inputs) if unit else 1.0
        return KroneckerMetric({name: b / (self.count * unit_of) for name, b in self.outputs.items()}, inputs, floor)

    def _mean_diagonal(self, inputs: Mapping[str, Tensor]) -> float:
        """Of the mean over images: sum of tr B tr A over the number of weights, above zero."""
        traces = sum(float(wide(b).trace() * wide(inputs[n]).trace()) for n, b in self.outputs.items())
        numbers = sum(len(b) * len(inputs[n]) for n, b in self.outputs.items())
        return max(traces / (numbers * self.count), 1e-30)

    def tensors(self) -> Mapping[str, Tensor]:
        """``B.<weight name>`` and ``A.<weight name>``."""
        outputs, inputs = {f"B.{n}": b for n, b in self.outputs.items()}, {f"A.{n}": a for n, a in self.inputs.items()}
        return {**outputs, **inputs}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], count: int) -> Self:
        """The inverse of ``tensors``."""
        return cls(under("B", tensors), under("A", tensors), count)


def kfac(
    backbone: Backbone,
    head: Head | None,
    batches: Iterable[Tensor],
    *,
    estimator: Estimator = "rademacher",
    probes: int = 1,
    generator: torch.Generator | None = None,
    precision: Precision = "fp32",
    like: Curvature | None = None,
) -> KroneckerFactors:
    """Kronecker factors of the features of ``backbone``, or of ``head(backbone(x))``.

    Args:
        backbone: theta0.
        head: features (B, D) -> logits (B, C), for the Fisher of their softmax; None for J^T J of the features.
        batches: normalised images (B, channels, size, size), on the backbone's device.
        estimator: ``exact``, ``rademacher`` or ``mc``: see ``estimators``.
        probes: independent draws averaged, for the random ones.
        generator: their source of randomness, on the CPU.
        precision: of the products.
        like: not looked at: factors add up whatever they are.

    Raises:
        ValueError: probes below 1, or no image at all.
        InputError: a layer sees something else than whole images.
    """
    weights = backbone.trainable
    outputs = {name: w.new_zeros(len(w), len(w)) for name, w in weights.items()}
    inputs = {name: w.new_zeros(w.shape[1], w.shape[1]) for name, w in weights.items()}
    passes, share = dict.fromkeys(inputs, 0), share_of(estimator, probes)

    def receive(name: str, a: Tensor, g: Tensor) -> None:
        a, g = a.to(inputs[name]), g.to(outputs[name])
        acts = (g != 0).any(2, keepdim=True).to(a)  # tokens that do not reach the outputs say nothing of the weight
        weighted = a * (acts / acts.sum(1, keepdim=True).clamp_min(1))
        inputs[name].addmm_(weighted.flatten(0, 1).T, a.flatten(0, 1))
        outputs[name].addmm_(g.flatten(0, 1).T, g.flatten(0, 1), alpha=share)
        passes[name] += len(a)

    how = {"estimator": estimator, "probes": probes, "generator": generator, "precision": precision}
    count = pulled_back(backbone, head, batches, receive, how)
    inputs = {name: a * (count / max(passes[name], 1)) for name, a in inputs.items()}
    return KroneckerFactors(outputs, inputs, count)


def pulled_back(
    backbone: Backbone, head: Head | None, batches: Iterable[Tensor], receive: Receive, how: Mapping[str, Any]
) -> int:
    """``pull_back`` of all batches; the number of images.

    Raises:
        ValueError: there is none.
    """
    count = 0
    for images in batches:
        pull_back(backbone, head, images, receive, **how)
        count += len(images)
    if count == 0:
        raise ValueError("a curvature needs at least one image")
    return count


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is named ``<prefix>.<weight name>``, by weight name."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}

"""Diagonal Fisher information of a classifier at theta0.

For a tuned weight W (O, I), summed over images x and classes c seen so far (docs/method.md sections 3 and 5):

    F = sum_x sum_c p_c(x) (d log p_c(x) / dW)^2

squared per image, over all of its tokens together. As d log p_c / dz = e_c - p at the logits z, it is enough to push
chosen vectors v back from the logits:

    exact        the C vectors sqrt(p_c) (e_c - p)                          C backward passes
    rademacher   v = sum_c s_c sqrt(p_c) (e_c - p), s_c = +-1 at random     unbiased, one pass a probe
    mc           c ~ p, v = e_c - p                                         unbiased, more variance

Convention: activations a are (B, N, I), output gradients g are (B, N, O), N tokens; an image's weight gradient is
g^T a (O, I).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from intarsia.backbone import Backbone
from intarsia.errors import InputError
from intarsia.precision import wide

Estimator = Literal["exact", "rademacher", "mc"]
_Receive = Callable[[str, Tensor, Tensor], None]
_ROWS = 4096  # features whose probabilities are held at once
_CHUNK = 1 << 20  # numbers of per-image gradient held at once: they should stay in a core's cache


@dataclass(frozen=True)
class Fisher:
    """A diagonal Fisher as a sum over images, so that tasks of different sizes add up right.

    Args:
        sums: weight name -> sum over images of squared gradients, (O, I).
        count: number of images N.
        error: relative standard error |F_odd - F_even| / |F| from two halves of the images; None if not estimated.
    """

    sums: Mapping[str, Tensor]
    count: int
    error: float | None = None

    def __add__(self, other: "Fisher") -> "Fisher":
        """The Fisher of both sets of images: sums and counts add."""
        if self.sums.keys() != other.sums.keys():
            raise ValueError("Fishers over different weights cannot be added")
        return Fisher({n: f + other.sums[n] for n, f in self.sums.items()}, self.count + other.count)

    def __sub__(self, other: "Fisher") -> "Fisher":
        """Take a set of images out again; the inverse of ``+`` up to rounding, never below zero."""
        sums = {n: (f - other.sums[n]).clamp_min(0) for n, f in self.sums.items()}
        return Fisher(sums, self.count - other.count)

    def to(self, device: torch.device) -> "Fisher":
        """The same on another device."""
        return Fisher({n: f.to(device) for n, f in self.sums.items()}, self.count, self.error)

    def mean(self, floor: float = 1e-5, *, unit: bool = False) -> dict[str, Tensor]:
        """F by weight name: sums / N + floor; with ``unit``, scaled to mean 1 over all tuned weights before the floor.

        Raises:
            ValueError: no image was counted.
        """
        if self.count < 1:
            raise ValueError("a Fisher of no images has no mean")
        divisor = self.scale() if unit else float(self.count)
        return {name: f / divisor + floor for name, f in self.sums.items()}

    def scale(self) -> float:
        """Mean of the sums over all tuned weights; above zero, though one class leaves all of them zero."""
        numbers = sum(f.numel() for f in self.sums.values())
        return max(float(sum(wide(f).sum() for f in self.sums.values())) / numbers, 1e-30)


def diagonal_fisher(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    estimator: Estimator = "rademacher",
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Fisher:
    """Diagonal Fisher of ``head(backbone(x))`` by the backbone's tuned weights.

    Args:
        backbone: theta0.
        head: features (B, D) -> logits (B, C); the reference heads of all classes seen so far.
        batches: normalised images (B, channels, size, size), on the backbone's device.
        estimator: ``exact``, ``rademacher`` or ``mc``.
        probes: independent draws averaged, for the random ones.
        generator: their source of randomness, on the CPU.

    Returns:
        Sums over all images, and the relative standard error of two half-sample estimates.

    Raises:
        ValueError: probes below 1, or no batch at all.

    Example:
        >>> fisher = diagonal_fisher(Backbone.load(), head, [images], generator=torch.Generator().manual_seed(0))
    """
    if probes < 1:
        raise ValueError(f"probes = {probes}: expected 1 or more")
    halves = [{name: torch.zeros_like(w) for name, w in backbone.tuned.items()} for _ in range(2)]
    count = 0
    for images in batches:
        _accumulate(backbone, head, images, halves, count, estimator, probes, generator)
        count += len(images)
    if count == 0:
        raise ValueError("a Fisher needs at least one image")
    sums = {name: f + halves[1][name] for name, f in halves[0].items()}
    return Fisher(sums, count, _half_sample_error(halves, sums))


def head_fisher(features: Tensor, weight: Tensor, bias: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Exact mean Fisher of a linear softmax head, by its weight (C, D) and bias (C,).

    d log p_c / dW_k = ((c = k) - p_k) f, hence F[k, d] = mean over features of p_k (1 - p_k) f_d^2.

    Args:
        features: (N, D).
        weight: (C, D).
        bias: (C,).
        rows: classes k whose Fisher is asked for; all of them compete.
    """
    by_weight, by_bias = torch.zeros_like(weight[rows]), torch.zeros_like(bias[rows])
    for some in features.split(_ROWS):
        p = torch.softmax(some @ weight.T + bias, 1)[:, rows]
        variance = p * (1 - p)  # (n, rows)
        by_weight.addmm_(variance.T, some.square(), alpha=1 / len(features))
        by_bias.add_(variance.sum(0), alpha=1 / len(features))
    return by_weight, by_bias


def _accumulate(
    backbone: Backbone,
    head: Callable[[Tensor], Tensor],
    images: Tensor,
    halves: list[dict[str, Tensor]],
    first: int,
    estimator: Estimator,
    probes: int,
    generator: torch.Generator | None,
) -> None:
    """Add one batch; its images number ``first``, ``first`` + 1, ... and go to the two halves by parity."""
    weight = 1.0 / probes if estimator != "exact" else 1.0

    def squares(name: str, a: Tensor, g: Tensor) -> None:
        if len(a) != len(images):
            raise InputError(
                f"{name} of {backbone.name} sees {len(a)} pieces of {len(images)} images (a windowed network?): a "
                "Fisher is squared per image; name targets that see whole images"
            )
        for parity in range(2):
            chosen = slice((parity - first) % 2, None, 2)
            add_squares(halves[parity][name], a[chosen], g[chosen], weight)

    with _Taps(backbone, squares), torch.enable_grad():
        logits = head(backbone.model(images))
        vectors = logit_vectors(logits.detach(), estimator, probes, generator)
        for k, v in enumerate(vectors):
            logits.backward(v, retain_graph=k + 1 < len(vectors))


def logit_vectors(logits: Tensor, estimator: Estimator, probes: int, generator: torch.Generator | None) -> list[Tensor]:
    """The vectors (B, C) to push back from logits (B, C); their squared pull-backs sum to F (times probes)."""
    p = torch.softmax(logits, 1)
    if estimator == "exact":
        eye = torch.eye(logits.shape[1], dtype=p.dtype, device=p.device)
        return [p[:, c, None].sqrt() * (eye[c] - p) for c in range(logits.shape[1])]
    return [_random_vector(p, estimator, generator) for _ in range(probes)]


def _random_vector(p: Tensor, estimator: Estimator, generator: torch.Generator | None) -> Tensor:
    if estimator == "mc":
        drawn = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
        return torch.zeros_like(p).scatter_(1, drawn, 1.0) - p
    images, classes = p.shape
    weighted = _signs(images, classes, generator).to(p) * p.sqrt()
    return weighted - weighted.sum(1, keepdim=True) * p


def _signs(images: int, classes: int, generator: torch.Generator | None) -> Tensor:
    """Random signs (B, C): independent within an image, balanced between images.

    An image's signs are a row of a Hadamard matrix, its columns flipped at random; rows are used up in random order
    before one comes again. What the images of a cycle have in common in the product of two classes' gradients then
    cancels, instead of averaging out: half the error of signs that are drawn one by one.
    """
    matrix = _hadamard(1 << (classes - 1).bit_length())
    cycles = [torch.randperm(len(matrix), generator=generator) for _ in range(-(-images // len(matrix)))]
    flips = (torch.randint(0, 2, (classes,), generator=generator) * 2 - 1).to(matrix.dtype)
    return matrix[torch.cat(cycles)[:images], :classes] * flips


@cache
def _hadamard(n: int) -> Tensor:
    """Sylvester's matrix (n, n) of +-1 with orthogonal rows; n is a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.int8)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def add_squares(into: Tensor, a: Tensor, g: Tensor, weight: float = 1.0) -> None:
    """Into (O, I) += weight * sum over images of (g^T a)^2, never holding all B x O x I numbers.

    Args:
        into: the running sum, changed in place.
        a: layer inputs (B, N, I).
        g: output gradients (B, N, O).
        weight: factor.
    """
    if into.is_cuda and (kernel := _kernel()) is not None:
        kernel(into, a, g, weight)
    else:
        add_squares_by_products(into, a, g, weight)


def add_squares_by_products(into: Tensor, a: Tensor, g: Tensor, weight: float = 1.0, chunk: int = _CHUNK) -> None:
    """The same on any device, ``chunk`` numbers of per-image gradient at a time."""
    step = max(1, chunk // into.numel())
    for start in range(0, len(a), step):
        per_image = torch.bmm(g[start : start + step].transpose(1, 2), a[start : start + step])  # (b, O, I)
        into.add_(per_image.square_().sum(0), alpha=weight)


@cache
def _kernel() -> Callable[[Tensor, Tensor, Tensor, float], None] | None:
    """The same for CUDA, where Triton is there."""
    try:
        from intarsia import kernels  # noqa: PLC0415  Triton is not everywhere
    except ImportError:
        return None
    return kernels.add_squares


class _Taps:
    """Context manager that hands (input, output gradient) of every tuned layer to a function during backward passes.

    The weights are frozen, so the first tapped output is made a leaf that requires a gradient: nothing before it is
    differentiated.
    """

    def __init__(self, backbone: Backbone, receive: _Receive) -> None:
        self._handles = [
            backbone.model.get_submodule(path).register_forward_hook(self._tap(name, receive))
            for name, path in backbone.targets.items()
        ]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @staticmethod
    def _tap(name: str, receive: _Receive) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            a = args[0].detach()
            output.register_hook(lambda g: receive(name, _tokens(a), _tokens(g)))
            return output

        return hook


def _tokens(x: Tensor) -> Tensor:
    """(B, ..., K) -> (B, N, K); a layer that sees one vector an image has N = 1."""
    return x.reshape(len(x), -1, x.shape[-1])


def _half_sample_error(halves: list[dict[str, Tensor]], sums: dict[str, Tensor]) -> float:
    apart = sum(float(wide(f - halves[1][n]).square().sum()) for n, f in halves[0].items())
    size = sum(float(wide(f).square().sum()) for f in sums.values())
    return (apart / size) ** 0.5 if size > 0 else 0.0

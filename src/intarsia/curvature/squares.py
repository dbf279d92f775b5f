"""Sums of squared per-image gradients of a linear layer.

Convention: activations a are (B, N, I), output gradients g are (B, N, O), N tokens; an image's weight gradient is
g^T a (O, I).
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_CHUNK = 1 << 20  # numbers of per-image gradient held at once: they should stay in a core's cache


def add_squares(into: Tensor, a: Tensor, g: Tensor, weight: float = 1.0) -> None:
    """Into (O, I) += weight * sum over images of (g^T a)^2, never holding all B x O x I numbers.

    Args:
        into: the running sum, changed in place.
        a: layer inputs (B, N, I).
        g: output gradients (B, N, O).
        weight: factor.
    """
    if into.is_cuda and (kernel := _kernel()) is not None:
        kernel(into, a.to(g.dtype), g, weight)  # under autocast the layer saw its input in the gradient's type
    else:
        add_squares_by_products(into, a.to(into.dtype), g.to(into.dtype), weight)


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
        from intarsia.curvature import triton_squares  # noqa: PLC0415  Triton is not everywhere
    except ImportError:
        return None
    return triton_squares.add_squares

"""Precision of products, factorizations that cannot fail, and what tensors are: finite, the same."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from intarsia.errors import DivergenceError

Precision = Literal["fp32", "tf32", "bf16"]
"""Of a network's products: float32, float32 cut to 10 bits (TF32, on cards that know it), bfloat16. Weights, and sums
over images, stay float32."""


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Forward and backward passes that are made in the block; torch's setting is put back at its end.

    With ``bf16`` the forward pass belongs into ``autocast`` besides.
    """
    before = torch.get_float32_matmul_precision()
    try:
        if precision == "tf32":
            torch.set_float32_matmul_precision("high")
        # a CPU's fused attention is slower backward in bfloat16 than all else together
        plainly = precision == "bf16" and device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if plainly else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """A forward pass whose products are in ``precision``; its backward pass is made outside."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def wide(x: Tensor) -> Tensor:
    """In float64; on the CPU if the device knows none (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are; where their sum is, which is quick to know, they are."""
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def check_finite(value: Tensor, what: str) -> None:
    """Refuse numbers that are not finite.

    Raises:
        DivergenceError: naming what they are, and how many.
    """
    if not finite(value):
        bad = int((~torch.isfinite(value)).sum())
        raise DivergenceError(
            f"{what}: {bad} of its {value.numel()} numbers are not finite: look at the network's weights, the images' "
            "preprocessing and the learning rate"
        )


def eigen(matrix: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix that is positive definite but for rounding, in float64.

    Cholesky factors and inverses of statistics fail by rounding, on one processor and not on another; this does not.

    Args:
        matrix: (D, D); its lower triangle is read.
        smallest: what the eigenvalues are in exact arithmetic at least; those below are put there.

    Returns:
        The eigenvalues (D,), ascending, and the eigenvectors (D, D) as columns.

    Raises:
        DivergenceError: the matrix is not finite.
    """
    check_finite(matrix, "a matrix of feature statistics")
    values, vectors = torch.linalg.eigh(wide(matrix))
    return values.clamp_min(smallest), vectors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, shapes and types, in the order of the names."""
    found = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        found.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()

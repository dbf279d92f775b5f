"""Double precision where the device has it, and what tensors are: finite or not, the same or not."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float64; on the CPU if the device knows none (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are; where their sum is, which is quick to know, they are."""
    return math.isfinite(float(value.sum())) or bool(torch.isfinite(value).all())


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, shapes and types, in the order of the names."""
    found = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        found.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()

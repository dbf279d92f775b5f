"""DARE: drop entries at random, rescale the rest, average (Yu et al., arXiv 2311.03099)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.rules import check_vectors
from intarsia.task_vector import TaskVector


def dare(vectors: Sequence[TaskVector], *, drop: float = 0.9, generator: torch.Generator) -> TaskVector:
    """Mean of the vectors, each with its entries dropped at random and the rest rescaled: unbiased for the mean.

    Args:
        vectors: of the tasks.
        drop: probability that an entry is dropped, from 0 to below 1; the others are divided by 1 - drop.
        generator: of what is dropped, on the CPU.

    Raises:
        InputError: no vector, or a probability outside its range.
    """
    check_vectors(vectors)
    if not 0 <= drop < 1:
        raise InputError(f"drop {drop}: expected a probability from 0 to below 1")
    merged: dict[str, Tensor] = {}
    for name, first in vectors[0].items():
        total = torch.zeros_like(first)
        for vector in vectors:
            kept = (torch.rand(first.shape, generator=generator) >= drop).to(first.device)
            total += vector[name] * kept
        merged[name] = total / ((1 - drop) * len(vectors))
    return TaskVector(merged)

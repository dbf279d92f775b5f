"""DARE: drop entries at random, rescale the rest, average (Yu et al., arXiv 2311.03099)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.rules.vectors import check_vectors
from intarsia.task_vector import TaskVector


def dare(vectors: Sequence[TaskVector], *, density: float = 0.1, generator: torch.Generator) -> TaskVector:
    """Mean of the vectors, each with its entries dropped at random and the rest rescaled: unbiased for the mean.

    Args:
        vectors: of the tasks.
        density: probability that an entry is kept, above 0 to 1; what is kept is divided by it.
        generator: of what is kept, on the CPU.

    Raises:
        InputError: no vector, or a density outside its range.
    """
    check_vectors(vectors)
    if not 0 < density <= 1:
        raise InputError(f"density {density}: expected a share above 0 and at most 1")
    merged: dict[str, Tensor] = {}
    for name, first in vectors[0].items():
        total = torch.zeros_like(first)
        for vector in vectors:
            kept = (torch.rand(first.shape, generator=generator) < density).to(first.device)
            total += vector[name] * kept
        merged[name] = total / (density * len(vectors))
    return TaskVector(merged)

"""Breadcrumbs: leave out a weight's smallest and its very largest entries, add the rest (arXiv 2312.06795)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.rules.vectors import weight_by_weight
from intarsia.task_vector import TaskVector


def breadcrumbs(vectors: Sequence[TaskVector], *, smallest: float = 0.85, largest: float = 0.007) -> TaskVector:
    """Sum of the masked vectors; masks are drawn per weight and vector.

    Args:
        vectors: of the tasks.
        smallest: share of a weight's entries left out for being small.
        largest: share left out for being large.

    Raises:
        InputError: no vector, or shares that leave nothing.
    """
    if not (smallest >= 0 and largest >= 0 and smallest + largest < 1):
        raise InputError(f"shares {smallest} and {largest}: expected 0 or more, and less than 1 together")

    def masked(tau: Tensor) -> Tensor:
        order = tau.abs().flatten().argsort(stable=True)
        kept = order[round(smallest * len(order)) : len(order) - round(largest * len(order))]
        mask = torch.zeros(len(order), dtype=torch.bool, device=tau.device)
        mask[kept] = True
        return tau * mask.view_as(tau)

    return weight_by_weight(vectors, lambda taus: torch.stack([masked(tau) for tau in taus]).sum(0))

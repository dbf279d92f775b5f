"""TIES: keep the largest entries, elect their signs, average those that agree (Yadav et al., arXiv 2306.01708)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.rules.vectors import check_vectors
from intarsia.task_vector import TaskVector


def ties(vectors: Sequence[TaskVector], *, density: float = 0.2, scale: float = 1.0) -> TaskVector:
    """Trim, elect sign, disjoint mean.

    Of each vector the ``density`` largest entries by magnitude are kept, over all of its weights together; an entry's
    sign is that of the sum of what is left; the mean is taken over the vectors that kept the entry with that sign.

    Args:
        vectors: of the tasks.
        density: share of entries kept, above 0 and at most 1.
        scale: lambda, the result's factor.

    Raises:
        InputError: no vector, or a density outside its range.
    """
    check_vectors(vectors)
    if not 0 < density <= 1:
        raise InputError(f"density {density}: expected a share above 0 and at most 1")
    floors = [_floor(vector, density) for vector in vectors]
    merged: dict[str, Tensor] = {}
    for name in vectors[0]:
        taus = torch.stack([v[name] for v in vectors])
        least = taus.new_tensor(floors).view(-1, *[1] * (taus.ndim - 1))
        taus = torch.where(taus.abs() >= least, taus, 0.0)
        agreeing = (taus.sign() == taus.sum(0).sign()) & (taus != 0)
        merged[name] = scale * (taus * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)
    return TaskVector(merged)


def _floor(vector: TaskVector, density: float) -> float:
    """The smallest magnitude among the share of entries that is kept."""
    sizes = torch.cat([tau.abs().flatten() for tau in vector.values()])
    if not len(sizes):
        return 0.0
    kept = max(1, round(density * len(sizes)))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values)

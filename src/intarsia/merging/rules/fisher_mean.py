"""Fisher mean: average weighted by each task's Fisher.

Matena and Raffel, arXiv 2111.09832, take it where each task ended; here it is taken at theta0.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.rules.vectors import check_vectors
from intarsia.task_vector import TaskVector


def fisher_mean(
    vectors: Sequence[TaskVector], fishers: Sequence[Mapping[str, Tensor]], *, floor: float = 1e-8
) -> TaskVector:
    """Sum_t F_t tau_t / sum_t F_t, entry by entry.

    Args:
        vectors: of the tasks.
        fishers: each task's own mean Fisher, in the same order; ``Pool.fisher(task).mean()`` of a pool that keeps them.
        floor: added to every Fisher; where all are zero the result is the plain mean.

    Raises:
        InputError: no vector, or not one Fisher for each.
    """
    check_vectors(vectors)
    if len(vectors) != len(fishers):
        raise InputError(f"{len(fishers)} Fishers for {len(vectors)} task vectors: expected one for each")
    merged: dict[str, Tensor] = {}
    for name in vectors[0]:
        weights = torch.stack([f[name] for f in fishers]) + floor
        taus = torch.stack([v[name] for v in vectors])
        merged[name] = (weights * taus).sum(0) / weights.sum(0)
    return TaskVector(merged)

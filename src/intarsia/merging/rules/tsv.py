"""TSV-M: the tasks' leading singular directions side by side, made orthogonal (arXiv 2412.00081)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.merging.rules.vectors import Taus, polar, svd, weight_by_weight
from intarsia.task_vector import TaskVector


def tsv(vectors: Sequence[TaskVector]) -> TaskVector:
    """U S V^T of [U_1 .. U_T], diag(S_1 .. S_T), [V_1 .. V_T], each task's first min(O, I) / T singular triplets.

    U and V are replaced by their polar factors, so that no two tasks share a direction.

    Raises:
        InputError: no vector.
    """
    return weight_by_weight(vectors, _merged)


def _merged(taus: Taus) -> Tensor:
    each = max(1, min(taus[0].shape) // len(taus))
    parts = [(u[:, :each], s[:each], v[:, :each]) for u, s, v in map(svd, taus)]
    left, right = (polar(torch.cat([part[side] for part in parts], 1)) for side in (0, 2))
    return (left * torch.cat([values for _, values, _ in parts])) @ right.T

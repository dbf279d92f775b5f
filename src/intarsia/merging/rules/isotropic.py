"""Iso-C and Iso-CTS: every direction of the merged update as long as every other (arXiv 2502.04959)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.merging.rules.vectors import Taus, polar, svd, weight_by_weight
from intarsia.task_vector import TaskVector


def iso_c(vectors: Sequence[TaskVector]) -> TaskVector:
    """The sum of the vectors with all its singular values set to their mean.

    Directions that the sum does not have (low-rank vectors) stay zero and are not counted.

    Raises:
        InputError: no vector.
    """
    return weight_by_weight(vectors, lambda taus: _isotropic(*svd(torch.stack(list(taus)).sum(0))))


def iso_cts(vectors: Sequence[TaskVector], *, common: float = 0.8) -> TaskVector:
    """Iso-C in the leading directions of the sum and, in the place of its last ones, in each task's own.

    Args:
        vectors: of the tasks.
        common: share of the sum's directions that are kept.

    Raises:
        InputError: no vector, or a share outside 0 to 1.
    """
    if not 0 <= common <= 1:
        raise InputError(f"share {common} of common directions: expected 0 to 1")

    def merged(taus: Taus) -> Tensor:
        u, s, v = svd(torch.stack(list(taus)).sum(0))
        each = round((1 - common) * len(s)) // len(taus)
        kept = len(s) - each * len(taus)
        leading, parts = u[:, :kept], [(u[:, :kept], s[:kept], v[:, :kept])]
        for tau in taus:
            own = svd(tau - leading @ (leading.T @ tau))
            parts.append((own[0][:, :each], own[1][:each], own[2][:, :each]))
        left, right = (torch.cat([part[side] for part in parts], 1) for side in (0, 2))
        return _isotropic(polar(left), torch.cat([values for _, values, _ in parts]), polar(right))

    return weight_by_weight(vectors, merged)


def _isotropic(u: Tensor, values: Tensor, v: Tensor) -> Tensor:
    return values.mean().nan_to_num() * (u @ v.T)

"""Task arithmetic: the sum of the task vectors (Ilharco et al., arXiv 2212.04089)."""

from collections.abc import Sequence

from intarsia.merging.rules.vectors import check_vectors
from intarsia.task_vector import TaskVector, weighted_sum


def task_arithmetic(vectors: Sequence[TaskVector]) -> TaskVector:
    """Sum_t tau_t.

    Raises:
        InputError: no vector.
    """
    check_vectors(vectors)
    return weighted_sum(vectors, [1.0] * len(vectors))

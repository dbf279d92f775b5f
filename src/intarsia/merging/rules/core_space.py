"""Core Space: merge low-rank updates in the small bases that they span together (arXiv 2509.17786)."""

from collections.abc import Callable, Sequence

import torch

from intarsia.merging.rules.vectors import check_vectors, svd
from intarsia.numerics import wide
from intarsia.task_vector import TaskVector

Rule = Callable[[Sequence[TaskVector]], TaskVector]


def in_core_space(vectors: Sequence[TaskVector], rule: Rule) -> TaskVector:
    """U rule(U^T tau_1 V, .., U^T tau_T V) V^T with U, V orthonormal bases of what all the updates of a weight span.

    Nothing of the vectors is lost. Rules that depend on singular directions alone (TSV-M, Iso-C) come to the same
    there, rules on entries (TIES) do not: there entries are shares of common directions.

    Args:
        vectors: of the tasks.
        rule: on vectors of small matrices.

    Raises:
        InputError: no vector.
    """
    check_vectors(vectors)
    bases = {}
    for name, tau in vectors[0].items():
        taus = [wide(v[name]) for v in vectors]
        bases[name] = (svd(torch.cat(taus, 1))[0].to(tau), svd(torch.cat(taus))[2].to(tau))
    small = [TaskVector({n: u.T @ vector[n] @ v for n, (u, v) in bases.items()}) for vector in vectors]
    merged = rule(small)
    return TaskVector({name: u @ merged[name] @ v.T for name, (u, v) in bases.items()})

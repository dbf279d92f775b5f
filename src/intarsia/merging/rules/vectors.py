"""What the merge rules share: vectors to merge, and one vector seen as a combination of others."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from intarsia.errors import InputError
from intarsia.numerics import eigen, wide
from intarsia.task_vector import TaskVector

Taus = Sequence[Tensor]
"""One weight's updates (O, I), a task each."""
NEGLIGIBLE = 1e-6
"""Of the largest singular value: what rounding leaves in directions that float32 vectors do not have."""


def check_vectors(vectors: Sequence[TaskVector]) -> None:
    """Refuse to merge nothing.

    Raises:
        InputError: no vector is given.
    """
    if not vectors:
        raise InputError("no task vector to merge: expected one or more")


def weight_by_weight(vectors: Sequence[TaskVector], rule: Callable[[Taus], Tensor]) -> TaskVector:
    """A rule that looks at one weight at a time, in float64.

    Args:
        vectors: of the tasks.
        rule: a weight's updates (O, I) of all tasks -> the merged one.

    Raises:
        InputError: no vector is given.
    """
    check_vectors(vectors)
    return TaskVector({name: rule([wide(v[name]) for v in vectors]).to(tau) for name, tau in vectors[0].items()})


def svd(tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (O, k), the k singular values that are not rounding, the largest first, and V (I, k)."""
    u, values, v = torch.linalg.svd(tau, full_matrices=False)
    rank = int((values > NEGLIGIBLE * values[0]).sum())
    return u[:, :rank], values[:rank], v[:rank].T


def polar(columns: Tensor) -> Tensor:
    """P Q^T of the SVD of ``columns`` (N, K): the nearest matrix with orthonormal columns, or rows if K > N."""
    p, _, q = torch.linalg.svd(columns, full_matrices=False)
    return p @ q


def coefficients(weights: Iterable[tuple[Tensor, Taus]]) -> list[float]:
    """A vector v seen as a combination of task vectors: argmin_c |v - sum_t c_t tau_t|, the shortest c if several are.

    Args:
        weights: of every trainable weight, v's part (O, I) and those of the task vectors; at least one.

    Example:
        >>> tau = [torch.ones(2, 2), torch.eye(2)]
        >>> coefficients([(2 * tau[0] - tau[1], tau)])
        [2.0, -1.0]
    """
    gram, right = torch.zeros(()), torch.zeros(())
    for vector, taus in weights:
        rows = torch.stack([wide(tau).flatten() for tau in taus])
        gram, right = gram + rows @ rows.T, right + rows @ wide(vector).flatten()
    values, vectors = eigen(gram, 0.0)
    kept = values > NEGLIGIBLE**2 * values[-1]
    inside = torch.where(kept, (vectors.T @ right) / values.where(kept, torch.ones_like(values)), 0.0)
    return [float(c) for c in vectors @ inside]


def best_scale(vector: TaskVector, vectors: Sequence[TaskVector], fishers: Sequence[Mapping[str, Tensor]]) -> float:
    """The factor of v that makes the tasks' quadratic losses least in sum: argmin_s sum_t |s v - tau_t|^2 under F_t.

    A task's loss is quadratic with its Fisher and least at its own vector, as in Theorem 1.

    Args:
        vector: v, merged by some rule.
        vectors: of the tasks.
        fishers: of the tasks, weighted by their images; or one, of all of them.

    Returns:
        1 where v is zero under all of them.
    """
    onto = own = 0.0
    for place, tau in enumerate(vectors):
        fisher = fishers[place if len(fishers) > 1 else 0]
        onto += float(vector.inner(tau, fisher))
        own += float(vector.inner(vector, fisher))
    return onto / own if own > 0 else 1.0

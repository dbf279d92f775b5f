"""Merge rules from the literature beside the mean: what others make one vector of several task vectors with.

    TIES         keep the largest entries, elect their signs, average those that agree (Yadav et al., arXiv 2306.01708)
    DARE         drop entries at random, rescale the rest, average (Yu et al., arXiv 2311.03099)
    Fisher mean  average weighted by each task's Fisher, here at theta0 (Matena and Raffel, arXiv 2111.09832: at theirs)

All work on dense task vectors, by weight name; ``Pool.with_vector`` makes a model of the result.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from intarsia.composed_model import ComposedModel
from intarsia.errors import InputError
from intarsia.pool import Pool
from intarsia.task_vector import TaskVector

Rule = Literal["ties", "dare", "fisher"]


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
    _some(vectors)
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


def dare(vectors: Sequence[TaskVector], *, drop: float = 0.9, generator: torch.Generator) -> TaskVector:
    """Mean of the vectors, each with its entries dropped at random and the rest rescaled: unbiased for the mean.

    Args:
        vectors: of the tasks.
        drop: probability that an entry is dropped, from 0 to below 1; the others are divided by 1 - drop.
        generator: of what is dropped, on the CPU.

    Raises:
        InputError: no vector, or a probability outside its range.
    """
    _some(vectors)
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
    _some(vectors)
    if len(vectors) != len(fishers):
        raise InputError(f"{len(fishers)} Fishers for {len(vectors)} task vectors: expected one for each")
    merged: dict[str, Tensor] = {}
    for name in vectors[0]:
        weights = torch.stack([f[name] for f in fishers]) + floor
        taus = torch.stack([v[name] for v in vectors])
        merged[name] = (weights * taus).sum(0) / weights.sum(0)
    return TaskVector(merged)


def merged(pool: Pool, rule: Rule, *, seed: int = 0) -> ComposedModel:
    """The model of all modules of a pool by a rule with its paper's settings, with the heads of their mean.

    Args:
        pool: with ``fisher``, one that keeps every task's own Fisher.
        rule: which.
        seed: of what ``dare`` drops.

    Raises:
        InputError: the pool is empty, or ``fisher`` is asked of one that did not keep them.
    """
    vectors = [pool.vector(task) for task in pool.learned()]
    if rule == "ties":
        return pool.with_vector(ties(vectors), rule)
    if rule == "dare":
        return pool.with_vector(dare(vectors, generator=torch.Generator().manual_seed(seed)), rule)
    fishers: list[dict[str, Tensor]] = []
    for task in pool.tasks:
        if (fisher := pool.fisher(task)) is None:
            raise InputError(f"{pool.path} has no Fisher of {task!r} of its own: learn it with --keep-fishers")
        fishers.append(fisher.mean())
    return pool.with_vector(fisher_mean(vectors, fishers), rule)


def _floor(vector: TaskVector, density: float) -> float:
    """The smallest magnitude among the share of entries that is kept."""
    sizes = torch.cat([tau.abs().flatten() for tau in vector.values()])
    kept = max(1, round(density * len(sizes)))
    return float(sizes.kthvalue(len(sizes) - kept + 1).values)


def _some(vectors: Sequence[TaskVector]) -> None:
    if not vectors:
        raise InputError("no task vector to merge: expected one or more")

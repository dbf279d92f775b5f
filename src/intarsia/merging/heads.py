"""The heads of a composition."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from intarsia.class_stats.drift import FeatureDrift, compensate
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.prototypes import in_mean
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.merging.recipe import Recipe, mean
from intarsia.store.module import Module, Trace

Heads = Literal["prototypes", "compensated", "own"]
FROM_MEAN = 0.5
"""Part of the drifts that classes go away from a mean. A drift is what a whole vector does at theta0; at a mean, where
others do in part the same, its share does less (docs/results_appendix.md, Random subsets)."""
REACH, NEARER = 0.5, 0.86
"""Classes come from a mean that is less than ``REACH`` away, and less than ``NEARER`` times as far as theta0: three of
ten modules are, two are not. Distances are Euclidean, of coefficients: task vectors of one length, at right angles to
each other, put networks as many of their lengths apart (likewise)."""
ROUNDING = 1e-9
"""Of coefficients: two of four tasks are at the border, and where it lies must not depend on the last bit."""


def prototype_tasks(recipe: Recipe, known: Sequence[str], heads: Heads, mean_scale: float = 1.0) -> tuple[str, ...]:
    """The tasks in whose mean classes are looked up: all that are known, or none where the mean is far.

    Args:
        recipe: what is composed; a module that answers alone is looked up in no mean.
        known: all tasks of the pool, in its order.
        heads: only ``prototypes`` ones are looked up in a mean.
        mean_scale: of the pool: classes are known in its mean, and in that times the scale.
    """
    if heads != "prototypes" or _is_alone(recipe):
        return ()
    weights = _compensating(recipe)
    to_mean = _distance(weights, mean(known, _nearer_scale(known, weights, mean_scale)).weights)
    near = min(REACH, NEARER * math.hypot(*weights.values()))
    return tuple(known) if to_mean + ROUNDING < near else ()


def kind_of(recipe: Recipe, heads: Heads, prototypes: Sequence[object]) -> Heads:
    """What heads a composition gets: ``own`` where one module answers alone, ``compensated`` where no mean is near."""
    if heads == "own" or _is_alone(recipe):
        return "own"
    return "prototypes" if prototypes else "compensated"


def compose_heads(
    modules: Sequence[Module],
    recipe: Recipe,
    heads: Heads,
    prototypes: Sequence[Module | Trace] = (),
    mean_scale: float = 1.0,
) -> Head:
    """The heads of a recipe's tasks, joined.

    ``own`` are the heads as they were fine-tuned. ``compensated`` takes what fine-tuning changed as a vector on the
    discriminant of the classes, carried from theta0 to the composed model's features by the modules' drifts;
    ``prototypes`` carries them from where they lie in the mean of all modules if that is near (see
    ``class_stats.prototypes``). For these two, a module that answers alone keeps its own head, and unlearning by
    negation has the heads of the mean.

    Args:
        modules: all that have a coefficient or a class in the recipe, in the pool's order.
        recipe: what is composed; no coefficient at all is theta0 with heads that were not fine-tuned.
        heads: which.
        prototypes: the tasks ``prototype_tasks`` names, in the pool's order: ``modules``, traces of the others.
        mean_scale: of the pool: classes are known in its mean, and in that times the scale.
    """
    answering = [m for m in modules if m.task in recipe.tasks]
    if kind_of(recipe, heads, prototypes) == "own":
        return Head.join([m.own_head() for m in answering])
    at_theta0 = {m.task: m.statistics.gaussians() for m in answering}
    weights = _compensating(recipe)
    shares, known = _nearer_mean(prototypes, weights, mean_scale) if prototypes else ({}, at_theta0)
    seen = _compensated({t: known[t] for t in at_theta0}, at_theta0, prototypes or modules, weights, shares)
    rows = discriminant(Gaussians.join(seen[m.task] for m in answering))
    heads_of = rows.split([len(m.head) for m in answering])
    if not recipe.weights:
        return rows
    moved = [(seen[m.task].centres - at_theta0[m.task].centres).mean(0).float() for m in answering]
    return Head.join([m.head_on(h, offset) for m, h, offset in zip(answering, heads_of, moved, strict=True)])


def _is_alone(recipe: Recipe) -> bool:
    """One task answers, with all of its vector and of no other's; rounded: ten tenths need not be one."""
    return (
        len(recipe.tasks) == 1
        and recipe.weights.keys() == set(recipe.tasks)
        and math.isclose(recipe.weights[recipe.tasks[0]], 1, abs_tol=ROUNDING)
    )


def _compensating(recipe: Recipe) -> Mapping[str, float]:
    """The coefficients whose heads a recipe has."""
    return mean(recipe.tasks, recipe.mean_scale).weights if recipe.heads_of_mean else recipe.weights


def _nearer_mean(
    prototypes: Sequence[Module | Trace], weights: Mapping[str, float], mean_scale: float
) -> tuple[Mapping[str, float], Mapping[str, Gaussians]]:
    """The coefficients of the mean of all, or of that times its scale, whichever is nearer; and the classes there."""
    tasks = [m.task for m in prototypes]
    scale = _nearer_scale(tasks, weights, mean_scale)
    known = in_mean([m.prototypes if scale == 1 else m.prototypes.scaled or m.prototypes for m in prototypes])
    return mean(tasks, scale).weights, dict(zip(tasks, known, strict=True))


def _nearer_scale(tasks: Sequence[str], weights: Mapping[str, float], mean_scale: float) -> float:
    """Of the mean of all that is nearer: 1, or the pool's."""
    return min(1.0, mean_scale, key=lambda scale: _distance(weights, mean(tasks, scale).weights))


def _distance(weights: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Euclidean, to a mean's coefficients."""
    return math.hypot(*(weights.get(task, 0.0) - share for task, share in shares.items()))


def _compensated(
    known: Mapping[str, Gaussians],
    at_theta0: Mapping[str, Gaussians],
    moving: Sequence[Module | Trace],
    weights: Mapping[str, float],
    shares: Mapping[str, float],
) -> Mapping[str, Gaussians]:
    """Task -> its classes in theta0 + sum_t w_t tau_t: where they are known to lie, and by drifts from there.

    Args:
        known: classes of the tasks that answer, where the vectors have the coefficients ``shares``.
        at_theta0: the same classes at theta0.
        moving: all whose vectors take part, here or there, in the pool's order.
        weights: of the vectors.
        shares: empty if the classes are known at theta0; from a mean they go ``FROM_MEAN`` of the way.
    """
    part = FROM_MEAN if shares else 1.0
    away = [(m.drift, part * (weights.get(m.task, 0.0) - shares.get(m.task, 0.0))) for m in moving]
    drifts = [(drift, w) for drift, w in away if w]
    if not drifts:
        return known
    drift = FeatureDrift.weighted([d for d, _ in drifts], [w for _, w in drifts])
    return {task: compensate(known[task], drift, at_theta0[task].centres) for task in known}

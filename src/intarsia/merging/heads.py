"""The heads of a composition."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from intarsia.class_stats.drift import FeatureDrift, carry
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.prototypes import in_mean
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.merging.recipe import Recipe, mean
from intarsia.store.module import Module

Heads = Literal["anchored", "carried", "aligned", "own"]


ROUNDING = 1e-9
"""Of sums of coefficients: half of the tasks is as near to the mean as to theta0, and which it is must not depend on
the last bit."""


def anchored_in(recipe: Recipe, known: Sequence[str], heads: Heads) -> tuple[str, ...]:
    """The tasks in whose mean classes are looked up: all that are known, or none (theta0), whichever is nearer.

    Args:
        recipe: what is composed.
        known: all tasks of the pool, in its order.
        heads: only ``anchored`` ones are looked up in a mean.
    """
    weights = _carrying(recipe)
    to_mean = sum(abs(weights.get(task, 0.0) - 1 / len(known)) for task in known)
    to_theta0 = sum(map(abs, weights.values())) + ROUNDING
    return tuple(known) if heads == "anchored" and to_mean <= to_theta0 else ()


def compose_heads(
    modules: Sequence[Module], recipe: Recipe, aligned: Mapping[str, Head], heads: Heads, anchored: Sequence[str]
) -> Head:
    """The heads of a recipe's tasks, joined.

    ``own`` are the heads as they were fine-tuned. Those of several tasks were tuned at different times, from reference
    heads on different scales; ``aligned`` takes each as a vector on the reference head as last aligned. ``carried``
    takes it on the discriminant of the classes, carried from theta0 to the composed model's features by the modules'
    drifts; ``anchored`` carries them from where they lie in the mean of all modules if that is nearer (see
    ``anchor``). For these two, a module that answers alone keeps its own head, and a negated composition has the
    heads of the mean: unlearning by negation keeps heads.

    Args:
        modules: all that have a coefficient or a class in the recipe or are ``anchored``, in the pool's order.
        recipe: what is composed; no coefficient at all is theta0 with heads that were not fine-tuned.
        aligned: task -> its reference head as last aligned.
        heads: which.
        anchored: what ``anchored_in`` says.
    """
    answering = [m for m in modules if m.card.task in recipe.tasks]
    alone = len(answering) == 1 and _is_alone(recipe, answering[0].card.task)
    if heads == "own" or (heads != "aligned" and alone):
        return Head.join([m.own_head() for m in answering])
    if heads == "aligned":
        basis = [aligned[m.card.task] for m in answering]
        return Head.join([m.head_on(b) for m, b in zip(answering, basis, strict=True)] if recipe.weights else basis)
    at_theta0 = {m.card.task: m.statistics.gaussians() for m in modules}
    seen = _carried(modules, at_theta0, _carrying(recipe), anchored)
    rows = discriminant(Gaussians.join([seen[m.card.task] for m in answering]))
    heads_of = rows.split([len(m.head) for m in answering])
    if not recipe.weights:
        return rows
    moved = [(seen[m.card.task].centres - at_theta0[m.card.task].centres).mean(0).float() for m in answering]
    return Head.join([m.head_on(h, offset) for m, h, offset in zip(answering, heads_of, moved, strict=True)])


def _is_alone(recipe: Recipe, task: str) -> bool:
    """All of the task's vector and of no other's, however the coefficient was rounded: ten tenths need not be one."""
    return recipe.weights.keys() == {task} and math.isclose(recipe.weights[task], 1, abs_tol=ROUNDING)


def _carrying(recipe: Recipe) -> Mapping[str, float]:
    """The coefficients whose heads a recipe has: its own, or those of the mean where one is negative."""
    return mean(recipe.tasks).weights if any(w < 0 for w in recipe.weights.values()) else recipe.weights


def _carried(
    modules: Sequence[Module],
    at_theta0: Mapping[str, Gaussians],
    weights: Mapping[str, float],
    anchored: Sequence[str],
) -> Mapping[str, Gaussians]:
    """Task -> its classes in theta0 + sum_t w_t tau_t: where they are known to lie, and by drifts from there."""
    seen = at_theta0
    if anchored:
        in_order = [m.anchor for m in modules if m.card.task in anchored]
        seen = dict(zip(anchored, in_mean(in_order), strict=True))
    share = 1 / len(anchored) if anchored else 0.0
    away = [weights.get(m.card.task, 0.0) - (share if m.card.task in anchored else 0.0) for m in modules]
    moving = [(m.drift, w) for m, w in zip(modules, away, strict=True) if w]
    if not moving:
        return seen
    drift = FeatureDrift.weighted([d for d, _ in moving], [w for _, w in moving])
    return {task: carry(seen[task], drift, at_theta0[task].centres) for task in seen}

"""Composition: theta_P = theta0 + sum_t w_t tau_t (docs/method.md section 6), merged once into an ordinary network.

A composed model costs at inference what theta0 costs; its heads are carried along once. Terms are always
added in the pool's order, so that a composition does not depend on the order in which it was asked for.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from intarsia.adapters import Adapter
from intarsia.anchor import in_mean
from intarsia.backbone import Backbone
from intarsia.drift import FeatureDrift, carry
from intarsia.errors import InputError
from intarsia.heads import Head, discriminant
from intarsia.module import Module
from intarsia.statistics import Gaussians

Heads = Literal["anchored", "carried", "aligned", "own"]
ROUNDING = 1e-9
"""Of sums of coefficients: half of the tasks is as near to the mean as to theta0, and which it is must not depend on
the last bit."""


@dataclass(frozen=True)
class Recipe:
    """What to compose.

    Args:
        weights: task -> coefficient of its task vector.
        tasks: the tasks whose classes the model answers with, in the pool's order.
        name: how to call it (``mean``, ``unlearn cars``, ...).
    """

    weights: Mapping[str, float]
    tasks: tuple[str, ...]
    name: str

    def first(self, tasks: Sequence[str]) -> "Recipe":
        """The same rule when only ``tasks`` had been learned: coefficients rescaled to their old sum."""
        kept = {t: w for t, w in self.weights.items() if t in tasks}
        before, now = math.fsum(self.weights.values()), math.fsum(kept.values())
        rescaled = {t: w / now * before if now else 0.0 for t, w in kept.items()}
        return Recipe(rescaled, tuple(t for t in self.tasks if t in tasks), self.name)


def mean(tasks: Sequence[str]) -> Recipe:
    """w_t = 1/T."""
    return Recipe({t: 1 / len(tasks) for t in tasks}, tuple(tasks), "mean")


def weighted(tasks: Sequence[str], weights: Mapping[str, float]) -> Recipe:
    """Coefficients of the user's choice, which sum to 1; classes of all tasks named.

    Raises:
        InputError: a task is unknown, a weight is negative or not finite, or the weights do not sum to 1.
    """
    _known(tasks, weights)
    for task, w in weights.items():
        if not 0 <= w < math.inf:
            raise InputError(f"weight {w} of task {task!r}: expected 0 or more (negation is `unlearn --mode negate`)")
    total = sum(weights.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise InputError(f"weights sum to {total:g}, expected 1: divide each by {total:g}, or name the missing task")
    label = ", ".join(f"{t}={w:g}" for t, w in weights.items())
    return Recipe(dict(weights), tuple(t for t in tasks if t in weights), f"weighted {label}")


def specialize(tasks: Sequence[str], chosen: Sequence[str], *, all_classes: bool = False) -> Recipe:
    """Uniform over ``chosen``; answers with their classes only, or with all (``all_classes``).

    Raises:
        InputError: no task, an unknown one, or one named twice.
    """
    _known(tasks, chosen)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"specialize to {list(chosen)}: expected one or more tasks, each named once")
    kept = tuple(t for t in tasks if t in chosen)
    return Recipe({t: 1 / len(kept) for t in kept}, tuple(tasks) if all_classes else kept, f"only {', '.join(kept)}")


def unlearn(tasks: Sequence[str], task: str, *, mode: str = "drop", scale: float | None = None) -> Recipe:
    """``drop``: the mean of the others, classes of ``task`` gone. ``negate``: theta_P - scale tau_t, all heads kept.

    Args:
        tasks: all tasks of the pool.
        task: the one to unlearn.
        mode: ``drop`` or ``negate``.
        scale: lambda of ``negate``; 1/T if None, which just takes the task's share of the mean away.

    Raises:
        InputError: the task is unknown, it is the only one (drop), the mode is unknown, or a scale comes with ``drop``.
    """
    _known(tasks, [task])
    if mode == "drop":
        if scale is not None:
            raise InputError(f"scale {scale} with mode drop: only negate has a scale")
        others = tuple(t for t in tasks if t != task)
        if not others:
            raise InputError(f"{task!r} is the pool's only task: nothing is left without it")
        return Recipe({t: 1 / len(others) for t in others}, others, f"unlearn {task} (drop)")
    if mode != "negate":
        raise InputError(f"unknown mode {mode!r}: expected drop or negate")
    scale = 1 / len(tasks) if scale is None else scale
    if not math.isfinite(scale):
        raise InputError(f"scale {scale}: expected a finite number")
    weights = {t: 1 / len(tasks) - (scale if t == task else 0.0) for t in tasks}
    return Recipe(weights, tuple(tasks), f"unlearn {task} (negate, scale {scale:g})")


def merge(backbone: Backbone, adapter: Adapter, modules: Sequence[Module], weights: Mapping[str, float]) -> nn.Module:
    """A copy of theta0's network with sum_t w_t tau_t added to its tuned weights, one weight at a time.

    Args:
        backbone: theta0; it is not changed.
        adapter: what the modules' parts mean.
        modules: in the pool's order.
        weights: task -> coefficient; a task left out counts 0 and costs nothing.
    """
    return moved(backbone, combination(adapter, modules, weights))


def combination(
    adapter: Adapter, modules: Sequence[Module], weights: Mapping[str, float]
) -> Callable[[str, Tensor], Tensor]:
    """(weight name, theta0) -> sum_t w_t tau_t (O, I) of that weight; see ``merge``."""
    chosen = [m for m in modules if weights.get(m.card.task, 0.0)]
    coefficients = [weights[m.card.task] for m in chosen]

    def total(name: str, theta0: Tensor) -> Tensor:
        if not chosen:
            return torch.zeros_like(theta0)
        parts = [m.parts(name, theta0) for m in chosen]
        try:
            return adapter.combined(parts, coefficients, theta0)
        except torch.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError) as error:
            tasks = ", ".join(m.card.task for m in chosen)
            raise InputError(f"{name}: the parts of {tasks} are not those of {adapter} ({error})") from error

    return total


def moved(backbone: Backbone, by: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of theta0's network with ``by(name, theta0)`` added to each tuned weight (O, I)."""
    network = copy.deepcopy(backbone.model)
    for name, path in backbone.targets.items():
        layer = network.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        theta0 = layer.weight.detach()
        update = by(name, theta0)
        if update.shape != theta0.shape:
            raise InputError(f"{name}: an update {tuple(update.shape)} for a weight {tuple(theta0.shape)}")
        theta0.add_(update)
    return network


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


def _known(tasks: Sequence[str], asked: Sequence[str] | Mapping[str, float]) -> None:
    for task in asked:
        if task not in tasks:
            raise InputError(f"unknown task {task!r}: the pool has {', '.join(tasks)}")

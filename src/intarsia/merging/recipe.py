"""What to compose: the coefficients of task vectors, and the tasks whose classes a model answers with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.errors import InputError
from intarsia.labels import check_task, some_of

LARGEST = 3.4e38
"""What float32 holds."""


@dataclass(frozen=True)
class Recipe:
    """What to compose.

    Args:
        weights: task -> coefficient of its task vector.
        tasks: the tasks whose classes the model answers with, in the pool's order.
        name: how to call it (``mean``, ``unlearn cars``, ...).
        heads_of_mean: answer with the heads of the mean of ``tasks``, whatever the coefficients.
        mean_scale: of a mean, what its coefficients sum to.

    Raises:
        InputError: a coefficient that float32 does not hold, or that is no number.
    """

    weights: Mapping[str, float]
    tasks: tuple[str, ...]
    name: str
    heads_of_mean: bool = False
    mean_scale: float = 1.0

    def __post_init__(self) -> None:
        for task, w in self.weights.items():
            if not abs(w) <= LARGEST:
                raise InputError(
                    f"coefficient {w:g} of task {task!r} is not finite in float32: expected at most {LARGEST:.2g}; use "
                    "a smaller --scale"
                )

    def first(self, tasks: Sequence[str]) -> "Recipe":
        """The same rule when only ``tasks`` had been learned: coefficients rescaled to their old sum.

        A mean's is smaller where fewer tasks than its scale are left.
        """
        kept = {t: w for t, w in self.weights.items() if t in tasks}
        before, now = math.fsum(self.weights.values()), math.fsum(kept.values())
        if kept:
            before *= scale_of(self.mean_scale, len(kept)) / scale_of(self.mean_scale, len(self.weights))
        rescaled = {t: w / now * before if now else 0.0 for t, w in kept.items()}
        return replace(self, weights=rescaled, tasks=tuple(t for t in self.tasks if t in tasks))

    def answering(self, chosen: Sequence[str], tasks: Sequence[str]) -> "Recipe":
        """The same modules, and an answer among the classes of some tasks only; as it is if none is chosen.

        Args:
            chosen: in any order.
            tasks: of the pool.

        Raises:
            InputError: an unknown task, or one named twice.
        """
        if not chosen:
            return self
        answers = some_of(tasks, chosen)
        return replace(self, tasks=answers, name=f"{self.name}, classes of {', '.join(answers)}")

    def scaled(self, scale: float) -> "Recipe":
        """All coefficients times ``scale``.

        Raises:
            InputError: it is not finite, or a coefficient leaves float32.
        """
        if not math.isfinite(scale):
            raise InputError(f"scale {scale}: expected a finite number")
        weights = {t: scale * w for t, w in self.weights.items()}
        return self if scale == 1 else replace(self, weights=weights, name=f"{self.name}, scale {scale:g}")


def scale_of(mean_scale: float, count: int) -> float:
    """Factor of the mean of ``count`` task vectors: at most their number, so that none counts more than once."""
    return min(mean_scale, float(count))


def mean(tasks: Sequence[str], mean_scale: float = 1.0) -> Recipe:
    """w_t = s/T, with s the scale, at most T."""
    return _mean("mean", tasks, tasks, mean_scale)


def weighted(tasks: Sequence[str], weights: Mapping[str, float]) -> Recipe:
    """Coefficients of the user's choice, of any sign and sum; classes of all tasks named.

    Raises:
        InputError: no task, an unknown one, or a weight that is not finite.
    """
    _known(tasks, weights)
    if not weights:
        raise InputError("no weights: expected one task or more, each with its coefficient")
    label = ", ".join(f"{t}={w:g}" for t, w in weights.items())
    return Recipe(dict(weights), tuple(t for t in tasks if t in weights), f"weighted {label}")


def specialize(
    tasks: Sequence[str], chosen: Sequence[str], all_classes: bool = False, mean_scale: float = 1.0
) -> Recipe:
    """The mean of ``chosen``; answers with their classes only, or with all (``all_classes``).

    It is scaled only where at most one task is left out: the classes of fewer are carried farther, and maps are exact
    to first order only.

    Raises:
        InputError: no task, an unknown one, or one named twice.
    """
    kept = some_of(tasks, chosen)
    scale = mean_scale if len(kept) >= len(tasks) - 1 else 1.0
    return _mean(f"only {', '.join(kept)}", kept, tasks if all_classes else kept, scale)


def unlearn(
    tasks: Sequence[str], task: str, mode: str = "drop", scale: float | None = None, mean_scale: float = 1.0
) -> Recipe:
    """``drop``: the mean of the others, classes of ``task`` gone. ``negate``: theta_P - scale tau_t, all heads kept.

    Args:
        tasks: all tasks of the pool.
        task: the one to unlearn.
        mode: ``drop`` or ``negate``.
        scale: lambda of ``negate``; if None the task's coefficient in the mean, which just takes its share away.
        mean_scale: of the mean.

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
        return _mean(f"unlearn {task} (drop)", others, others, mean_scale)
    if mode != "negate":
        raise InputError(f"unknown mode {mode!r}: expected drop or negate")
    shares = mean(tasks, mean_scale).weights
    scale = shares[task] if scale is None else scale
    if not math.isfinite(scale):
        raise InputError(f"scale {scale}: expected a finite number")
    weights = {t: share - (scale if t == task else 0.0) for t, share in shares.items()}
    name = f"unlearn {task} (negate, scale {scale:g})"
    return Recipe(weights, tuple(tasks), name, heads_of_mean=True, mean_scale=mean_scale)


def _mean(name: str, of: Sequence[str], answering: Sequence[str], mean_scale: float) -> Recipe:
    scale = scale_of(mean_scale, len(of))
    label = name if scale == 1 else f"{name}, scale {scale:g}"
    return Recipe(dict.fromkeys(of, scale / len(of)), tuple(answering), label, mean_scale=mean_scale)


def _known(tasks: Sequence[str], asked: Sequence[str] | Mapping[str, float]) -> None:
    for task in asked:
        check_task(task, tasks)

"""What specializing to a task, or unlearning it, does to it and to the others (the paper's FA_tgt, FA_ctrl)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from intarsia.evaluation import Classifier, Progress, target_and_control
from intarsia.pool import Pool
from intarsia.stream import TaskStream

NEGATED = 0.5
"""Scale of a negation; 1/T hardly touches a task."""
Edited = Callable[[str], Mapping[str, Callable[[], Classifier]]]
"""Target task -> what is done to it -> the model made so."""


def edits(
    stream: TaskStream, targets: Sequence[str], edited: Edited, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Edit every target in turn, and measure.

    Args:
        stream: holds the models' tasks; their test images are used.
        targets: tasks.
        edited: how; a model is made when its turn comes.
        progress: called with (models measured, models in all).

    Returns:
        A row a target and edit: ``target``, ``how``, ``target_accuracy``, ``control_accuracy`` in percent, None where
        the model has no class left.
    """
    plan = [(target, how, model) for target in targets for how, model in edited(target).items()]
    rows: list[dict[str, Any]] = []
    for target, how, model in plan:
        on_target, on_others = target_and_control(model(), stream, target)
        rows.append({"target": target, "how": how, "target_accuracy": on_target, "control_accuracy": on_others})
        if progress is not None:
            progress(len(rows), len(plan))
    return rows


def edits_of(
    mean: Callable[[], Classifier],
    specialize: Callable[[str], Classifier],
    negate: Callable[[str], Classifier],
    drop: Callable[[str], Classifier] | None,
) -> Edited:
    """The edits that are compared, of modules of any kind.

    Args:
        mean: of all modules.
        specialize: to a task, all classes in competition.
        negate: the mean minus ``NEGATED`` times a task's vector, all classes in competition.
        drop: all but one, its classes gone; None if there is only one.
    """

    def edited(task: str) -> Mapping[str, Callable[[], Classifier]]:
        hows = {
            "mean": mean,
            "only it, all classes": partial(specialize, task),
            f"negate {NEGATED:g}": partial(negate, task),
        }
        return hows if drop is None else hows | {"drop": partial(drop, task)}

    return edited


def edits_of_pool(pool: Pool) -> Edited:
    """The same of a pool's modules."""
    mean = pool.mean()
    return edits_of(
        lambda: mean,
        lambda task: pool.specialize([task], all_classes=True),
        lambda task: pool.unlearn(task, mode="negate", scale=NEGATED),
        pool.unlearn if len(pool.tasks) > 1 else None,
    )

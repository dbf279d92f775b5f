"""What specializing to a task, or unlearning it, does to it and to the others (the paper's FA_tgt, FA_ctrl)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from intarsia.data.stream import TaskStream
from intarsia.evaluation.answers import Classifier, Logits, logits
from intarsia.evaluation.kept import Keep, fresh
from intarsia.evaluation.metrics import targets_and_controls
from intarsia.pool import Pool
from intarsia.progress import Progress, silent

NEGATED = 0.5
"""Scale of a negation; 1/T hardly touches a task."""


EDITS = 3
"""Models per task at most: the task alone, negated, dropped."""


Edits = Callable[[str], Mapping[str, Callable[[], Classifier]]]
"""Target task -> what is done to it -> the model made so."""


@dataclass(frozen=True)
class Editable:
    """Modules of any kind, as the edits compared need them.

    Args:
        mean: of all modules.
        edits: of it; a model is made when its turn comes.
    """

    mean: Classifier
    edits: Edits

    @classmethod
    def of(
        cls,
        mean: Classifier,
        specialize: Callable[[str], Classifier],
        negate: Callable[[str], Classifier],
        drop: Callable[[str], Classifier],
    ) -> "Editable":
        """The edits that are compared.

        Args:
            mean: of all modules.
            specialize: to a task, all classes in competition.
            negate: the mean minus ``NEGATED`` times a task's vector, all classes in competition.
            drop: all but one, its classes gone; not asked for where there is only one.
        """

        def edits(task: str) -> Mapping[str, Callable[[], Classifier]]:
            hows = {"only it, all classes": partial(specialize, task), f"negate {NEGATED:g}": partial(negate, task)}
            return hows | ({"drop": partial(drop, task)} if len(mean.classes) > 1 else {})

        return cls(mean, edits)

    @classmethod
    def of_pool(cls, pool: Pool, mean: Classifier) -> "Editable":
        """A pool's modules, and their mean."""
        return cls.of(
            mean,
            lambda task: pool.specialize([task], all_classes=True),
            lambda task: pool.unlearn(task, mode="negate", scale=NEGATED),
            pool.unlearn,
        )


def edit_each(
    modules: Editable,
    stream: TaskStream,
    targets: Sequence[str],
    *,
    progress: Progress = silent,
    answers: Logits = logits,
    keep: Keep = fresh,
) -> list[dict[str, Any]]:
    """Edit every target in turn, and measure.

    Args:
        modules: what is edited.
        stream: holds their tasks; their test images are used.
        targets: tasks.
        progress: called with (models measured, models in all).
        answers: gives the models' logits; ``Answers()`` computes each network's features once.
        keep: where every row is kept as it is known; a model whose rows are kept is not made.

    Returns:
        A row per target and edit: ``target``, ``how``, ``target_accuracy``, ``control_accuracy`` in percent, None where
        the model has no class left; first those of the mean, as it is.
    """
    rows: list[dict[str, Any]] = []
    plan = [(target, how, model) for target in targets for how, model in modules.edits(target).items()]

    def measured(model: Callable[[], Classifier], of: Sequence[str], how: str) -> None:
        name = f"{how} of {', '.join(of)}"
        sides = keep(name, lambda: [list(pair) for pair in targets_and_controls(model(), stream, of, answers)])
        for target, (own, others) in zip(of, sides, strict=True):
            rows.append({"target": target, "how": how, "target_accuracy": own, "control_accuracy": others})

    measured(lambda: modules.mean, targets, "mean")
    for done, (target, how, model) in enumerate(plan, start=1):
        measured(model, [target], how)
        progress("editing", done, len(plan))
    return rows

"""Class prototypes: where the classes of a task lie in the mean of the modules, measured on its own images.

A composition's features differ from theta0's by more than an affine map, and that is what fine-tuning pays. When task t
is learned, its images are at hand and so is the mean of the first t modules: the module keeps where its classes lie in
the features of that mean, and the *step* by which they came there from the mean of the first t - 1. The steps of later
tasks, one after another, bring the classes of earlier ones into the mean of all.

The images of one task are few to fit a map of all features on. So the next task's images are seen in the same two means
once more, and a step is the average of both fits, weighted by images: one pass over the images more per task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from intarsia.class_stats.drift import FeatureDrift, compensate, fit_drift
from intarsia.class_stats.gaussians import Gaussians

SCALED, AGAIN = "scaled.", "again."


@dataclass(frozen=True)
class ClassPrototypes:
    """A task in the mean of the modules up to its own.

    Args:
        classes: of the task, in the features of mean(1 .. t).
        step: features of mean(1 .. t - 1) -> features of mean(1 .. t).
        again: the step of the task before it, mean(1 .. t - 2) -> mean(1 .. t - 1), fitted on this task's images; None
            for the first two, or where it was not measured.
        scaled: the same in the means times their scale; None where that is 1, or for a first task.
    """

    classes: Gaussians
    step: FeatureDrift
    again: FeatureDrift | None = None
    scaled: "ClassPrototypes | None" = None

    @classmethod
    def of(
        cls,
        before: Tensor,
        after: Tensor,
        labels: Tensor,
        classes: int,
        *,
        earlier: Tensor | None = None,
        shrunken: bool = False,
    ) -> "ClassPrototypes":
        """Measure it.

        Args:
            before: (N, D) features of the task's images in mean(1 .. t - 1); theta0's for the first task.
            after: (N, D) in mean(1 .. t).
            labels: (N,) in 0 .. classes - 1.
            classes: C.
            earlier: (N, D) in mean(1 .. t - 2), from the third task on.
            shrunken: see ``Gaussians.of``.
        """
        again = None if earlier is None else fit_drift(earlier, before)
        return cls(Gaussians.of(after, labels, classes, shrunken=shrunken), fit_drift(before, after), again)

    @property
    def images(self) -> int:
        """Of the task."""
        return self.classes.freedom + len(self.classes.centres)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        parts = {AGAIN: self.again, SCALED: self.scaled}
        more = {f"{of}{name}": value for of, part in parts.items() if part for name, value in part.tensors().items()}
        return {**self.classes.tensors(), **self.step.tensors(), **more}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassPrototypes":
        """The inverse of ``tensors``, classes in double precision again."""
        again, at_scale = (
            {name.removeprefix(of): value for name, value in tensors.items() if name.startswith(of)}
            for of in (AGAIN, SCALED)
        )
        return cls(
            Gaussians.from_tensors(tensors).double(),
            FeatureDrift.from_tensors(tensors),
            FeatureDrift.from_tensors(again) if again else None,
            cls.from_tensors(at_scale) if at_scale else None,
        )


def in_mean(prototypes: Sequence[ClassPrototypes]) -> list[Gaussians]:
    """The classes of every task in the mean of all modules, given in the order they were learned.

    From the last task back, so that the steps after each task are one map: the work is linear in their number.
    """
    seen: list[Gaussians] = []
    onward: FeatureDrift | None = None
    later: ClassPrototypes | None = None
    for one in reversed(prototypes):
        seen.append(compensate(one.classes, onward) if onward else one.classes)
        step = one.step
        if later and later.again:
            share = one.images / (one.images + later.images)
            step = FeatureDrift.weighted([step, later.again], [share, 1 - share])
        onward, later = step.then(onward) if onward else step, one
    return seen[::-1]

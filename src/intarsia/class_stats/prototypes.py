"""Class prototypes: where the classes of a task lie in the mean of the modules, measured on its own images.

A composition's features differ from theta0's by more than an affine map, and that is what fine-tuning pays. When task t
is learned, its images are at hand and so is the mean of the first t modules: the module keeps where its classes lie in
the features of that mean, and the *step* by which they came there from the mean of the first t - 1. The steps of later
tasks, one after another, bring the classes of earlier ones into the mean of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from intarsia.class_stats.drift import FeatureDrift, compensate, fit_drift
from intarsia.class_stats.gaussians import Gaussians

SCALED = "scaled."


@dataclass(frozen=True)
class ClassPrototypes:
    """A task in the mean of the modules up to its own.

    Args:
        classes: of the task, in the features of mean(1 .. t).
        step: features of mean(1 .. t - 1) -> features of mean(1 .. t).
        scaled: the same in the means times their scale; None where that is 1, or for a first task.
    """

    classes: Gaussians
    step: FeatureDrift
    scaled: "ClassPrototypes | None" = None

    @classmethod
    def of(
        cls, before: Tensor, after: Tensor, labels: Tensor, classes: int, *, shrunken: bool = False
    ) -> "ClassPrototypes":
        """Measure it.

        Args:
            before: (N, D) features of the task's images in mean(1 .. t - 1); theta0's for the first task.
            after: (N, D) in mean(1 .. t).
            labels: (N,) in 0 .. classes - 1.
            classes: C.
            shrunken: see ``Gaussians.of``.
        """
        return cls(Gaussians.of(after, labels, classes, shrunken=shrunken), fit_drift(before, after))

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        scaled = self.scaled.tensors() if self.scaled else {}
        at_scale = {f"{SCALED}{name}": value for name, value in scaled.items()}
        return {**self.classes.tensors(), **self.step.tensors(), **at_scale}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ClassPrototypes":
        """The inverse of ``tensors``, classes in double precision again."""
        at_scale = {name.removeprefix(SCALED): t for name, t in tensors.items() if name.startswith(SCALED)}
        scaled = cls.from_tensors(at_scale) if at_scale else None
        return cls(Gaussians.from_tensors(tensors).double(), FeatureDrift.from_tensors(tensors), scaled)


def in_mean(prototypes: Sequence[ClassPrototypes]) -> list[Gaussians]:
    """The classes of every task in the mean of all modules, given in the order they were learned.

    From the last task back, so that the steps after each task are one map: the work is linear in their number.
    """
    seen: list[Gaussians] = []
    onward: FeatureDrift | None = None
    for one in reversed(prototypes):
        seen.append(compensate(one.classes, onward) if onward else one.classes)
        onward = one.step.then(onward) if onward else one.step
    return seen[::-1]

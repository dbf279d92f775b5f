"""What a regularizer is: a configuration, and what it becomes once a task's curvature is known.

``ITA(alpha)`` is a configuration: a few numbers, as JSON in every record. Bound to the mean Fisher F, the sum S of the
earlier task vectors and the number T of tasks it is a *penalty* on the task vector: a value, a gradient, and a step.

Three ways to take a step on a penalty, s being the schedule's factor (1 -> 0), none scaled by the learning rate:

    decoupled   theta <- theta - s clip(d penalty / d theta)     explicit, before the optimizer's step
    coupled     the gradient joins the loss's before the optimizer
    proximal    theta <- argmin |theta - old|^2 / 2 + s penalty  implicit, closed-form, stable at any strength
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.curvature.protocol import Metric
from intarsia.errors import InputError
from intarsia.regularizers.choices import Step

CLIP = 100.0
"""Norm to which the gradient of an explicit step is clipped, each tensor's by itself."""
FLOOR = 1e-5
"""What is added to a mean Fisher, and stands in for one where there is no other task."""


class Penalty(Protocol):
    """A regularizer bound to one task: a function of its task vector."""

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """The penalty of a task vector (O, I) by weight name, a scalar, up to a constant."""
        ...

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """The derivative of ``value`` by one weight's tau, (O, I)."""
        ...

    def step(self, adapter: Attachment, scale: float = 1.0, how: Step = "proximal") -> None:
        """One step on the penalty alone, in place: after each ``optimizer.step()``, a decoupled one before it.

        Args:
            adapter: the attachment whose parameters move.
            scale: the schedule's factor s in [0, 1].
            how: ``proximal`` or ``decoupled``.

        Raises:
            ValueError: ``how`` is ``coupled``, which has no step of its own: see ``add_gradient``.
        """
        ...

    def add_gradient(self, adapter: Attachment) -> None:
        """Add the penalty's gradient to ``.grad`` of the adapter's parameters (the coupled form)."""
        ...


@runtime_checkable
class Regularizer(Protocol):
    """The configuration of a penalty; any frozen dataclass with these members can be given to ``learn``."""

    kind: ClassVar[str]
    """Its name in records."""
    through_mean: ClassVar[bool]
    """Modules are trained through the composed model theta0 + (S + tau) / T, not alone."""
    fisher_over: ClassVar[Literal["others", "seen"]]
    """Whose Fisher it is bound to: that of the other tasks known, or of all seen, this one included."""

    @property
    def strength(self) -> float:
        """How strong it is; 0 switches it off."""
        ...

    def bind(self, metric: Metric | None, total: Mapping[str, Tensor] | None = None, tasks: int = 1) -> Penalty:
        """The penalty of one task.

        Args:
            metric: F, the mean Fisher, floored; None if there is no other task yet.
            total: S, the sum of the earlier task vectors; None for the first task.
            tasks: T, this task included.
        """
        ...


def clipped(gradient: Tensor) -> Tensor:
    """A tensor cut to a norm of ``CLIP``; the norm is taken in float64, where that of a large float32 one is finite."""
    norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return gradient * (CLIP / (norm + 1e-6)).clamp(max=1.0)


def check_strength(name: str, value: float) -> None:
    """Refuse a strength that is negative or not finite.

    Raises:
        InputError: naming it.
    """
    if not 0 <= value < float("inf"):
        raise InputError(f"regularization strength {name} = {value}: expected a finite number, 0 or more")

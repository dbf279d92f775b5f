"""The regularizers that keep modules composable: ITA, IEL, and the head's.

All are diagonal quadratics in a task vector tau. With F the mean Fisher at theta0 (floored), per tuned weight,

    ITA (Eq. 11, 12)        alpha/2 sum F tau^2                           gradient  alpha F tau
    IEL (Eq. 15, 18, 19)    beta T Omega(tau) + const                     gradient  beta F ((1 - 1/T) tau - S/T)

where Omega is the Jensen gap of Theorem 1 at w = 1/T, S the sum of the earlier task vectors and T the number of tasks,
the current one included. The exact gradient of beta Omega is 1/T of the IEL row; published betas go with the row as it
stands, and so does this code. Written as one shape, ``sum(c tau^2 / 2 - d tau)``: ITA has c = alpha F, d = 0; IEL has
c = beta F (1 - 1/T), d = beta F S/T. Convention: tensors are (O, I), by canonical weight name.

Three ways to take a step on it, s being the schedule's factor (1 -> 0), none of them scaled by the learning rate:

    decoupled   theta <- theta - s clip(d penalty / d theta)     explicit, as the reference implementation
    coupled     the gradient joins the loss's before the optimizer
    proximal    theta <- argmin |theta - old|^2 / 2 + s penalty  implicit, closed-form, stable at any strength
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from intarsia.adapters import AdaptedLinear, Attachment
from intarsia.errors import InputError

Step = Literal["decoupled", "coupled", "proximal"]
CLIP = 100.0


class _DiagonalQuadratic(ABC):
    """What ITA and IEL share: everything but (c, d)."""

    @property
    @abstractmethod
    def strength(self) -> float: ...

    @abstractmethod
    def quadratic(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]: ...

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """sum(c tau^2 / 2 - d tau), a scalar: the penalty up to a constant."""
        total = torch.zeros(())
        for name, tau in vector.items():
            c, d = self.quadratic(name, tau)
            total = total + (0.5 * c * tau * tau - d * tau).sum().cpu()
        return total

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """G = c tau - d (O, I): the derivative of ``value`` by one weight's tau."""
        c, d = self.quadratic(name, tau)
        return c * tau - d

    def step(self, adapter: Attachment, scale: float = 1.0, how: Step = "proximal") -> None:
        """One step on the penalty alone, in place; call it after each ``optimizer.step()``.

        Args:
            adapter: the attachment whose parts move.
            scale: the schedule's factor s in [0, 1].
            how: ``proximal`` or ``decoupled``; a ``coupled`` penalty has no step of its own, see ``add_gradient``.

        Raises:
            ValueError: ``how`` is ``coupled``.
        """
        if how == "coupled":
            raise ValueError("a coupled penalty joins the loss: call add_gradient before optimizer.step()")
        if scale == 0 or self.strength == 0:
            return
        if how == "proximal":
            self._proximal_step(adapter, scale)
        else:
            self._explicit_step(adapter, scale)

    def add_gradient(self, adapter: Attachment) -> None:
        """Add the penalty's gradient to ``.grad`` of the adapter's parts (the coupled form)."""
        for part, gradient in zip(adapter.parameters(), self._part_gradients(adapter), strict=True):
            part.grad = gradient if part.grad is None else part.grad + gradient

    def _proximal_step(self, adapter: Attachment, scale: float) -> None:
        for name, layer in adapter.layers.items():
            weight = layer.linear.weight.detach()
            c, d = self.quadratic(name, weight)
            layer.proximal_(scale * c.expand_as(weight), scale * d.expand_as(weight))

    def _explicit_step(self, adapter: Attachment, scale: float) -> None:
        gradients = self._part_gradients(adapter)
        norm = math.hypot(*(float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients))
        clip = min(1.0, CLIP / (norm + 1e-6))
        with torch.no_grad():
            for part, gradient in zip(adapter.parameters(), gradients, strict=True):
                part.sub_(gradient, alpha=scale * clip)

    def _part_gradients(self, adapter: Attachment) -> list[Tensor]:
        return [g for name, layer in adapter.layers.items() for g in self._layer_gradients(name, layer)]

    def _layer_gradients(self, name: str, layer: AdaptedLinear) -> tuple[Tensor, ...]:
        delta = layer.delta()
        return torch.autograd.grad(delta, list(layer.parts.values()), self.gradient(name, delta.detach()))


@dataclass(frozen=True)
class ITA(_DiagonalQuadratic):
    """Individual training (Eq. 11, 12): a task vector is held near theta0, alone, by the *other* tasks' Fisher.

    Args:
        alpha: strength, 0 or more.
        fisher: mean Fisher by weight name, floored; None (no other task yet) stands for the floor alone.
        floor: what stands in for the Fisher where there is none.

    Raises:
        InputError: alpha is negative.

    Example:
        >>> penalty = ITA(0.02, fisher.mean())
        >>> penalty.step(adapter, scale=1.0)
    """

    alpha: float = 0.02
    fisher: Mapping[str, Tensor] | None = None
    floor: float = 1e-5
    kind: ClassVar[str] = "ita"

    def __post_init__(self) -> None:
        _check_strength("alpha", self.alpha)

    @property
    def strength(self) -> float:
        """Alpha."""
        return self.alpha

    def on(self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None, tasks: int) -> Self:
        """This regularizer for one task of a stream; ITA looks at the Fisher alone."""
        return replace(self, fisher=fisher)

    def quadratic(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha F, 0)."""
        fisher = like.new_full((), self.floor) if self.fisher is None else self.fisher[name]
        return self.alpha * fisher, like.new_zeros(())


@dataclass(frozen=True)
class IEL(_DiagonalQuadratic):
    """Incremental ensemble learning (Eq. 15, 18, 19): beta times the gap Omega, seen from the current task vector.

    Args:
        beta: strength, 0 or more; the gradient is the published row, T times the exact one of beta Omega.
        fisher: mean Fisher of all tasks seen, this one included, by weight name, floored.
        total: S, the sum of the earlier task vectors; None for the first task.
        tasks: T, this task included; the first task counts as T = 2 with S = 0.
        floor: what stands in for the Fisher where there is none.

    Raises:
        InputError: beta is negative.
    """

    beta: float = 20.0
    fisher: Mapping[str, Tensor] | None = None
    total: Mapping[str, Tensor] | None = None
    tasks: int = 2
    floor: float = 1e-5
    kind: ClassVar[str] = "iel"

    def __post_init__(self) -> None:
        _check_strength("beta", self.beta)

    @property
    def strength(self) -> float:
        """Beta."""
        return self.beta

    def on(self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None, tasks: int) -> Self:
        """This regularizer for task number ``tasks`` of a stream."""
        return replace(self, fisher=fisher, total=total, tasks=max(tasks, 2))

    def quadratic(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """(beta F (1 - 1/T), beta F S/T)."""
        fisher = like.new_full((), self.floor) if self.fisher is None else self.fisher[name]
        pull = like.new_zeros(()) if self.total is None else self.beta * fisher * self.total[name] / self.tasks
        return self.beta * fisher * (1 - 1 / self.tasks), pull


def head_step(
    parameter: nn.Parameter,
    reference: Tensor,
    fisher: Tensor,
    lambda_h: float,
    lambda_0: float,
    scale: float,
    how: Step,
) -> None:
    """One step of the head's regularizer, in place: (lambda_h F + lambda_0) (W - W_ref)^2.

    Its gradient is 2 (lambda_h F + lambda_0) (W - W_ref). ``coupled`` adds it to ``.grad``; ``decoupled`` walks
    along it by ``scale``; ``proximal`` solves W_ref + (W - W_ref) / (1 + scale * 2 (lambda_h F + lambda_0)).

    Args:
        parameter: W (classes, width) or b (classes,).
        reference: the reference head's value, same shape.
        fisher: the head's mean Fisher, floored, same shape.
        lambda_h: weight of the Fisher's pull.
        lambda_0: weight of the plain pull.
        scale: the schedule's factor.
        how: the kind of step.
    """
    stiffness = 2 * (lambda_h * fisher + lambda_0)
    with torch.no_grad():
        away = parameter - reference
        if how == "proximal":
            parameter.copy_(reference + away / (1 + scale * stiffness))
        elif how == "decoupled":
            pull = stiffness * away
            parameter.sub_(pull * min(1.0, CLIP / (float(pull.norm()) + 1e-6)), alpha=scale)
        else:
            pull = stiffness * away
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull


def _check_strength(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise InputError(f"regularization strength {name} = {value}: expected a finite number, 0 or more")

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

import torch
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.protocol import AdaptedLinear
from intarsia.errors import InputError
from intarsia.regularizers.protocol import CLIP, Step


class DiagonalQuadratic(ABC):
    """What ITA and IEL share: everything but (c, d)."""

    @property
    @abstractmethod
    def strength(self) -> float:
        """Alpha or beta."""

    @abstractmethod
    def quadratic(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """(c, d) of one weight, each of its shape or a number."""

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


def check_strength(name: str, value: float) -> None:
    """Refuse a strength that is negative or not finite.

    Raises:
        InputError: naming it.
    """
    if not 0 <= value < float("inf"):
        raise InputError(f"regularization strength {name} = {value}: expected a finite number, 0 or more")

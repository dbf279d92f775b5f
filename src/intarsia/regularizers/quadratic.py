"""The penalty that ITA, IEL and L2 become: a diagonal quadratic in the task vector tau.

With F the mean Fisher at theta0 (floored), per trainable weight,

    ITA (Eq. 11, 12)        alpha/2 sum F tau^2                           gradient  alpha F tau
    IEL (Eq. 15, 18, 19)    beta T Omega(tau) + const                     gradient  beta F ((1 - 1/T) tau - S/T)

where Omega is the Jensen gap of Theorem 1 at w = 1/T, S the sum of the earlier task vectors and T the number of tasks,
the current one included. Written as one shape, ``sum(c tau^2 / 2 - d tau)``: ITA has c = alpha F, d = 0; IEL has
c = beta F (1 - 1/T), d = beta F S/T. Convention: tensors are (O, I), by canonical weight name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.protocol import AdaptedLinear
from intarsia.regularizers.protocol import CLIP, Step


@dataclass(frozen=True)
class DiagonalQuadratic:
    """sum(c tau^2 / 2 - d tau) with c = strength F share and d = strength F S / T.

    Args:
        strength: alpha or beta.
        fisher: F by weight name, or one number for all weights.
        share: of tau in what is penalized: 1 alone, 1 - 1/T beside T - 1 others.
        total: S; None where nothing is pulled towards.
        tasks: T.
    """

    strength: float
    fisher: Mapping[str, Tensor] | float
    share: float = 1.0
    total: Mapping[str, Tensor] | None = None
    tasks: int = 1

    def coefficients(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """(c, d) of one weight, each of its shape or a single number."""
        fisher = like.new_full((), self.fisher) if isinstance(self.fisher, float | int) else self.fisher[name]
        pull = like.new_zeros(()) if self.total is None else self.strength * fisher * self.total[name] / self.tasks
        return self.strength * fisher * self.share, pull

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """See ``Penalty``."""
        total = torch.zeros(())
        for name, tau in vector.items():
            c, d = self.coefficients(name, tau)
            total = total + (0.5 * c * tau * tau - d * tau).sum().cpu()
        return total

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """G = c tau - d; see ``Penalty``."""
        c, d = self.coefficients(name, tau)
        return c * tau - d

    def step(self, adapter: Attachment, scale: float = 1.0, how: Step = "proximal") -> None:
        """See ``Penalty``."""
        if how == "coupled":
            raise ValueError("a coupled penalty joins the loss: call add_gradient before optimizer.step()")
        if scale == 0 or self.strength == 0:
            return
        if how == "proximal":
            self._proximal_step(adapter, scale)
        else:
            self._explicit_step(adapter, scale)

    def add_gradient(self, adapter: Attachment) -> None:
        """See ``Penalty``."""
        for parameter, gradient in zip(adapter.parameters(), self._parameter_gradients(adapter), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _proximal_step(self, adapter: Attachment, scale: float) -> None:
        for name, layer in adapter.layers.items():
            weight = layer.linear.weight.detach()
            c, d = self.coefficients(name, weight)
            layer.proximal_(scale * c.expand_as(weight), scale * d.expand_as(weight))

    def _explicit_step(self, adapter: Attachment, scale: float) -> None:
        gradients = self._parameter_gradients(adapter)
        norm = math.hypot(*(float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients))
        clip = min(1.0, CLIP / (norm + 1e-6))
        with torch.no_grad():
            for parameter, gradient in zip(adapter.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=scale * clip)

    def _parameter_gradients(self, adapter: Attachment) -> list[Tensor]:
        return [g for name, layer in adapter.layers.items() for g in self._layer_gradients(name, layer)]

    def _layer_gradients(self, name: str, layer: AdaptedLinear) -> tuple[Tensor, ...]:
        delta = layer.delta()
        return torch.autograd.grad(delta, list(layer.parts.values()), self.gradient(name, delta.detach()))

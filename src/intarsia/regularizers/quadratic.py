"""The penalty that ITA, IEL and L2 become: a quadratic in the task vector tau, in the metric F of a curvature.

    ITA (Eq. 11, 12)        alpha/2 |tau|_F^2                             gradient  alpha F tau
    IEL (Eq. 15, 18, 19)    beta T Omega(tau) + const                     gradient  beta F ((1 - 1/T) tau - S/T)

where Omega is the Jensen gap of Theorem 1 at w = 1/T, S the sum of the earlier task vectors and T the number of tasks,
the current one included. F is the mean Fisher at theta0, floored; a diagonal one acts elementwise. Convention: tensors
are (O, I), by canonical weight name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.protocol import AdaptedLinear, Exact
from intarsia.curvature.protocol import Diagonalized, Metric
from intarsia.numerics import wide
from intarsia.regularizers.choices import Step
from intarsia.regularizers.protocol import clipped


@dataclass(frozen=True)
class Quadratic:
    """strength (share |tau|_F^2 / 2 - <tau, F S> / T).

    Args:
        strength: alpha or beta.
        metric: F.
        share: of tau in what is penalized: 1 alone, 1 - 1/T beside T - 1 others.
        total: S; None where nothing is pulled towards.
        tasks: T.
    """

    strength: float
    metric: Metric
    share: float = 1.0
    total: Mapping[str, Tensor] | None = None
    tasks: int = 1
    _pulls: dict[str, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def value(self, vector: Mapping[str, Tensor]) -> Tensor:
        """See ``Penalty``; in float64."""
        found = self.strength * self.share * self.metric.value(vector)
        for name, tau in vector.items() if self.total is not None else ():
            found = found - (wide(tau) * wide(self._pull(name, tau))).sum().cpu()
        return found

    def gradient(self, name: str, tau: Tensor) -> Tensor:
        """Strength F (share tau - S/T); see ``Penalty``."""
        return self.strength * self.share * self.metric.gradient(name, tau) - self._pull(name, tau)

    def _pull(self, name: str, like: Tensor) -> Tensor:
        """Strength F S / T of one weight."""
        if self.total is None:
            return torch.zeros_like(like)
        return self.strength * self.metric.gradient(name, self.total[name]) / self.tasks

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

    @torch.no_grad()
    def _proximal_step(self, adapter: Attachment, scale: float) -> None:
        held = scale * self.strength * self.share
        for name, layer in adapter.layers.items():
            if isinstance(self.metric, Diagonalized) and isinstance(layer.adapter, Exact):
                layer.proximal_in_(self.metric.form(name), held, scale * self._kept_pull(name, layer.linear.weight))
                continue
            tau = layer.delta()
            c, d = self.metric.quadratic(name, tau)
            layer.proximal_(held * c, held * d + scale * self._pull(name, tau))

    def _kept_pull(self, name: str, like: Tensor) -> Tensor:
        """The pull on one weight, computed once: in a metric that is not diagonal it costs products of matrices."""
        if self.total is None:
            return like.new_zeros(()).expand_as(like)
        if name not in self._pulls:
            self._pulls[name] = self._pull(name, like)
        return self._pulls[name]

    def _explicit_step(self, adapter: Attachment, scale: float) -> None:
        gradients = self._parameter_gradients(adapter)
        with torch.no_grad():
            for parameter, gradient in zip(adapter.parameters(), gradients, strict=True):
                parameter.sub_(clipped(gradient), alpha=scale)

    def _parameter_gradients(self, adapter: Attachment) -> list[Tensor]:
        return [g for name, layer in adapter.layers.items() for g in self._layer_gradients(name, layer)]

    def _layer_gradients(self, name: str, layer: AdaptedLinear) -> tuple[Tensor, ...]:
        delta = layer.delta()
        return torch.autograd.grad(delta, list(layer.adapter_parameters.values()), self.gradient(name, delta.detach()))

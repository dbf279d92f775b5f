"""What an adapter is, and a linear layer that wears one.

Convention: a weight is (out, in), written (O, I); activations are (..., I) -> (..., O). An adapter parametrises the
update tau (O, I) of one weight by a few tensors, its *parts*. The layer computes

    y = (W0 + (S + tau) * scale) x + b

with S = 0, scale = 1 for a module trained alone (ITA), and S the sum of the earlier task vectors, scale = 1/T for a
module trained through the composed model (IEL, docs/method.md section 3).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Parts = Mapping[str, Tensor]


@runtime_checkable
class Adapter(Protocol):
    """A parametrisation of task vectors: immutable settings and seven pure functions of one weight."""

    kind: ClassVar[str]

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Parts whose tau is zero, for the weight called ``name`` with pre-trained value ``theta0`` (O, I)."""
        ...

    def delta(self, parts: Parts, theta0: Tensor) -> Tensor:
        """The dense update tau (O, I), differentiable in the parts."""
        ...

    def combined(self, modules: Sequence[Parts], weights: Sequence[float], theta0: Tensor) -> Tensor:
        """sum_t w_t tau_t (O, I) of one module or more, as cheaply as this parametrisation allows; in a new tensor."""
        ...

    def nearest(self, parts: Parts, theta0: Tensor, tau: Tensor) -> dict[str, Tensor]:
        """Parts, shaped as ``parts``, whose delta is as near to ``tau`` (O, I) as this parametrisation comes."""
        ...

    def base(self, theta0: Tensor, shift: Tensor) -> Tensor:
        """theta0 + shift in the form ``forward`` wants; ``shift`` (O, I) is a combination of this adapter's updates."""
        ...

    def forward(self, x: Tensor, layer: "AdaptedLinear") -> Tensor:
        """(..., I) -> (..., O) through the adapted layer."""
        ...

    def proximal(self, parts: Parts, theta0: Tensor, curvature: Tensor, pull: Tensor) -> dict[str, Tensor]:
        """New parts: argmin of |parts - old|^2 / 2 + sum(curvature * tau^2 / 2 - pull * tau), exact and closed-form."""
        ...


class AdaptedLinear(nn.Module):
    """A frozen ``nn.Linear`` with a trainable update.

    Args:
        name: canonical name of the weight.
        linear: the layer to wrap; its weight and bias are shared, never written.
        adapter: the parametrisation.
        generator: source of the parts' random start.
    """

    def __init__(self, name: str, linear: nn.Linear, adapter: Adapter, generator: torch.Generator) -> None:
        super().__init__()
        self.name = name
        self.linear = linear
        self.adapter = adapter
        parts = adapter.initial(name, linear.weight.detach(), generator)
        self.parts = nn.ParameterDict({key: nn.Parameter(value) for key, value in parts.items()})
        self.scale = 1.0
        self.enabled = True
        self.base = linear.weight.detach()
        self.compose(None, 1)

    def on(self, linear: nn.Linear) -> "AdaptedLinear":
        """The same update, its parts shared, on another layer that has the same weight."""
        other = AdaptedLinear(self.name, linear, self.adapter, torch.Generator())
        other.parts = self.parts
        return other

    def compose(self, total: Tensor | None, tasks: int) -> None:
        """Train inside theta0 + (total + tau) / tasks; ``compose(None, 1)`` is a module alone."""
        theta0 = self.linear.weight.detach()
        self.scale = 1.0 / tasks
        self.base = self.adapter.base(theta0, torch.zeros_like(theta0) if total is None else total / tasks)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return self.adapter.forward(x, self) if self.enabled else self.linear(x)

    def delta(self) -> Tensor:
        """Tau (O, I), differentiable in the parts."""
        return self.adapter.delta(dict(self.parts.items()), self.linear.weight.detach())

    @torch.no_grad()
    def start_(self, tau: Tensor) -> None:
        """Replace the parts by those whose delta is nearest to ``tau`` (O, I)."""
        self._replace(self.adapter.nearest(dict(self.parts.items()), self.linear.weight.detach(), tau))

    @torch.no_grad()
    def proximal_(self, curvature: Tensor, pull: Tensor) -> None:
        """Replace the parts by their proximal point (see ``Adapter.proximal``)."""
        self._replace(self.adapter.proximal(dict(self.parts.items()), self.linear.weight.detach(), curvature, pull))

    def _replace(self, new: Parts) -> None:
        for key, value in new.items():
            self.parts[key].copy_(value)

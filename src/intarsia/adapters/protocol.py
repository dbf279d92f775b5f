"""What an adapter is, and a linear layer that wears one.

Convention: a weight is (out, in), written (O, I); activations are (..., I) -> (..., O). An adapter parametrises the
update tau (O, I) of one weight by a few tensors, its *parameters*. The layer computes

    y = (W0 + (S + tau) * scale) x + b

with S = 0, scale = 1 for a module trained alone (ITA), and S the sum of the earlier task vectors, scale = 1/T for a
module trained through the composed model (IEL, docs/method.md section 3).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Parameters = Mapping[str, Tensor]


@runtime_checkable
class Adapter(Protocol):
    """A parametrisation of task vectors: immutable settings and eight pure functions of one weight."""

    kind: ClassVar[str]

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Parameters whose tau is zero, for the weight called ``name`` with pre-trained value ``theta0`` (O, I)."""
        ...

    def delta(self, parameters: Parameters, theta0: Tensor) -> Tensor:
        """The dense update tau (O, I), differentiable in the parameters."""
        ...

    def combined(self, modules: Sequence[Parameters], weights: Sequence[float], theta0: Tensor) -> Tensor:
        """sum_t w_t tau_t (O, I) of one module or more, as cheaply as this parametrisation allows; in a new tensor."""
        ...

    def nearest(self, parameters: Parameters, theta0: Tensor, tau: Tensor) -> dict[str, Tensor]:
        """Parameters, shaped as ``parameters``, whose delta is the nearest to ``tau`` (O, I)."""
        ...

    def base(self, theta0: Tensor, shift: Tensor) -> Tensor:
        """theta0 + shift in the form ``forward`` wants; ``shift`` (O, I) is a combination of this adapter's updates."""
        ...

    def forward(self, x: Tensor, layer: "AdaptedLinear") -> Tensor:
        """(..., I) -> (..., O) through the adapted layer."""
        ...

    def weight(self, layer: "AdaptedLinear") -> Tensor:
        """W0 + (S + tau) * scale (O, I), dense: for networks that read a layer's weight themselves."""
        ...

    def proximal(self, parameters: Parameters, theta0: Tensor, curvature: Tensor, pull: Tensor) -> dict[str, Tensor]:
        """Argmin of |parameters - old|^2 / 2 + sum(curvature * tau^2 / 2 - pull * tau), in closed form."""
        ...


class Form(Protocol):
    """A quadratic form <tau, F tau> over updates tau (O, I) of one weight, diagonal in known bases.

    <tau, F tau> = sum(diagonal * (left^T tau right)^2), left (O, O) and right (I, I) orthogonal.
    """

    @property
    def left(self) -> Tensor:
        """(O, O)."""
        ...

    @property
    def right(self) -> Tensor:
        """(I, I)."""
        ...

    @property
    def diagonal(self) -> Tensor:
        """(O, I), positive."""
        ...

    def of_rows(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """Of m -> <diag(m) theta0, F diag(m) theta0>: eigenvalues (O,) and eigenvectors (O, O) as columns."""
        ...


@runtime_checkable
class Exact(Protocol):
    """An adapter whose proximal step is exact in a form that is not diagonal; others take a diagonal above it."""

    def proximal_in(
        self, parameters: Parameters, theta0: Tensor, form: Form, held: float, pull: Tensor
    ) -> dict[str, Tensor]:
        """Argmin of |parameters - old|^2 / 2 + held <tau, F tau> / 2 - <pull, tau>, in closed form."""
        ...


class AdaptedLinear(nn.Module):
    """A frozen ``nn.Linear`` with a trainable update.

    Args:
        name: canonical name of the weight.
        linear: the layer to wrap; its weight and bias are shared, never written.
        adapter: the parametrisation.
        generator: source of the parameters' random start.
    """

    def __init__(self, name: str, linear: nn.Linear, adapter: Adapter, generator: torch.Generator) -> None:
        super().__init__()
        self.name = name
        self.linear = linear
        self.adapter = adapter
        parameters = adapter.initial(name, linear.weight.detach(), generator)
        self.adapter_parameters = nn.ParameterDict({key: nn.Parameter(value) for key, value in parameters.items()})
        self.scale = 1.0
        self.enabled = True
        self.base = linear.weight.detach()
        self.compose(None, 1)

    def on(self, linear: nn.Linear) -> "AdaptedLinear":
        """The same update, its parameters shared, on another layer that has the same weight."""
        other = AdaptedLinear(self.name, linear, self.adapter, torch.Generator())
        other.adapter_parameters = self.adapter_parameters
        return other

    def compose(self, total: Tensor | None, divisor: float) -> None:
        """Train inside theta0 + (total + tau) / divisor; ``compose(None, 1)`` is a module alone."""
        theta0 = self.linear.weight.detach()
        self.scale = 1.0 / divisor
        self.base = self.adapter.base(theta0, torch.zeros_like(theta0) if total is None else total / divisor)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return self.adapter.forward(x, self) if self.enabled else self.linear(x)

    @property
    def weight(self) -> Tensor:
        """(O, I) the layer's weight as it stands, differentiable in the parameters."""
        return self.adapter.weight(self) if self.enabled else self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """(O,) of the plain layer."""
        return self.linear.bias

    @property
    def in_features(self) -> int:
        """I."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """O."""
        return self.linear.out_features

    def delta(self) -> Tensor:
        """Tau (O, I), differentiable in the parameters."""
        return self.adapter.delta(dict(self.adapter_parameters.items()), self.linear.weight.detach())

    @torch.no_grad()
    def start_(self, tau: Tensor) -> None:
        """Replace the parameters by those whose delta is nearest to ``tau`` (O, I)."""
        self._replace(self.adapter.nearest(dict(self.adapter_parameters.items()), self.linear.weight.detach(), tau))

    @torch.no_grad()
    def proximal_(self, curvature: Tensor, pull: Tensor) -> None:
        """Replace the parameters by their proximal point (see ``Adapter.proximal``)."""
        self._replace(
            self.adapter.proximal(dict(self.adapter_parameters.items()), self.linear.weight.detach(), curvature, pull)
        )

    @torch.no_grad()
    def proximal_in_(self, form: Form, held: float, pull: Tensor) -> None:
        """Replace the parameters by their proximal point in a form (see ``Exact``, which the adapter is)."""
        assert isinstance(self.adapter, Exact)
        parameters, theta0 = dict(self.adapter_parameters.items()), self.linear.weight.detach()
        self._replace(self.adapter.proximal_in(parameters, theta0, form, held, pull))

    def _replace(self, new: Parameters) -> None:
        for key, value in new.items():
            self.adapter_parameters[key].copy_(value)

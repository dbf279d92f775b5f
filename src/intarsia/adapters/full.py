"""Full fine-tuning: tau is a free matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.protocol import AdaptedLinear, Form, Parameters


@dataclass(frozen=True)
class Full:
    """A free dense update of every trainable weight."""

    kind: ClassVar[str] = "full"

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Zeros (O, I)."""
        return {"tau": torch.zeros_like(theta0)}

    def delta(self, parameters: Parameters, theta0: Tensor) -> Tensor:
        """The matrix itself."""
        return parameters["tau"]

    def combined(self, modules: Sequence[Parameters], weights: Sequence[float], theta0: Tensor) -> Tensor:
        """Added up in the order given."""
        total = modules[0]["tau"] * weights[0]
        for parameters, w in zip(modules[1:], weights[1:], strict=True):
            total.add_(parameters["tau"], alpha=w)
        return total

    def nearest(self, parameters: Parameters, theta0: Tensor, tau: Tensor) -> dict[str, Tensor]:
        """Tau itself."""
        return {"tau": tau}

    def base(self, theta0: Tensor, shift: Tensor) -> Tensor:
        """A dense (O, I) weight."""
        return theta0 + shift

    def forward(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """(W + scale tau) x + b."""
        return F.linear(x, self.weight(layer), layer.linear.bias)

    def weight(self, layer: AdaptedLinear) -> Tensor:
        """W + scale tau."""
        return torch.add(layer.base, layer.adapter_parameters["tau"], alpha=layer.scale)

    def proximal(self, parameters: Parameters, theta0: Tensor, curvature: Tensor, pull: Tensor) -> dict[str, Tensor]:
        """(tau + d) / (1 + c), elementwise."""
        return {"tau": (parameters["tau"] + pull) / (1 + curvature)}

    def proximal_in(
        self, parameters: Parameters, theta0: Tensor, form: Form, held: float, pull: Tensor
    ) -> dict[str, Tensor]:
        """(tau + d) / (1 + held c), elementwise in the form's bases."""
        turned = form.left.T @ (parameters["tau"] + pull) @ form.right
        return {"tau": form.left @ (turned / (1 + held * form.diagonal)) @ form.right.T}

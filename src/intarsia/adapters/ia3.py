"""(IA)^3: tau = W0 * (l - 1) by rows, one factor for each output (Liu et al., arXiv 2205.05638)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.protocol import AdaptedLinear, Form, Parameters
from intarsia.errors import InputError

TOLERANCE = 1e-4
"""How far a total may lie from W0 * s, as a part of its own length: sums of float32 updates stay below 1e-6."""


@dataclass(frozen=True)
class IA3:
    """A learned factor for every output of every trainable weight; l = 1 at the start."""

    kind: ClassVar[str] = "ia3"

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Ones (O,)."""
        return {"l": theta0.new_ones(theta0.shape[0])}

    def delta(self, parameters: Parameters, theta0: Tensor) -> Tensor:
        """W0 * (l - 1)."""
        return theta0 * (parameters["l"] - 1).unsqueeze(1)

    def combined(self, modules: Sequence[Parameters], weights: Sequence[float], theta0: Tensor) -> Tensor:
        """W0 * sum_t w_t (l_t - 1)."""
        rows = torch.stack([(parameters["l"] - 1) * w for parameters, w in zip(modules, weights, strict=True)]).sum(0)
        return theta0 * rows.unsqueeze(1)

    def nearest(self, parameters: Parameters, theta0: Tensor, tau: Tensor) -> dict[str, Tensor]:
        """Row by row the factor that fits best; exact for what (IA)^3 can say."""
        return {"l": 1 + _factors(theta0, tau)}

    def base(self, theta0: Tensor, shift: Tensor) -> Tensor:
        """Row factors (O,): a shift made of (IA)^3 updates is W0 * s by rows, and s is read back from it.

        Raises:
            InputError: it is not, beyond ``TOLERANCE``.
        """
        factors = _factors(theta0, shift)
        length, off = shift.norm(), (shift - theta0 * factors.unsqueeze(1)).norm()
        if not off <= TOLERANCE * length:
            raise InputError(
                f"a total of which {float(off / length):.2g} (of its length) is no factor a row of the weight: (IA)^3 "
                "composes with totals of (IA)^3 updates only; compose these with LoRA or full fine-tuning"
            )
        return 1 + factors

    def forward(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """(W0 x) * (base + scale (l - 1)) + b: one product, whatever was composed before."""
        y = F.linear(x, layer.linear.weight) * self._factor(layer)
        return y if layer.linear.bias is None else y + layer.linear.bias

    def weight(self, layer: AdaptedLinear) -> Tensor:
        """W0 * (base + scale (l - 1)) by rows."""
        return layer.linear.weight * self._factor(layer).unsqueeze(1)

    def _factor(self, layer: AdaptedLinear) -> Tensor:
        return layer.base + layer.scale * (layer.adapter_parameters["l"] - 1)

    def proximal(self, parameters: Parameters, theta0: Tensor, curvature: Tensor, pull: Tensor) -> dict[str, Tensor]:
        """M = l - 1 row by row: (1 + sum_j c W0^2) m = m_old + sum_j d W0."""
        stiffness = 1 + (curvature * theta0 * theta0).sum(1)
        return {"l": 1 + (parameters["l"] - 1 + (pull * theta0).sum(1)) / stiffness}

    def proximal_in(
        self, parameters: Parameters, theta0: Tensor, form: Form, held: float, pull: Tensor
    ) -> dict[str, Tensor]:
        """M = l - 1 of all rows together: (I + held H) m = m_old + sum_j d W0, H the form of m -> diag(m) W0."""
        values, vectors = form.of_rows(theta0)
        wanted = parameters["l"] - 1 + (pull * theta0).sum(1)
        return {"l": 1 + vectors @ ((vectors.T @ wanted) / (1 + held * values))}


def _factors(theta0: Tensor, shift: Tensor) -> Tensor:
    """S (O,) for which W0 * s by rows is nearest to the shift (O, I)."""
    rows = (theta0 * theta0).sum(1)
    return (theta0 * shift).sum(1) / torch.where(rows > 0, rows, torch.ones_like(rows))

"""A head as a layer of a network."""

import torch
from torch import Tensor, nn

from intarsia.heads.head import Head, logits


class HeadLayer(nn.Module):
    """Features (N, D) -> logits (N, C). Nothing of it is trained.

    Args:
        head: of all classes; copied.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        for name in ("weight", "bias", "factors", "offsets"):
            value = getattr(head, name)
            copied = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
            self.register_parameter(name, copied)

    weight: Tensor
    bias: Tensor
    factors: Tensor | None
    offsets: Tensor | None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C)."""
        return logits(features, self.weight, self.bias, self.factors, self.offsets)

    @torch.no_grad()
    def head(self) -> Head:
        """What it computes."""
        return Head(self.weight, self.bias, self.factors, self.offsets)

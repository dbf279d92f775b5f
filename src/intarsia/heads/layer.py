"""A head as a layer of a network."""

from torch import Tensor, nn

from intarsia.heads.head import Head, logits


class HeadLayer(nn.Module):
    """Features (N, D) -> logits (N, C). Nothing of it is trained.

    Args:
        head: of all classes; copied.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        given = head.tensors()
        for name in ("weight", "bias", "factors", "offsets", "expected"):
            copied = nn.Parameter(given[name].detach().clone(), requires_grad=False) if name in given else None
            self.register_parameter(name, copied)

    weight: Tensor
    bias: Tensor
    factors: Tensor | None
    offsets: Tensor | None
    expected: Tensor | None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C)."""
        return logits(features, self.weight, self.bias, self.factors, self.offsets, self.expected)

    def head(self) -> Head:
        """What it computes."""
        return Head.from_tensors(self.state_dict())

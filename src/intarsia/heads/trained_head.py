"""Heads while they are trained."""

from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.heads.head import Head
from intarsia.regularizers.choices import Step
from intarsia.regularizers.head import head_step


class TrainableHead(nn.Module):
    """A linear head whose weight (C, D) and bias (C,) are trained.

    Args:
        start: where it begins.
    """

    def __init__(self, start: Head) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.weight.clone())
        self.bias = nn.Parameter(start.bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        return F.linear(features, self.weight, self.bias)

    def trained(self) -> Head:
        """As it stands, where it is."""
        return Head(self.weight.detach().clone(), self.bias.detach().clone())


class RegularizedHead(TrainableHead):
    """The head of a module's own classes, held near its reference head.

    Args:
        start: where it begins.
        reference: what it is held near.
        fisher: mean Fisher of its numbers, floored, in the shape of a head.
    """

    def __init__(self, start: Head, reference: Head, fisher: Head) -> None:
        super().__init__(start)
        self.reference = reference
        self.fisher = fisher

    def regularize(self, lambda_h: float, lambda_0: float, scale: float, how: Step) -> None:
        """One step of the head's regularizer; see ``regularizers.head.head_step``."""
        for parameter, target, fisher in (
            (self.weight, self.reference.weight, self.fisher.weight),
            (self.bias, self.reference.bias, self.fisher.bias),
        ):
            head_step(parameter, target, fisher, lambda_h, lambda_0, scale, how)

    def moved(self) -> float:
        """|W - W_ref| / |W_ref|."""
        away = (self.weight.detach() - self.reference.weight).norm()
        return float(away / self.reference.weight.norm().clamp_min(1e-12))

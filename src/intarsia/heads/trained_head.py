"""The head of the task that is being learned."""

from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.heads.head import Head
from intarsia.regularizers.head import head_step
from intarsia.regularizers.protocol import Step


class TrainedHead(nn.Module):
    """The head of the task being learned, with what pulls it towards its reference.

    Args:
        start: where it begins.
        reference: what it is pulled towards.
        fisher: mean Fisher of its numbers, floored, in the shape of a head.
    """

    def __init__(self, start: Head, reference: Head, fisher: Head) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.weight.clone())
        self.bias = nn.Parameter(start.bias.clone())
        self.reference = reference
        self.fisher = fisher

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the task's own classes."""
        return F.linear(features, self.weight, self.bias)

    def pull(self, lambda_h: float, lambda_0: float, scale: float, how: Step) -> None:
        """One step of the head's regularizer; see ``regularizers.head_step``."""
        for parameter, target, fisher in (
            (self.weight, self.reference.weight, self.fisher.weight),
            (self.bias, self.reference.bias, self.fisher.bias),
        ):
            head_step(parameter, target, fisher, lambda_h, lambda_0, scale, how)

    def moved(self) -> float:
        """|W - W_ref| / |W_ref|."""
        away = (self.weight.detach() - self.reference.weight).norm()
        return float(away / self.reference.weight.norm().clamp_min(1e-12))

    def trained(self) -> Head:
        """As it stands, on the CPU."""
        return Head(self.weight.detach().cpu().clone(), self.bias.detach().cpu().clone())

"""The head's regularizer."""

import torch
from torch import Tensor, nn

from intarsia.regularizers.choices import Step
from intarsia.regularizers.protocol import clipped


def head_step(
    parameter: nn.Parameter,
    reference: Tensor,
    fisher: Tensor,
    lambda_h: float,
    lambda_0: float,
    scale: float,
    how: Step,
) -> None:
    """One step of the head's regularizer, in place: (lambda_h F + lambda_0) (W - W_ref)^2.

    Its gradient is 2 (lambda_h F + lambda_0) (W - W_ref). ``coupled`` adds it to ``.grad``; ``decoupled`` walks
    along it by ``scale``; ``proximal`` solves W_ref + (W - W_ref) / (1 + scale * 2 (lambda_h F + lambda_0)).

    Args:
        parameter: W (classes, width) or b (classes,).
        reference: the reference head's value, same shape.
        fisher: the head's mean Fisher, floored, same shape.
        lambda_h: weight of the Fisher's pull.
        lambda_0: weight of the plain pull.
        scale: the schedule's factor.
        how: the kind of step.
    """
    stiffness = 2 * (lambda_h * fisher + lambda_0)
    with torch.no_grad():
        away = parameter - reference
        if how == "proximal":
            parameter.copy_(reference + away / (1 + scale * stiffness))
        elif how == "decoupled":
            parameter.sub_(clipped(stiffness * away), alpha=scale)
        else:
            pull = stiffness * away
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull

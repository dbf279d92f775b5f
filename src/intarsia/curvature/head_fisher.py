"""The Fisher of a linear softmax head, in closed form."""

import torch
from torch import Tensor

_ROWS = 4096  # features whose probabilities are held at once


def head_fisher(features: Tensor, weight: Tensor, bias: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Exact mean Fisher of a linear softmax head, by its weight (C, D) and bias (C,).

    d log p_c / dW_k = ((c = k) - p_k) f, hence F[k, d] = mean over features of p_k (1 - p_k) f_d^2.

    Args:
        features: (N, D).
        weight: (C, D).
        bias: (C,).
        rows: classes k whose Fisher is asked for; all of them compete.
    """
    by_weight, by_bias = torch.zeros_like(weight[rows]), torch.zeros_like(bias[rows])
    for some in features.split(_ROWS):
        p = torch.softmax(some @ weight.T + bias, 1)[:, rows]
        variance = p * (1 - p)  # (n, rows)
        by_weight.addmm_(variance.T, some.square(), alpha=1 / len(features))
        by_bias.add_(variance.sum(0), alpha=1 / len(features))
    return by_weight, by_bias

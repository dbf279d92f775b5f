"""Jensen's gap Omega of a composition in a diagonal metric (Theorem 1, Eq. 13)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from intarsia.numerics import wide


def gap(vectors: Sequence[Mapping[str, Tensor]], weights: Sequence[float], metric: Mapping[str, Tensor]) -> float:
    """Omega = 1/2 (sum_t w_t |tau_t|^2 - |sum_t w_t tau_t|^2) in a diagonal metric (Eq. 13).

    Raises:
        ValueError: the weights do not sum to 1: the identity does not hold.
    """
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights sum to {sum(weights):g}: Theorem 1 needs 1")
    spread = 0.0
    for name, diagonal in metric.items():
        taus = torch.stack([wide(v[name]) for v in vectors])
        w = taus.new_tensor(list(weights)).view(-1, *[1] * (taus.ndim - 1))
        mean = (w * taus).sum(0)
        # sum w |tau - mean|^2 is the same number, and does not cancel
        spread += float((w * (taus - mean).square() * wide(diagonal)).sum())
    return 0.5 * spread

"""Jensen's gap Omega of a composition in the metric of a curvature (Theorem 1, Eq. 13)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from intarsia.curvature.protocol import Metric
from intarsia.numerics import wide


def gap(vectors: Sequence[Mapping[str, Tensor]], weights: Sequence[float], metric: Metric) -> float:
    """Omega = 1/2 (sum_t w_t |tau_t|^2 - |sum_t w_t tau_t|^2) in a metric (Eq. 13).

    Raises:
        ValueError: the weights do not sum to 1: the identity does not hold.
    """
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights sum to {sum(weights):g}: Theorem 1 needs 1")
    terms = list(zip(weights, vectors, strict=True))
    mean = {n: torch.stack([w * wide(v[n]) for w, v in terms]).sum(0) for n in vectors[0]}
    # sum w |tau - mean|^2 is the same number, and does not cancel
    return sum(w * float(metric.value({n: wide(tau) - mean[n] for n, tau in v.items()})) for w, v in terms)

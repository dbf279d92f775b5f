"""Jensen's gap to second order at theta0, under every curvature: what each of them sees of the loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.curvature import CURVATURES
from intarsia.curvature.choices import Estimator
from intarsia.curvature.jensen_gap import gap
from intarsia.curvature.linearized import Tangent
from intarsia.curvature.protocol import Curvature
from intarsia.curvature.taps import pull_back
from intarsia.heads.head import Head
from intarsia.progress import Progress, silent
from intarsia.task_vector import TaskVector, weighted_sum

FACTORS = {"ekfac": "kfac"}
"""The curvature of whose factors one takes the eigenbases."""
WHOLE = "whole"
"""The name of the Fisher of which nothing is left out."""
LAYERS = "layers"
"""The name of the Fisher of which all is left out that one weight does together with another: the most that a curvature
of single weights sees where it is exact."""
PHASE = "curvatures"


def predicted_gaps(
    backbone: Backbone,
    head: Head,
    batches: Sequence[Tensor],
    vectors: Sequence[TaskVector],
    weights: Sequence[float],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """Omega by curvature, each of the loss's Fisher on the same images: the table's, its blocks, all of it.

    Args:
        backbone: theta0.
        head: reference heads of all classes.
        batches: normalised images (B, C, size, size).
        vectors: of the tasks.
        weights: that sum to 1.
        seed: of the random estimators.
        progress: called with (curvatures seen, curvatures in all).
    """
    found, made, steps = dict[str, float](), dict[str, Curvature](), len(CURVATURES) + 2
    for i, (name, estimate) in enumerate(CURVATURES.items()):
        generator, like = torch.Generator().manual_seed(seed), made.get(FACTORS.get(name, ""))
        curvature = estimate(backbone, head, batches, generator=generator, like=like)
        found[name] = gap(vectors, weights, curvature.mean(0.0))
        if name in FACTORS.values():
            made[name] = curvature
        progress(PHASE, i + 1, steps)
    generator = torch.Generator().manual_seed(seed)
    found[LAYERS] = layer_by_layer(backbone, head, batches, vectors, weights, generator=generator)
    progress(PHASE, steps - 1, steps)
    w = torch.tensor(list(weights), dtype=torch.float64)
    away = torch.eye(len(w), dtype=torch.float64) - w  # of each vector from the mean of all
    squares = torch.tensor(whole_fisher_squares(backbone, head, batches, vectors, away), dtype=torch.float64)
    progress(PHASE, steps, steps)
    return {**found, WHOLE: 0.5 * float(w @ squares)}


def layer_by_layer(
    backbone: Backbone,
    head: Head,
    batches: Sequence[Tensor],
    vectors: Sequence[TaskVector],
    weights: Sequence[float],
    *,
    estimator: Estimator = "rademacher",
    generator: torch.Generator | None = None,
) -> float:
    """1/2 sum_t w_t sum_l E <G_l, tau_t - mean>^2: Omega under the Fisher's blocks of single weights, each exact.

    Args:
        backbone: theta0.
        head: features -> logits.
        batches: normalised images (B, C, H, W).
        vectors: tau_t.
        weights: w_t, that sum to 1.
        estimator: which vectors are pushed back, once (see ``curvature.estimators``).
        generator: of the random ones.
    """
    mean = weighted_sum(vectors, weights)
    away, total = [tau - mean for tau in vectors], 0.0

    def receive(name: str, a: Tensor, g: Tensor) -> None:
        nonlocal total
        for w, tau in zip(weights, away, strict=True):
            total += w * float(((a @ tau[name].to(a).T) * g).sum((1, 2)).square().sum())

    for batch in batches:
        pull_back(backbone, head, batch, receive, estimator=estimator, probes=1, generator=generator)
    return 0.5 * total / sum(map(len, batches))


@torch.no_grad()
def whole_fisher_squares(
    backbone: Backbone, head: Head, batches: Sequence[Tensor], vectors: Sequence[TaskVector], mixtures: Tensor
) -> list[float]:
    """D'Fd of differences d = sum_t m_t tau_t from theta0, F = E J' (diag p - p p') J, J the Jacobian of the logits.

    Logits are derived along a basis of the differences: points of two lines need three derivatives, not one per task.

    Args:
        backbone: theta0.
        head: features -> logits.
        batches: normalised images.
        vectors: tau_t.
        mixtures: m (differences, T).
    """
    mixtures = mixtures.double()
    basis = torch.linalg.svd(mixtures, full_matrices=False).Vh[: max(1, int(torch.linalg.matrix_rank(mixtures)))]
    directions, mixtures = [weighted_sum(vectors, row) for row in basis.tolist()], mixtures @ basis.T
    tangent, total = Tangent(backbone), torch.zeros(len(mixtures), dtype=torch.float64)
    for batch in batches:
        features, along = batch, list[Tensor]()
        for tau in directions:
            features, derivative = tangent(batch, tau)
            along.append(derivative.to(head.weight.dtype) @ head.weight.T)
        p, slopes = torch.softmax(head(features), 1), torch.stack(along)  # (B, C); (T, B, C)
        for row, mixed in enumerate(mixtures.to(slopes)):
            d = torch.einsum("t,tbc->bc", mixed, slopes)
            total[row] += ((p * d.square()).sum(1) - (p * d).sum(1).square()).sum().cpu()
    return (total / sum(map(len, batches))).tolist()

"""Pre-tuning of a new head on whitened features, folded back into a head on plain ones: of the baselines.

Features of images far from what the backbone saw share a large mean and few directions, in which plain SGD does not
get far. Convention: features (N, D), logits (N, C).
"""

import math

import torch
from torch import Tensor

from intarsia.heads.head import Head
from intarsia.heads.whitening import Whitening

MOMENTUM = 0.9


def pretune(
    head: Head, features: Tensor, labels: Tensor, *, epochs: int, lr: float, batch_size: int, generator: torch.Generator
) -> Head:
    """Train a head on the features of its own task: cross-entropy over the new classes only.

    SGD with momentum and cosine per epoch, gradients in closed form. Weight and bias are one matrix (C, D + 1) on
    features with a column of ones: a step is two products.

    Args:
        head: the start, (C, D).
        features: (N, D) at theta0, in memory: no image is seen again.
        labels: (N,) in 0 .. C - 1.
        epochs: passes over the features; the last, smaller batch is used too.
        lr: learning rate.
        batch_size: features a step.
        generator: of the order of the features.
    """
    whitening = Whitening.of(features)
    inside = whitening.inward(head)
    matrix = torch.cat([inside.weight, inside.bias[:, None]], 1)
    white = whitening.features(features)
    momentum = torch.zeros_like(matrix)
    for epoch in range(epochs):
        rate = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order = torch.randperm(len(features), generator=generator)
        for index in order.split(batch_size):
            x = white[index]
            momentum.mul_(MOMENTUM).addmm_(cross_entropy_slope(x @ matrix.T, labels[index]).T, x)
            matrix.sub_(momentum, alpha=rate)
    return whitening.outward(Head(matrix[:, :-1].contiguous(), matrix[:, -1].contiguous()))


def cross_entropy_slope(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy by the logits (B, C): (p - y) / B."""
    slope = torch.softmax(logits, 1)
    slope[torch.arange(len(labels)), labels] -= 1
    return slope.div_(len(labels))

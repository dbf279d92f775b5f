"""The paper's reference heads: pre-tuning and classifier alignment by plain SGD on plain features.

Only the paper protocol has them (docs/method.md section 3, step 3). SGD without momentum, batches of 128, the last,
smaller one used too. Convention: features (N, D), logits (N, C).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from intarsia.class_stats.statistics import PER_CLASS, ClassStatistics, sample
from intarsia.heads.head import Head
from intarsia.heads.pretraining import cross_entropy_slope

TEMPERATURE = 0.1
BATCH = 128
Slope = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C), labels (B,) -> the gradient of a mean loss by the logits."""


def pretune_plainly(
    features: Tensor, labels: Tensor, classes: int, *, epochs: int, lr: float, generator: torch.Generator
) -> Head:
    """A head for new classes, from a truncated normal: cross-entropy over these classes, constant learning rate.

    Args:
        features: (N, D) at theta0, in memory: no image is seen again.
        labels: (N,) in 0 .. classes - 1.
        classes: C.
        epochs: passes over the features.
        lr: learning rate.
        generator: of the start and the order of the features.
    """
    matrix = _matrix(Head.truncated_normal(classes, features.shape[1], generator)).to(features)
    for _ in range(epochs):
        _one_pass(matrix, features, labels, cross_entropy_slope, lr, generator)
    return _head(matrix)


def align(head: Head, statistics: Sequence[ClassStatistics], *, lr: float, generator: torch.Generator) -> Head:
    """Calibrate the heads of all classes seen to each other, on features drawn from their statistics anew each epoch.

    Cross-entropy over all classes, logits divided by 0.1 |logits|; 10 + 5 (t - 1) epochs at task t, cosine per epoch.

    Args:
        head: all classes seen (C, D), the new ones pre-tuned.
        statistics: of the same classes, task by task, in the same order.
        lr: learning rate.
        generator: of the draws and their order.
    """
    matrix, epochs = _matrix(head), alignment_epochs(len(statistics))
    for epoch in range(epochs):
        features, labels = sample(statistics, PER_CLASS, generator)
        rate = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        _one_pass(matrix, features, labels, normalized_slope, rate, generator)
    return _head(matrix)


def alignment_epochs(tasks: int) -> int:
    """How many passes align the heads of so many tasks."""
    return 10 + 5 * (tasks - 1)


def normalized_slope(logits: Tensor, labels: Tensor) -> Tensor:
    """That of cross-entropy through z -> z / (0.1 |z|): what points along z changes nothing."""
    norm = logits.norm(dim=1, keepdim=True).clamp_min(1e-7)
    along = logits / norm
    slope = cross_entropy_slope(along / TEMPERATURE, labels)
    return slope.sub_((slope * along).sum(1, keepdim=True) * along).div_(TEMPERATURE * norm)


def _one_pass(
    matrix: Tensor, features: Tensor, labels: Tensor, slope: Slope, lr: float, generator: torch.Generator
) -> None:
    """SGD over all features in random order; ``matrix`` (C, D + 1) is weight and bias, in place."""
    ones = features.new_ones(len(features), 1)
    for index in torch.randperm(len(features), generator=generator).split(BATCH):
        x = torch.cat([features[index], ones[: len(index)]], 1)
        matrix.addmm_(slope(x @ matrix.T, labels[index]).T, x, alpha=-lr)


def _matrix(head: Head) -> Tensor:
    """Weight and bias as one (C, D + 1), for features with a column of ones."""
    return torch.cat([head.weight, head.bias[:, None]], 1)


def _head(matrix: Tensor) -> Head:
    """The inverse."""
    return Head(matrix[:, :-1].contiguous(), matrix[:, -1].contiguous())

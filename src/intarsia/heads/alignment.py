"""Classifier alignment (docs/method.md section 3, step 3): heads calibrated to each other on drawn features.

The aligned copies are the *reference heads*: with them theta0 has a meaningful loss on the task.
Convention: features (N, D), logits (N, C).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.mixtures import ClassStatistics, sample
from intarsia.heads.choices import Alignment
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.heads.pretraining import cross_entropy_slope, fit_head

TEMPERATURE = 0.1


ALIGNMENT_SAMPLES = 256


ALIGNMENT_BATCH = 128


ALIGNMENT_CLASSES = 100
"""Beyond so many classes, fewer features of each are drawn, as many in all as here, and heads have a closed form."""


CLOSED_FORM_RIDGE = 0.1
"""Share of every feature's variance within classes added to it: a head leans less where features hardly vary."""


def align(
    head: Head,
    statistics: Sequence[ClassStatistics],
    *,
    epochs: int,
    lr: float,
    generator: torch.Generator,
) -> Head:
    """Calibrate the heads of all classes seen to each other, on features drawn from their statistics.

    Cross-entropy over all classes, logits divided by 0.1 |logits|, SGD with momentum and
    cosine (docs/method.md section 3).

    Args:
        head: all classes seen (C, D), the new ones pre-tuned.
        statistics: of the same classes, task by task, in the same order.
        epochs: passes; the paper makes 10 + 5 t at task t, and 5 come near that on whitened features.
        lr: learning rate.
        generator: of the draws and their order.
    """
    features, labels = sample(statistics, samples(len(head)), generator)
    return fit_head(head, features, labels, _normalised_slope, epochs, lr, ALIGNMENT_BATCH, generator)


def align_many(head: Head, statistics: Sequence[ClassStatistics]) -> Head:
    """Heads of many classes calibrated to each other in closed form: the discriminant with a ridge, as large as before.

    The more classes, the fewer passes of ``align`` reach each of them, and the less a pass does to new heads among old
    ones (|logits| grows); this costs the same for any number, and classifies them better (docs/performance.md).

    Args:
        head: all classes seen (C, D), the new ones pre-tuned; the median norm of its rows is that of the result's.
        statistics: of the same classes, task by task, in the same order.
    """
    closed = discriminant(Gaussians.join([s.gaussians() for s in statistics]), ridge=CLOSED_FORM_RIDGE)
    size = head.weight.norm(dim=1).median() / closed.weight.norm(dim=1).median().clamp_min(1e-30)
    return Head(closed.weight * size, closed.bias * size)


def in_closed_form(classes: int, how: Alignment) -> bool:
    """Whether so many classes are aligned by ``align_many``."""
    return how == "auto" and classes > ALIGNMENT_CLASSES


def alignment_steps(classes: int, epochs: int, how: Alignment) -> int:
    """How many steps it takes to align so many classes; the closed form counts as one."""
    return 1 if in_closed_form(classes, how) else epochs * math.ceil(classes * samples(classes) / ALIGNMENT_BATCH)


def samples(classes: int) -> int:
    """How many features of each of so many classes stand in for their images."""
    return max(1, min(ALIGNMENT_SAMPLES, ALIGNMENT_SAMPLES * ALIGNMENT_CLASSES // classes))


def _normalised_slope(logits: Tensor, labels: Tensor) -> Tensor:
    """The same through z -> z / (0.1 |z|): what points along z changes nothing."""
    norm = logits.norm(dim=1, keepdim=True).clamp_min(1e-7)
    along = logits / norm
    slope = cross_entropy_slope(along / TEMPERATURE, labels)
    return slope.sub_((slope * along).sum(1, keepdim=True) * along).div_(TEMPERATURE * norm)

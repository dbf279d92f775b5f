"""Linear heads: one a task, their pre-tuning and their alignment (docs/method.md section 3, step 3).

Pre-tuning gives the new classes a head at theta0; alignment then calibrates all heads seen so far to each other, on
features drawn from the class statistics. The aligned copies are the *reference heads*: with them theta0 has a
meaningful loss on the task. Both run on whitened features, and the result is folded back into a head on
plain ones: features of images far from what the backbone saw share a large mean and few directions, in which plain SGD
does not get far. Convention: features (N, D), logits (N, C).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.regularizers import Step, head_step
from intarsia.statistics import ClassStatistics, Gaussians, sample

TEMPERATURE = 0.1
RIDGE = 0.01
MOMENTUM = 0.9
ALIGNMENT_SAMPLES = 256
ALIGNMENT_BATCH = 128
CHUNK = 4096
"""Features whitened at a time: what is held beside them all stays small."""
ALIGNMENT_CLASSES = 100
"""Beyond so many classes, fewer features of each are drawn, as many in all as here, and heads have a closed form."""
CLOSED_FORM_RIDGE = 0.1
"""Share of every feature's variance within classes added to it: a head leans less where features hardly vary."""
Alignment = Literal["auto", "sgd"]
Slope = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C), labels (B,) -> the gradient of a mean loss by the logits."""


@dataclass(frozen=True)
class Head:
    """A linear classifier: weight (C, D) and bias (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, D)."""
        return F.linear(features, self.weight, self.bias)

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, rows: slice) -> "Head":
        """The head of some classes."""
        return Head(self.weight[rows].clone(), self.bias[rows].clone())

    def split(self, sizes: Sequence[int]) -> list["Head"]:
        """The heads of tasks of so many classes: the inverse of ``join``."""
        parts = zip(self.weight.split(list(sizes)), self.bias.split(list(sizes)), strict=True)
        return [Head(weight, bias) for weight, bias in parts]

    def to(self, device: torch.device) -> "Head":
        """A copy on another device."""
        return Head(self.weight.to(device), self.bias.to(device))

    def shifted(self, offset: Tensor) -> "Head":
        """The head that says of features + offset (D,) what this one says of the features."""
        return Head(self.weight, self.bias - self.weight @ offset)

    def tensors(self) -> dict[str, Tensor]:
        """What a module keeps."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Head":
        """The inverse of ``tensors``."""
        return cls(tensors["weight"], tensors["bias"])

    @classmethod
    def join(cls, heads: Sequence["Head"]) -> "Head":
        """The heads of several tasks as one over all their classes."""
        return cls(torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]))

    @classmethod
    def random(cls, classes: int, width: int, generator: torch.Generator) -> "Head":
        """Uniform in +-1/sqrt(D), bias zero."""
        weight = (torch.rand(classes, width, generator=generator) * 2 - 1) / math.sqrt(width)
        return cls(weight, torch.zeros(classes))


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


def pretune(
    head: Head, features: Tensor, labels: Tensor, *, epochs: int, lr: float, batch_size: int, generator: torch.Generator
) -> Head:
    """Train a head on the features of its own task: cross-entropy over the new classes only, SGD with momentum.

    Args:
        head: the start, (C, D).
        features: (N, D) at theta0, in memory: no image is seen again.
        labels: (N,) in 0 .. C - 1.
        epochs: passes over the features; the last, smaller batch is used too.
        lr: learning rate.
        batch_size: features a step.
        generator: of the order of the features.
    """
    return _fit(head, features, labels, _slope, epochs, lr, batch_size, generator)


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
    return _fit(head, features, labels, _normalised_slope, epochs, lr, ALIGNMENT_BATCH, generator)


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


def discriminant(classes: Gaussians, *, ridge: float = 0.0) -> Head:
    """The heads of classes in closed form: the log posterior of Gaussians with one covariance within classes.

    W_c = S^-1 (m_c - m), b_c = -1/2 (m_c - m)^T S^-1 (m_c + m), m the mean of the classes' means m_c: Fisher's linear
    discriminant, all classes equally likely. Calibrated across tasks as it stands: nothing is left to align.
    It leans on directions in which features hardly vary, so that a network fine-tuned under it gets nowhere; as the
    last layer of a network that was fine-tuned under aligned heads it is the better classifier.

    Args:
        classes: their order is that of the rows.
        ridge: share of every feature's variance within classes that is added to it.
    """
    middle = classes.centres.mean(0)
    away = classes.centres - middle
    covariance = classes.covariance()
    covariance.diagonal().mul_(1 + ridge)
    weight = torch.linalg.solve(covariance, away.T).T
    bias = -0.5 * (weight * (classes.centres + middle)).sum(1)
    return Head(weight.float(), bias.float())


def _slope(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy by the logits (B, C): (p - y) / B."""
    slope = torch.softmax(logits, 1)
    slope[torch.arange(len(labels)), labels] -= 1
    return slope.div_(len(labels))


def _normalised_slope(logits: Tensor, labels: Tensor) -> Tensor:
    """The same through z -> z / (0.1 |z|): what points along z changes nothing."""
    norm = logits.norm(dim=1, keepdim=True).clamp_min(1e-7)
    along = logits / norm
    slope = _slope(along / TEMPERATURE, labels)
    return slope.sub_((slope * along).sum(1, keepdim=True) * along).div_(TEMPERATURE * norm)


@dataclass(frozen=True)
class _Whitening:
    """x -> (x - mean) unmix, with covariance near the identity; and heads to and fro."""

    mean: Tensor
    unmix: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "_Whitening":
        """Standardised, then by the Cholesky factor of the inverse correlation, ridge added."""
        mean, scale = features.mean(0), features.std(0, correction=0).double() + 1e-12
        correlation = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
        for some in features.split(CHUNK):
            white = (some - mean).double() / scale
            correlation.addmm_(white.T, white, alpha=1 / len(features))
        correlation.diagonal().add_(RIDGE)
        unmix = torch.linalg.cholesky(torch.linalg.inv(correlation)) / scale[:, None]
        return cls(mean, unmix.to(features.dtype))

    def features(self, features: Tensor) -> Tensor:
        """With a column of ones beside them, (N, D + 1)."""
        white = features.new_ones(len(features), features.shape[1] + 1)
        for some, into in zip(features.split(CHUNK), white.split(CHUNK), strict=True):
            into[:, :-1] = (some - self.mean) @ self.unmix
        return white

    def inward(self, head: Head) -> Head:
        """The head on whitened features with the same logits."""
        inside = torch.linalg.solve(self.unmix.double(), head.weight.double().T).T.to(head.weight.dtype)
        return Head(inside, head.bias + head.weight @ self.mean)

    def outward(self, head: Head) -> Head:
        """The head on plain features with the same logits."""
        weight = head.weight @ self.unmix.T
        return Head(weight, head.bias - weight @ self.mean)


def _fit(
    head: Head,
    features: Tensor,
    labels: Tensor,
    slope: Slope,
    epochs: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
) -> Head:
    """SGD with momentum and cosine by epoch on whitened features, gradients in closed form.

    Weight and bias are one matrix (C, D + 1) on features with a column of ones: a step is two products.
    """
    whitening = _Whitening.of(features)
    inside = whitening.inward(head)
    matrix = torch.cat([inside.weight, inside.bias[:, None]], 1)
    white = whitening.features(features)
    momentum = torch.zeros_like(matrix)
    for epoch in range(epochs):
        rate = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order = torch.randperm(len(features), generator=generator)
        for index in order.split(batch_size):
            x = white[index]
            momentum.mul_(MOMENTUM).addmm_(slope(x @ matrix.T, labels[index]).T, x)
            matrix.sub_(momentum, alpha=rate)
    return whitening.outward(Head(matrix[:, :-1].contiguous(), matrix[:, -1].contiguous()))

"""The budget of every method: in what order a task's images are trained on, and the learning rate of each batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.training.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Some images of one epoch.

    Args:
        index: (B,) positions of its images.
        epoch: from 0.
        number: in its epoch, from 1.
        of: batches in an epoch.
        cosine: factor of the epoch, 1 in the first.
        lr: learning rate: the cosine's, and while it warms up less.
    """

    index: Tensor
    epoch: int
    number: int
    of: int
    cosine: float
    lr: float

    @property
    def ends_epoch(self) -> bool:
        """It is the last one of its epoch."""
        return self.number == self.of

    def set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Give every parameter the batch's learning rate."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr


def batches(training: Settings, images: int, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
    """Every epoch's batches, each epoch's order drawn as it begins; the last, smaller batch is used too.

    A last batch of one image joins the one before: it has no gradient under feature centering.

    Args:
        training: says how many epochs, images a batch, and the learning rate.
        images: N.
        generator: of the orders, on the CPU.
        first: the epoch to begin with; the generator is as it was after the one before.
    """
    for epoch in range(first, training.epochs):
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
        parts = list(torch.randperm(images, generator=generator).split(training.batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1 < training.batch_size:
            parts[-2:] = [torch.cat(parts[-2:])]
        for number, index in enumerate(parts, start=1):
            warm = min(1.0, (epoch + number / len(parts)) / training.warmup) if training.warmup else 1.0
            yield Batch(index, epoch, number, len(parts), cosine, training.lr * cosine * warm)

"""The budget of every method: the order of a task's images, the learning rate of each batch, and the seeds."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.training.settings import Settings


@dataclass(frozen=True)
class Seeds:
    """The sources of randomness of one task, one per purpose: nothing random is carried from task to task.

    Args:
        seed: of the run.
        number: of the task, from 1; 0 for what belongs to no task.
    """

    seed: int
    number: int = 0

    def of(self, purpose: str) -> int:
        """A seed for one purpose."""
        digest = hashlib.sha256(f"{self.seed}/{self.number}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def generator(self, purpose: str) -> torch.Generator:
        """A generator with that seed, on the CPU."""
        return torch.Generator().manual_seed(self.of(purpose))


@dataclass(frozen=True)
class Batch:
    """Some images of one epoch.

    Args:
        index: (B,) positions of its images.
        epoch: from 0.
        number: in its epoch, from 1.
        of: batches in an epoch.
        cosine: factor of the epoch, 1 in the first (``cosine``).
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


def cosine(settings: Settings, epoch: int) -> float:
    """Factor of an epoch (from 0) for learning rate and regularizer: a half cosine, in the paper protocol a quarter.

    Of K epochs: (1 + cos(pi e / K)) / 2, or cos(0.495 pi e / (K - 1)).
    """
    if settings.as_the_paper:
        return math.cos(0.495 * math.pi * epoch / max(settings.epochs - 1, 1))
    return 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))


def batches(settings: Settings, labels: Tensor, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
    """Every epoch's batches, each epoch's order drawn as it begins; the last, smaller batch is used too.

    A last batch of one image joins the one before: it has no gradient under feature centering.

    Args:
        settings: say how many epochs, images per batch, and the learning rate.
        labels: (N,) of the images.
        generator: of the orders, on the CPU.
        first: the epoch to begin with; the generator is as it was after the one before.
    """
    for epoch in range(first, settings.epochs):
        factor = cosine(settings, epoch)
        order = class_balanced(labels, generator) if settings.class_balanced else _shuffled(len(labels), generator)
        parts = list(order.split(settings.batch_size))
        if len(parts) > 1 and len(parts[-1]) == 1 < settings.batch_size:
            parts[-2:] = [torch.cat(parts[-2:])]
        for number, index in enumerate(parts, start=1):
            warm = min(1.0, (epoch + number / len(parts)) / settings.warmup) if settings.warmup else 1.0
            yield Batch(index, epoch, number, len(parts), factor, settings.lr * factor * warm)


def class_balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) positions of images with labels (N,), in random order: every class equally often, to one image.

    Of a class, every image comes once before any comes again. Even classes: every image once.
    """
    kinds = labels.unique().tolist()
    share = math.ceil(len(labels) / len(kinds))
    drawn = []
    for kind in kinds:
        own = (labels == kind).nonzero().squeeze(1)
        rounds = [own[_shuffled(len(own), generator)] for _ in range(math.ceil(share / len(own)))]
        drawn.append(torch.cat(rounds)[:share])
    return torch.cat(drawn)[_shuffled(share * len(kinds), generator)][: len(labels)]


def _shuffled(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)

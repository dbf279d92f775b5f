"""A stopwatch, and the floor that every phase is held against: a forward pass of the bare backbone."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from intarsia import Backbone

Result = TypeVar("Result")
Batches = Sequence[Tensor]
"""Normalised images (B, C, S, S), on the backbone's device."""


class Stopwatch:
    """Seconds by name, of as many rounds as were run."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], Result]) -> Result:
        """Run and time; returns what the work does."""
        started = time.perf_counter()
        result = work()
        self.add(name, time.perf_counter() - started)
        return result

    def add(self, name: str, seconds: float) -> None:
        """Timed elsewhere."""
        self._seconds.setdefault(name, []).append(seconds)

    def medians(self) -> dict[str, float]:
        """By name."""
        return {name: median(values) for name, values in self._seconds.items()}


def normalised(backbone: Backbone, images: Tensor, batch: int) -> Batches:
    """Kept images as batches of a network's inputs."""
    return [backbone.preprocessing.normalize(x).to(backbone.device) for x in images.split(batch)]


@torch.no_grad()
def forward(backbone: Backbone, batches: Batches) -> None:
    """F: one plain pass."""
    for x in batches:
        backbone.model(x)
    wait(batches[0])


def wait(x: Tensor) -> None:
    """Until the device is done."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()

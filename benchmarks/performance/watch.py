"""A stopwatch, the floor that every phase is held against, and what a benchmark says while it runs.

The floor is a forward pass of the bare backbone. What is found goes out as it is known: in words to standard error,
and, where a file is named, as a line of JSON into it; a run that is stopped leaves what it found.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

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

    def latest(self) -> dict[str, float]:
        """The last of every name."""
        return {name: values[-1] for name, values in self._seconds.items()}

    def medians(self) -> dict[str, float]:
        """By name."""
        return {name: median(values) for name, values in self._seconds.items()}


@dataclass(frozen=True)
class Told:
    """What is said while a benchmark runs.

    Args:
        rows: file to which every row is added as a line of JSON; none if None.
    """

    rows: Path | None = None

    def step(self, words: str) -> None:
        """What is done now."""
        print(f"{time.strftime('%H:%M:%S')}  {words}", file=sys.stderr, flush=True)

    def row(self, found: Mapping[str, Any]) -> None:
        """What was found."""
        self.step(", ".join(f"{name} {_short(value)}" for name, value in found.items()))
        if self.rows is not None:
            self.rows.parent.mkdir(parents=True, exist_ok=True)
            with self.rows.open("a") as file:
                file.write(json.dumps(found, default=str) + "\n")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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

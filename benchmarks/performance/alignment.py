"""How well and how fast the heads of more and more classes are aligned: by SGD, and beyond 100 classes in closed form.

    python benchmarks/performance/alignment.py
    python benchmarks/performance/alignment.py --tasks 30 --json

Task by task, as ``learn`` does it, on frozen features of the built-in backbone; no fine-tuning. Half of the images of a
class are learned from, accuracy is that on the others, over all classes so far.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from scene import tasks
from torch import Tensor

from intarsia import Backbone, TaskStream
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.mixtures import ClassStatistics, fit_statistics
from intarsia.heads.alignment import ALIGNMENT_CLASSES
from intarsia.heads.choices import Alignment
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import aligned, fresh_head
from watch import Told, normalised

NEWEST = 5
Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Alignments:
    """Of how many classes."""

    tasks: int = 100
    """In all."""
    classes: int = 10
    """Of each."""
    per_class: int = 40
    """Images of a class, half of them to learn from."""
    marks: tuple[int, ...] = (10, 20, 30, 50, 80, 100)
    """After how many tasks to look."""
    json: bool = False
    """Print JSON at the end."""
    rows: Path | None = None
    """Add every row, as it is known, to this file, a line of JSON each."""


def halves(backbone: Backbone, stream: TaskStream) -> tuple[list[Labelled], list[Labelled]]:
    """Features (N, D) and labels (N,) of each task: to learn from, to measure on."""
    learned: list[Labelled] = []
    measured: list[Labelled] = []
    for task in stream:
        images, labels = task.train.tensor(backbone.preprocessing), task.train.labels
        features = torch.cat([backbone.features(x) for x in normalised(backbone, images, 256)])
        learned.append((features[::2], labels[::2]))
        measured.append((features[1::2], labels[1::2]))
    return learned, measured


def accuracy(head: Head, measured: list[Labelled], classes: int) -> dict[str, float]:
    """Percent on all tasks, and on the newest."""
    right = [
        100 * float((head(x).argmax(1) == y + number * classes).float().mean())
        for number, (x, y) in enumerate(measured)
    ]
    return {"all": round(mean(right), 1), "newest": round(mean(right[-NEWEST:]), 1)}


def rows(chosen: Alignments) -> Iterator[dict[str, Any]]:
    """How, after how many tasks -> accuracy, and seconds of an alignment."""
    backbone = Backbone.load()
    stream = tasks(0, chosen.tasks, chosen.classes, chosen.per_class)
    learned, measured = halves(backbone, stream)
    statistics: list[ClassStatistics] = [fit_statistics(x, y, chosen.classes, seed=0) for x, y in learned]
    ways: tuple[Alignment, ...] = ("sgd", "auto")
    for how in ways:
        settings = Settings(alignment=how)
        reference: Head | None = None
        for number, (x, y) in enumerate(learned, 1):
            generator = Seeds(settings.seed, number).generator("heads")
            fresh = fresh_head(x, y, chosen.classes, settings, generator)
            started = time.perf_counter()
            heads = [h for h in (reference, fresh) if h is not None]
            reference = aligned(Head.join(heads), statistics[:number], settings, generator)
            seconds = time.perf_counter() - started
            if number in chosen.marks:
                found = accuracy(reference, measured[:number], chosen.classes)
                yield {"how": how, "classes": len(reference), **found, "seconds": round(seconds, 3)}
    for number in (mark for mark in chosen.marks if mark <= chosen.tasks):
        best = discriminant(Gaussians.join([s.gaussians() for s in statistics[:number]]))
        found = accuracy(best, measured[:number], chosen.classes)
        yield {"how": "discriminant", "classes": len(best), **found, "seconds": None}


def main(chosen: Alignments) -> None:
    """Measure and print."""
    found, told = list[dict[str, Any]](), Told(chosen.rows)
    for row in rows(chosen):
        told.row(row)
        found.append(row)
    if chosen.json:
        print(json.dumps({"closed_form_beyond": ALIGNMENT_CLASSES, "rows": found}))
        return
    for row in found:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main(tyro.cli(Alignments, description=__doc__))

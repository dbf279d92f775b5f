"""What learning a stream will cost: counted where it can be, timed on a few batches where it cannot."""

import math
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import BATCH, outputs
from intarsia.data.image_set import ImageSet
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.alignment import alignment_steps
from intarsia.machine import peak_memory
from intarsia.training.fine_tuning import Configuration, fine_tune
from intarsia.training.state import LearnerState
from intarsia.training.task import prepare

BATCHES = 4
"""Batches on which a step is timed."""


MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """What a run costs.

    Args:
        tasks: in all.
        classes: in all.
        images: to train, in all.
        steps: of the optimizer, in all.
        set_up_minutes: features, class statistics, heads and Fisher.
        training_minutes: fine-tuning and the drift.
        memory_mib: the process at its peak; on an accelerator that of the host.
        disk_mib: of the pool.
    """

    tasks: int
    classes: int
    images: int
    steps: int
    set_up_minutes: float
    training_minutes: float
    memory_mib: float
    disk_mib: float

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(self).items()}


def estimate(
    backbone: Backbone, stream: TaskStream, configuration: Configuration, *, keep_fishers: bool = False
) -> Estimate:
    """Learn a few images of the first task and scale up; nothing is written, and no other image is decoded.

    Args:
        backbone: theta0.
        stream: the tasks.
        configuration: how they would be learned.
        keep_fishers: whether each task's Fisher would be kept.

    Raises:
        InputError: an image of the few cannot be read.
    """
    training, tasks = configuration.settings, list(stream)
    few = _few(tasks[0], BATCHES * training.batch_size)
    quick = replace(configuration, settings=replace(training, epochs=1))
    pixels = few.train.tensor(backbone.preprocessing)
    warm = pixels[:BATCH]  # the first pass through a network is slower than those after it
    outputs(backbone.features, warm, backbone.preprocessing, backbone.device)
    prepared, state = prepare(backbone, few, LearnerState(), quick.settings)
    tuned = fine_tune(backbone, prepared, state, prepared.fisher, quick)

    images, classes = sum(len(t.train) for t in tasks), sum(len(t.classes) for t in tasks)
    per_image, per_class = images / len(few.train), classes / len(few.classes)
    seen = list(accumulate(len(t.classes) for t in tasks))
    steps = [alignment_steps(c, training.alignment_epochs, training.alignment) for c in (len(few.classes), *seen)]
    heads = sum(steps[1:]) / steps[0]
    s, t = prepared.seconds, tuned.seconds
    set_up = (s["features"] + s["fisher"]) * per_image + s["statistics"] * per_class + s["heads"] * heads
    passes = 3 - 2 / len(
        tasks
    )  # over the images for drift and anchor: one in the first task, which is timed, then three
    fine = (t["training"] * training.epochs + t["drift"] * passes) * per_image + t["regularizer"] * len(tasks)

    weights = _mib(*backbone.tuned.values())
    head, scatter = _mib(*tuned.head.tensors().values()), _mib(prepared.statistics.scatter)
    drifts = _mib(*tuned.drift.tensors().values())
    module = _mib(*tuned.parts.values()) + 2 * drifts + 2 * scatter
    a_class = (_mib(*prepared.statistics.tensors().values()) - scatter + 2 * head) / len(few.classes)
    references = head / len(few.classes) * classes
    disk = module * len(tasks) + a_class * classes + references + weights * (1 + keep_fishers * len(tasks))
    sums = 2 * weights
    decoded = sum(len(t.train) + len(t.test) for t in tasks) * _mib(pixels[0])
    return Estimate(
        tasks=len(tasks),
        classes=classes,
        images=images,
        steps=training.epochs * sum(math.ceil(len(t.train) / training.batch_size) for t in tasks),
        set_up_minutes=set_up / 60,
        training_minutes=fine / 60,
        memory_mib=peak_memory() + sums + decoded + a_class * classes,
        disk_mib=disk,
    )


def _few(task: Task, images: int) -> Task:
    """The first images of every class, about so many in all."""
    each = max(2, math.ceil(images / len(task.classes)))
    labels = task.train.labels
    index = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(len(task.classes))])
    if task.train.paths is None:
        return replace(task, train=task.train.select(index))
    return replace(task, train=ImageSet.of_files([task.train.paths[i] for i in index.tolist()], labels[index]))


def _mib(*tensors: Tensor) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / MIB

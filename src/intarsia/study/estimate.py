"""What learning a stream will cost: counted where it can be, timed on a few batches where it cannot."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import BATCH, outputs
from intarsia.data.image_set import ImageSet
from intarsia.data.pixels import ROOM
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.alignment import alignment_epochs
from intarsia.machine import peak_memory
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.training.fine_tuning import Configuration
from intarsia.training.learner import learn
from intarsia.training.settings import Settings

BATCHES = 4
"""Batches on which a step is timed."""


MIB = 2**20
PER_CLASS = ("centres", "factors")
"""What of class prototypes grows with the classes."""


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
    backbone: Backbone,
    stream: TaskStream,
    configuration: Configuration,
    *,
    keep_fishers: bool = False,
    progress: Progress = silent,
) -> Estimate:
    """Learn a few images of two tasks into a folder that is removed again, and scale up; no other image is decoded.

    Args:
        backbone: theta0.
        stream: what would be learned.
        configuration: how it would be learned.
        keep_fishers: whether each task's Fisher would be kept.
        progress: told how far the few images are.

    Raises:
        InputError: an image of the few cannot be read, or the folder cannot be written.
    """
    training = configuration.settings
    tasks, counts = list(stream), [len(task.classes) for task in stream]
    timed = few(tasks[0], BATCHES * training.batch_size)
    pixels = timed.train.pixels(backbone.preprocessing)
    outputs(backbone.features, pixels[:BATCH], backbone.preprocessing, backbone.device)  # the first pass is slower
    quick = replace(training, epochs=1)
    with tempfile.TemporaryDirectory() as folder:

        def learned(task: Task) -> tuple[Pool, Size]:
            pool = learn(
                backbone,
                replace(stream, tasks=(task,)),
                out=folder,
                adapter=configuration.adapter,
                regularizer=configuration.regularizer,
                training=quick,
                add=task is not timed,
                keep_fishers=keep_fishers,
                checkpoints=False,
                progress=progress,
            )
            return pool, Size.of(pool, task)

        made = [learned(task) for task in (timed, *(few(t, 2 * len(t.classes)) for t in _unlike(tasks)))]
        pool = made[-1][0]
        s = pool.logged()[timed.name]["seconds"]
        disk = disk_of(pool, [size for _, size in made], tasks)

    images, classes = sum(len(t.train) for t in tasks), sum(counts)
    per_image, per_class = images / len(timed.train), classes / counts[0]
    heads = float(len(tasks))  # in closed form, which takes as long for any number of classes
    if training.as_the_paper:
        work = [alignment_epochs(number) * seen for number, seen in enumerate(accumulate(counts), start=1)]
        heads = sum(work) / work[0]
    curved = tasks[:1] if training.curvature_of == "reference" else tasks
    fisher = s["fisher"] * sum(_curved(t, training) for t in curved) / _curved(timed, training)
    set_up = s["features"] * per_image + fisher + s["statistics"] * per_class + s["heads"] * heads
    scaled = training.mean_scale != 1  # passes for drift and prototypes: one in the first task, which is timed
    numbers = range(len(tasks))
    passes = sum(1 + 2 * (n > 0) + (n > 1) + scaled * ((n > 0) + (n > 1) + (n > 2)) for n in numbers) / len(tasks)
    fine = (s["training"] * training.epochs + s["drift"] * passes) * per_image + s["regularizer"] * len(tasks)
    sums = (2 + (len(tasks) > 2)) * _bytes(*backbone.trainable.values())
    decoded = sum(len(t.train) + len(t.test) for t in tasks) * _bytes(pixels[0])
    if timed.train.files is not None:
        decoded = min(decoded, ROOM)
    return Estimate(
        tasks=len(tasks),
        classes=classes,
        images=images,
        steps=training.epochs * sum(math.ceil(len(t.train) / training.batch_size) for t in tasks),
        set_up_minutes=set_up / 60,
        training_minutes=fine / 60,
        memory_mib=peak_memory() + (sums + decoded) / MIB,
        disk_mib=disk / MIB,
    )


def few(task: Task, images: int, *, test: bool = False) -> Task:
    """The first training images of every class, about so many in all; of its test images one per class, or as many."""

    def first(side: ImageSet, each: int) -> ImageSet:
        labels = side.labels
        index = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(len(task.classes))])
        if side.files is None:
            return side.select(index)
        return ImageSet.of_files([side.files[i] for i in index.tolist()], labels[index])

    each = max(2, math.ceil(images / len(task.classes)))
    return replace(task, train=first(task.train, each), test=first(task.test, each if test else 1))


@dataclass(frozen=True)
class Size:
    """What a pool's files hold after one more task, in bytes.

    Args:
        classes: of the task.
        seen: of all tasks so far.
        module: of the task's own folder.
        others: file of the pool -> bytes, of all that is no module's.
    """

    classes: int
    seen: int
    module: int
    others: dict[str, int]

    @classmethod
    def of(cls, pool: Pool, task: Task) -> "Size":
        """After the task was added."""
        own = pool.path / "modules" / task.name
        others = {path.name: path.stat().st_size for path in pool.path.iterdir() if path.is_file()}
        seen = sum(map(len, pool.classes.values()))
        return cls(len(task.classes), seen, sum(p.stat().st_size for p in own.iterdir()), others)


def disk_of(pool: Pool, sizes: Sequence[Size], tasks: Sequence[Task]) -> float:
    """Bytes of a pool of all tasks, by what one of one or two of them holds.

    A module grows with its classes, what is carried from task to task with the classes seen, lists with the tasks.
    """
    counts, last = [len(task.classes) for task in tasks], sizes[-1]
    if len(tasks) == len(sizes) == 1:
        return last.module + sum(last.others.values())
    first, prototypes = sizes[0], pool.module(pool.tasks[-1]).prototypes
    step, scaled = _stored(prototypes.step.tensors()), prototypes.scaled  # what is kept in the mean times its scale
    second = _stored(scaled.tensors()) if scaled else 0
    each = sum(_stored({n: x}) for n, x in scaled.tensors().items() if n in PER_CLASS) / last.classes if scaled else 0
    grown = last.module - second - first.module
    per_class = grown / (last.classes - first.classes) if last.classes != first.classes else 0.0
    modules = sum(first.module + per_class * (count - first.classes) for count in counts)
    modules += sum(second + each * (count - last.classes) for count in counts[1:])
    modules += step * (1 + (second > 0)) * max(0, len(tasks) - 2)
    kinds = {name.partition("-")[0]: size for name, size in first.others.items()}  # the same file after one task
    wanted = replace(pool.index, tasks=tuple(task.name for task in tasks)).expected_files()
    here = pool.index.expected_files()
    more = [name for name in last.others if "-" in name and name not in here]  # kept on disk for one task more
    carried = 0.0
    for name in (*(n for n in wanted if not n.startswith("modules/")), *more):
        kind, _, count = Path(name).stem.partition("-")
        after = last.others[f"{kind}-{len(sizes)}.safetensors"]
        slope = (after - kinds[kind]) / (last.seen - first.seen)
        seen = sum(counts) if name in more else sum(counts[: int(count)])
        carried += after + slope * (seen - last.seen)
    lists = sum(
        size + (size - first.others.get(name, 0)) * (len(tasks) - len(sizes))
        for name, size in last.others.items()
        if "-" not in name
    )
    return modules + carried + lists


def _unlike(tasks: Sequence[Task]) -> list[Task]:
    """Another task than the first, of another number of classes if there is one; none if there is but one."""
    others = [task for task in tasks[1:] if len(task.classes) != len(tasks[0].classes)]
    return (others or list(tasks[1:]))[:1]


def _curved(task: Task, training: Settings) -> int:
    """The images of which a task's curvature is estimated."""
    count = len(task.train)
    return count if training.curvature == "diagonal" else min(count, training.curvature_images)


def _stored(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors of a module on disk: single precision."""
    return 4 * sum(tensor.numel() for tensor in tensors.values())


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)

"""What the page shows of a composition: accuracies on a fixed sample, and which task is taken for which."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intarsia.backbones.forward import outputs
from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.answers import Classifier, logits
from intarsia.evaluation.metrics import Evaluation, evaluate, matching_tasks
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.progress import Progress, silent

MOVE = 0.35
"""Seconds that the images of a sample may take, if their number is not given: a move is then below a second."""


MOST = 20
"""Images of a class in a sample, at most, if their number is not given."""


TIMED = 64


@dataclass(frozen=True)
class Measured:
    """A composition on some test images.

    Args:
        evaluation: its accuracies, in percent.
        taken_for: row i, column j: percent of the images of task i that are answered with a class of task j.
    """

    evaluation: Evaluation
    taken_for: tuple[tuple[float, ...], ...]


def measure(model: ComposedModel, stream: TaskStream, progress: Progress = silent, threads: int = 1) -> Measured:
    """Measure a model on the test images of its tasks, each of which passes the network once.

    Args:
        model: composed.
        stream: holds the model's tasks.
        progress: told of the tasks that are done.
        threads: tasks that are measured beside each other, where torch itself has one thread.
    """
    tasks = matching_tasks(model.classes, stream)
    kept: dict[str, Tensor] = {}
    with ThreadPoolExecutor(threads) as workers:
        for task, found in zip(tasks, workers.map(lambda task: logits(model, task), tasks), strict=True):
            kept[task.name] = found
            progress("test images", len(kept), len(tasks))

    def answers(_: Classifier, task: Task) -> Tensor:
        return kept[task.name]

    found = evaluate(model, stream, history=False, answers=answers)
    return Measured(found, taken_for(kept, tasks))


def taken_for(found: dict[str, Tensor], tasks: Sequence[Task]) -> tuple[tuple[float, ...], ...]:
    """Percent of each task's images whose answer is a class of each task, from logits (N, C) by task."""
    owner = torch.cat([torch.full((len(task.classes),), place) for place, task in enumerate(tasks)])
    rows = [torch.bincount(owner[found[t.name].argmax(1)], minlength=len(tasks)).double() for t in tasks]
    return tuple(tuple((100 * row / row.sum()).tolist()) for row in rows)


def sampled(stream: TaskStream, per_class: int, seed: int = 0) -> TaskStream:
    """The stream with the same number of test images of every class, drawn by the seed; all, of a class with fewer.

    Raises:
        InputError: fewer than one.
    """
    if per_class < 1:
        raise InputError(f"--per-class {per_class}: expected 1 or more test images of each class")

    def drawn(task: Task) -> Task:
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in range(len(task.classes)):
            index = (task.test.labels == label).nonzero().squeeze(1)
            chosen.append(index[torch.randperm(len(index), generator=generator)[:per_class]])
        return replace(task, test=task.test.select(torch.cat(chosen).sort().values))

    return replace(stream, tasks=tuple(drawn(task) for task in stream))


def one_thread() -> int:
    """Leave torch one thread; returns how many it had, which is as many as tasks are measured beside each other.

    Torch's threads wait for each other at every step, which is slow where a server and a browser share their cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


def affordable(pool: Pool, stream: TaskStream, threads: int = 1) -> int:
    """Test images of each class that pass theta0's network in ``MOVE`` seconds here; 1 to ``MOST``."""
    backbone, task = pool.backbone, stream[0]
    pixels = task.test.pixels(backbone.preprocessing)[:TIMED]
    took = min(_seconds(pool, pixels) for _ in range(3))
    room = MOVE * threads / took * len(pixels)
    return max(1, min(MOST, int(room / len(stream.classes))))


def _seconds(pool: Pool, pixels: Tensor) -> float:
    backbone, began = pool.backbone, time.perf_counter()
    outputs(backbone.features, pixels, backbone.preprocessing, backbone.device)
    return time.perf_counter() - began

"""Measures of a composed model on a stream (docs/method.md section 7); all accuracies in percent.

a[i][j] is the accuracy on task j after learning task i, classes of all tasks up to i competing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.records import gathered
from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.progress import Progress, silent


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` measures.

    Args:
        tasks: in order.
        accuracy_matrix: row i: a[i][0..i]; the last row alone where the model has no history.
        final_accuracy: FA, over all test images of all tasks.
        final_forgetting: FF, mean over all tasks but the last of max_i a[i][j] - a[T][j]; None without a history.
        incremental_accuracy: on all classes seen so far, after each task; the last alone without a history.
        average_incremental_accuracy: its mean; None without a history.
        task_il_accuracy: arg max within the image's own task.
        images: number of test images.
    """

    tasks: tuple[str, ...]
    accuracy_matrix: tuple[tuple[float, ...], ...]
    final_accuracy: float
    final_forgetting: float | None
    incremental_accuracy: tuple[float, ...]
    average_incremental_accuracy: float | None
    task_il_accuracy: float
    images: int

    @property
    def per_task(self) -> dict[str, float]:
        """Task -> its accuracy in the final model."""
        return dict(zip(self.tasks, self.accuracy_matrix[-1], strict=True))

    @property
    def when_learned(self) -> tuple[float | None, ...]:
        """Accuracy on each task right after it was learned; None where that was not measured."""
        whole = len(self.accuracy_matrix) == len(self.tasks)
        return tuple(self.accuracy_matrix[j][j] if whole else None for j in range(len(self.tasks)))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Classifier(Protocol):
    """What is measured: anything that gives uint8 images a logit for every class of its tasks."""

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Task -> class names, in the order of the logits."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R) as a stream holds them."""
        ...


class Scores:
    """The measures of a method, model by model as it learns; at the end its ``evaluation``.

    Args:
        stream: holds a task of the same name and classes for every task of the models.
    """

    def __init__(self, stream: TaskStream) -> None:
        self._stream = stream
        self._rows: list[tuple[float, ...]] = []
        self._overall: list[float] = []
        self._task_il = 0.0
        self._tasks: list[Task] = []

    def add(self, model: Classifier) -> None:
        """Measure the next model: after one more task than the one before, or the first.

        Raises:
            InputError: the stream lacks a task of the model, or gives it other classes.
        """
        self._tasks = matching_tasks(model.classes, self._stream)
        hits, own_hits, counts = _score(model, self._tasks)
        self._rows.append(tuple(100 * h / n for h, n in zip(hits, counts, strict=True)))
        self._overall.append(100 * sum(hits) / sum(counts))
        self._task_il = 100 * sum(own_hits) / sum(counts)

    def evaluation(self) -> Evaluation:
        """Of the last model; with forgetting and the incremental average if there was one model for every task."""
        whole = len(self._rows) == len(self._tasks)
        return Evaluation(
            tasks=tuple(t.name for t in self._tasks),
            accuracy_matrix=tuple(self._rows),
            final_accuracy=self._overall[-1],
            final_forgetting=forgetting(self._rows) if whole else None,
            incremental_accuracy=tuple(self._overall),
            average_incremental_accuracy=sum(self._overall) / len(self._overall) if whole else None,
            task_il_accuracy=self._task_il,
            images=sum(len(t.test) for t in self._tasks),
        )


def evaluate(
    model: ComposedModel, stream: TaskStream, *, history: bool = True, progress: Progress = silent
) -> Evaluation:
    """Measure a model on the test images of its tasks.

    Args:
        model: composed from a pool, or loaded.
        stream: holds a task of the same name and classes for every task of the model.
        history: also compose the models after each task, for the matrix, forgetting and the incremental average.
        progress: called with (models evaluated, models in all).

    Raises:
        InputError: the stream lacks a task of the model, or gives it other classes.
    """
    tasks, scores = len(model.classes), Scores(stream)
    start = 1 if history and model.before is not None else tasks
    for i in range(start, tasks + 1):
        scores.add(model if i == tasks or model.before is None else model.before(i))
        progress("evaluating", i - start + 1, tasks - start + 1)
    return scores.evaluation()


def recorded_stream(pool: Pool) -> TaskStream:
    """The stream a pool was learned from, loaded again as its cards say; tasks added from elsewhere included.

    Raises:
        InputError: the stream was made in Python, or is not where it was.
    """
    return gathered({task: pool.card(task).stream for task in pool.tasks})


def forgetting(matrix: Sequence[Sequence[float]]) -> float:
    """FF of a whole accuracy matrix; 0 for a single task."""
    last = matrix[-1]
    drops = [max(row[j] for row in matrix[j:]) - last[j] for j in range(len(last) - 1)]
    return sum(drops) / len(drops) if drops else 0.0


def matching_tasks(classes: Mapping[str, Sequence[str]], stream: TaskStream) -> list[Task]:
    """The stream's tasks of the given names and classes (task -> class names), in the given order.

    Raises:
        InputError: one is missing or has other classes.
    """
    by_name = {task.name: task for task in stream}
    for name, known in classes.items():
        if name not in by_name:
            raise InputError(f"task {name!r} is not in stream {stream.name}, which has {', '.join(by_name)}")
        if by_name[name].classes != tuple(known):
            raise InputError(
                f"task {name!r} was learned with classes {', '.join(known)}; in stream {stream.name} it has "
                f"{', '.join(by_name[name].classes)}: name the stream it was learned from"
            )
    return [by_name[name] for name in classes]


def _score(model: Classifier, tasks: Sequence[Task]) -> tuple[list[int], list[int], list[int]]:
    """Per task: hits among all classes, hits among its own, number of images."""
    hits, own_hits, counts = [], [], []
    first = 0
    for task in tasks:
        logits: Tensor = model.logits(task.test.tensor(model.preprocessing))
        own = slice(first, first + len(task.classes))
        hits.append(int((logits.argmax(1) == task.test.labels + first).sum()))
        own_hits.append(int((logits[:, own].argmax(1) == task.test.labels).sum()))
        counts.append(len(logits))
        first = own.stop
    return hits, own_hits, counts


def target_and_control(model: Classifier, stream: TaskStream, target: str) -> tuple[float | None, float | None]:
    """(FA_tgt, FA_ctrl): accuracy on the target task and on all other tasks of the model; None where it has none."""
    return targets_and_controls(model, stream, [target])[0]


def targets_and_controls(
    model: Classifier, stream: TaskStream, targets: Sequence[str]
) -> list[tuple[float | None, float | None]]:
    """The same for several targets, the model measured once."""
    tasks = matching_tasks(model.classes, stream)
    with torch.no_grad():
        hits, _, counts = _score(model, tasks)

    def accuracy(wanted: Sequence[bool]) -> float | None:
        images = sum(n for n, chosen in zip(counts, wanted, strict=True) if chosen)
        return 100 * sum(h for h, chosen in zip(hits, wanted, strict=True) if chosen) / images if images else None

    return [
        (accuracy([t.name == target for t in tasks]), accuracy([t.name != target for t in tasks])) for target in targets
    ]

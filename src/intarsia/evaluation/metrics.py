"""Measures of a composed model on a stream (docs/method.md section 7); all accuracies in percent.

a[i][j] is the accuracy on task j after learning task i, classes of all tasks up to i competing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from intarsia.data.records import gathered
from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.answers import Classifier, Logits, logits
from intarsia.evaluation.kept import Keep, fresh
from intarsia.merging import recipe as recipes
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.progress import Progress, silent, within


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
        per_class: class -> accuracy in the final model; empty where it was not kept.
        balanced_accuracy: mean over the classes of the final model; None where it was not kept.
    """

    tasks: tuple[str, ...]
    accuracy_matrix: tuple[tuple[float, ...], ...]
    final_accuracy: float
    final_forgetting: float | None
    incremental_accuracy: tuple[float, ...]
    average_incremental_accuracy: float | None
    task_il_accuracy: float
    images: int
    per_class: Mapping[str, float] = field(default_factory=dict)
    balanced_accuracy: float | None = None

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


@dataclass(frozen=True)
class Counts:
    """How often a model was right on a task's test images, class by class.

    Args:
        hits: among all classes.
        own_hits: among the task's own.
        images: in all.
    """

    hits: tuple[int, ...]
    own_hits: tuple[int, ...]
    images: tuple[int, ...]

    @classmethod
    def of(cls, logits: Tensor, task: Task, first: int) -> "Counts":
        """Of logits (N, C) of the task's test images; its classes begin at column ``first``."""
        labels, count = task.test.labels, len(task.classes)
        right = logits.argmax(1) == labels + first
        own = logits[:, first : first + count].argmax(1) == labels

        def by_class(chosen: Tensor) -> tuple[int, ...]:
            return tuple(torch.bincount(chosen, minlength=count).tolist())

        return cls(by_class(labels[right]), by_class(labels[own]), by_class(labels))


class Scores:
    """The measures of a method, model by model as it learns; at the end its ``evaluation``.

    Args:
        stream: holds a task of the same name and classes for every task of the models.
        answers: gives the models' logits; ``Answers()`` computes each network's features once.
    """

    def __init__(self, stream: TaskStream, answers: Logits = logits) -> None:
        self.answers = answers
        self._stream = stream
        self._models: list[list[Counts]] = []
        self._tasks: list[Task] = []

    def add(self, model: Classifier) -> None:
        """Measure the next model: after one more task than the one before, or the first.

        Raises:
            InputError: the stream lacks a task of the model, or gives it other classes.
        """
        self.note(model.classes, counted(model, matching_tasks(model.classes, self._stream), self.answers))

    def note(self, classes: Mapping[str, Sequence[str]], counts: Sequence[Counts]) -> None:
        """What was counted of the next model, task by task (``counted``), in place of ``add``."""
        self._tasks = matching_tasks(classes, self._stream)
        self._models.append(list(counts))

    def evaluation(self) -> Evaluation:
        """Of the last model; with forgetting and the incremental average if there was one model for every task."""
        whole, last = len(self._models) == len(self._tasks), self._models[-1]
        rows = [tuple(_percent(c.hits, c.images) for c in model) for model in self._models]
        overall = [_percent_of(model, "hits") for model in self._models]
        names = [name for task in self._tasks for name in task.classes]
        each = [_percent([h], [n]) for counts in last for h, n in zip(counts.hits, counts.images, strict=True)]
        return Evaluation(
            tasks=tuple(t.name for t in self._tasks),
            accuracy_matrix=tuple(rows),
            final_accuracy=overall[-1],
            final_forgetting=forgetting(rows) if whole else None,
            incremental_accuracy=tuple(overall),
            average_incremental_accuracy=sum(overall) / len(overall) if whole else None,
            task_il_accuracy=_percent_of(last, "own_hits"),
            images=sum(len(t.test) for t in self._tasks),
            per_class=dict(zip(names, each, strict=True)),
            balanced_accuracy=sum(each) / len(each),
        )


def _percent(hits: Sequence[int], images: Sequence[int]) -> float:
    return 100 * sum(hits) / sum(images)


def _percent_of(model: Sequence[Counts], what: str) -> float:
    """Over all tasks of a model."""
    return _percent([h for c in model for h in getattr(c, what)], [n for c in model for n in c.images])


def evaluate(
    model: ComposedModel,
    stream: TaskStream,
    *,
    history: bool = True,
    progress: Progress = silent,
    answers: Logits = logits,
    keep: Keep = fresh,
) -> Evaluation:
    """Measure a model on the test images of its tasks.

    Row i of the matrix needs the network after i tasks, on the test images of these tasks alone: T (T + 1) / 2 tasks
    pass a network. Without ``history`` T do.

    Args:
        model: composed from a pool, or loaded.
        stream: holds a task of the same name and classes for every task of the model.
        history: also compose the models after each task, for the matrix, forgetting and the incremental average.
        progress: called with (models evaluated, models in all).
        answers: gives the models' logits; ``Answers()`` computes each network's features once.
        keep: where each model's counts are kept as they are known.

    Raises:
        InputError: the stream lacks a task of the model, or gives it other classes.
    """
    names, scores = list(model.classes), Scores(stream, answers)
    start = 1 if history and model.before is not None else len(names)
    for i in range(start, len(names) + 1):
        classes = {name: model.classes[name] for name in names[:i]}
        tasks = matching_tasks(classes, stream)

        def measured(i: int = i, tasks: Sequence[Task] = tasks) -> list[dict[str, Any]]:
            at = model if i == len(names) or model.before is None else model.before(i)
            return [asdict(c) for c in counted(at, tasks, answers)]

        rows = keep(f"after {i} of {len(names)} tasks", measured)
        scores.note(classes, [Counts(**{k: tuple(v) for k, v in row.items()}) for row in rows])
        progress("evaluating", i - start + 1, len(names) - start + 1)
    return scores.evaluation()


def own_heads_accuracy(pool: Pool, stream: TaskStream, progress: Progress = silent, answers: Logits = logits) -> float:
    """Final accuracy, in percent, of the mean of all modules under the heads as they were fine-tuned.

    These are the paper's own heads, joined as its reference code joins them; ``Pool.mean`` has better ones.
    """
    model = pool.compose(recipes.mean(pool.learned(), pool.mean_scale), heads="own")
    told = within(progress, "heads as fine-tuned")
    return evaluate(model, stream, history=False, progress=told, answers=answers).final_accuracy


def recorded_stream(pool: Pool, cache: str | None = None) -> TaskStream:
    """The stream a pool was learned from, loaded again as its cards say; tasks added from elsewhere included.

    Args:
        pool: whose.
        cache: where decoded images are kept, as for ``TaskStream.load``.

    Raises:
        InputError: the stream was made in Python, or is not where it was.
    """
    return gathered({task: pool.card(task).stream for task in pool.tasks}, cache)


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


def counted(model: Classifier, tasks: Sequence[Task], answers: Logits = logits) -> list[Counts]:
    """How often a model is right, task by task, of its tasks in its order."""
    found, first = list[Counts](), 0
    for task in tasks:
        found.append(Counts.of(answers(model, task), task, first))
        first += len(task.classes)
    return found


def target_and_control(model: Classifier, stream: TaskStream, target: str) -> tuple[float | None, float | None]:
    """(FA_tgt, FA_ctrl): accuracy on the target task and on all other tasks of the model; None where it has none."""
    return targets_and_controls(model, stream, [target])[0]


def targets_and_controls(
    model: Classifier, stream: TaskStream, targets: Sequence[str], answers: Logits = logits
) -> list[tuple[float | None, float | None]]:
    """The same for several targets, the model measured once."""
    tasks = matching_tasks(model.classes, stream)
    counts = dict(zip((t.name for t in tasks), counted(model, tasks, answers), strict=True))

    def accuracy(chosen: Sequence[Counts]) -> float | None:
        return _percent_of(chosen, "hits") if chosen else None

    return [
        (
            accuracy([c for name, c in counts.items() if name == target]),
            accuracy([c for name, c in counts.items() if name != target]),
        )
        for target in targets
    ]

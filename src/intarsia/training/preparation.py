"""Steps 1 to 4 of a task: features at theta0, class statistics, reference heads, Fisher (docs/method.md section 3).

They depend on neither method, adapter nor strength.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.class_stats.mixtures import ClassStatistics, fit_statistics
from intarsia.curvature.fisher import Fisher, diagonal_fisher
from intarsia.data.stream import Task
from intarsia.errors import DivergenceError
from intarsia.heads.alignment import align, align_many, in_closed_form
from intarsia.heads.head import Head
from intarsia.heads.pretraining import pretune
from intarsia.machine import give_back_memory
from intarsia.numerics import finite
from intarsia.pool import Pool
from intarsia.progress import Timings
from intarsia.task_vector import TaskVector
from intarsia.training.run import Run


@dataclass
class Memory:
    """What the learner carries from task to task.

    Args:
        fisher: running sum over the tasks prepared so far.
        total: S, the running sum of task vectors.
        reference: aligned heads of all classes seen.
        statistics: of the classes seen, task by task.
        tasks: names, in order.
        lost: tasks whose modules were dropped; their Fishers are part of the running sum.
    """

    fisher: Fisher | None = None
    total: TaskVector | None = None
    reference: Head | None = None
    statistics: tuple[ClassStatistics, ...] = ()
    tasks: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, pool: Pool) -> "Memory":
        """As it stood after the pool's last task."""
        return cls(pool.fisher(), pool.total(), pool.reference(), pool.statistics(), pool.tasks, pool.index.lost)


@dataclass(frozen=True)
class Prepared:
    """Steps 1 to 4 of one task.

    Args:
        task: the task.
        number: its place among all tasks, from 1.
        rows: where its classes stand among all classes seen.
        features: (N, D) of its training images at theta0.
        statistics: of its classes.
        fisher: its own, at theta0 under the reference heads.
        seconds: how long each phase took, by name.
    """

    task: Task
    number: int
    rows: slice
    features: Tensor
    statistics: ClassStatistics
    fisher: Fisher
    seconds: dict[str, float]


def prepare(run: Run, task: Task, memory: Memory) -> Prepared:
    """Steps 1 to 4; afterwards ``memory`` knows the task's Fisher, classes and heads."""
    timings, training = Timings(), run.training
    number, classes = len(memory.tasks) + 1, len(task.classes)
    images, labels = task.train.tensor(run.backbone.preprocessing), task.train.labels

    features = run.features(task.name, images)
    if not finite(features):
        raise DivergenceError(
            f"task {task.name!r}: the backbone's features of {int((~torch.isfinite(features)).any(1).sum())} of its "
            f"{len(features)} images are not finite: look at the weights of {run.backbone.name} and its preprocessing"
        )
    timings.lap("features")
    seed = run.seed(number, "statistics") % 2**31
    statistics = fit_statistics(features, labels, classes, components=training.components, seed=seed)
    memory.statistics = (*memory.statistics, statistics)
    timings.lap("statistics")
    memory.reference = _reference_heads(run, number, features, labels, classes, memory)
    give_back_memory()  # of the features drawn for all classes; else it stays, unused, beside what the passes need
    timings.lap("heads")
    fisher = diagonal_fisher(
        run.backbone,
        memory.reference.to(run.backbone.device),
        run.batches(task.name, "Fisher", images),
        estimator=training.fisher,
        probes=training.probes,
        generator=run.generator(number, "fisher"),
    )
    if not math.isfinite(numbers := sum(float(f.sum()) for f in fisher.sums.values())):
        raise DivergenceError(
            f"task {task.name!r}: its Fisher sums to {numbers}, expected a finite number: the backbone's features or "
            "gradients are not finite on these images; try --dtype float32, or look at the weights"
        )
    timings.lap("fisher")
    memory.fisher = fisher if memory.fisher is None else memory.fisher + fisher
    memory.tasks = (*memory.tasks, task.name)
    rows = slice(len(memory.reference) - classes, len(memory.reference))
    return Prepared(task, number, rows, features, statistics, fisher, timings.seconds)


def _reference_heads(run: Run, number: int, features: Tensor, labels: Tensor, classes: int, memory: Memory) -> Head:
    """Step 3: pre-tune a head for the new classes, then align the heads of all classes seen."""
    generator = run.generator(number, "heads")
    fresh = fresh_head(run, features, labels, classes, generator)
    return aligned(run, [h for h in (memory.reference, fresh) if h is not None], memory.statistics, generator)


def aligned(run: Run, heads: Sequence[Head], statistics: Sequence[ClassStatistics], generator: torch.Generator) -> Head:
    """Heads joined and aligned, by SGD or in closed form, as the run's training says; ``statistics`` of all of them."""
    training, joined = run.training, Head.join(heads)
    if in_closed_form(len(joined), training.alignment):
        return align_many(joined, statistics)
    return align(joined, statistics, epochs=training.alignment_epochs, lr=training.pretune_lr, generator=generator)


def fresh_head(run: Run, features: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> Head:
    """A head for new classes, pre-tuned on their features (N, D) with labels (N,)."""
    training = run.training
    return pretune(
        Head.random(classes, features.shape[1], generator),
        features,
        labels,
        epochs=training.pretune_epochs,
        lr=training.pretune_lr,
        batch_size=training.batch_size,
        generator=generator,
    )

"""What the learner knows: carried from task to task, each step makes a new one of it."""

from collections.abc import Collection, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.class_stats.statistics import ClassStatistics, SeenClasses
from intarsia.curvature.protocol import Curvature
from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.regularizers.protocol import Regularizer
from intarsia.store.module import Module
from intarsia.task_vector import TaskVector
from intarsia.training.recommended import SIZES, Hyperparameters, resolve
from intarsia.training.settings import Settings, Training

if TYPE_CHECKING:
    from intarsia.training.checkpoint import Checkpoint
    from intarsia.training.fine_tuning import Configuration


@dataclass(frozen=True)
class LearnerState:
    """What is known of the tasks so far.

    Args:
        fisher: sum over the tasks prepared.
        total: S, the sum of the task vectors learned.
        reference: reference heads of all classes seen.
        seen: classes of the tasks prepared.
        tasks: names of the tasks prepared, in order.
        lost: tasks whose modules were dropped; their Fishers are part of the sum.
        earlier: S without the last vector added.
    """

    fisher: Curvature | None = None
    total: TaskVector | None = None
    reference: Head | None = None
    seen: SeenClasses = field(default_factory=SeenClasses)
    tasks: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    earlier: TaskVector | None = None

    @classmethod
    def of(cls, pool: Pool) -> "LearnerState":
        """As it stood after the pool's last task."""
        seen = SeenClasses(tuple(pool.statistics([task])[0].shared() for task in pool.tasks))
        before = cls(pool.fisher(), pool.total(pool.tasks[:-1]), pool.reference(), seen, pool.tasks, pool.index.lost)
        return before.with_vector(pool.vector(pool.tasks[-1])) if pool.tasks else before

    def with_task(self, name: str, seen: SeenClasses, reference: Head, fisher: Curvature) -> "LearnerState":
        """After steps 1 to 4 of one more task."""
        return replace(
            self,
            fisher=fisher if self.fisher is None else self.fisher + fisher,
            reference=reference,
            seen=seen,
            tasks=(*self.tasks, name),
        )

    def with_vector(self, vector: TaskVector) -> "LearnerState":
        """After step 5 of one more task."""
        return replace(self, total=vector if self.total is None else self.total + vector, earlier=self.total)


@dataclass(frozen=True)
class PreparedTask:
    """A task after steps 1 to 4.

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
    fisher: Curvature
    seconds: dict[str, float]


@dataclass(frozen=True)
class LearnedTask:
    """A task after all six steps.

    Args:
        module: for the pool.
        fisher: the task's own.
        reference: reference heads of all classes up to the task's.
        log: when, how long, on what.
    """

    module: Module
    fisher: Curvature
    reference: Head
    log: dict[str, Any]


class Engine(Protocol):
    """Where, and in what order, the tasks of a stream are learned: see ``engines``."""

    def training(self, given: Training | None) -> Training:
        """A user's settings, as the engine needs them.

        Raises:
            InputError: they contradict it.
        """
        ...

    def check(self, regularizer: Regularizer, settings: Settings) -> None:
        """Refuse what it cannot do, before anything is written.

        Raises:
            InputError: so.
        """
        ...

    def learned_tasks(
        self,
        backbone: Backbone,
        stream: TaskStream,
        configuration: "Configuration",
        state: LearnerState,
        *,
        known: Collection[str] = (),
        checkpoint: "Checkpoint | None" = None,
        progress: Progress = silent,
    ) -> Generator[LearnedTask]:
        """As ``learner.learned_tasks``, whose arguments these are."""
        ...


def open_for_adding(path: str | Path, backbone: Backbone, adapter: Adapter) -> Pool:
    """Open a pool whose modules have the same backbone and adapter.

    Raises:
        InputError: they have another.
    """
    pool = Pool.open(path, backbone)
    if pool.adapter != adapter:
        raise InputError(
            f"pool {path} has modules of {pool.adapter}, these would be of {adapter}: use the pool's adapter"
        )
    return pool


def hyperparameters(
    adapter: Adapter | None,
    regularizer: Regularizer | None,
    training: Training | None,
    backbone: Backbone | None = None,
    pool: Pool | None = None,
) -> Hyperparameters:
    """What ``learn`` makes of what a user left open: as recommended for the backbone, or as in the pool added to."""
    found = resolve(
        training,
        method=None if regularizer is None else regularizer.kind,
        adapter=None if adapter is None else adapter.kind,
        rank=getattr(adapter, "rank", None),
        strength=None if regularizer is None else regularizer.strength,
        base=None if pool is None else Hyperparameters.from_records(pool.index.settings, pool.index.adapter),
        sizes=SIZES if backbone is None else backbone.sizes,
    )
    return found if pool is None else _at_scale_of(pool, found, training)


def _at_scale_of(pool: Pool, asked: Hyperparameters, training: Training | None) -> Hyperparameters:
    """The same at the scale of a pool's mean: its classes are known there, and those to come must be.

    Raises:
        InputError: another scale is asked for.
    """
    scale = pool.mean_scale
    if training is not None and training.mean_scale not in (None, scale):
        raise InputError(
            f"--training.mean-scale {training.mean_scale:g}: the classes of pool {pool.path} are known in its mean "
            f"times {scale:g}; leave the scale out, or learn into a pool of its own"
        )
    return replace(asked, settings=replace(asked.settings, mean_scale=scale))


def check_curvature(pool: Pool, settings: Settings) -> None:
    """Refuse a curvature that cannot be added to that of the tasks a pool has.

    Raises:
        InputError: naming what differs.
    """
    if not pool.tasks:
        return
    before = Settings.from_record(pool.index.settings)
    for name in ("curvature", "curvature_of"):
        was, now = getattr(before, name), getattr(settings, name)
        if was != now:
            flag = f"--training.{name.replace('_', '-')}"
            raise InputError(
                f"pool {pool.path} was learned with {flag} {was}, these tasks would be with {now}: curvatures add up "
                f"over tasks only where they are of one kind; use {flag} {was}, or learn into a pool of their own"
            )

"""Learning a stream: each task in the six steps of docs/method.md section 3.

1 features at theta0 · 2 class statistics · 3 reference heads · 4 Fisher at theta0 · 5 fine-tuning · 6 store.
They are in ``task``; what a step knows of the tasks before is a ``LearnerState``. What is carried from task to task
does not grow with their number, but for the heads and class statistics, which grow with the classes.
"""

from collections.abc import Callable, Collection, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from intarsia.adapters.protocol import Adapter
from intarsia.adapters.records import build_adapter
from intarsia.backbones.backbone import Backbone
from intarsia.class_stats.statistics import SeenClasses
from intarsia.curvature.protocol import Curvature
from intarsia.data.stream import TaskStream
from intarsia.errors import DivergenceError, InputError
from intarsia.machine import give_back_memory
from intarsia.parallel.processes import Processes, current
from intarsia.pool import Pool
from intarsia.progress import Progress, Tracker, Untracked, silent
from intarsia.regularizers.protocol import Regularizer
from intarsia.regularizers.records import build_regularizer, regularizer_record
from intarsia.store.index import INDEX
from intarsia.store.lock import RUN, one_writer
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.fine_tuning import Configuration
from intarsia.training.settings import Settings, Training
from intarsia.training.state import (
    Engine,
    LearnedTask,
    LearnerState,
    PreparedTask,
    check_curvature,
    hyperparameters,
    open_for_adding,
)
from intarsia.training.task import finish, prepare


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    out: str | Path,
    adapter: Adapter | None = None,
    regularizer: Regularizer | None = None,
    training: Training | None = None,
    add: bool = False,
    resume: bool = False,
    keep_fishers: bool = False,
    checkpoints: bool = True,
    engine: Engine | None = None,
    progress: Progress = silent,
    tracker: Tracker | None = None,
) -> Pool:
    """Learn every task of a stream as a module of a pool.

    Args:
        backbone: theta0.
        stream: the tasks; all of their images are decoded before anything is written, or by an engine's workers. If
            they become known in groups (``arriving``), the pool is that of adding the groups one by one.
        out: the pool's folder, new or empty; with ``add`` an existing pool.
        adapter: what a task vector is made of; if None ``LoRA(16)``, and with ``add`` as in the pool.
        regularizer: ``ITA(alpha)`` or ``IEL(beta)``; if None, ITA with the strength recommended for the adapter, and
            with ``add`` as in the pool.
        training: everything else; what is None is as recommended for that method and adapter, and with ``add`` as in
            the pool, if it has them (``resolve``).
        add: add the stream's tasks to the pool in ``out``. Learning five tasks, and then five more in another
            process, gives the same pool, bit for bit, as learning ten.
        resume: go on with a run that was stopped, from its last epoch border: everything else as it was given then.
            The pool comes out as if it had never been stopped, bit for bit on a CPU with as many threads. A run that
            is finished is left as it is.
        keep_fishers: keep each task's own Fisher in its module.
        checkpoints: keep what is trained at every epoch border; else a run goes on from its last whole task.
        engine: what learns the tasks beside each other, say ``engines.ray.Ray(workers=2)``; if None, they are learned
            here, one after another.
        progress: told how far the work is.
        tracker: told what the run is made with, and losses and times of each task (``tracking.report_to``).

    Returns:
        The pool, on disk.

    Raises:
        InputError: an image cannot be read, the folder is in use or being written, or the pool was made with another
            backbone or adapter, or already has one of the tasks or classes. Nothing was written. Or the disk is full:
            the tasks learned so far are in the pool, and the run can be resumed.
        DivergenceError: the loss or a weight is no longer finite; the tasks before it are in the pool.

    Example:
        >>> pool = learn(Backbone.load(), TaskStream.load(), out="runs/first")
    """
    path = Path(out)
    training = engine.training(training) if engine is not None else training
    if stream.arrivals:
        training = (training or Training()).over_others("arrivals")
    chosen = hyperparameters(adapter, regularizer, training, backbone, Pool.open(path, backbone) if add else None)
    adapter = adapter or build_adapter(chosen.adapter, chosen.rank)
    regularizer = regularizer or build_regularizer(chosen.method, chosen.strength)
    settings, record = chosen.settings, {**regularizer_record(regularizer), **chosen.settings.record()}
    if engine is not None:
        engine.check(regularizer, settings)

    def opened() -> Pool:
        if add or (resume and (path / INDEX).exists()):
            check_curvature(there := open_for_adding(path, backbone, adapter), settings)
            return there
        return Pool.create(path, backbone, adapter, record)

    here = current()
    if not here.leads:
        return _follow(here, opened, path, stream, adapter, regularizer, settings, resume)
    opened()  # what is refused here is refused before a lock is put there
    with one_writer(path) as folder:
        pool, checkpoint = opened(), Checkpoint(folder, each_epoch=checkpoints)
        pool.tidy()
        if resume and not checkpoint.exists and all(task.name in pool.tasks for task in stream):
            checkpoint.end()  # of a run that died while it cleaned up
            here.agree(False)
            return pool
        asked = _asked(pool, record, stream, keep_fishers)
        if resume:
            checkpoint.resume(asked)
        else:
            checkpoint.refuse()
            for task in stream:
                pool.check_new(task.name, task.classes)
        if engine is None:
            stream.decode(backbone.preprocessing, progress)
        state = _state(pool, checkpoint, settings) if resume else LearnerState.of(pool)
        if not resume:
            first = settings.fisher_over == "others"
            checkpoint.begin(asked, state.fisher if first else None, state.reference if first else None)
        configuration = Configuration(adapter, regularizer, settings, stream.augmentation)
        here.agree(True)  # the others may look what there is
        here.wait()  # they have, and it may change
        tracker = tracker or Untracked()
        tracker.began(asked)
        _learn(pool, stream, configuration, state, checkpoint, keep_fishers, engine, progress, tracker)
        checkpoint.end()
    return pool


def _follow(
    here: Processes,
    opened: Callable[[], Pool],
    path: Path,
    stream: TaskStream,
    adapter: Adapter,
    regularizer: Regularizer,
    settings: Settings,
    resume: bool,
) -> Pool:
    """``learn`` in a process that does not lead: the same steps, and nothing is written."""
    if not here.agree(True):
        return opened()
    pool, checkpoint = opened(), Checkpoint(path / RUN, writes=False)
    stream.decode(pool.backbone.preprocessing)
    state = _state(pool, checkpoint, settings) if resume else LearnerState.of(pool)
    here.wait()
    configuration = Configuration(adapter, regularizer, settings, stream.augmentation)
    for learned in learned_tasks(pool.backbone, stream, configuration, state, known=pool.tasks, checkpoint=checkpoint):
        del learned
        give_back_memory()
    return pool


def _asked(pool: Pool, settings: dict[str, Any], stream: TaskStream, keep_fishers: bool) -> dict[str, Any]:
    """What a run was asked for, as a checkpoint notes it."""
    about = pool.index.backbone
    return {
        "settings": settings,
        "adapter": pool.index.adapter,
        "backbone": {key: about[key] for key in ("name", "hash", "targets")},
        "stream": stream.record(),
        "keep_fishers": keep_fishers,
        "before": list(pool.tasks),
    }


def _learn(
    pool: Pool,
    stream: TaskStream,
    configuration: Configuration,
    state: LearnerState,
    checkpoint: Checkpoint,
    keep_fishers: bool,
    engine: Engine | None,
    progress: Progress,
    tracker: Tracker,
) -> None:
    """Learn the stream's tasks that are not in the pool, each as a module of it."""
    known, running = pool.tasks, pool.fisher()
    learn_them = learned_tasks if engine is None else engine.learned_tasks
    found = learn_them(
        pool.backbone, stream, configuration, state, known=known, checkpoint=checkpoint, progress=progress
    )
    try:
        with closing(found):
            for learned in found:
                running = learned.fisher if running is None else running + learned.fisher
                pool.log(learned.log)
                own = learned.fisher if keep_fishers and learned.fisher.count else None
                pool.add(learned.module, running, learned.reference, own_fisher=own)
                card = learned.module.card
                tracker.learned(card.task, len(pool.tasks), card.measures["losses"], learned.log["seconds"])
                del learned
                give_back_memory()
    except DivergenceError:
        checkpoint.end()  # it would come to the same again
        raise
    except InputError as error:
        mended = engine is not None and checkpoint.trained  # an image, a machine: workers had it to themselves
        if not mended and not isinstance(error.__cause__, OSError):  # it would come to the same again
            if pool.tasks == known and not checkpoint.trained:
                checkpoint.end()  # nothing to go on with
            raise
        raise InputError(
            f"{error}. {len(pool.tasks)} tasks are in {pool.path}; `intarsia learn --resume --out {pool.path}` goes on"
        ) from error


def _state(pool: Pool, checkpoint: Checkpoint, settings: Settings) -> LearnerState:
    """What the learner knows as it goes on; where every Fisher is taken first, as it began."""
    there = LearnerState.of(pool)
    if settings.fisher_over != "others":
        return there
    before, fisher, running = tuple(checkpoint.asked()["before"]), checkpoint.fisher(), there.fisher
    if fisher is None and running is not None:
        fisher = running - running  # of no image, in the bases of what is there
    return replace(
        there,
        fisher=None if fisher is None else fisher.to(pool.backbone.device),
        reference=checkpoint.reference(),
        seen=SeenClasses(there.seen.tasks[: len(before)]),
        tasks=before,
    )


def learned_tasks(
    backbone: Backbone,
    stream: TaskStream,
    configuration: Configuration,
    state: LearnerState,
    *,
    known: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Generator[LearnedTask]:
    """Learn the tasks of a stream one after another, those that are not ``known``.

    Args:
        backbone: theta0.
        stream: the tasks.
        configuration: how they are fine-tuned.
        state: what is known before the first.
        known: names of tasks whose modules are there already.
        checkpoint: where a task's training is kept at every epoch boundary; nowhere if None.
        progress: told how far the work is.
    """
    settings = configuration.settings

    def finished(prepared: PreparedTask, others: Curvature | None) -> tuple[LearnedTask, LearnerState]:
        also: dict[str, Any] = {"source": stream.source(prepared.task.name), "checkpoint": checkpoint}
        return finish(backbone, prepared, state, others, configuration, progress=progress, **also)

    if settings.fisher_over == "others":
        for group in stream.groups():
            every: list[PreparedTask] = []
            for task in group:
                prepared, state = prepare(backbone, task, state, settings, progress)
                every.append(prepared)
            for prepared in every:
                if prepared.task.name not in known:
                    assert state.fisher is not None
                    learned, state = finished(prepared, state.fisher - prepared.fisher)
                    yield learned
        return
    for task in stream:
        if task.name not in known:
            earlier = state.fisher
            prepared, state = prepare(backbone, task, state, settings, progress)
            learned, state = finished(prepared, earlier)
            yield learned

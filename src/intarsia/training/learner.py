"""Learning a stream: each task in the six steps of docs/method.md section 3.

1 features at theta0 · 2 class statistics · 3 reference heads · 4 Fisher at theta0 · 5 fine-tuning · 6 store.
Steps 1 to 4 are ``prepare``, step 5 is ``fine_tune``, step 6 is ``Pool.add``. What is carried from task to task does
not grow with their number, but for the heads and class statistics, which grow with the classes.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.curvature.fisher import Fisher
from intarsia.data.stream import TaskStream
from intarsia.errors import DivergenceError, InputError
from intarsia.heads.head import Head
from intarsia.machine import give_back_memory, machine, peak_memory
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.regularizers.iel import IEL
from intarsia.regularizers.ita import ITA
from intarsia.regularizers.records import regularizer_record
from intarsia.store.card import Card, Influence
from intarsia.store.index import INDEX
from intarsia.store.lock import one_writer
from intarsia.store.module import Module
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.preparation import Memory, Prepared, prepare
from intarsia.training.recommended import recommended, resolved
from intarsia.training.run import Run
from intarsia.training.settings import Settings, Training
from intarsia.training.tuning import fine_tune


@dataclass(frozen=True)
class Learned:
    """All six steps of one task.

    Args:
        module: for the pool.
        fisher: the task's own.
        reference: reference heads of all classes up to the task's.
        log: when, how long, on what.
    """

    module: Module
    fisher: Fisher
    reference: Head
    log: dict[str, Any]


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    out: str | Path,
    adapter: Adapter | None = None,
    regularizer: ITA | IEL | None = None,
    training: Training | None = None,
    add: bool = False,
    resume: bool = False,
    keep_fishers: bool = False,
    checkpoints: bool = True,
    progress: Progress = silent,
) -> Pool:
    """Learn every task of a stream as a module of a pool.

    Args:
        backbone: theta0.
        stream: the tasks; all of their images are decoded before anything is written.
        out: the pool's folder, new or empty; with ``add`` an existing pool.
        adapter: what a task vector is made of; ``LoRA(16)`` if None.
        regularizer: ``ITA(alpha)`` or ``IEL(beta)``; if None, ITA with the tool's own strength for the adapter.
        training: everything else; what is None is as recommended for that method and adapter.
        add: add the stream's tasks to the pool in ``out``. Learning five tasks, and then five more in another
            process, gives the same pool, bit for bit, as learning ten.
        resume: go on with a run that was stopped, from its last epoch border: everything else as it was given then.
            The pool comes out as if it had never been stopped, bit for bit on a CPU with as many threads. A run that
            is finished is left as it is.
        keep_fishers: keep each task's own Fisher in its module.
        checkpoints: keep what is trained at every epoch border; else a run goes on from its last whole task.
        progress: told how far the work is.

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
    adapter = adapter or LoRA()
    regularizer = regularizer or ITA(recommended("ita", adapter.kind)[0])
    settings = resolved(training, recommended(regularizer.kind, adapter.kind)[1])
    record, path = {**regularizer_record(regularizer), **settings.record()}, Path(out)

    def opened() -> Pool:
        if add or (resume and (path / INDEX).exists()):
            return open_for_adding(path, backbone, adapter)
        return Pool.create(path, backbone, adapter, record)

    opened()  # what is refused here is refused before a lock is put there
    with one_writer(path) as folder:
        pool, checkpoint = opened(), Checkpoint(folder, each_epoch=checkpoints)
        pool.tidy()
        if resume and not checkpoint.exists and all(task.name in pool.tasks for task in stream):
            checkpoint.end()  # of a run that died while it cleaned up
            return pool
        asked = _asked(pool, record, stream, keep_fishers)
        if resume:
            checkpoint.resume(asked)
        else:
            checkpoint.refuse()
            for task in stream:
                pool.check_new(task.name, task.classes)
        stream.decode(backbone.preprocessing)
        memory = _memory(pool, checkpoint, settings) if resume else Memory.of(pool)
        if not resume:
            checkpoint.begin(asked, memory.fisher if settings.fisher_over == "others" else None)
        _learn(Run(backbone, adapter, regularizer, settings, stream, progress, checkpoint), pool, memory, keep_fishers)
        checkpoint.end()
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


def _learn(run: Run, pool: Pool, memory: Memory, keep_fishers: bool) -> None:
    """Learn the stream's tasks that are not in the pool, each as a module of it."""
    checkpoint, known, running = run.checkpoint, pool.tasks, pool.fisher()
    assert checkpoint is not None
    try:
        for learned in modules(run, memory, known):
            running = learned.fisher if running is None else running + learned.fisher
            pool.log(learned.log)
            pool.add(learned.module, running, learned.reference, own_fisher=learned.fisher if keep_fishers else None)
            del learned
            give_back_memory()
    except DivergenceError:
        checkpoint.end()  # it would come to the same again
        raise
    except InputError as error:
        raise InputError(
            f"{error}. {len(pool.tasks)} tasks are in {pool.path}; `intarsia learn --resume --out {pool.path}` goes on"
        ) from error


def _memory(pool: Pool, checkpoint: Checkpoint, training: Settings) -> Memory:
    """What the learner knows as it goes on; where every Fisher is taken first, as it began."""
    if training.fisher_over != "others":
        return Memory.of(pool)
    before, fisher = checkpoint.asked()["before"], checkpoint.fisher()
    return Memory(
        None if fisher is None else fisher.to(pool.backbone.device),
        pool.total(),
        pool.reference(len(before)) if before else None,
        pool.statistics()[: len(before)],
        tuple(before),
        pool.index.lost,
    )


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


def modules(run: Run, memory: Memory, known: Collection[str] = ()) -> Iterator[Learned]:
    """Learn task by task those that are not ``known``; ``memory`` is kept up to date."""
    if run.training.fisher_over == "others":
        for prepared in [prepare(run, task, memory) for task in run.stream]:
            if prepared.task.name not in known:
                assert memory.fisher is not None
                yield _finish(run, prepared, memory, memory.fisher - prepared.fisher)
        return
    for task in run.stream:
        if task.name not in known:
            earlier = memory.fisher
            yield _finish(run, prepare(run, task, memory), memory, earlier)


def _finish(run: Run, prepared: Prepared, memory: Memory, others: Fisher | None) -> Learned:
    """Step 5, and the module for step 6. ``others`` is the Fisher of the other tasks known."""
    assert memory.reference is not None
    task, reference = prepared.task, memory.reference[prepared.rows]
    tuned = fine_tune(run, prepared, memory, others)
    others_known = tuple(t for t in memory.tasks if t != task.name)
    earlier = memory.tasks[: prepared.number - 1]
    through = earlier if isinstance(run.regularizer, IEL) else ()
    card = Card(
        task=task.name,
        classes=task.classes,
        images=len(task.train),
        settings={**regularizer_record(run.regularizer), **run.training.record()},
        stream=run.stream.source(),
        versions={name: version(name) for name in ("intarsia", "torch", "timm")},
        influenced_by=Influence((*memory.lost, *others_known), others_known, through, earlier),
        measures={"fisher_error": prepared.fisher.error, **tuned.measures},
    )
    seconds = {**prepared.seconds, **tuned.seconds}
    log = {
        "task": task.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "set_up_seconds": round(sum(prepared.seconds.values()), 3),
        "training_seconds": round(sum(tuned.seconds.values()), 3),
        "seconds": {phase: round(s, 3) for phase, s in seconds.items()},
        "peak_memory_mib": peak_memory(),
        "machine": machine(run.backbone.device),
    }
    module = tuned.module(card, reference, prepared.statistics)
    return Learned(module, prepared.fisher, memory.reference[: prepared.rows.stop], log)

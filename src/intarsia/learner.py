"""Learning a stream: each task in the six steps of METHOD.md section 3.

1 features at theta0 · 2 class statistics · 3 reference heads · 4 Fisher at theta0 · 5 fine-tuning · 6 store.
Steps 1 to 4 are ``prepare``, step 5 is ``fine_tune``, step 6 is ``Pool.add``. What is carried from task to task does
not grow with their number, but for the heads and class statistics, which grow with the classes.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from intarsia.adapters import Adapter, LoRA
from intarsia.backbone import Backbone
from intarsia.config import Training, recommended, regularizer_record
from intarsia.errors import InputError
from intarsia.fisher import Fisher
from intarsia.heads import Head
from intarsia.module import Card, Influence, Module
from intarsia.pool import Pool
from intarsia.preparation import Memory, Prepared, prepare
from intarsia.regularizers import IEL, ITA
from intarsia.run import Progress, Run, give_back_memory, peak_memory, silent
from intarsia.stream import TaskStream
from intarsia.tuning import fine_tune


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
    keep_fishers: bool = False,
    progress: Progress = silent,
) -> Pool:
    """Learn every task of a stream as a module of a pool.

    Args:
        backbone: theta0.
        stream: the tasks; all of their images are decoded before anything is written.
        out: the pool's folder, new or empty; with ``add`` an existing pool.
        adapter: what a task vector is made of; ``LoRA(16)`` if None.
        regularizer: ``ITA(alpha)`` or ``IEL(beta)``; if None, ITA with the tool's own strength for the adapter.
        training: everything else; if None, the tool's own settings for that method and adapter.
        add: add the stream's tasks to the pool in ``out``. Learning five tasks, and then five more in another
            process, gives the same pool, bit for bit, as learning ten.
        keep_fishers: keep each task's own Fisher in its module.
        progress: told how far the work is.

    Returns:
        The pool, on disk.

    Raises:
        InputError: an image cannot be read, the folder is in use, or the pool was made with another backbone or
            adapter, or already has one of the tasks or classes. Nothing was written.
        DivergenceError: the loss or a weight is no longer finite; the tasks before it are in the pool.

    Example:
        >>> pool = learn(Backbone.load(), TaskStream.load(), out="runs/first")
    """
    adapter = adapter or LoRA()
    regularizer = regularizer or ITA(recommended("ita", adapter.kind)[0])
    training = training or recommended(regularizer.kind, adapter.kind)[1]
    settings = {**regularizer_record(regularizer), **training.record()}
    pool = open_for_adding(out, backbone, adapter) if add else Pool.create(out, backbone, adapter, settings)
    for task in stream:
        pool.check_new(task.name, task.classes)
    stream.decode(backbone.preprocessing)
    run = Run(backbone, adapter, regularizer, training, stream, progress)
    memory = Memory.of(pool)
    running = memory.fisher
    for learned in modules(run, memory):
        running = learned.fisher if running is None else running + learned.fisher
        own = learned.fisher if keep_fishers else None
        pool.add(learned.module, running, learned.reference, own_fisher=own)
        pool.log(learned.log)
        del learned, own
        give_back_memory()
    return pool


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


def modules(run: Run, memory: Memory) -> Iterator[Learned]:
    """Learn task by task; ``memory`` is kept up to date."""
    if run.training.fisher_over == "others":
        for prepared in [prepare(run, task, memory) for task in run.stream]:
            assert memory.fisher is not None
            yield _finish(run, prepared, memory, memory.fisher - prepared.fisher)
        return
    for task in run.stream:
        earlier = memory.fisher
        yield _finish(run, prepare(run, task, memory), memory, earlier)


def _finish(run: Run, prepared: Prepared, memory: Memory, others: Fisher | None) -> Learned:
    """Step 5, and the module for step 6. ``others`` is the Fisher of the other tasks known."""
    assert memory.reference is not None
    task, reference = prepared.task, memory.reference[prepared.rows]
    tuned = fine_tune(run, prepared, memory, others)
    known = tuple(t for t in memory.tasks if t != task.name)
    earlier = memory.tasks[: prepared.number - 1]
    through = earlier if isinstance(run.regularizer, IEL) else ()
    card = Card(
        task=task.name,
        classes=task.classes,
        images=len(task.train),
        settings={**regularizer_record(run.regularizer), **run.training.record()},
        stream=run.stream.source(),
        versions={name: version(name) for name in ("intarsia", "torch", "timm")},
        influenced_by=Influence(fisher=known, statistics=known, vectors=through, anchors=earlier),
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
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {run.backbone.device.type}",
    }
    module = tuned.module(card, reference, prepared.statistics)
    return Learned(module, prepared.fisher, memory.reference[: prepared.rows.stop], log)

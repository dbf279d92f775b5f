"""Learning: one task in the six steps of METHOD.md section 3, and `learn` over a stream.

1 features at theta0 · 2 class statistics · 3 reference heads · 4 Fisher at theta0 · 5 fine-tuning · 6 store.
Steps 1 to 4 are ``prepare``, step 5 is ``fine_tune``, step 6 is ``Pool.add``. What is carried from task to task does
not grow with their number, but for the heads and class statistics, which grow with the classes.
"""

import hashlib
import math
import platform
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters import Adapter, Attachment, LoRA
from intarsia.backbone import Backbone
from intarsia.config import Training, recommended, regularizer_record
from intarsia.drift import FeatureDrift, fit_drift
from intarsia.errors import InputError
from intarsia.fisher import Fisher, diagonal_fisher, head_fisher
from intarsia.heads import ALIGNMENT_SAMPLES, Head, TrainedHead, align, pretune
from intarsia.images import augment
from intarsia.module import Card, Influence, Module
from intarsia.pool import Pool
from intarsia.regularizers import IEL, ITA
from intarsia.statistics import ClassStatistics, fit_statistics
from intarsia.stream import Task, TaskStream
from intarsia.task_vector import TaskVector

FEATURE_BATCH = 64
FLOOR = 1e-5
DRIFT_PARTS = 4


class Progress(Protocol):
    """Told how far a task is: a phase's name, units done, units in all."""

    def __call__(self, task: str, phase: str, done: int, total: int) -> None:
        """Report."""
        ...


def silent(task: str, phase: str, done: int, total: int) -> None:
    """Report nothing."""


class DivergenceError(InputError):
    """Training left the finite numbers; the pool is as it was before the task."""


@dataclass
class Memory:
    """What the learner carries from task to task.

    Args:
        fisher: running sum over the tasks prepared so far.
        total: S, the running sum of task vectors (IEL only).
        reference: aligned heads of all classes seen.
        statistics: of all classes seen.
        tasks: names, in order.
    """

    fisher: Fisher | None = None
    total: TaskVector | None = None
    reference: Head | None = None
    statistics: ClassStatistics | None = None
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, pool: Pool, *, vectors: bool) -> "Memory":
        """As it stood after the pool's last task; ``vectors`` to sum up the task vectors too."""
        total = pool.total() if vectors else None
        return cls(pool.fisher(), total, pool.reference(), pool.statistics(), pool.tasks)


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
        seconds: how long it took.
    """

    task: Task
    number: int
    rows: slice
    features: Tensor
    statistics: ClassStatistics
    fisher: Fisher
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning makes of a task.

    Args:
        parts: the adapter's, by ``<weight name>.<part>``.
        head: of the task's classes.
        drift: what tau does to the features.
        measures: of the training.
    """

    parts: dict[str, Tensor]
    head: Head
    drift: FeatureDrift
    measures: dict[str, Any]


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
    learner = Learner(backbone, adapter, regularizer, training, stream, progress)
    memory = Memory.of(pool, vectors=isinstance(regularizer, IEL))
    running = memory.fisher
    for learned in learner.modules(memory):
        running = learned.fisher if running is None else running + learned.fisher
        own = learned.fisher if keep_fishers else None
        pool.add(learned.module, running, learned.reference, own_fisher=own)
        pool.log(learned.log)
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


@dataclass(frozen=True)
class Learner:
    """The steps of one task, with everything that stays the same over a stream."""

    backbone: Backbone
    adapter: Adapter
    regularizer: ITA | IEL
    training: Training
    stream: TaskStream
    progress: Progress = silent

    def modules(self, memory: Memory) -> Iterator[Learned]:
        """Learn task by task; ``memory`` is kept up to date."""
        if self.training.fisher_over == "others":
            for prepared in [self.prepare(task, memory) for task in self.stream]:
                assert memory.fisher is not None
                yield self.finish(prepared, memory, memory.fisher - prepared.fisher)
            return
        for task in self.stream:
            earlier = memory.fisher
            yield self.finish(self.prepare(task, memory), memory, earlier)

    def prepare(self, task: Task, memory: Memory) -> Prepared:
        """Steps 1 to 4; afterwards ``memory`` knows the task's Fisher, classes and heads."""
        started, training = time.perf_counter(), self.training
        number, classes = len(memory.tasks) + 1, len(task.classes)
        images, labels = task.train.tensor(self.backbone.preprocessing), task.train.labels

        features = self._features(task.name, images)
        statistics = fit_statistics(
            features, labels, classes, components=training.components, seed=self._seed(number, "statistics") % 2**31
        )
        memory.statistics = ClassStatistics.join([s for s in (memory.statistics, statistics) if s is not None])
        memory.reference = self._reference_heads(number, features, labels, classes, memory)
        fisher = diagonal_fisher(
            self.backbone,
            memory.reference.to(self.backbone.device),
            self._batches(task.name, "Fisher", images),
            estimator=training.fisher,
            probes=training.probes,
            generator=self._generator(number, "fisher"),
        )
        memory.fisher = fisher if memory.fisher is None else memory.fisher + fisher
        memory.tasks = (*memory.tasks, task.name)
        rows = slice(len(memory.reference) - classes, len(memory.reference))
        return Prepared(task, number, rows, features, statistics, fisher, time.perf_counter() - started)

    def finish(self, prepared: Prepared, memory: Memory, others: Fisher | None) -> Learned:
        """Step 5, and the module for step 6. ``others`` is the Fisher of the other tasks known."""
        assert memory.reference is not None
        started, task = time.perf_counter(), prepared.task
        reference = memory.reference[prepared.rows]
        tuned = self.fine_tune(prepared, memory, others)
        known = tuple(t for t in memory.tasks if t != task.name)
        earlier = memory.tasks[: prepared.number - 1]
        through = earlier if isinstance(self.regularizer, IEL) else ()
        card = Card(
            task=task.name,
            classes=task.classes,
            images=len(task.train),
            settings={**regularizer_record(self.regularizer), **self.training.record()},
            stream=self.stream.source(),
            versions={name: version(name) for name in ("intarsia", "torch", "timm")},
            influenced_by=Influence(fisher=known, statistics=known, vectors=through),
            measures={"fisher_error": prepared.fisher.error, **tuned.measures},
        )
        log = {
            "task": task.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "set_up_seconds": round(prepared.seconds, 3),
            "training_seconds": round(time.perf_counter() - started, 3),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.backbone.device.type}",
        }
        module = Module(card, tuned.parts, tuned.head, reference, prepared.statistics, tuned.drift)
        return Learned(module, prepared.fisher, memory.reference[: prepared.rows.stop], log)

    def fine_tune(self, prepared: Prepared, memory: Memory, others: Fisher | None) -> Tuned:
        """Step 5: tau and the head of one task; for IEL ``memory.total`` takes tau in.

        Raises:
            DivergenceError: the loss or a weight is not finite.
        """
        assert memory.reference is not None
        number, name = prepared.number, prepared.task.name
        incremental = isinstance(self.regularizer, IEL)
        fisher = memory.fisher if incremental else others
        mean = None if fisher is None or fisher.count == 0 else fisher.mean(FLOOR, unit=self.training.unit_fisher)
        penalty = self.regularizer.on(mean, memory.total, number)
        reference = memory.reference[prepared.rows]
        with self.backbone.attach(self.adapter, self._generator(number, "adapter")) as adapter:
            if incremental:
                adapter.compose(memory.total, number)
            start, device = self._starting_head(reference, number), self.backbone.device
            head = TrainedHead(start.to(device), reference.to(device), self._head_fisher(prepared, memory).to(device))
            losses = self._epochs(prepared, adapter, head, penalty)
            vector, state = adapter.vector(), adapter.state()
            drift = self._drift(prepared, adapter, number if incremental else 1)
        norm = float(vector.norm())
        if not math.isfinite(norm):
            raise DivergenceError(self._diverged(name, "the task vector is not finite after training"))
        if incremental:
            memory.total = vector if memory.total is None else memory.total + vector
        measures = {
            "losses": losses,
            "relative_norm": norm / float(TaskVector(self.backbone.tuned).norm()),
            "head_moved": head.moved(),
        }
        return Tuned(state, head.trained(), drift, measures)

    def _drift(self, prepared: Prepared, adapter: Attachment, trained_in: int) -> FeatureDrift:
        """What tau does to the task's features, seen at a part of tau as small as compositions have it.

        A drift is to first order; at a whole tau it is not, and on `chalk` the composed accuracy is a point lower.
        """
        parts = max(trained_in, DRIFT_PARTS)
        adapter.compose(None, parts)
        images = prepared.task.train.tensor(self.backbone.preprocessing)
        after = self._features(prepared.task.name, images)
        return fit_drift(prepared.features, after, 1 / parts)

    def _epochs(self, prepared: Prepared, adapter: Attachment, head: TrainedHead, penalty: ITA | IEL) -> list[float]:
        """The mean loss of each epoch; adapter and head are trained in place."""
        training, backbone, task = self.training, self.backbone, prepared.task
        images, labels = task.train.tensor(backbone.preprocessing), task.train.labels
        kind = self.stream.augmentation if training.augment else "none"
        generator = self._generator(prepared.number, "training")
        parameters = [*adapter.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, foreach=True)
        losses: list[float] = []
        for epoch in range(training.epochs):
            factor = 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
            total = 0.0
            batches = torch.randperm(len(images), generator=generator).split(training.batch_size)
            for number, index in enumerate(batches, start=1):
                warm = min(1.0, (epoch + number / len(batches)) / training.warmup) if training.warmup else 1.0
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * factor * warm
                x = augment(images[index], kind, backbone.preprocessing, generator).to(backbone.device)
                loss = F.cross_entropy(head(backbone.model(x)), labels[index].to(backbone.device))
                total += self._finite(loss, task.name, epoch) * len(index)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if training.step == "coupled":
                    penalty.add_gradient(adapter)
                    head.pull(training.lambda_h, training.lambda_0, factor, training.step)
                    optimizer.step()
                else:
                    optimizer.step()
                    if due := self._due(number, len(batches)):
                        penalty.step(adapter, factor * due, training.step)
                    head.pull(training.lambda_h, training.lambda_0, factor, training.step)
            losses.append(total / len(images))
            self.progress(task.name, "training", epoch + 1, training.epochs)
        return losses

    def _due(self, number: int, batches: int) -> int:
        """How many of the regularizer's steps are due after so many of an epoch's batches."""
        if self.training.step != "proximal":
            return 1
        every = self.training.proximal_every
        return (number % every or every) if number % every == 0 or number == batches else 0

    def _reference_heads(self, number: int, features: Tensor, labels: Tensor, classes: int, memory: Memory) -> Head:
        """Step 3: pre-tune a head for the new classes, then align the heads of all classes seen."""
        assert memory.statistics is not None
        training, generator = self.training, self._generator(number, "heads")
        fresh = pretune(
            Head.random(classes, features.shape[1], generator),
            features,
            labels,
            epochs=training.pretune_epochs,
            lr=training.pretune_lr,
            batch_size=training.batch_size,
            generator=generator,
        )
        return align(
            Head.join([h for h in (memory.reference, fresh) if h is not None]),
            memory.statistics,
            epochs=training.alignment_epochs,
            lr=training.pretune_lr,
            generator=generator,
        )

    def _features(self, name: str, images: Tensor) -> Tensor:
        """(N, D) at theta0, on the CPU, one pass."""
        return torch.cat([self.backbone.features(x).cpu() for x in self._batches(name, "features", images)])

    def _batches(self, name: str, phase: str, images: Tensor) -> Iterator[Tensor]:
        done = 0
        for batch in images.split(FEATURE_BATCH):
            yield self.backbone.preprocessing.normalize(batch.to(self.backbone.device))
            done += len(batch)
            self.progress(name, phase, done, len(images))

    def _starting_head(self, reference: Head, number: int) -> Head:
        if self.training.head_start == "random":
            return Head.random(len(reference), reference.weight.shape[1], self._generator(number, "head start"))
        return reference

    def _head_fisher(self, prepared: Prepared, memory: Memory) -> Head:
        """Mean Fisher of the task's head rows, over features drawn from the statistics of all classes seen."""
        assert memory.statistics is not None and memory.reference is not None
        statistics = memory.statistics
        if self.training.head_fisher_over == "earlier":
            statistics = statistics[: prepared.rows.start]
        weight, bias = torch.zeros_like(memory.reference.weight), torch.zeros_like(memory.reference.bias)
        if len(statistics):
            features, _ = statistics.sample(ALIGNMENT_SAMPLES, self._generator(prepared.number, "head fisher"))
            weight, bias = head_fisher(features, memory.reference.weight, memory.reference.bias)
        return Head(weight + FLOOR, bias + FLOOR)[prepared.rows]

    def _seed(self, number: int, purpose: str) -> int:
        """A seed of its own for each task and purpose: nothing random is carried from task to task."""
        digest = hashlib.sha256(f"{self.training.seed}/{number}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def _generator(self, number: int, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(number, purpose))

    def _finite(self, loss: Tensor, task: str, epoch: int) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(self._diverged(task, f"the loss is {value} in epoch {epoch + 1}"))
        return value

    def _diverged(self, task: str, what: str) -> str:
        t, r = self.training, self.regularizer
        advice = (
            "use --step proximal, which is stable at any strength, or a smaller strength"
            if t.step != "proximal"
            else ("use a smaller learning rate")
        )
        return f"task {task!r}: {what} (step {t.step}, strength {r.strength:g}, lr {t.lr:g}): {advice}"

"""The studio's state: one pool, held in memory, and its images. Many tabs may ask; they are answered one by one."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from intarsia.backbones.backbone import Backbone
from intarsia.curvature.jensen_gap import gap
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.metrics import Evaluation, evaluate
from intarsia.evaluation.theorem import Sample
from intarsia.labels import check_name
from intarsia.merging.model import ComposedModel
from intarsia.numerics import wide
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.store.module import Module
from intarsia.studio import composition as compositions
from intarsia.studio.composition import Composition
from intarsia.studio.measures import Measured, affordable, measure, sampled

Images = Callable[[Pool, Sequence[str]], TaskStream]
"""(pool, tasks) -> the stream that holds these tasks."""
T = TypeVar("T")
FOLDER = "studio"
"""Folder in the pool's where all goes that the page writes."""


KEPT = 200
"""Measurements that are kept; the oldest go."""


PER_TASK = 20
"""Training images of each task that the theorem's gaps are measured on."""


@dataclass(frozen=True)
class Gaps:
    """Theorem 1 on a composition; nats per image.

    Args:
        true: mean loss of the modules, by their coefficients, minus the composition's.
        predicted: Omega, by the pool's diagonal Fisher.
        composed: the composition's loss.
        modules: the mean loss.
        images: training images that these are means of.
    """

    true: float
    predicted: float
    composed: float
    modules: float
    images: int


class HeldPool(Pool):
    """A pool whose modules are read once."""

    def module(self, task: str) -> Module:
        """See ``Store.module``."""
        held: dict[str, Module] = self.__dict__.setdefault("_held", {})
        if task not in held:
            held[task] = super().module(task)
        return held[task]


class Session:
    """One pool, its images, and what was measured of it.

    Whatever is asked is a function of the pool and of what is given: a tab has no state here.

    Args:
        path: of the pool.
        backbone: theta0.
        images: where the images of its tasks are.
        per_class: test images of each class in the sample; as many as a move has time for if None.
        seed: of the sample.
        threads: tasks that are measured beside each other; torch itself has one thread then.

    Raises:
        InputError: the pool is empty, or its images are not there.
    """

    def __init__(
        self,
        path: Path,
        backbone: Backbone,
        images: Images,
        *,
        per_class: int | None = None,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        self.lock = threading.RLock()
        self._images, self._seed, self._threads = images, seed, threads
        self.home = path / FOLDER
        self.models, self.uploads = self.home / "models", self.home / f"uploads-{os.getpid()}"
        pool = HeldPool.open(path, backbone)
        stream = images(pool, pool.learned())
        self.per_class = affordable(pool, stream, threads) if per_class is None else per_class
        self._hold(pool, stream)

    def _hold(self, pool: Pool, stream: TaskStream) -> None:
        """This pool from now on, and these images; nothing is known of them."""
        self.pool, self.stream, self.sample = pool, stream, sampled(stream, self.per_class, self._seed)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of the pool, in its order."""
        return self.pool.tasks

    @property
    def images(self) -> int:
        """Number of images of the sample."""
        return sum(len(task.test) for task in self.sample)

    @property
    def state(self) -> str:
        """What changes when the pool does."""
        return hashlib.sha256(json.dumps(self.pool.index.record()).encode()).hexdigest()

    def refresh(self) -> bool:
        """Open the pool again if it has changed; returns whether it has.

        The images of its other tasks are not read again.

        Raises:
            InputError: it is not there any more, or the images of a new task are not.
        """
        with self.lock:
            pool = HeldPool.open(self.pool.path, self.pool.backbone)
            if pool.index == self.pool.index:
                return False
            held = {t.name: t for t in self.stream if t.name in pool.tasks and t.classes == pool.classes[t.name]}
            new = [task for task in pool.learned() if task not in held]
            held |= {task.name: task for task in (self._images(pool, new) if new else ())}
            self._hold(pool, replace(self.stream, tasks=tuple(held[task] for task in pool.tasks)))
            return True

    def _once(self, key: Hashable, made: Callable[[], T]) -> T:
        """What is kept under a key, or made now."""
        with self.lock:
            if key not in self._kept:
                self._kept[key] = made()
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    # Measures

    def mean(self) -> Composition:
        """The composition that others are set beside."""
        return compositions.mean(self.tasks, self.pool.mean_scale)

    def measured(self, composition: Composition) -> Measured:
        """A composition on the sample."""
        return self._once(composition, lambda: self._measure(composition.model(self.pool), self.sample))

    def measured_whole(self, composition: Composition, progress: Progress = silent) -> Measured:
        """A composition on all test images."""
        return self._once(
            (composition, "whole"), lambda: self._measure(composition.model(self.pool), self.stream, progress)
        )

    def of_model(self, key: Hashable, model: Callable[[], ComposedModel]) -> Measured:
        """Another model on the sample, kept under a key."""
        return self._once(key, lambda: self._measure(model(), self.sample))

    def _measure(self, model: ComposedModel, stream: TaskStream, progress: Progress = silent) -> Measured:
        return measure(model, stream, progress, self._threads)

    def accuracy(self, found: Evaluation, tasks: Collection[str]) -> float | None:
        """What a model has on the sample's images of some of its tasks, percent; None of no task."""
        counts = {task.name: len(task.test) for task in self.sample if task.name in tasks}
        return sum(found.per_task[t] * count for t, count in counts.items()) / sum(counts.values()) if counts else None

    def alone(self, task: str) -> float:
        """Accuracy of a module alone, among its own classes, on the sample; percent."""

        def found() -> float:
            return evaluate(self.pool.specialize([task]), self.sample, history=False).final_accuracy

        return self._once((task, "alone"), found)

    def gaps(self, composition: Composition, progress: Progress = silent) -> Gaps:
        """Theorem 1 on training images: the two gaps of a composition (``evaluation.theorem``).

        Raises:
            InputError: coefficients that the theorem is not of.
        """
        weights = {task: w for task, w in composition.weights if w}
        if (
            composition.rule is not None
            or min(weights.values(), default=-1) < 0
            or abs(sum(weights.values()) - 1) > 0.01
        ):
            raise InputError(
                "Theorem 1 is of coefficients of 0 or more that sum to 1: choose a preset, or change the sliders"
            )
        return self._once((composition, "gaps"), lambda: self._gaps(weights, progress))

    def _gaps(self, weights: dict[str, float], progress: Progress) -> Gaps:
        total = sum(weights.values())
        weights = {task: w / total for task, w in weights.items()}  # what rounding of the sliders left
        sample = self._once("training", lambda: Sample.draw(self.pool, self.stream, self.tasks, PER_TASK, self._seed))
        losses: dict[str, float] = {}
        for task in weights:
            losses[task] = self._once((task, "loss"), lambda task=task: sample.composed_loss({task: 1.0}))
            progress("networks", len(losses), len(weights) + 1)
        composed = sample.composed_loss(weights)
        progress("networks", len(weights) + 1, len(weights) + 1)
        vectors = [self.pool.vector(task) for task in weights]
        modules = sum(w * losses[task] for task, w in weights.items())
        predicted = gap(vectors, [*weights.values()], sample.fisher)
        return Gaps(modules - composed, predicted, composed, modules, len(sample.labels))

    # The pool

    def alignment(self) -> tuple[dict[str, float], list[list[float]]]:
        """Length of each task vector, and the cosines between them; one weight at a time is dense."""

        def found() -> tuple[dict[str, float], list[list[float]]]:
            modules = [self.pool.module(task) for task in self.tasks]
            gram = torch.zeros(())
            for name, theta0 in self.pool.backbone.trainable.items():
                rows = torch.stack([wide(m.delta(name, self.pool.adapter, theta0)).flatten() for m in modules])
                gram = gram + rows @ rows.T
            lengths = gram.diagonal().sqrt()
            cosines = gram / (lengths[:, None] * lengths[None, :]).clamp_min(1e-300)
            return dict(zip(self.tasks, lengths.tolist(), strict=True)), cosines.tolist()

        return self._once("alignment", found)

    def save(self, model: ComposedModel, name: str) -> Path:
        """Write a model to a new folder below ``models``.

        Raises:
            InputError: the name is no good, or the folder is there.
        """
        check_name("model", name)
        model.save(self.models / name)
        return self.models / name

    def frozen(self) -> ComposedModel:
        """Theta0 with the best head that needs no fine-tuning."""
        return self._once("frozen", self.pool.frozen)

    def specialist(self, task: str) -> ComposedModel:
        """One module alone, with its own classes."""
        with self.lock:
            return self.pool.specialize([task])

    def model(self, composition: Composition) -> ComposedModel:
        """The merged model of a composition."""
        with self.lock:
            return composition.model(self.pool)

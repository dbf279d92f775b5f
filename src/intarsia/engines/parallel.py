"""Parallel ITA: every task prepared beside the others, then every module fine-tuned beside the others.

Where tasks become known in groups, the modules of a group are fine-tuned as soon as its Fishers and those before are
added up, beside what is done for later groups.

    features (each task) -> heads (here, in order) -> fisher (each task) -> sum (here, in order)
    -> tune (each task) -> sum of vectors (here, in order) -> place (each task) -> the pool (in order)

What is added up is added in the order of the tasks, so that the modules are those of one process with ``fisher_over``
"others", bit for bit, however many workers there are and whichever is first.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from intarsia.backbones.backbone import Backbone
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.class_stats.statistics import ClassStatistics, SeenClasses
from intarsia.curvature.protocol import Curvature
from intarsia.data.stream import TaskStream
from intarsia.engines.cluster import Calls, Cluster
from intarsia.engines.packing import pack, pack_state, unpack, unpack_fisher, unpack_module
from intarsia.heads.head import Head
from intarsia.progress import Progress
from intarsia.store.module import Module
from intarsia.training.fine_tuning import Configuration
from intarsia.training.schedule import Seeds
from intarsia.training.state import LearnedTask, LearnerState
from intarsia.training.steps import reference_heads

SAID = {"features": "features and class statistics", "fisher": "Fisher", "tune": "training", "place": "prototypes"}
"""A worker's method -> the phase, in words."""


@dataclass
class Parallel:
    """A run on a cluster.

    Args:
        cluster: the workers.
        calls: of their methods.
        backbone: theta0.
        stream: the tasks.
        configuration: how they are fine-tuned.
        state: what is known before the first.
        known: names of tasks whose modules are there already.
        threads: of torch, of whatever is computed here.
        progress: told what is done.
    """

    cluster: Cluster
    calls: Calls
    backbone: Backbone
    stream: TaskStream
    configuration: Configuration
    state: LearnerState
    known: Collection[str]
    threads: int
    progress: Progress
    _heads: list[Head] = field(init=False, default_factory=list)
    _seen: SeenClasses = field(init=False)
    _tuned: dict[int, tuple[Module, dict[str, Any]]] = field(init=False, default_factory=dict)
    _prepared: int = field(init=False, default=0)
    _placed: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._first, self._seen = len(self.state.tasks) + 1, self.state.seen
        self._placed = sum(task.name in self.known for task in self.stream)
        sizes = [len(group) for group in self.stream.groups()]
        self._ends = [end for size, end in zip(sizes, accumulate(sizes), strict=True) for _ in range(size)]

    def learned_tasks(self) -> Iterator[LearnedTask]:
        """The tasks that are not known, in order; those that are known are the first.

        Raises:
            InputError, DivergenceError: what a worker raised for a task; those before it have been learned.
        """
        for place, task in enumerate(self.stream):
            self.calls.ask(self._first + place, "features", task.name, self._first + place)
        for place in range(self._placed, len(self.stream)):
            number = self._first + place
            last = "place" if number > 1 else "tune"
            while self._advance() or not self.calls.has(number, last):
                if self.calls.failed(number, "tune"):
                    break
                found, what = self.calls.next()
                self.progress(f"{self.stream[found - self._first].name}: {SAID[what]}", 1, 1)
            yield self._learned(number)
            self.calls.drop(number)

    def _advance(self) -> None:
        """Do all that is to be done here with the results that are there, in the order of the tasks."""
        while self._more(len(self._heads), "features"):
            self._align(len(self._heads))
        while self._prepared < len(self._heads) and self._more(self._prepared, "fisher"):
            self._add(self._prepared)
        while self._more(self._placed, "tune"):
            if self.calls.failed(self._first + self._placed, "tune"):
                break  # the tasks before it come first
            self._place(self._placed)

    def _more(self, place: int, method: str) -> bool:
        """The result of the stream's task at a place is there."""
        return place < len(self.stream) and self.calls.has(self._first + place, method)

    def _align(self, place: int) -> None:
        """Step 3 of a task, and have its Fisher taken."""
        number, task, settings = self._first + place, self.stream[place], self.configuration.settings
        _, groups = unpack(self.calls.data(number, "features"))
        self._seen = self._seen.with_task(ClassStatistics.from_tensors(groups["statistics"]))
        features, seeds = groups["features"]["features"], Seeds(settings.seed, number)
        known = self._heads[-1] if self._heads else self.state.reference
        with threads(self.threads):
            self._heads.append(reference_heads(features, task, known, self._seen, settings, seeds))
        heads = self.cluster.put(pack({}, reference=self._heads[-1].tensors()))
        self.calls.ask(number, "fisher", task.name, number, heads)

    def _add(self, place: int) -> None:
        """Add a task's Fisher to the sum; after the last of its group, have that fine-tuned."""
        number, task = self._first + place, self.stream[place]
        fisher = self._fisher(number)
        seen = SeenClasses(self._seen.tasks[:number])
        self.state = self.state.with_task(task.name, seen, self._heads[place], fisher)
        self._prepared += 1
        if self._prepared == self._ends[place]:
            self._tune(other for other, end in enumerate(self._ends) if end == self._prepared and other >= self._placed)

    def _tune(self, places: Iterable[int]) -> None:
        """Have tasks fine-tuned under all that is known now."""
        together = self.cluster.put(pack_state(self.state))
        for place in places:
            number, task = self._first + place, self.stream[place]
            row = len(self._heads[place]) - len(task.classes)
            prepared, fisher = (self.calls.reference(number, what) for what in ("features", "fisher"))
            self.calls.ask(number, "tune", task.name, number, row, prepared, fisher, together)

    def _place(self, place: int) -> None:
        """Have a task's classes looked up in the mean of the modules up to its own, and add its vector to the sum."""
        number, task = self._first + place, self.stream[place]
        module, _ = self._tuned[number] = unpack_module(self.calls.data(number, "tune"))
        if self.state.total is not None:
            earlier = {} if self.state.earlier is None else {"earlier": self.state.earlier}
            total = self.cluster.put(pack({}, total=self.state.total, **earlier))
            self.calls.ask(number, "place", task.name, number, self.calls.reference(number, "tune"), total)
        self.state = self.state.with_vector(module.dense(self.configuration.adapter, self.backbone.trainable))
        self._placed += 1

    def _learned(self, number: int) -> LearnedTask:
        """A task after all steps."""
        module, log = self._tuned.pop(number, None) or unpack_module(self.calls.data(number, "tune"))
        if number > 1:
            _, groups = unpack(self.calls.data(number, "place"))
            module = replace(module, prototypes=ClassPrototypes.from_tensors(groups["prototypes"]))
        place = number - self._first
        reference = self._heads[self._ends[place] - 1][: len(self._heads[place])]
        return LearnedTask(module, self._fisher(number), reference, log)

    def _fisher(self, number: int) -> Curvature:
        """Of a task, where theta0 is."""
        fisher, _ = unpack_fisher(self.calls.data(number, "fisher"))
        return fisher.to(self.backbone.device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch has so many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What a worker does with one task: its features and statistics, its Fisher, its fine-tuning, its place in the mean.

A worker reads the images itself. All that it is given and gives back is bytes (``packing``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from intarsia.backbones.backbone import Backbone
from intarsia.class_stats.statistics import ClassStatistics
from intarsia.data.records import reloaded
from intarsia.data.stream import TaskStream
from intarsia.engines.packing import pack, pack_fisher, pack_module, unpack, unpack_fisher, unpack_module, unpack_state
from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.machine import give_back_memory
from intarsia.progress import Timings
from intarsia.task_vector import TaskVector
from intarsia.training.fine_tuning import Configuration
from intarsia.training.schedule import Seeds
from intarsia.training.state import PreparedTask
from intarsia.training.steps import (
    class_statistics,
    curvature_at_theta0,
    features_before,
    features_in_means,
    features_of,
    prototypes_of,
)
from intarsia.training.task import finish


@dataclass(frozen=True)
class Job:
    """What all workers of a run are told.

    Args:
        backbone: theta0, or the spec and targets that load it.
        weights: its hash.
        stream: the tasks, or the record that loads them: images are read where they are used.
        cache: where decoded images are kept.
        configuration: how tasks are fine-tuned.
        device: to work on.
        threads: of torch.
    """

    backbone: Backbone | tuple[str, tuple[str, ...]]
    weights: str
    stream: TaskStream | Mapping[str, Any]
    cache: str
    configuration: Configuration
    device: str
    threads: int

    @classmethod
    def of(
        cls, backbone: Backbone, stream: TaskStream, configuration: Configuration, *, device: str, threads: int
    ) -> "Job":
        """A backbone and a stream that were loaded are loaded again; what was made in Python is sent."""
        loaded = backbone.architecture is not None
        record = stream.record()
        return cls(
            (backbone.name, backbone.patterns) if loaded else backbone,
            backbone.hash,
            record if record.get("load") else stream,
            str(stream[0].train.storage.where) if len(stream) else "auto",
            configuration,
            device,
            threads,
        )


class Worker:
    """One process at work on a job.

    Args:
        job: see there.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job

    @cached_property
    def backbone(self) -> Backbone:
        """Theta0.

        Raises:
            InputError: it cannot be loaded here, or is another here.
        """
        found = self.job.backbone
        if not isinstance(found, Backbone):
            spec, targets = found
            found = Backbone.load(spec, targets=targets)
            if found.hash != self.job.weights:
                raise InputError(
                    f"backbone {spec} has other weights in a worker (hash {found.hash[:12]}, expected "
                    f"{self.job.weights[:12]}): put the same file on every machine"
                )
        return found.to(self.job.device)

    @cached_property
    def stream(self) -> TaskStream:
        """The tasks.

        Raises:
            InputError: they cannot be loaded here.
        """
        if isinstance(self.job.stream, TaskStream):
            return self.job.stream
        stream = reloaded(self.job.stream)
        stream.keep_in(self.job.cache)
        return stream

    def features(self, name: str, number: int) -> bytes:
        """Steps 1 and 2 of a task: features and class statistics.

        Args:
            name: of the task.
            number: its place among all tasks, from 1.

        Raises:
            DivergenceError, InputError: see ``features_of``.
        """
        timings, task, settings = Timings(), self.stream[name], self.job.configuration.settings
        features = features_of(self.backbone, task, settings.precision)
        timings.lap("features")
        statistics = class_statistics(features, task, settings, Seeds(settings.seed, number))
        timings.lap("statistics")
        return pack({"seconds": timings.seconds}, features={"features": features}, statistics=statistics.tensors())

    def fisher(self, name: str, number: int, heads: bytes) -> bytes:
        """Step 4 of a task.

        Args:
            name: of the task.
            number: its place among all tasks, from 1.
            heads: reference heads of all classes up to the task's.

        Raises:
            DivergenceError: it is not finite.
        """
        timings, settings = Timings(), self.job.configuration.settings
        reference = Head.from_tensors(unpack(heads)[1]["reference"])
        task, seeds = self.stream[name], Seeds(settings.seed, number)
        fisher = curvature_at_theta0(self.backbone, task, reference, None, settings, seeds)
        timings.lap("fisher")
        return pack_fisher(fisher.to(torch.device("cpu")), seconds=timings.seconds)

    def tune(self, name: str, number: int, first: int, prepared: bytes, fisher: bytes, known: bytes) -> bytes:
        """Steps 5 and 6 of a task but for where its classes lie in the mean, which other vectors decide (``place``).

        Args:
            name: of the task.
            number: its place among all tasks, from 1.
            first: row of its first class among all classes.
            prepared: what ``features`` gave.
            fisher: what ``fisher`` gave.
            known: what is known of all tasks.

        Raises:
            DivergenceError: see ``finish``.
        """
        about, groups = unpack(prepared)
        (own, of_fisher), device = unpack_fisher(fisher), self.backbone.device
        task, state = self.stream[name], unpack_state(known)
        assert state.fisher is not None
        state = replace(state, fisher=state.fisher.to(device))
        ready = PreparedTask(
            task,
            number,
            slice(first, first + len(task.classes)),
            groups["features"]["features"],
            ClassStatistics.from_tensors(groups["statistics"]),
            own.to(device),
            {**about["seconds"], **of_fisher["seconds"]},
        )
        assert state.fisher is not None
        others, source = state.fisher - ready.fisher, self.stream.source(name)
        learned, _ = finish(self.backbone, ready, state, others, self.job.configuration, source=source)
        data = pack_module(learned.module, learned.log)
        del learned, others, ready, state
        give_back_memory()
        return data

    def place(self, name: str, number: int, module: bytes, sums: bytes) -> bytes:
        """Where a task's classes lie in the mean of the modules up to its own.

        Args:
            name: of the task.
            number: its place among all tasks, 2 or more.
            module: what ``tune`` gave.
            sums: of the task vectors before it, and from the third task on of these but the last.
        """
        found, _ = unpack_module(module)
        summed = {
            what: TaskVector({n: x.to(self.backbone.device) for n, x in tensors.items()})
            for what, tensors in unpack(sums)[1].items()
        }
        total = summed["total"]
        task, settings = self.stream[name], self.job.configuration.settings
        with self.backbone.attach(self.job.configuration.adapter) as adapter:  # at tau = 0 before it is loaded
            at = self.backbone, task, adapter
            earlier, before = features_before(*at, (summed.get("earlier"), total), number, settings)
            adapter.load(found.vector)
            after = features_in_means(*at, total, number, settings)
        prototypes = prototypes_of(earlier, before, after, task, settings)
        return pack({}, prototypes=prototypes.tensors())

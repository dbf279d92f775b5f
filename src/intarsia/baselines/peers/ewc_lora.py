"""EWC-LoRA: one LoRA through all tasks, held by the Fisher of the whole product (Zheng et al., arXiv 2602.17559).

    L = CE + strength / 2 * sum_i F_i (dW_i - dW*_i)^2,     dW = B A

F is diagonal over the dense update (O, I), not over A and B: their entries mean nothing apart. It is the sum of all
tasks' Fishers, each taken where its task ended, under its own head, and divided by its mean over the trainable weights
as in ``ewc``, so that one strength travels between backbones. A task trains its own classes' head under these classes
alone, and those of earlier tasks stay as they are; or all classes compete in one head that is held as well, as in
``ewc``: heads that never met are not equally sure of themselves. What is kept does not grow but for the heads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.lora import LoRA
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.ewc import EWC, added, fisher_at
from intarsia.baselines.peers.fine_tuning import fine_tune, own_head
from intarsia.baselines.protocol import TaskResult, classifier, count, there
from intarsia.data.stream import TaskStream
from intarsia.heads.head import Head
from intarsia.merging.merge import moved_by
from intarsia.progress import Progress, Timings, silent
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings


@dataclass(frozen=True)
class EWCLoRA:
    """One LoRA from task to task, held by the Fisher of those before.

    Args:
        strength: of the quadratic, on a Fisher of unit mean over the trainable weights.
        own_classes: a task's classes compete among themselves; else all classes seen do.
        adapter: the LoRA.
    """

    strength: float = 10.0
    own_classes: bool = True
    adapter: LoRA = field(default_factory=LoRA)
    about: ClassVar[str] = "one LoRA, its product held by the Fisher of earlier tasks"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``."""
        if not self.own_classes:
            yield from EWC(self.strength, self.adapter).train(backbone, stream, settings, progress=progress)
            return
        stream.decode(backbone.preprocessing, progress)
        state: dict[str, Tensor] = {}
        fisher: dict[str, Tensor] = {}
        anchor: Mapping[str, Tensor] = {}
        head: Head | None = None
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            seeds = Seeds(settings.seed, number)
            with backbone.attach(self.adapter, Seeds(settings.seed, 1).generator("adapter")) as adapter:
                adapter.load(state or adapter.state())
                fresh = own_head(backbone, task, settings, seeds, progress)
                timings.lap("set-up")
                held = partial(held_by, adapter, fisher, anchor, self.strength)
                own = fine_tune(backbone, adapter, fresh, task, stream, settings, seeds, progress, penalty=held)
                timings.lap("training")
                state, anchor = adapter.state(), adapter.vector()
            network = moved_by(backbone, anchor)
            new = fisher_at(
                there(backbone, network), own, task, settings.precision, seeds.generator("keeper"), progress
            )
            fisher = added(fisher, new.mean(0.0, unit=True))
            head = own if head is None else Head.join([head, own])
            timings.lap("set-up")
            stored, seconds = count(state, fisher, head.tensors()), timings.seconds
            model = classifier(backbone, network, head, classes)
            yield TaskResult(model, seconds["set-up"], seconds["training"], stored)


def held_by(
    adapter: Attachment, fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor], strength: float
) -> Tensor | None:
    """The quadratic, a scalar with a graph; None before any Fisher is known."""
    if not fisher:
        return None
    terms = [(fisher[n] * (layer.delta() - anchor[n]).square()).sum() for n, layer in adapter.layers.items()]
    return 0.5 * strength * torch.stack(terms).sum()

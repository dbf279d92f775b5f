"""EWC, online: weights and head are held where they were, each number by its Fisher.

Kirkpatrick et al., arXiv 1612.00796; online: Schwarz et al., arXiv 1805.06370.

    L = CE + strength / 2 * sum_i F_i (theta_i - theta*_i)^2

theta* is where the last task ended, F the sum of all tasks' Fishers, each taken where its task ended and divided by its
mean over the trainable weights, so that every task holds as much as the first and one strength travels between
backbones (Schwarz et al. normalise them too). The dense weights (O, I) are held, whatever adapter trains them.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from intarsia.adapters.full import Full
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import normalized
from intarsia.baselines.protocol import TaskResult, count, there
from intarsia.baselines.sequential import ModelInTraining, Strategy, train_in_turn
from intarsia.curvature.fisher import DiagonalFisher, diagonal_fisher
from intarsia.curvature.head_fisher import head_fisher
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.head import Head
from intarsia.merging.model import ComposedModel
from intarsia.numerics import Precision
from intarsia.progress import Progress, silent
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of


class Consolidated(Strategy):
    """The Fisher of all tasks and where the last one ended."""

    def __init__(self, strength: float, precision: Precision) -> None:
        self.strength = strength
        self.precision: Precision = precision
        self.fisher: dict[str, Tensor] = {}
        self.head_fisher: dict[str, Tensor] = {}
        self.vector: Mapping[str, Tensor] = {}
        self.head: dict[str, Tensor] = {}

    def stored(self) -> int:
        """Fisher of weights and head; the anchor is where the network stands."""
        return count(self.fisher, self.head_fisher)

    def loss(self, model: ModelInTraining) -> Tensor | None:
        """The quadratic; of the head, rows that were there when the last task ended."""
        if not self.fisher:
            return None
        total = torch.zeros((), device=model.backbone.device)
        for name, layer in model.adapter.layers.items():
            total = total + (self.fisher[name] * (layer.delta() - self.vector[name]).square()).sum()
        for name, parameter in model.head.named_parameters():
            known = len(self.head[name])
            total = total + (self.head_fisher[name] * (parameter[:known] - self.head[name]).square()).sum()
        return 0.5 * self.strength * total

    def learned(
        self, task: Task, backbone: Backbone, model: ComposedModel, generator: torch.Generator, progress: Progress
    ) -> None:
        """Add the task's Fisher, taken here and now, and move the anchor here."""
        here = there(backbone, model.network)
        head = Head(model.head.weight, model.head.bias)
        fisher = fisher_at(here, head, task, self.precision, generator, progress)
        features = features_of(here, task, self.precision, progress).to(backbone.device)
        weight, bias = head_fisher(features, model.head.weight, model.head.bias)
        unit = fisher.scale() / fisher.count
        self.fisher = added(self.fisher, fisher.mean(0.0, unit=True))
        self.head_fisher = added(self.head_fisher, Head(weight / unit, bias / unit).tensors())
        self.vector = {name: w - backbone.trainable[name] for name, w in here.trainable.items()}
        self.head = head.tensors()


@dataclass(frozen=True)
class EWC:
    """One network from task to task, held by the Fisher of those before.

    Args:
        strength: of the quadratic, on a Fisher of unit mean over the trainable weights.
        adapter: what is trained of the network.
    """

    strength: float = 10.0
    adapter: Adapter = field(default_factory=Full)
    about: ClassVar[str] = "all trainable weights, held by the Fisher of earlier tasks"

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
        return train_in_turn(
            backbone, stream, self.adapter, settings, Consolidated(self.strength, settings.precision), progress
        )


def fisher_at(
    here: Backbone,
    head: Head,
    task: Task,
    precision: Precision,
    generator: torch.Generator,
    progress: Progress = silent,
) -> DiagonalFisher:
    """Of a task's images, where the network stands now."""
    images, phase = task.train.pixels(here.preprocessing), f"{task.name}: Fisher"
    with closing(normalized(images, here.preprocessing, here.device, progress=progress, phase=phase)) as batches:
        return diagonal_fisher(here, head, batches, generator=generator, precision=precision)


def added(sums: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum by name; rows that ``sums`` does not have yet count zero there."""
    found: dict[str, Tensor] = {}
    for name, value in new.items():
        found[name] = value.clone()
        if name in sums:
            found[name][: len(sums[name])] += sums[name]
    return found

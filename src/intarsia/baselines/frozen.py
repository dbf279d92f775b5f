"""No training at all: theta0's features and the discriminant of the class statistics."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from intarsia.backbones.backbone import Backbone
from intarsia.baselines.protocol import TaskResult, classifier
from intarsia.class_stats.gaussians import Gaussians
from intarsia.data.stream import TaskStream
from intarsia.heads.discriminant import discriminant
from intarsia.progress import Progress, Timings, silent
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of


@dataclass(frozen=True)
class Frozen:
    """The classes' means, their common covariance and a part of each one's own, task by task."""

    about: ClassVar[str] = "no training: discriminant of theta0's features"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``; of the settings only ``class_balanced`` and ``precision`` matter."""
        stream.decode(backbone.preprocessing, progress)
        seen: Gaussians | None = None
        classes: dict[str, tuple[str, ...]] = {}
        for task in stream:
            timings, classes = Timings(), {**classes, task.name: task.classes}
            features, labels = features_of(backbone, task, settings.precision, progress), task.train.labels
            own = Gaussians.of(features, labels, len(task.classes), shrunken=settings.class_balanced)
            seen = own if seen is None else Gaussians.join([seen, own])
            head = discriminant(seen)
            timings.lap("set-up")
            model = classifier(backbone, backbone.model, head, classes)
            own_factors = 0 if seen.factors is None else seen.factors.numel()
            stored = seen.centres.numel() + seen.scatter.numel() + own_factors
            yield TaskResult(model, timings.seconds["set-up"], 0.0, stored)

"""One network that goes from task to task: what fine-tuning, EWC and DER++ share.

The head grows with the classes, its new rows pre-tuned on the features of their task; the loss is
the cross-entropy over all classes seen. What a method does against forgetting is its *strategy*: a term in the loss,
and something it remembers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.protocol import TaskResult, classifier, count
from intarsia.data.choices import Augmentation
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.head import Head
from intarsia.heads.trained_head import TrainableHead
from intarsia.merging.merge import moved_by
from intarsia.merging.model import ComposedModel
from intarsia.progress import Progress, Timings
from intarsia.training.loop import Loss, adamw, network_to_train, train, training_batch
from intarsia.training.schedule import Batch, Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of, fresh_head


@dataclass(frozen=True)
class ModelInTraining:
    """The network while a task is trained.

    Args:
        backbone: theta0, the adapter attached.
        network: images -> features.
        adapter: its trainable side.
        head: of all classes seen, this task's last.
        settings: of the training.
        augmentation: of the stream.
        generator: of everything random in this task's training.
    """

    backbone: Backbone
    network: Callable[[Tensor], Tensor]
    adapter: Attachment
    head: TrainableHead
    settings: Settings
    augmentation: Augmentation
    generator: torch.Generator

    def logits(self, images: Tensor) -> Tensor:
        """(B, C) of uint8 images (B, channels, R, R), augmented and normalised, with a graph."""
        x = training_batch(images, self.backbone, self.augmentation, self.generator)
        return self.head(self.network(x).to(self.head.weight.dtype))


class Strategy:
    """What a method does against forgetting; this one does nothing."""

    @property
    def images(self) -> int:
        """Old images kept."""
        return 0

    def stored(self) -> int:
        """Numbers kept beside the network."""
        return 0

    def loss(self, model: ModelInTraining) -> Tensor | None:
        """Added to the cross-entropy of a batch."""
        return None

    def see(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """A batch was trained on for the last time: uint8 images, labels among all classes seen, the logits it had."""

    def learned(
        self, task: Task, backbone: Backbone, model: ComposedModel, generator: torch.Generator, progress: Progress
    ) -> None:
        """The task is learned; ``model`` answers now."""


def train_in_turn(
    backbone: Backbone, stream: TaskStream, adapter: Adapter, settings: Settings, strategy: Strategy, progress: Progress
) -> Iterator[TaskResult]:
    """Train one network on task after task; it answers after each.

    Args:
        backbone: theta0.
        stream: the tasks.
        adapter: what is trained of it.
        settings: of the training.
        strategy: what is done against forgetting.
        progress: told how far the work is.
    """
    stream.decode(backbone.preprocessing, progress)
    head: Head | None = None
    state: dict[str, Tensor] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for number, task in enumerate(stream, start=1):
        timings, classes = Timings(), {**classes, task.name: task.classes}
        seeds = Seeds(settings.seed, number)
        with backbone.attach(adapter, Seeds(settings.seed, 1).generator("adapter")) as attached:
            attached.load(state or attached.state())
            fresh = new_head(backbone, features_of(backbone, task, settings.precision, progress), task, settings, seeds)
            head = fresh if head is None else Head.join([head, fresh])
            timings.lap("set-up")
            model = ModelInTraining(
                backbone,
                network_to_train(backbone, settings),
                attached,
                TrainableHead(head),
                settings,
                stream.augmentation,
                seeds.generator("training"),
            )
            _train(model, task, strategy, progress)
            head, state, vector = model.head.trained(), attached.state(), attached.vector()
        timings.lap("training")
        network = moved_by(backbone, vector)
        answering = classifier(backbone, network, head, classes)
        strategy.learned(task, backbone, answering, seeds.generator("keeper"), progress)
        timings.lap("set-up")
        stored = count(state, head.tensors()) + strategy.stored()
        seconds = timings.seconds
        yield TaskResult(answering, seconds["set-up"], seconds["training"], stored, strategy.images)


def new_head(backbone: Backbone, features: Tensor, task: Task, settings: Settings, seeds: Seeds) -> Head:
    """A head for the task's classes, pre-tuned on the features (N, D) of its images, on the backbone's device."""
    made = fresh_head(features, task.train.labels, len(task.classes), settings, seeds.generator("heads"))
    return made.to(backbone.device)


def _train(model: ModelInTraining, task: Task, strategy: Strategy, progress: Progress) -> None:
    settings, head = model.settings, model.head
    images = task.train.pixels(model.backbone.preprocessing)
    labels = task.train.labels + len(head.weight) - len(task.classes)

    def loss(batch: Batch, own: Tensor) -> Loss:
        target = labels[batch.index]
        logits = model.logits(own)
        found, term = F.cross_entropy(logits, target.to(logits.device, non_blocking=True)), strategy.loss(model)
        if batch.epoch == settings.epochs - 1:
            strategy.see(own, target, logits.detach())
        return Loss(found, term)

    optimizer = adamw(settings, [*model.adapter.parameters(), *head.parameters()])
    train(optimizer, settings, images, labels, model.generator, loss, name=task.name, progress=progress)

"""One network that goes from task to task: what fine-tuning, EWC and DER++ share.

The head grows with the classes, its new rows pre-tuned on the features of their task, as those of ITA are; the loss is
the cross-entropy over all classes seen. What a method does so as not to forget is its *keeper*: a term in the loss, and
something it remembers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters.attachment import Attachment
from intarsia.baselines.fitting import fit
from intarsia.baselines.stage import Stage, classifier, numbers
from intarsia.data.stream import Task
from intarsia.heads.head import Head
from intarsia.merging.merge import moved
from intarsia.merging.model import ComposedModel
from intarsia.progress import Timings
from intarsia.training.preparation import fresh_head
from intarsia.training.run import Run
from intarsia.training.schedule import Batch


@dataclass(frozen=True)
class Student:
    """The network while a task is trained.

    Args:
        run: the run.
        network: images -> features, the adapter attached.
        adapter: its trainable side.
        head: of all classes seen, this task's last.
        generator: of everything random in this task's training.
    """

    run: Run
    network: nn.Module
    adapter: Attachment
    head: "GrowingHead"
    generator: torch.Generator

    def logits(self, images: Tensor) -> Tensor:
        """(B, C) of uint8 images (B, channels, R, R), augmented and normalised, with a graph."""
        with self.run.arithmetic():
            features = self.network(self.run.varied(images, self.generator))
        return self.head(features.to(self.head.weight.dtype))


class Keeper:
    """What a method does against forgetting; this one does nothing."""

    @property
    def images(self) -> int:
        """Old images kept."""
        return 0

    def numbers(self) -> int:
        """Numbers kept beside the network."""
        return 0

    def loss(self, student: Student) -> Tensor | None:
        """Added to the cross-entropy of a batch."""
        return None

    def see(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """A batch was trained on for the last time: uint8 images, labels among all classes seen, the logits it had."""

    def learned(self, task: Task, run: Run, model: ComposedModel, generator: torch.Generator) -> None:
        """The task is learned; ``model`` answers now."""


class GrowingHead(nn.Module):
    """A linear head to which every task adds rows."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.weight = nn.Parameter(head.weight.clone())
        self.bias = nn.Parameter(head.bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C)."""
        return F.linear(features, self.weight, self.bias)

    def trained(self) -> Head:
        """As it stands."""
        return Head(self.weight.detach().clone(), self.bias.detach().clone())


def train_in_turn(run: Run, keeper: Keeper) -> Iterator[Stage]:
    """Train one network on task after task; it answers after each.

    Args:
        run: backbone, adapter, training and stream; its regularizer has no say.
        keeper: what is done against forgetting.
    """
    head: Head | None = None
    state: dict[str, Tensor] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for number, task in enumerate(run.stream, start=1):
        timings, classes = Timings(), {**classes, task.name: task.classes}
        with run.backbone.attach(run.adapter, run.generator(1, "adapter")) as adapter:
            adapter.load(state or adapter.state())
            features = run.features(task.name, task.train.tensor(run.backbone.preprocessing))
            fresh = new_head(run, features, task, number)
            head = fresh if head is None else Head.join([head, fresh])
            timings.lap("set-up")
            student = Student(run, run.trained_network(), adapter, GrowingHead(head), run.generator(number, "training"))
            _train(student, task, keeper)
            head, state, vector = student.head.trained(), adapter.state(), adapter.vector()
        timings.lap("training")
        network = moved(run.backbone, lambda name, _, taus=vector: taus[name])
        model = classifier(run.backbone, network, head, classes)
        keeper.learned(task, run, model, run.generator(number, "keeper"))
        timings.lap("set-up")
        kept = numbers(state, head.tensors()) + keeper.numbers()
        yield Stage(model, timings.seconds["set-up"], timings.seconds["training"], kept, keeper.images)


def new_head(run: Run, features: Tensor, task: Task, number: int) -> Head:
    """A head for the task's classes, pre-tuned on the features (N, D) of its images, on the backbone's device."""
    made = fresh_head(run, features, task.train.labels, len(task.classes), run.generator(number, "heads"))
    return made.to(run.backbone.device)


def _train(student: Student, task: Task, keeper: Keeper) -> None:
    run, head = student.run, student.head
    images = task.train.tensor(run.backbone.preprocessing)
    labels = task.train.labels + len(head.weight) - len(task.classes)

    def loss(batch: Batch) -> Tensor:
        own, target = images[batch.index], labels[batch.index]
        logits = student.logits(own)
        found, term = F.cross_entropy(logits, target.to(logits.device)), keeper.loss(student)
        if batch.epoch == run.training.epochs - 1:
            keeper.see(own, target, logits.detach())
        return found if term is None else found + term

    fit(run, task, [*student.adapter.parameters(), *head.parameters()], student.generator, loss)

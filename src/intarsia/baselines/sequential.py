"""One network that goes from task to task: what fine-tuning, EWC and DER++ share.

The head grows with the classes, the loss is the cross-entropy over all classes seen. What a method does so as not to
forget is its *keeper*: a term in the loss, and something it remembers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters import Attachment
from intarsia.augmentation import augment
from intarsia.baselines.stage import NetworkClassifier, Stage, numbers
from intarsia.composition import moved
from intarsia.heads import Head
from intarsia.run import Laps, Run
from intarsia.schedule import batches
from intarsia.stream import Task
from intarsia.tuning import finite


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
        run = self.run
        kind = run.stream.augmentation if run.training.augment else "none"
        x = augment(images, kind, run.backbone.preprocessing, self.generator).to(run.backbone.device)
        with run.arithmetic():
            features = self.network(x)
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

    def learned(self, task: Task, run: Run, model: NetworkClassifier, generator: torch.Generator) -> None:
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
        laps, classes = Laps(), {**classes, task.name: task.classes}
        head = _grown(run, head, task, number)
        with run.backbone.attach(run.adapter, run.generator(1, "adapter")) as adapter:
            adapter.load(state or adapter.state())
            student = Student(run, run.trained_network(), adapter, GrowingHead(head), run.generator(number, "training"))
            _train(student, task, keeper)
            head, state, vector = student.head.trained(), adapter.state(), adapter.vector()
        laps.lap("training")
        network = moved(run.backbone, lambda name, _, taus=vector: taus[name])
        model = NetworkClassifier(network, head, classes, run.backbone.preprocessing)
        keeper.learned(task, run, model, run.generator(number, "keeper"))
        laps.lap("keeper")
        kept = numbers(state, head.tensors()) + keeper.numbers()
        yield Stage(model, laps.seconds["keeper"], laps.seconds["training"], kept, keeper.images)


def _grown(run: Run, head: Head | None, task: Task, number: int) -> Head:
    """With rows for the task's classes."""
    width = run.features(task.name, task.train.tensor(run.backbone.preprocessing)[:1]).shape[1]
    fresh = Head.random(len(task.classes), width, run.generator(number, "heads")).to(run.backbone.device)
    return fresh if head is None else Head.join([head, fresh])


def _train(student: Student, task: Task, keeper: Keeper) -> None:
    run, head = student.run, student.head
    images = task.train.tensor(run.backbone.preprocessing)
    labels = task.train.labels + len(head.weight) - len(task.classes)
    parameters = [*student.adapter.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=run.training.lr, weight_decay=run.training.weight_decay, foreach=True)
    for batch in batches(run.training, len(images), student.generator):
        batch.set_rate(optimizer)
        own, target = images[batch.index], labels[batch.index]
        logits = student.logits(own)
        loss = F.cross_entropy(logits, target.to(logits.device))
        finite(run, loss, task.name, batch.epoch)
        if (term := keeper.loss(student)) is not None:
            loss = loss + term
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if batch.epoch == run.training.epochs - 1:
            keeper.see(own, target, logits.detach())
        if batch.ends_epoch:
            run.progress(task.name, "training", batch.epoch + 1, run.training.epochs)

"""TMC, tangent model composition (Liu and Soatto, arXiv 2307.08114): models linear in their weights, averaged.

Each task trains, alone, the network linearised at theta0,

    f(x) = W0 (phi(x) + J(x) tau) + dW phi(x) + b,        J(x) = d phi / d theta at theta0,

phi the features, W0 a head pre-tuned on the task. The answer of the mean of several task vectors is then exactly the
mean of their answers; the heads of all tasks stand beside each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters import Full
from intarsia.backbone import Backbone
from intarsia.baselines.fitting import fit
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage, numbers
from intarsia.composed_model import answers
from intarsia.config import Training
from intarsia.editing import NEGATED, Editable
from intarsia.heads import Head
from intarsia.images import Preprocessing
from intarsia.preparation import fresh_head
from intarsia.run import Laps, Progress, Run, silent
from intarsia.schedule import Batch
from intarsia.stream import Task, TaskStream
from intarsia.tangent import Tangent
from intarsia.task_vector import TaskVector


@dataclass(frozen=True)
class TangentHead:
    """The linearised last layer of one task: W0 (C, D), its change and its bias."""

    start: Tensor
    change: Tensor
    bias: Tensor

    def __call__(self, features: Tensor, derivative: Tensor) -> Tensor:
        """Logits (B, C)."""
        return F.linear(features + derivative, self.start, self.bias) + features @ self.change.T


@dataclass(frozen=True)
class TangentClassifier:
    """A linearised network and the heads of its tasks.

    Args:
        tangent: of the backbone.
        vectors: task -> its vector; their mean answers.
        heads: task -> its head.
        classes: task -> class names; the tasks that it answers with, in the order of the logits.
        preprocessing: how images are prepared.
    """

    tangent: Tangent
    vectors: Mapping[str, TaskVector]
    heads: Mapping[str, TangentHead]
    classes: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing

    @cached_property
    def vector(self) -> TaskVector:
        """Mean of the task vectors."""
        first, *others = self.vectors.values()
        return sum(others, start=first) * (1 / len(self.vectors))

    def specialize(self, task: str) -> "TangentClassifier":
        """The task's vector alone, the heads of all."""
        return replace(self, vectors={task: self.vectors[task]})

    def unlearn(self, task: str) -> "TangentClassifier":
        """The mean of the others, the task's classes gone."""
        vectors, classes = ({t: v for t, v in of.items() if t != task} for of in (self.vectors, self.classes))
        return replace(self, vectors=vectors, classes=classes)

    def negate(self, task: str, scale: float) -> "TangentClassifier":
        """The mean minus ``scale`` times the task's vector, all heads kept."""
        return replace(self, vectors={"negated": self.vector + self.vectors[task] * -scale})

    def logits(self, images: Tensor) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R)."""

        def joined(x: Tensor) -> Tensor:
            features, derivative = self.tangent(x, self.vector)
            return torch.cat([self.heads[task](features, derivative) for task in self.classes], 1)

        return answers(joined, images, self.preprocessing, self.tangent.backbone.device)


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    training: Training | None = None,
    progress: Progress = silent,
) -> Iterator[Stage]:
    """Train a tangent model for every task, alone, and average them.

    Args:
        backbone: theta0.
        stream: the tasks.
        training: epochs, batches, learning rate, seed.
        progress: told how far the work is.

    Yields:
        The mean of the models after each task.
    """
    run = plain_run(backbone, stream, Full(), training, progress)
    vectors: dict[str, TaskVector] = {}
    heads: dict[str, TangentHead] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for number, task in enumerate(run.stream, start=1):
        laps, classes = Laps(), {**classes, task.name: task.classes}
        start = _pretuned(run, task, number)
        laps.lap("set-up")
        vectors[task.name], heads[task.name] = _train(run, task, start, number)
        laps.lap("training")
        model = TangentClassifier(Tangent(backbone), dict(vectors), dict(heads), classes, backbone.preprocessing)
        kept = numbers(*vectors.values(), *(vars(head) for head in heads.values()))
        modules = Editable.of(model, model.specialize, partial(model.negate, scale=NEGATED), model.unlearn)
        last = number == len(run.stream)
        yield Stage(model, laps.seconds["set-up"], laps.seconds["training"], kept, modules=modules if last else None)


def _pretuned(run: Run, task: Task, number: int) -> Head:
    features = run.features(task.name, task.train.tensor(run.backbone.preprocessing))
    made = fresh_head(run, features, task.train.labels, len(task.classes), run.generator(number, "heads"))
    return made.to(run.backbone.device)


def _train(run: Run, task: Task, start: Head, number: int) -> tuple[TaskVector, TangentHead]:
    tangent, generator = Tangent(run.backbone), run.generator(number, "training")
    images, labels = task.train.tensor(run.backbone.preprocessing), task.train.labels
    tau = {name: nn.Parameter(torch.zeros_like(w)) for name, w in run.backbone.tuned.items()}
    change, bias = nn.Parameter(torch.zeros_like(start.weight)), nn.Parameter(start.bias.clone())

    def loss(batch: Batch) -> Tensor:
        features = tangent(run.varied(images[batch.index], generator), tau)
        logits = TangentHead(start.weight, change, bias)(*features)
        return F.cross_entropy(logits, labels[batch.index].to(logits.device))

    fit(run, task, [*tau.values(), change, bias], generator, loss)
    vector = TaskVector({name: p.detach().clone() for name, p in tau.items()})
    return vector, TangentHead(start.weight, change.detach().clone(), bias.detach().clone())

"""TMC, tangent model composition (Liu and Soatto, arXiv 2307.08114): models linear in their weights, averaged.

Each task trains, alone, the network linearised at theta0,

    f(x) = W0 (phi(x) + J(x) tau) + dW phi(x) + b,        J(x) = d phi / d theta at theta0,

phi the features, W0 a head fitted to the task's features, under the authors' rescaled square loss

    L = 1/C sum_c (f_c(x) - 15 [c = y])^2,

which says how large an answer is, so that tasks trained apart are comparable; W0 is fitted in closed form, by ridge
regression. Vectors and what training added to the heads are averaged; rows that a task does not train stay at their W0.
The answer of the mean is then exactly the mean of the answers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters.full import Full
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import Pixels, outputs
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.baselines.protocol import TaskResult, count
from intarsia.curvature.linearized import Tangent
from intarsia.data.choices import Augmentation
from intarsia.data.stream import Task, TaskStream
from intarsia.evaluation.editing import NEGATED, Editable
from intarsia.heads.head import Head
from intarsia.progress import Progress, Timings, silent
from intarsia.task_vector import TaskVector, weighted_sum
from intarsia.training.loop import Loss, adamw, train, training_batch
from intarsia.training.schedule import Batch, Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of

TARGET = 15.0
"""What the loss asks of the answer for an image's own class; zero of the others."""


RIDGE = 0.1
"""Of the regression W0 comes from, on summed squares."""


@dataclass(frozen=True)
class TangentHead:
    """The linearised last layer of one task: W0 (C, D) and its bias (C,), and what training added to them."""

    start: Tensor
    bias: Tensor
    change: Tensor
    bias_change: Tensor

    def __call__(self, features: Tensor, derivative: Tensor, part: float) -> Tensor:
        """Logits (B, C), with that part of the changes."""
        features, derivative = features.to(self.start.dtype), derivative.to(self.start.dtype)
        bias = self.bias + part * self.bias_change
        return F.linear(features + derivative, self.start, bias) + part * (features @ self.change.T)


@dataclass(frozen=True)
class TangentClassifier:
    """A linearised network and the heads of its tasks; the mean of the tasks' models unless weights are given.

    Args:
        tangent: of the backbone.
        vectors: task -> its vector.
        heads: task -> its head.
        classes: task -> class names; the tasks that it answers with, in the order of the logits.
        preprocessing: how images are prepared.
        weights: task -> how much of its vector; a T-th of each if None.
        parts: task -> how much of its head's changes; a T-th of each if None.
    """

    tangent: Tangent
    vectors: Mapping[str, TaskVector]
    heads: Mapping[str, TangentHead]
    classes: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing
    weights: Mapping[str, float] | None = None
    parts: Mapping[str, float] | None = None

    @property
    def _mean(self) -> dict[str, float]:
        return dict.fromkeys(self.vectors, 1 / len(self.vectors))

    @cached_property
    def vector(self) -> TaskVector:
        """The weighted sum of the task vectors."""
        weights = self.weights or self._mean
        return weighted_sum((self.vectors[task] for task in weights), weights.values())

    def specialize(self, task: str) -> "TangentClassifier":
        """The task's model alone, the heads of all."""
        return replace(self, weights={task: 1.0}, parts={task: 1.0})

    def unlearn(self, task: str) -> "TangentClassifier":
        """The mean of the others, the task's classes gone."""
        vectors, classes = ({t: v for t, v in of.items() if t != task} for of in (self.vectors, self.classes))
        return replace(self, vectors=vectors, classes=classes)

    def negate(self, task: str, scale: float) -> "TangentClassifier":
        """The mean minus ``scale`` times the task's vector, all heads kept."""
        return replace(self, weights={**self._mean, task: self._mean[task] - scale})

    def logits(self, images: Pixels) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R)."""
        parts = self.parts or self._mean

        def joined(x: Tensor) -> Tensor:
            features, derivative = self.tangent(x, self.vector)
            return torch.cat([self.heads[t](features, derivative, parts.get(t, 0.0)) for t in self.classes], 1)

        return outputs(joined, images, self.preprocessing, self.tangent.backbone.device)


@dataclass(frozen=True)
class TMC:
    """A tangent model for every task, trained alone; their mean answers."""

    about: ClassVar[str] = "tangent models, their mean"
    adapter: ClassVar[Adapter] = Full()
    """What is trained of the network."""

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
        stream.decode(backbone.preprocessing, progress)
        vectors: dict[str, TaskVector] = {}
        heads: dict[str, TangentHead] = {}
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            start = least_squares(features_of(backbone, task, settings.precision, progress), task.train.labels).to(
                backbone.device
            )
            timings.lap("set-up")
            generator = Seeds(settings.seed, number).generator("training")
            trained = _train(backbone, task, start, settings, stream.augmentation, generator, progress)
            vectors[task.name], heads[task.name] = trained
            timings.lap("training")
            model = TangentClassifier(Tangent(backbone), dict(vectors), dict(heads), classes, backbone.preprocessing)
            stored = count(*vectors.values(), *(vars(head) for head in heads.values()))
            modules = None
            if number == len(stream):
                modules = Editable.of(model, model.specialize, partial(model.negate, scale=NEGATED), model.unlearn)
            seconds = timings.seconds
            yield TaskResult(model, seconds["set-up"], seconds["training"], stored, modules=modules)


def targets(labels: Tensor, classes: int) -> Tensor:
    """(N, C) of labels (N,)."""
    return TARGET * F.one_hot(labels, classes).float()


def least_squares(features: Tensor, labels: Tensor) -> Head:
    """The head with the least square loss on features (N, D) with labels (N,), plus ``RIDGE`` |W|^2."""
    from sklearn.linear_model import Ridge  # noqa: PLC0415  slow to import

    found = Ridge(RIDGE).fit(features.double(), targets(labels, int(labels.max()) + 1))
    weight, bias = (torch.from_numpy(part).float() for part in (found.coef_, found.intercept_))
    return Head(weight.reshape(-1, features.shape[1]), bias.reshape(-1))


def _train(
    backbone: Backbone,
    task: Task,
    start: Head,
    settings: Settings,
    augmentation: Augmentation,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[TaskVector, TangentHead]:
    tangent = Tangent(backbone)
    images, wanted = task.train.pixels(backbone.preprocessing), targets(task.train.labels, len(task.classes))
    tau = {name: nn.Parameter(torch.zeros_like(w)) for name, w in backbone.trainable.items()}
    change, more = nn.Parameter(torch.zeros_like(start.weight)), nn.Parameter(torch.zeros_like(start.bias))

    def loss(batch: Batch, own: Tensor) -> Loss:
        x = training_batch(own, backbone, augmentation, generator)
        logits = TangentHead(start.weight, start.bias, change, more)(*tangent(x, tau), part=1.0)
        return Loss(F.mse_loss(logits, wanted[batch.index].to(logits.device, non_blocking=True)))

    optimizer = adamw(settings, [*tau.values(), change, more])
    train(optimizer, settings, images, task.train.labels, generator, loss, name=task.name, progress=progress)
    vector = TaskVector({name: p.detach().clone() for name, p in tau.items()})
    return vector, TangentHead(start.weight, start.bias, change.detach().clone(), more.detach().clone())

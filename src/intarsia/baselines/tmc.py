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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters.full import Full
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.baselines.fitting import fit
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage, numbers
from intarsia.curvature.linearized import Tangent
from intarsia.data.stream import Task, TaskStream
from intarsia.evaluation.editing import NEGATED, Editable
from intarsia.heads.head import Head
from intarsia.merging.model import answers
from intarsia.progress import Progress, Timings, silent
from intarsia.task_vector import TaskVector
from intarsia.training.run import Run
from intarsia.training.schedule import Batch
from intarsia.training.settings import Settings

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
        first, *others = (self.vectors[task] * w for task, w in (self.weights or self._mean).items())
        return sum(others, start=first)

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

    def logits(self, images: Tensor) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R)."""
        parts = self.parts or self._mean

        def joined(x: Tensor) -> Tensor:
            features, derivative = self.tangent(x, self.vector)
            return torch.cat([self.heads[t](features, derivative, parts.get(t, 0.0)) for t in self.classes], 1)

        return answers(joined, images, self.preprocessing, self.tangent.backbone.device)


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    training: Settings | None = None,
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
        timings, classes = Timings(), {**classes, task.name: task.classes}
        start = least_squares(run.features(task.name, task.train.tensor(backbone.preprocessing)), task.train.labels)
        timings.lap("set-up")
        vectors[task.name], heads[task.name] = _train(run, task, start.to(backbone.device), number)
        timings.lap("training")
        model = TangentClassifier(Tangent(backbone), dict(vectors), dict(heads), classes, backbone.preprocessing)
        kept = numbers(*vectors.values(), *(vars(head) for head in heads.values()))
        modules = Editable.of(model, model.specialize, partial(model.negate, scale=NEGATED), model.unlearn)
        last = number == len(run.stream)
        yield Stage(
            model, timings.seconds["set-up"], timings.seconds["training"], kept, modules=modules if last else None
        )


def targets(labels: Tensor, classes: int) -> Tensor:
    """(N, C) of labels (N,)."""
    return TARGET * F.one_hot(labels, classes).float()


def least_squares(features: Tensor, labels: Tensor) -> Head:
    """The head with the least square loss on features (N, D) with labels (N,), plus ``RIDGE`` |W|^2."""
    from sklearn.linear_model import Ridge  # noqa: PLC0415  slow to import

    found = Ridge(RIDGE).fit(features.double(), targets(labels, int(labels.max()) + 1))
    weight, bias = (torch.from_numpy(part).float() for part in (found.coef_, found.intercept_))
    return Head(weight.reshape(-1, features.shape[1]), bias.reshape(-1))


def _train(run: Run, task: Task, start: Head, number: int) -> tuple[TaskVector, TangentHead]:
    tangent, generator = Tangent(run.backbone), run.generator(number, "training")
    images, wanted = task.train.tensor(run.backbone.preprocessing), targets(task.train.labels, len(task.classes))
    tau = {name: nn.Parameter(torch.zeros_like(w)) for name, w in run.backbone.tuned.items()}
    change, more = nn.Parameter(torch.zeros_like(start.weight)), nn.Parameter(torch.zeros_like(start.bias))

    def loss(batch: Batch) -> Tensor:
        features = tangent(run.varied(images[batch.index], generator), tau)
        logits = TangentHead(start.weight, start.bias, change, more)(*features, part=1.0)
        return F.mse_loss(logits, wanted[batch.index].to(logits.device))

    fit(run, task, [*tau.values(), change, more], generator, loss)
    vector = TaskVector({name: p.detach().clone() for name, p in tau.items()})
    return vector, TangentHead(start.weight, start.bias, change.detach().clone(), more.detach().clone())

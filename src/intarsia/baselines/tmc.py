"""TMC, tangent model composition (Liu and Soatto, arXiv 2307.08114): models linear in their weights, averaged.

Each task trains, alone, the network linearised at theta0,

    f(x) = W0 (phi(x) + J(x) tau) + dW phi(x) + b,        J(x) = d phi / d theta at theta0,

phi the features, W0 a head pre-tuned on the task. The answer of the mean of several task vectors is then exactly the
mean of their answers; the heads of all tasks stand beside each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from intarsia.adapters import Full
from intarsia.augmentation import augment
from intarsia.backbone import Backbone
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage, numbers
from intarsia.composition import PREDICT_BATCH
from intarsia.config import Training
from intarsia.heads import Head, pretune
from intarsia.images import Preprocessing
from intarsia.run import Laps, Progress, Run, silent
from intarsia.schedule import batches
from intarsia.stream import Task, TaskStream
from intarsia.task_vector import TaskVector
from intarsia.tuning import finite


@dataclass(frozen=True)
class Tangent:
    """The features of a network and their derivative along a task vector, at theta0."""

    backbone: Backbone

    def __call__(self, images: Tensor, tau: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Phi (B, D) and J tau (B, D) of normalised images (B, C, H, W); differentiable in tau.

        Args:
            images: on the backbone's device.
            tau: by weight name, (O, I) each.
        """
        theta0 = {f"{path}.weight": self.backbone.tuned[name] for name, path in self.backbone.targets.items()}
        along = {f"{path}.weight": tau[name] for name, path in self.backbone.targets.items()}

        def phi(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(self.backbone.model, weights, (images,))

        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward-mode derivative
            features, derivative, *_ = jvp(phi, (theta0,), (along,))
        return features, derivative


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
        vector: mean of the task vectors.
        heads: of each task, in order.
        classes: task -> class names, in the heads' order.
        preprocessing: how images are prepared.
    """

    tangent: Tangent
    vector: TaskVector
    heads: tuple[TangentHead, ...]
    classes: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R)."""
        found: list[Tensor] = []
        for some in images.split(PREDICT_BATCH):
            x = self.preprocessing.normalize(some.to(self.tangent.backbone.device))
            features, derivative = self.tangent(x, self.vector)
            found.append(torch.cat([head(features, derivative) for head in self.heads], 1).cpu())
        return torch.cat(found)


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
    total: TaskVector | None = None
    heads: list[TangentHead] = []
    classes: dict[str, tuple[str, ...]] = {}
    for number, task in enumerate(run.stream, start=1):
        laps, classes = Laps(), {**classes, task.name: task.classes}
        start = _pretuned(run, task, number)
        laps.lap("set-up")
        vector, head = _train(run, task, start, number)
        laps.lap("training")
        total = vector if total is None else total + vector
        heads.append(head)
        model = TangentClassifier(
            Tangent(backbone), total * (1 / number), tuple(heads), classes, backbone.preprocessing
        )
        kept = number * numbers(vector) + sum(numbers(vars(h)) for h in heads)
        yield Stage(model, laps.seconds["set-up"], laps.seconds["training"], kept)


def _pretuned(run: Run, task: Task, number: int) -> Head:
    features = run.features(task.name, task.train.tensor(run.backbone.preprocessing))
    generator, training = run.generator(number, "heads"), run.training
    return pretune(
        Head.random(len(task.classes), features.shape[1], generator),
        features,
        task.train.labels,
        epochs=training.pretune_epochs,
        lr=training.pretune_lr,
        batch_size=training.batch_size,
        generator=generator,
    ).to(run.backbone.device)


def _train(run: Run, task: Task, start: Head, number: int) -> tuple[TaskVector, TangentHead]:
    training, backbone, tangent = run.training, run.backbone, Tangent(run.backbone)
    images, labels = task.train.tensor(backbone.preprocessing), task.train.labels
    kind, generator = run.stream.augmentation if training.augment else "none", run.generator(number, "training")
    tau = {name: nn.Parameter(torch.zeros_like(w)) for name, w in backbone.tuned.items()}
    change, bias = nn.Parameter(torch.zeros_like(start.weight)), nn.Parameter(start.bias.clone())
    parameters = [*tau.values(), change, bias]
    optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, foreach=True)
    for batch in batches(training, len(images), generator):
        batch.set_rate(optimizer)
        x = augment(images[batch.index], kind, backbone.preprocessing, generator).to(backbone.device)
        logits = TangentHead(start.weight, change, bias)(*tangent(x, tau))
        loss = F.cross_entropy(logits, labels[batch.index].to(logits.device))
        finite(run, loss, task.name, batch.epoch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if batch.ends_epoch:
            run.progress(task.name, "training", batch.epoch + 1, training.epochs)
    vector = TaskVector({name: p.detach().clone() for name, p in tau.items()})
    return vector, TangentHead(start.weight, change.detach().clone(), bias.detach().clone())

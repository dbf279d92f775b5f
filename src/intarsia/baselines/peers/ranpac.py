"""RanPAC: ridge regression on random features (McDonnell et al., arXiv 2307.02251).

    h(x) = relu(phi(x) R),   G = sum_x h h^T,   C = sum_x h y^T,   W = (G + lambda I)^-1 C

phi are the features, R (D, M) is Gaussian and never trained, y one-hot. G and C are sums over images: in which order
tasks come does not matter, but for lambda, which is chosen at every task, on a held-out fifth of its images, by the
square loss. On the first task an adapter is trained; then the network stays. Lambdas are shares of G's mean diagonal
here, not absolute, so that the size of a network's features does not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.peers.fine_tuning import fine_tune, own_head
from intarsia.baselines.protocol import TaskResult, classifier, count, there
from intarsia.class_stats.shrinkage import moments, spread
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.head import Head
from intarsia.merging.merge import moved_by
from intarsia.numerics import wide
from intarsia.progress import Progress, Timings, silent
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of

RIDGES = tuple(10.0**power for power in range(-8, 2))
"""Lambdas to choose from, in units of G's mean diagonal."""
HELD_OUT = 0.2
CHUNK = 1024
"""Random features in float64 at a time."""


class RandomFeatures(nn.Module):
    """A network with the random layer behind it: images -> relu((phi(x) - shift) R), (B, M).

    Args:
        network: images -> features (B, D).
        projection: R (D, M), float32.
        shift: (D,).
    """

    projection: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, projection: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("projection", projection)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        """(B, M) of normalised images."""
        return self.random(self.network(images))

    def random(self, features: Tensor) -> Tensor:
        """(B, M) of features (B, D)."""
        return ((features.to(self.projection) - self.shift) @ self.projection).relu()


@dataclass(frozen=True)
class RidgeSums:
    """What ridge regression needs of images: sums over them.

    Args:
        gram: G (M, M) float64.
        moment: C (M, K) float64, a column per class.
    """

    gram: Tensor
    moment: Tensor

    def with_classes(self, classes: int) -> "RidgeSums":
        """With columns for so many classes more, of which no image was seen."""
        return RidgeSums(self.gram, F.pad(self.moment, (0, classes)))

    def add(self, features: Tensor, targets: Tensor) -> "RidgeSums":
        """With images of random features (N, M) and targets (N, K) more."""
        gram, moment = self.gram.clone(), self.moment.clone()
        for rows, wanted in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
            h = wide(rows)
            gram.addmm_(h.T, h)
            moment.addmm_(h.T, wanted.to(h))
        return RidgeSums(gram, moment)

    def solve(self, ridge: float) -> Tensor:
        """(G + lambda I)^-1 C (M, K), lambda = ridge times G's mean diagonal, or more where rounding needs it."""
        size = float(self.gram.diagonal().mean()) or 1.0
        while True:
            lifted = self.gram.clone()
            lifted.diagonal().add_(ridge * size)
            factor, failed = torch.linalg.cholesky_ex(lifted)
            if not int(failed):
                return torch.cholesky_solve(self.moment, factor)
            ridge *= 10

    def stored(self) -> int:
        """Numbers kept; of G one triangle."""
        width = len(self.gram)
        return width * (width + 1) // 2 + self.moment.numel()


def best_ridge(sums: RidgeSums, features: Tensor, targets: Tensor) -> float:
    """The ridge of ``RIDGES`` with the least square loss on held-out random features (N, M) and targets (N, K)."""
    h = wide(features)
    errors = [float((h @ sums.solve(ridge) - targets.to(h)).square().mean()) for ridge in RIDGES]
    return RIDGES[errors.index(min(errors))]


@dataclass(frozen=True)
class RanPAC:
    """A ridge regression on random features, after an adapter was trained on the first task.

    Args:
        width: M, random features.
        adapt: train the adapter on the first task; else nothing is trained.
        standardize: subtract the first task's mean feature and divide by the spreads: the paper's features come from
            networks where they are small in both.
        ridge: lambda in units of G's mean diagonal; chosen at every task if None.
        adapter: what is trained.
    """

    width: int = 2000
    adapt: bool = True
    standardize: bool = False
    ridge: float | None = None
    adapter: Adapter = field(default_factory=LoRA)
    about: ClassVar[str] = "ridge regression on random features, the network adapted to the first task"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``; training seconds are those of the first task's adapter."""
        stream.decode(backbone.preprocessing, progress)
        network, kept = backbone, 0
        layer: RandomFeatures | None = None
        sums: RidgeSums | None = None
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            seeds = Seeds(settings.seed, number)
            if self.adapt and number == 1:
                network, kept = self._adapted(backbone, task, stream, settings, seeds, progress)
                timings.lap("training")
            features = features_of(network, task, settings.precision, progress)
            if layer is None:
                layer = self._random_layer(network, features, Seeds(settings.seed).generator("projection"))
                kept += count(dict(layer.named_buffers(recurse=False)))
            sums = _empty(layer) if sums is None else sums
            sums, head = self._learned(sums, layer, features, task, seeds.generator("held-out"))
            timings.lap("set-up")
            model = classifier(backbone, layer, head, classes)
            stored = kept + sums.stored() + head.weight.numel()
            seconds = timings.seconds
            yield TaskResult(model, seconds["set-up"], seconds.get("training", 0.0), stored)

    def _adapted(
        self,
        backbone: Backbone,
        task: Task,
        stream: TaskStream,
        settings: Settings,
        seeds: Seeds,
        progress: Progress,
    ) -> tuple[Backbone, int]:
        """The network after the first task, and how many numbers its adapter has."""
        with backbone.attach(self.adapter, seeds.generator("adapter")) as adapter:
            head = own_head(backbone, task, settings, seeds, progress)
            fine_tune(backbone, adapter, head, task, stream, settings, seeds, progress)
            vector, kept = adapter.vector(), count(adapter.state())
        return there(backbone, moved_by(backbone, vector)), kept

    def _random_layer(self, network: Backbone, features: Tensor, generator: torch.Generator) -> RandomFeatures:
        """Behind the network, for features like those (N, D) of the first task."""
        projection = torch.randn(features.shape[1], self.width, generator=generator)
        shift = torch.zeros(features.shape[1])
        if self.standardize:
            mean, variance = moments(features)
            projection = projection / spread(variance, mean.square() + variance).float()[:, None]
            shift = mean.float()
        return RandomFeatures(network.model, projection.to(network.device), shift.to(network.device))

    def _learned(
        self, sums: RidgeSums, layer: RandomFeatures, features: Tensor, task: Task, generator: torch.Generator
    ) -> tuple[RidgeSums, Head]:
        """The sums with a task's images, of features (N, D), and the head they give."""
        known = sums.moment.shape[1]
        sums = sums.with_classes(len(task.classes))
        random = layer.random(features)
        targets = F.one_hot(task.train.labels + known, known + len(task.classes)).to(random)
        ridge = self.ridge
        if ridge is None:
            order = torch.randperm(len(random), generator=generator).to(random.device)
            some = max(1, int(HELD_OUT * len(order)))
            rest = sums.add(random[order[some:]], targets[order[some:]])
            ridge = best_ridge(rest, random[order[:some]], targets[order[:some]])
        sums = sums.add(random, targets)
        weight = sums.solve(ridge).T.to(layer.projection)
        return sums, Head(weight, weight.new_zeros(len(weight)))


def _empty(layer: RandomFeatures) -> RidgeSums:
    """Sums over no image, where float64 is."""
    width = layer.projection.shape[1]
    gram = wide(layer.projection).new_zeros(width, width)
    return RidgeSums(gram, gram[:, :0])

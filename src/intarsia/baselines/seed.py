"""SEED: a few experts, each new task trains only one of them, all answer together (Rypesc et al., arXiv 2401.10191).

Every expert ends in a linear layer to a few features (64, as the authors' networks do: a Gaussian with a covariance of
its own in all 192 would be mostly noise of 80 images), which begins as the principal axes of the features of the first
task it trains on. It keeps a Gaussian of each class it knows there. The first tasks train an expert each, from
theta0; a later one trains the expert in whose features its classes overlap least (largest mean symmetric
Kullback-Leibler divergence between them), held to what its features were by distillation:

    L = (1 - a) CE + a / d |phi(x) - phi_before(x)|^2

An image's class is the largest mean, over the experts that know it, of softmax(log p(phi_k(x) | c) / temperature).
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from intarsia.adapters.full import Full
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import Pixels, outputs
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.baselines.protocol import TaskResult, count
from intarsia.baselines.sequential import new_head
from intarsia.class_stats.shrinkage import basis_of
from intarsia.data.choices import Augmentation
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.head import Head
from intarsia.heads.trained_head import TrainableHead
from intarsia.merging.merge import moved_by
from intarsia.progress import Progress, Timings, silent
from intarsia.training.loop import Loss, adamw, network_to_train, train, training_batch
from intarsia.training.schedule import Batch, Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of


@dataclass(frozen=True)
class ClassGaussian:
    """N(mean, basis basis^T): mean (D,), basis (D, D) lower triangular; the covariance is shrunk (``basis_of``)."""

    mean: Tensor
    basis: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "ClassGaussian":
        """Of a class's features (N, D)."""
        features = features.double()
        away = features - features.mean(0)
        return cls(features.mean(0), basis_of(away.T @ away, max(len(features) - 1, 1)))

    def log_density(self, features: Tensor) -> Tensor:
        """Log p (N,) of features (N, D)."""
        return self._normal().log_prob(features.double())

    def divergence(self, other: "ClassGaussian") -> float:
        """KL(self | other)."""
        return float(kl_divergence(self._normal(), other._normal()))

    def _normal(self) -> MultivariateNormal:
        return MultivariateNormal(self.mean, scale_tril=self.basis, validate_args=False)


@dataclass
class Expert:
    """A network of its own, and the Gaussians of the classes it knows.

    Args:
        state: of its adapter; empty before any training.
        network: images -> features at its place.
        narrow: features (N, D) -> its own (N, d).
        known: class -> its Gaussian in them.
    """

    state: dict[str, Tensor]
    network: nn.Module
    narrow: nn.Linear
    known: dict[str, ClassGaussian] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, d) of normalised images."""
        return self.narrow(self.network(images).to(self.narrow.weight.dtype))

    def features(self, images: Pixels, preprocessing: Preprocessing) -> Tensor:
        """(N, d), on the CPU, of uint8 images."""
        return outputs(self, images, preprocessing, self.narrow.weight.device)

    def stored(self) -> int:
        """Of weights and Gaussians; a triangle is what is not zero of it."""
        triangles = sum(len(g.mean) * (len(g.mean) + 3) // 2 for g in self.known.values())
        return count(self.state, self.narrow.state_dict()) + triangles


@dataclass(frozen=True)
class Ensemble:
    """The experts' common answer.

    Args:
        experts: in the order they were made.
        classes: task -> class names.
        preprocessing: how images are prepared.
        temperature: of the softmax over an expert's log densities.
    """

    experts: tuple[Expert, ...]
    classes: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing
    temperature: float

    def logits(self, images: Pixels) -> Tensor:
        """Log of the mean probability (N, C), on the CPU, of uint8 images (N, channels, R, R)."""
        labels = [name for names in self.classes.values() for name in names]
        total, knowing = torch.zeros(len(images), len(labels), dtype=torch.float64), torch.zeros(len(labels))
        for expert in self.experts:
            features = expert.features(images, self.preprocessing)
            known = [place for place, name in enumerate(labels) if name in expert.known]
            densities = torch.stack([expert.known[labels[place]].log_density(features) for place in known], 1)
            total[:, known] += torch.softmax(densities / self.temperature, 1)
            knowing[known] += 1
        return (total / knowing).clamp_min(1e-300).log()


@dataclass(frozen=True)
class SEED:
    """An ensemble of experts, one of which is trained on each task.

    Args:
        experts: at most so many.
        distillation: a, the share of the old features in the loss of an expert that is trained again.
        temperature: of the softmax over log densities.
        width: d, features of an expert; fewer than a task has images, and no more than the backbone has.
        adapter: what is trained of an expert.
    """

    experts: int = 5
    distillation: float = 0.99
    temperature: float = 3.0
    width: int = 64
    adapter: Adapter = field(default_factory=Full)
    about: ClassVar[str] = "five experts of 64 features, Gaussians of the classes"

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
        made: list[Expert] = []
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            seeds, images = Seeds(settings.seed, number), task.train.pixels(backbone.preprocessing)
            if len(made) < self.experts:
                place = len(made)
                before, features = _untrained(
                    backbone, features_of(backbone, task, settings.precision, progress), self.width
                )
            else:
                seen = [expert.features(images, backbone.preprocessing) for expert in made]
                place = least_overlap([_gaussians(task, own) for own in seen])
                before, features = made[place], seen[place]
            head = new_head(backbone, features, task, settings, seeds)
            timings.lap("set-up")
            made[place : place + 1] = [
                self._trained(backbone, task, before, head, settings, stream.augmentation, seeds, progress)
            ]
            timings.lap("training")
            for expert in made:
                own = _gaussians(task, expert.features(images, backbone.preprocessing))
                expert.known |= dict(zip(task.classes, own, strict=True))
            timings.lap("set-up")
            model = Ensemble(tuple(made), classes, backbone.preprocessing, self.temperature)
            stored = sum(expert.stored() for expert in made)
            yield TaskResult(model, timings.seconds["set-up"], timings.seconds["training"], stored)

    def _trained(
        self,
        backbone: Backbone,
        task: Task,
        before: Expert,
        start: Head,
        settings: Settings,
        augmentation: Augmentation,
        seeds: Seeds,
        progress: Progress,
    ) -> Expert:
        """An expert after one more task; one that is trained again is held to what its features were."""
        generator, distillation = seeds.generator("training"), self.distillation if before.state else 0.0
        images, labels = task.train.pixels(backbone.preprocessing), task.train.labels
        head, narrow = TrainableHead(start), deepcopy(before.narrow).requires_grad_()
        with backbone.attach(self.adapter, seeds.generator("adapter")) as adapter:
            adapter.load(before.state or adapter.state())
            network = network_to_train(backbone, settings)

            def loss(batch: Batch, own: Tensor) -> Loss:
                x = training_batch(own, backbone, augmentation, generator)
                features = narrow(network(x).to(narrow.weight.dtype))
                found = F.cross_entropy(head(features), labels[batch.index].to(features.device, non_blocking=True))
                if not distillation:
                    return Loss(found)
                with torch.no_grad():
                    then = before(x)
                return Loss((1 - distillation) * found + distillation * F.mse_loss(features, then))

            optimizer = adamw(settings, [*adapter.parameters(), *narrow.parameters(), *head.parameters()])
            train(optimizer, settings, images, labels, generator, loss, name=task.name, progress=progress)
            state, vector = adapter.state(), adapter.vector()
        return Expert(state, moved_by(backbone, vector), narrow, dict(before.known))


def least_overlap(candidates: Sequence[Sequence[ClassGaussian]]) -> int:
    """Which expert tells a task's classes apart best: the largest mean symmetric divergence between them."""

    def apart(classes: Sequence[ClassGaussian]) -> float:
        pairs = [(a, b) for a in classes for b in classes if a is not b]
        return sum(a.divergence(b) for a, b in pairs) / max(len(pairs), 1)

    scores = [apart(classes) for classes in candidates]
    return scores.index(max(scores))


def _gaussians(task: Task, features: Tensor) -> list[ClassGaussian]:
    """Of the task's classes, from an expert's features (N, d) of its images."""
    return [ClassGaussian.of(features[task.train.labels == c]) for c in range(len(task.classes))]


def _untrained(backbone: Backbone, features: Tensor, width: int) -> tuple[Expert, Tensor]:
    """Theta0, narrowed to the principal axes of a task's features (N, D) there, and the narrowed features."""
    mean = features.mean(0)
    most = max(1, min(width, len(features) - 1))  # N images vary along N - 1 axes
    axes = torch.linalg.svd(features - mean, full_matrices=False).Vh[:most]
    narrow = nn.Linear(axes.shape[1], axes.shape[0]).requires_grad_(False)
    narrow.weight.copy_(axes)
    narrow.bias.copy_(-axes @ mean)
    narrowed = narrow(features)
    return Expert({}, backbone.model, narrow.to(backbone.device)), narrowed

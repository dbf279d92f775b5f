"""SEED: a few experts, each new task trains only one of them, all answer together (Rypesc et al., arXiv 2401.10191).

Every expert keeps a Gaussian of each class it knows, in its own features. The first tasks train an expert each, from
theta0; a later one trains the expert in whose features its classes overlap least (largest mean symmetric
Kullback-Leibler divergence between them), held to what its features were by distillation:

    L = (1 - a) CE + a |phi(x) - phi_before(x)|^2

An image's class is the largest mean, over the experts that know it, of softmax(log p(phi_k(x) | c) / temperature).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters import Adapter, Full
from intarsia.augmentation import augment
from intarsia.backbone import Backbone
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage, numbers
from intarsia.composition import PREDICT_BATCH, moved
from intarsia.config import Training
from intarsia.images import Preprocessing
from intarsia.run import Laps, Progress, Run, silent
from intarsia.schedule import batches
from intarsia.statistics import basis_of
from intarsia.stream import Task, TaskStream
from intarsia.tuning import finite


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
        z = torch.linalg.solve_triangular(self.basis, (features.double() - self.mean).T, upper=False)
        width = len(self.mean)
        volume = self.basis.diagonal().log().sum()
        return -0.5 * (z.square().sum(0) + width * torch.log(torch.tensor(2 * torch.pi))) - volume

    def divergence(self, other: "ClassGaussian") -> float:
        """KL(self | other)."""
        mixed = torch.linalg.solve_triangular(other.basis, self.basis, upper=False)
        away = torch.linalg.solve_triangular(other.basis, (other.mean - self.mean)[:, None], upper=False)
        volume = other.basis.diagonal().log().sum() - self.basis.diagonal().log().sum()
        return float(0.5 * (mixed.square().sum() + away.square().sum() - len(self.mean)) + volume)


@dataclass
class Expert:
    """A network of its own, and the Gaussians of the classes it knows."""

    state: dict[str, Tensor]
    network: nn.Module
    known: dict[str, ClassGaussian] = field(default_factory=dict)

    def features(self, images: Tensor, preprocessing: Preprocessing) -> Tensor:
        """(N, D), on the CPU, of uint8 images."""
        device = next(self.network.parameters()).device
        with torch.no_grad():
            parts = [self.network(preprocessing.normalize(x.to(device))).cpu() for x in images.split(PREDICT_BATCH)]
        return torch.cat(parts)


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

    def logits(self, images: Tensor) -> Tensor:
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


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    adapter: Adapter | None = None,
    training: Training | None = None,
    progress: Progress = silent,
    experts: int = 5,
    distillation: float = 0.99,
    temperature: float = 3.0,
) -> Iterator[Stage]:
    """Train an ensemble of experts, one of them a task.

    Args:
        backbone: theta0.
        stream: the tasks.
        adapter: what is trained of an expert; all tuned weights if None.
        training: epochs, batches, learning rate, seed.
        progress: told how far the work is.
        experts: at most so many.
        distillation: a, the share of the old features in the loss of an expert that is trained again.
        temperature: of the softmax over log densities.

    Yields:
        The ensemble after each task.
    """
    run = plain_run(backbone, stream, adapter or Full(), training, progress)
    made: list[Expert] = []
    classes: dict[str, tuple[str, ...]] = {}
    for number, task in enumerate(run.stream, start=1):
        laps, classes = Laps(), {**classes, task.name: task.classes}
        place = len(made) if len(made) < experts else least_overlap([_gaussians(e, task, run) for e in made])
        before = made[place] if place < len(made) else None
        laps.lap("set-up")
        trained = _train(run, task, number, before, distillation)
        made[place : place + 1] = [trained]
        laps.lap("training")
        for expert in made:
            expert.known |= dict(zip(task.classes, _gaussians(expert, task, run), strict=True))
        laps.lap("set-up")
        model = Ensemble(tuple(made), classes, backbone.preprocessing, temperature)
        kept = sum(numbers(e.state, *(vars(g) for g in e.known.values())) for e in made)
        yield Stage(model, laps.seconds["set-up"], laps.seconds["training"], kept)


def least_overlap(candidates: Sequence[Sequence[ClassGaussian]]) -> int:
    """Which expert tells a task's classes apart best: the largest mean symmetric divergence between them."""

    def apart(classes: Sequence[ClassGaussian]) -> float:
        pairs = [(a, b) for a in classes for b in classes if a is not b]
        return sum(a.divergence(b) for a, b in pairs) / max(len(pairs), 1)

    scores = [apart(classes) for classes in candidates]
    return scores.index(max(scores))


def _gaussians(expert: Expert, task: Task, run: Run) -> list[ClassGaussian]:
    """Of the task's classes in the expert's features."""
    features = expert.features(task.train.tensor(run.backbone.preprocessing), run.backbone.preprocessing)
    return [ClassGaussian.of(features[task.train.labels == c]) for c in range(len(task.classes))]


def _train(run: Run, task: Task, number: int, before: Expert | None, distillation: float) -> Expert:
    training, backbone = run.training, run.backbone
    images, labels = task.train.tensor(backbone.preprocessing), task.train.labels
    kind, generator = run.stream.augmentation if training.augment else "none", run.generator(number, "training")
    with backbone.attach(run.adapter, run.generator(number, "adapter")) as adapter:
        if before is not None:
            adapter.load(before.state)
        network = run.trained_network()
        width = run.features(task.name, images[:1]).shape[1]
        head = nn.Linear(width, len(task.classes))
        nn.init.uniform_(head.weight, -(width**-0.5), width**-0.5, generator=run.generator(number, "heads"))
        nn.init.zeros_(head.bias)
        head.to(backbone.device)
        parameters = [*adapter.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay, foreach=True)
        for batch in batches(training, len(images), generator):
            batch.set_rate(optimizer)
            x = augment(images[batch.index], kind, backbone.preprocessing, generator).to(backbone.device)
            features = network(x)
            loss = F.cross_entropy(head(features), labels[batch.index].to(features.device))
            finite(run, loss, task.name, batch.epoch)
            if before is not None:
                with torch.no_grad():
                    then = before.network(x)
                loss = (1 - distillation) * loss + distillation * F.mse_loss(features, then)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if batch.ends_epoch:
                run.progress(task.name, "training", batch.epoch + 1, training.epochs)
        state, vector = adapter.state(), adapter.vector()
    known = {} if before is None else dict(before.known)
    return Expert(state, moved(backbone, lambda name, _: vector[name]), known)
